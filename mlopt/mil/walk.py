"""Walks over a program's messages, in an order that depends only on their content.

Protobuf maps have no order of their own, so every walk sorts their keys: what is visited first is
stored first, and the same model must give the same file each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mlopt.mil.messages import Block, FunctionMessage, Operation, ProgramMessage, Value, ValueType


def by_key(messages: Any) -> list[tuple[str, Any]]:
    """Return the entries of a protobuf map sorted by key."""
    return sorted(messages.items()) if len(messages) > 1 else list(messages.items())


def functions_in_order(program: ProgramMessage) -> list[tuple[str, FunctionMessage]]:
    """Return the functions of a program by name, "main" first."""
    return sorted(program.functions.items(), key=lambda entry: (entry[0] != "main", entry[0]))


class Placed(NamedTuple):
    """A ``Value`` and its place: the function's name and the operation, None outside one."""

    value: Value
    function: str | None = None
    op: Operation | None = None


def file_values(program: ProgramMessage) -> Iterator[Value]:
    """Yield every ``Value`` of a program that is stored in a weight file, at any depth.

    It covers what ``every_value`` covers, in the same order.
    """
    for placed in every_value(program):
        if placed.value.WhichOneof("value") == "blobFileValue":
            yield placed.value


def every_value(program: ProgramMessage) -> Iterator[Placed]:
    """Yield every ``Value`` of a program and its place, containers before what they hold.

    It covers all specializations of all functions, nested blocks, attributes at every level,
    bound inputs, lists, tuples and dictionaries of values, and the attributes of tensor types.
    """
    for value in _in_map(program.attributes):
        yield Placed(value)
    for name, function in functions_in_order(program):
        for value in _in_map(function.attributes):
            yield Placed(value, name)
        for value in _in_named_types(function.inputs):
            yield Placed(value, name)
        for _, block in by_key(function.block_specializations):
            yield from _in_block(block, name)


def _in_block(block: Block, function: str) -> Iterator[Placed]:
    for value in _in_map(block.attributes):
        yield Placed(value, function)
    for value in _in_named_types(block.inputs):
        yield Placed(value, function)
    for op in block.operations:
        for value in _in_operation(op):
            yield Placed(value, function, op)
        for nested in op.blocks:
            yield from _in_block(nested, function)


def _in_operation(op: Operation) -> Iterator[Value]:
    """Yield the values of an operation without those of its blocks."""
    yield from _in_map(op.attributes)
    for _, argument in by_key(op.inputs):
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield from _in_value(binding.value)
    yield from _in_named_types(op.outputs)


def _in_map(values: Any) -> Iterator[Value]:
    if len(values):
        for _, value in by_key(values):
            yield from _in_value(value)


def _in_named_types(named: Iterable[Any]) -> Iterator[Value]:
    for item in named:
        yield from _in_type(item.type)


def _in_value(value: Value) -> Iterator[Value]:
    yield value
    yield from _in_type(value.type)
    if value.WhichOneof("value") == "immediateValue":
        immediate = value.immediateValue
        kind = immediate.WhichOneof("value")
        if kind in ("list", "tuple"):
            for item in getattr(immediate, kind).values:
                yield from _in_value(item)
        elif kind == "dictionary":
            for pair in immediate.dictionary.values:
                yield from _in_value(pair.key)
                yield from _in_value(pair.value)


def _in_type(value_type: ValueType) -> Iterator[Value]:
    kind = value_type.WhichOneof("type")
    if kind == "tensorType":
        yield from _in_map(value_type.tensorType.attributes)
    elif kind == "listType":
        yield from _in_type(value_type.listType.type)
    elif kind == "tupleType":
        for item in value_type.tupleType.types:
            yield from _in_type(item)
    elif kind == "dictionaryType":
        yield from _in_type(value_type.dictionaryType.keyType)
        yield from _in_type(value_type.dictionaryType.valueType)
    elif kind == "stateType":
        yield from _in_type(value_type.stateType.wrappedType)
