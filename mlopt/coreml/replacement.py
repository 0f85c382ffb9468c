"""Replacements of operations by palettes, with opset raises in the same edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from mlopt.coreml.biases import NewBias, bias_operation
from mlopt.coreml.emission import PackedPalette, PaletteOperations
from mlopt.mil.edits import Edits
from mlopt.mil.messages import Operation
from mlopt.mil.names import UniqueNames
from mlopt.mil.program import Constant, Node, Program, Variable
from mlopt.mil.raising.upgrade import OpsetRaise
from mlopt.mil.targets import Target, opset_target
from mlopt.mil.value_store import ValueStore


class Replacements:
    """Replacements of operations by palettes: collected, then made together by ``apply``.

    Parameters
    ----------
    raises
        Opset raises to make in the same edit. Their values are stored first. Where a raise and a
        palette replace the same operation, the palette wins.
    """

    def __init__(self, writer: ValueStore, raises: Iterable[OpsetRaise] = ()) -> None:
        self._writer = writer
        self._edits = Edits()
        self._targets: dict[tuple[int, str], Target] = {}
        # names that are not in use yet, by function; a program is read for its first one
        self._names: dict[tuple[int, str], UniqueNames] = {}
        for each in raises:
            each.add_to(self._edits, writer)
            for function in each.functions:
                key = id(each.program), function.name
                self._targets[key] = each.target
                self._names[key] = each.names[function.name]
        # how often operations that are replaced read a variable, by its id
        self._uses: Counter[int] = Counter()

    def replace(
        self,
        program: Program,
        nodes: Sequence[Node],
        palette: PackedPalette,
        *,
        file_name: str | None,
        bias: NewBias | None = None,
    ) -> None:
        """Store a palette once, and replace each of the nodes by operations on it.

        Parameters
        ----------
        nodes
            Operations of ``program`` that give the same weight: the const of a plain weight, or
            the constexpr operation of a compressed one. Name, output and type stay.
        file_name
            The weight file for the palette as the model names it; None for the default one.
        bias
            A bias for the operation that reads the weight; None leaves it as it is.
        """
        functions = {function.name: function for function in program.functions}
        operations: dict[Target, PaletteOperations] = {}
        for node in nodes:
            function = functions[node.function]
            key = id(program), node.function
            target = self._targets.get(key) or opset_target(function.opset)
            if target not in operations:
                operations[target] = PaletteOperations(
                    palette, self._writer, target=target, file_name=file_name
                )
            if key not in self._names:
                self._names[key] = UniqueNames(program.nodes(), function)
            made = operations[target].replacing(node, self._names[key])
            if bias is not None:
                made.insert(0, self._bias_operation(bias, self._names[key], target, file_name))
            self._edits.replace(node.block, node.op, made)
            for constant in self._unread_constants(node):
                self._edits.replace(constant.block, constant.op, [])

    def apply(self) -> None:
        """Make all replacements."""
        self._edits.apply()

    def _bias_operation(
        self, bias: NewBias, unique_name: UniqueNames, target: Target, file_name: str | None
    ) -> Operation:
        """The const operation of a new bias, which its reader is bound to in the end."""
        place, values = bias.place, bias.values
        old = place.bias
        op = bias_operation(
            unique_name(f"{place.reader.name}_bias"), place.element_type, values.shape
        )
        op.attributes["val"].CopyFrom(
            self._writer.add_value(
                values,
                place.element_type,
                values.shape,
                specification_version=target.specification_version,
                file_name=file_name,
            )
        )
        self._edits.bind(place.reader.op, "bias", op.outputs[0].name)
        if old is not None and old.variable is not None and self._is_last_use(old.variable):
            self._edits.replace(old.block, old.op, [])
        return op

    def _is_last_use(self, variable: Variable) -> bool:
        """Whether nothing reads a variable when one more of its readers goes."""
        self._uses[id(variable)] += 1
        is_last = self._uses[id(variable)] == len(variable.consumers)
        return is_last and not variable.is_block_output

    def _unread_constants(self, node: Node) -> Iterator[Constant]:
        """Yield the const operations that nothing reads once ``node`` is replaced as well."""
        for bindings in node.inputs.values():
            for bound in bindings:
                if not isinstance(bound, Variable) or bound.constant is None:
                    continue
                if self._is_last_use(bound):
                    yield bound.constant
