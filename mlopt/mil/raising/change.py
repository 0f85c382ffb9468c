"""Changes to one operation when its function is raised: recorded first, made later.

A rule of ``mlopt.mil.raising.rules`` looks at one operation and fills a ``Change``; it raises
``Unraisable``, with the reason, if no rewrite keeps the meaning.
Nothing is edited before every rule has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from mlopt.mil.dtypes import DType, dtype_of_proto
from mlopt.mil.messages import Operation, Value, ValueType
from mlopt.mil.program import Constant, Node
from mlopt.mil.raising.storage import SameBytes, Storage
from mlopt.mil.values import immediate_value, string_value

#: Names of the element types that real numbers have before CoreML8.
FLOATS = ("fp16", "fp32")


class Unraisable(Exception):
    """An operation cannot be raised; the message is the reason."""


@attrs.define(eq=False)
class Change:
    """The changes to one operation.

    Attributes
    ----------
    node
        The operation.
    unique_name
        Returns a name that the function does not use yet, made from a wanted one.
    before
        New operations that go before it.
    after
        New operations that go after it. The last of them defines what it defined.
    bindings
        Names to bind to its parameters, instead of what is bound there.
    removed
        Parameters that it no longer has.
    output
        The new name and type of its one output, if ``after`` defines the old name.
    op_type
        Its new type; None: the old one.
    values
        The values of a constexpr operation, which become inputs; attributes that are not parameters
        stay. None for other operations.
    """

    node: Node
    unique_name: Callable[[str], str]
    before: list[Operation] = attrs.Factory(list)
    after: list[Operation] = attrs.Factory(list)
    bindings: dict[str, str] = attrs.Factory(dict)
    removed: set[str] = attrs.Factory(set)
    output: tuple[str, ValueType] | None = None
    op_type: str | None = None
    values: dict[str, SameBytes | np.ndarray] | None = None

    def __bool__(self) -> bool:
        return bool(self.before or self.bindings or self.values or self.after)

    def has(self, parameter: str) -> bool:
        """Return whether the parameter is bound, or will be."""
        return parameter in self.node.inputs or parameter in self.bindings

    def add_const(self, value: Value, wanted_name: str) -> str:
        """Put a new constant of ``value`` before the operation; return its name."""
        return self.add_op("const", {}, value.type, wanted_name, val=value)

    def add_ints(self, numbers: Sequence[int], wanted_name: str) -> str:
        """Put a new constant, an int32 vector, before the operation; return its name."""
        return self.add_const(immediate_value(np.array(numbers, np.int32)), wanted_name)

    def add_op(
        self,
        op_type: str,
        inputs: dict[str, str],
        result: ValueType,
        wanted_name: str,
        **attributes: Value,
    ) -> str:
        """Put a new operation with one output of type ``result`` before it; return its name."""
        name = self.unique_name(wanted_name)
        self.before.append(_operation(op_type, inputs, result, name, name, **attributes))
        return name

    def set_default(self, parameter: str, value: Value) -> None:
        """Bind ``parameter`` to a new constant unless it is bound."""
        if not self.has(parameter):
            name = self.add_const(value, f"{self.node.name}_{parameter}_0")
            self.bindings[parameter] = name

    def finish_with(
        self, op_type: str, inputs: dict[str, str], *, x: str, result: ValueType, wanted_name: str
    ) -> None:
        """Add an operation that makes the output from the changed one's result of type ``result``.

        ``x`` is the new operation's parameter for that, ``inputs`` are its other inputs, and
        ``wanted_name`` is the name wanted for the value in between.
        """
        inner = self.unique_name(wanted_name)
        old = self.node.op.outputs[0]
        self.output = inner, result
        self.after.append(
            _operation(
                op_type, {x: inner, **inputs}, old.type, old.name, self.unique_name(old.name)
            )
        )

    def operations(self, storage: Storage) -> list[Operation]:
        """Return the operations that replace the old one, which is not changed.

        ``storage`` stores values in the package that is being written.
        """
        op = Operation()
        op.CopyFrom(self.node.op)
        if self.op_type is not None:
            op.type = self.op_type
        if self.values is not None:
            values = {key: storage.value_of(value) for key, value in self.values.items()}
            for key in self.removed | set(values):
                op.attributes.pop(key, None)
                op.inputs.pop(key, None)
            for key, value in values.items():
                op.inputs[key].arguments.add().value.CopyFrom(value)
        for parameter in self.removed:
            op.inputs.pop(parameter, None)
        for parameter, name in self.bindings.items():
            del op.inputs[parameter].arguments[:]
            op.inputs[parameter].arguments.add().name = name
        if self.output is not None:
            op.outputs[0].name = self.output[0]
            op.outputs[0].type.CopyFrom(self.output[1])
        return [*self.before, op, *self.after]


Rule = Callable[[Change], None]


def constant_scalar(node: Node, parameter: str, default: Any, kind: type, why: str) -> Any:
    """Return the constant scalar bound to a parameter; ``default`` if it is absent.

    Raises
    ------
    Unraisable
        It is computed, not a scalar, or not of the Python type ``kind``. ``why`` says what depends
        on it: "half_pixel_centers follows from it".
    """
    if parameter not in node.inputs:
        return default
    try:
        value = node.scalar(parameter)
    except ValueError:
        raise Unraisable(f"its {parameter} is not a constant scalar, and {why}") from None
    # Not isinstance: a bool is an int, but not an axis.
    if type(value) is not kind:
        raise Unraisable(f"its {parameter} is {value!r}, not {kind.__name__}, and {why}")
    return value


def dtype_of(value_type: ValueType | None) -> DType | None:
    """Return the element type of a tensor type; None for other types."""
    if value_type is None or value_type.WhichOneof("type") != "tensorType":
        return None
    return dtype_of_proto(value_type.tensorType.dataType)


def type_of(node: Node, parameter: str) -> ValueType | None:
    """Return the ``ValueType`` of what is bound to a parameter; None unless that is one value."""
    bound = node.inputs.get(parameter, ())
    if len(bound) != 1 or bound[0] is None:
        return None
    what = bound[0]
    return what.message.type if isinstance(what, Constant) else what.type


def sizes_of(value_type: ValueType | None) -> tuple[int | None, ...] | None:
    """Return the shape of a tensor type, with None for sizes that are not fixed.

    None: it is not a tensor type, or its rank is not fixed.
    """
    if value_type is None or value_type.WhichOneof("type") != "tensorType":
        return None
    dimensions = value_type.tensorType.dimensions
    if any(d.WhichOneof("dimension") == "unknown" and d.unknown.variadic for d in dimensions):
        return None
    return tuple(
        d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in dimensions
    )


def _operation(
    op_type: str,
    inputs: dict[str, str],
    result: ValueType,
    output: str,
    name: str,
    **attributes: Value,
) -> Operation:
    op = Operation(type=op_type)
    op.attributes["name"].CopyFrom(string_value(name))
    for key, value in attributes.items():
        op.attributes[key].CopyFrom(value)
    for parameter, argument in inputs.items():
        op.inputs[parameter].arguments.add().name = argument
    op.outputs.add(name=output).type.CopyFrom(result)
    return op
