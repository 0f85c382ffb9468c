"""Bound weights: values bound to parameters directly become named constants.

A parameter of an operation takes the name of a variable, or a value. coremltools writes the names
of const operations; other writers bind the values themselves, held by the message or the weight
file. Both mean the same. A program is given the first form when it is opened, so that a look at the
constants finds all of them, and so that coremltools can read what is written: it refuses values
bound from the weight file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs

from mlopt.mil.edits import Edits
from mlopt.mil.messages import Binding, Block, Operation, Value
from mlopt.mil.names import UniqueNames
from mlopt.mil.program import Node, Program
from mlopt.mil.values import string_value, tensor_type_of
from mlopt.mil.walk import by_key

SMALLEST = 10
"""Elements from which a constant counts as a weight: coremltools writes fewer into the message."""


@attrs.frozen(eq=False)
class _Bound:
    """A binding whose value gets a name, and the operation that has it."""

    node: Node
    binding: Binding
    name: str


def name_bound_values(program: Program) -> None:
    """Move the weights that operations have bound as values into const operations.

    Such a constant stands before the operation, in its block. It is called
    ``"<operation>_<parameter>_<index>"``, as coremltools names an array that is passed to an
    operation, with a number appended if its function uses that name already.

    A weight is a tensor in the weight file, or one of at least ``SMALLEST`` numbers. Smaller
    tensors, strings and lists are options of the operation and stay there, and so do all values of
    constexpr operations, which are parts of a compressed weight, and of custom layers, whose code
    may depend on where they are.
    """
    if not any(_has_weights(function.block) for function in program.functions):
        return
    nodes = program.nodes()
    edits = Edits()
    bound: list[_Bound] = []
    for function in program.functions:
        unique_name = UniqueNames(nodes, function)
        for node in (node for node in nodes if node.function == function.name):
            of_node = [
                _Bound(node, binding, unique_name(f"{node.name}_{parameter}_{index}"))
                for parameter, index, binding in _weights_of(node.op)
            ]
            if of_node:
                edits.replace(node.block, node.op, [*map(_const, of_node), node.op])
                bound += of_node
    edits.apply()
    _move_values(bound)


def _has_weights(block: Block) -> bool:
    """Return whether there is anything to do, by a quick test: in most models there is not."""
    for op in block.operations:
        if op.type == "const":
            continue
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.HasField("value") and _is_weight(binding.value) and _may_name(op):
                    return True
        if len(op.blocks) and any(map(_has_weights, op.blocks)):
            return True
    return False


def _may_name(op: Operation) -> bool:
    return op.type not in ("const", "custom_layer") and not op.type.startswith("constexpr_")


def _weights_of(op: Operation) -> Iterator[tuple[str, int, Binding]]:
    """Yield parameter, index and binding of each weight that an operation has bound as a value."""
    if not _may_name(op):
        return
    for parameter, argument in by_key(op.inputs):
        for index, binding in enumerate(argument.arguments):
            if binding.HasField("value") and _is_weight(binding.value):
                yield parameter, index, binding


def _is_weight(value: Value) -> bool:
    if value.WhichOneof("value") == "blobFileValue":
        return True
    typed = tensor_type_of(value.type)
    return typed is not None and typed[0].name != "string" and math.prod(typed[1]) >= SMALLEST


def _const(bound: _Bound) -> Operation:
    """Return the const operation, without its value so far."""
    op = Operation(type="const")
    op.attributes["name"].CopyFrom(string_value(bound.name))
    op.outputs.add(name=bound.name).type.CopyFrom(bound.binding.value.type)
    return op


def _move_values(bindings: Iterable[_Bound]) -> None:
    """Give the constants their values, copying each once, since they may be large."""
    blocks = {id(bound.node.block): bound.node.block for bound in bindings}
    consts = {
        (function_block, op.outputs[0].name): op
        for function_block, block in blocks.items()
        for op in block.operations
        if op.type == "const" and "val" not in op.attributes and op.outputs
    }
    for bound in bindings:
        const = consts[id(bound.node.block), bound.name]
        const.attributes["val"].CopyFrom(bound.binding.value)
        bound.binding.name = bound.name
