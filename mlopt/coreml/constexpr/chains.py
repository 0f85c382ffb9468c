"""Chains of constexpr operations: those that make up one weight, in order, and their constants."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator

from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.coreml.constexpr.parameters import is_constexpr, refusal
from mlopt.mil.program import Constant, Node, Variable
from mlopt.mil.values import tensor_type_of

_LONGEST = 64
"""Operations that make one weight, at most. Three or four do in any model that was compressed;
the limit keeps a damaged one from costing the square of its length."""

_DESCRIPTIVE = frozenset({"shape", "axis", "vector_axis", "output_dtype"})
"""Parameters that say how to read the others, and store no part of the weight."""


def chain_of(node: Node) -> list[Node]:
    """The constexpr operations behind ``node``, each after those it reads, ``node`` itself last.

    Raises
    ------
    ModelFormatError
        The chain is longer than that of any real weight.
    """
    ordered: list[Node] = []
    seen = {id(node)}
    # Without recursion: what a file holds must not exhaust the stack.
    pending = [(node, producers(node))]
    while pending:
        at, sources = pending[-1]
        source = next((s for s in sources if id(s) not in seen), None)
        if source is None:
            ordered.append(at)
            pending.pop()
            continue
        seen.add(id(source))
        if len(seen) > _LONGEST:
            raise refusal(node, f"more than {_LONGEST} constexpr operations make up its value")
        pending.append((source, producers(source)))
    return ordered


def producers(node: Node) -> Iterator[Node]:
    """The constexpr operations whose outputs ``node`` reads, once for each use."""
    for bindings in node.inputs.values():
        for bound in bindings:
            if isinstance(bound, Variable) and bound.node is not None and is_constexpr(bound.node):
                yield bound.node


def stored_constants(chain: Iterable[Node]) -> tuple[Constant, ...]:
    """The constants that a chain stores for its weight, each blob once.

    Indices, tables, masks, scales and offsets, without parameters that only say how to read them.
    """
    stored: dict[Hashable, Constant] = {}
    for node in chain:
        for parameter in sorted(parameter_names(node) - _DESCRIPTIVE):
            for bound in node.inputs.get(parameter, ()):
                constant = bound.constant if isinstance(bound, Variable) else bound
                if constant is not None:
                    where = constant.storage or id(constant.message)
                    stored.setdefault((where, constant.dtype, constant.shape), constant)
    return tuple(stored.values())


def content_of_constant(constant: Constant) -> Hashable:
    """Equal for constants of one type and shape that share a blob or have equal messages."""
    where: Hashable = constant.storage
    if where is None:
        message = constant.message.SerializeToString(deterministic=True)
        where = hashlib.blake2b(message, digest_size=16).digest()
    return where, constant.dtype, constant.shape


def content_of_output(output: Variable, chain: Iterable[Node]) -> Hashable:
    """Equal for outputs that the same operations give, of the same parameters and stored blobs.

    ``chain``: that of the operation of ``output``.
    """
    numbers: dict[int, Hashable] = {}  # of what the chain's operations give, by its id
    operations = []
    for node in chain:
        parameters = tuple(
            (name, tuple(_content_of_bound(bound, numbers) for bound in node.inputs.get(name, ())))
            for name in sorted(parameter_names(node))
        )
        types = tuple(tensor_type_of(each.type) for each in node.outputs)
        operations.append((node.op_type, parameters, types))
        numbers |= {id(each): (len(operations), i) for i, each in enumerate(node.outputs)}
    return tuple(operations), numbers[id(output)]


def _content_of_bound(bound: Variable | Constant | None, numbers: dict[int, Hashable]) -> Hashable:
    if isinstance(bound, Variable) and bound.constant is not None:
        bound = bound.constant
    if isinstance(bound, Constant):
        return content_of_constant(bound)
    return numbers.get(id(bound), id(bound))
