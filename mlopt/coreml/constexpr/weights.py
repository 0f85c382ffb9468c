"""The compressed weights of a program: what ordinary operations read, and what makes it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from mlopt.coreml.constexpr.chains import chain_of
from mlopt.coreml.constexpr.evaluation import output_index, value_of
from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.coreml.constexpr.parameters import Array, is_constexpr
from mlopt.mil.program import Constant, Consumer, Node, Variable
from mlopt.mil.values import tensor_type_of

_DESCRIPTIVE = frozenset({"shape", "axis", "vector_axis", "output_dtype"})
"""Parameters that say how to read the others, and store nothing of the weight."""


@attrs.frozen(eq=False)
class CompressedWeight:
    """One weight that a chain of constexpr operations gives.

    variable
        The output of the last of them, which an ordinary operation or a block reads.
    chain
        The operations, each after those that it reads.
    constants
        Everything that is stored of it, each blob once: indices, tables, masks, scales, offsets.
    """

    variable: Variable
    chain: tuple[Node, ...]
    constants: tuple[Constant, ...]

    @property
    def node(self) -> Node:
        """The last operation of the chain."""
        return self.chain[-1]

    @property
    def name(self) -> str:
        """The name that the plain weight has: the operation's, or the output's where it has two."""
        return self.node.name if len(self.node.outputs) == 1 else self.variable.name

    @property
    def function(self) -> str:
        """The name of the function that it is in."""
        return self.node.function

    @property
    def dtype(self) -> str:
        """Element type of the plain weight, "unknown" where the model declares no tensor."""
        declared = tensor_type_of(self.variable.type)
        return "unknown" if declared is None else declared[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""
        declared = tensor_type_of(self.variable.type)
        return () if declared is None else declared[1]

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The ordinary operations that read it."""
        return tuple(use for use in self.variable.consumers if not is_constexpr(use.node))

    @property
    def file_name(self) -> str | None:
        """The weight file that a part of it lies in; None where all is in the message."""
        return next((c.storage[0] for c in self.constants if c.storage is not None), None)

    def value(self) -> Array:
        """The plain weight, read-only; see ``evaluate``."""
        return value_of(self.variable)

    def release(self) -> None:
        """Drop the pages of what is stored from memory; they are read again when needed."""
        for constant in self.constants:
            constant.release()


def compressed_weights(nodes: Iterable[Node]) -> list[CompressedWeight]:
    """The compressed weights among the operations of a program, in program order.

    An output that only further constexpr operations read is a part of theirs. An operation of which
    nothing is read counts with all of its outputs.

    Raises
    ------
    ModelFormatError
        A chain is too long.
    """
    found: list[CompressedWeight] = []
    for node in nodes:
        if not is_constexpr(node):
            continue
        wanted = [output for output in node.outputs if is_read(output)]
        if not any(output.consumers for output in node.outputs):
            wanted = node.outputs
        if wanted:
            chain = tuple(chain_of(node))
            constants = tuple(_stored(chain))
            found.extend(CompressedWeight(output, chain, constants) for output in wanted)
    return found


def is_read(variable: Variable) -> bool:
    """Whether an ordinary operation or a block reads it."""
    return variable.is_block_output or any(not is_constexpr(u.node) for u in variable.consumers)


def is_part(constant: Constant) -> bool:
    """Whether a constant only serves constexpr operations."""
    readers = constant.consumers
    return (
        bool(readers)
        and all(is_constexpr(use.node) for use in readers)
        and not constant.is_block_output
    )


class ContentKeys:
    """Numbers for constexpr operations: equal where type, parameters and stored blobs are equal."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._of_nodes: dict[int, tuple[Node, int]] = {}

    def __call__(self, weight: CompressedWeight) -> tuple[int, int, str, tuple[int, ...]]:
        """The key of a weight: equal for weights of equal content in one package."""
        for node in weight.chain:
            if id(node) not in self._of_nodes:
                number = self._numbers.setdefault(self._content(node), len(self._numbers))
                self._of_nodes[id(node)] = (node, number)
        return (
            self._of_nodes[id(weight.node)][1],
            output_index(weight.variable),
            weight.dtype,
            weight.shape,
        )

    def _content(self, node: Node) -> object:
        parameters = tuple(
            (name, tuple(self._bound(value) for value in node.inputs.get(name, ())))
            for name in sorted(parameter_names(node))
        )
        return node.op_type, parameters

    def _bound(self, value: Variable | Constant | None) -> object:
        if isinstance(value, Variable) and value.constant is not None:
            value = value.constant
        if isinstance(value, Constant):
            # Of equal bytes only one blob is stored, whatever the shapes.
            content = value.storage or value.message.SerializeToString(deterministic=True)
            return content, value.dtype, value.shape
        if value is None or value.node is None or id(value.node) not in self._of_nodes:
            return id(value)
        return self._of_nodes[id(value.node)][1], output_index(value)


def _stored(chain: Iterable[Node]) -> Iterator[Constant]:
    seen: set[object] = set()
    for node in chain:
        for parameter in sorted(parameter_names(node) - _DESCRIPTIVE):
            for bound in node.inputs.get(parameter, ()):
                constant = bound.constant if isinstance(bound, Variable) else bound
                if constant is None:
                    continue
                key = (constant.storage or id(constant.message), constant.dtype, constant.shape)
                if key not in seen:
                    seen.add(key)
                    yield constant
