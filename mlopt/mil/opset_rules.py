"""What has to change in an operation when its function is raised by one opset.

Most operations that a newer opset redefines only accept more types. Those whose signature or
meaning changed each have a rule here. A rule looks at one operation and notes in a ``Change`` what
is to be done; it raises ``Unraisable``, with the reason, where no rewrite keeps the meaning. New
parameters are written out although they are optional, because the Core ML compiler rejects an
operation that lacks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from mlopt.mil.dtypes import dtype_of_proto
from mlopt.mil.messages import Operation
from mlopt.mil.program import Constant, Node, Variable
from mlopt.mil.values import (
    immediate_value,
    scalar_type,
    string_value,
    tensor_type,
)


class Unraisable(Exception):
    """An operation cannot be raised; the message is the reason."""


@attrs.define(eq=False)
class Change:
    """What is to be done to one operation.

    Attributes
    ----------
    node
        The operation.
    unique_name
        Gives a name that the function does not use yet, made from a wanted one.
    before
        New operations that go before it.
    bindings
        Names to bind to its parameters, in place of what is bound there.
    attributes_to_inputs
        Whether its attributes other than the name become inputs.
    """

    node: Node
    unique_name: Callable[[str], str]
    before: list[Any] = attrs.Factory(list)
    bindings: dict[str, str] = attrs.Factory(dict)
    attributes_to_inputs: bool = False

    def __bool__(self) -> bool:
        return bool(self.before or self.bindings or self.attributes_to_inputs)

    def has(self, parameter: str) -> bool:
        """Return whether the parameter is bound, or will be."""
        return parameter in self.node.inputs or parameter in self.bindings

    def add_const(self, value: Any, wanted_name: str) -> str:
        """Put a new constant of ``value`` (a ``Value``) before the operation; return its name."""
        return self.add_op("const", {}, value.type, wanted_name, val=value)

    def add_op(
        self, op_type: str, inputs: dict[str, str], result: Any, wanted_name: str, **attributes: Any
    ) -> str:
        """Put a new operation with one output of type ``result`` before it; return its name."""
        name = self.unique_name(wanted_name)
        op = Operation(type=op_type)
        op.attributes["name"].CopyFrom(string_value(name))
        for key, value in attributes.items():
            op.attributes[key].CopyFrom(value)
        for parameter, argument in inputs.items():
            op.inputs[parameter].arguments.add().name = argument
        op.outputs.add(name=name).type.CopyFrom(result)
        self.before.append(op)
        return name

    def set_default(self, parameter: str, value: Any) -> None:
        """Bind ``parameter`` to a new constant unless it is bound."""
        if not self.has(parameter):
            name = self.add_const(value, f"{self.node.name}_{parameter}_0")
            self.bindings[parameter] = name

    def apply(self) -> None:
        """Change the operation itself; the new operations are for the caller to insert."""
        op = self.node.op
        if self.attributes_to_inputs:
            for key in sorted(op.attributes):
                if key != "name":
                    op.inputs[key].arguments.add().value.CopyFrom(op.attributes[key])
                    del op.attributes[key]
        for parameter, name in self.bindings.items():
            del op.inputs[parameter].arguments[:]
            op.inputs[parameter].arguments.add().name = name


Rule = Callable[[Change], None]


def _defaults(**values: Any) -> Rule:
    """Return a rule that writes out new parameters with the values they stand for when absent."""

    def rule(change: Change) -> None:
        for parameter, value in values.items():
            change.set_default(parameter, immediate_value(value))

    return rule


def _both(first: Rule, second: Rule) -> Rule:
    def rule(change: Change) -> None:
        first(change)
        second(change)

    return rule


def _refuse(reason: str) -> Rule:
    """Return a rule that gives up for ``reason``."""

    def rule(change: Change) -> None:
        raise Unraisable(reason)

    return rule


def _upsample_bilinear(change: Change) -> None:
    """Pixel centres were at halves exactly where corners were not aligned."""
    try:
        aligned = change.node.scalar("align_corners", True)
    except ValueError:
        raise Unraisable(
            "align_corners is computed, and half_pixel_centers follows from it"
        ) from None
    change.set_default("half_pixel_centers", immediate_value(np.bool_(not aligned)))


def _crop_resize(change: Change) -> None:
    """Outside of the image lies zero, of the image's type."""
    bound = change.node.inputs.get("x", ())
    types = [v.type for v in bound if isinstance(v, Variable)]
    if len(types) != 1 or types[0].WhichOneof("type") != "tensorType":
        raise Unraisable("the type of x, which pad_value takes, is unknown")
    dtype = dtype_of_proto(types[0].tensorType.dataType)
    change.set_default("pad_value", immediate_value(np.zeros((), np.float32), dtype.name))


def _clip(change: Change) -> None:
    """Equal or swapped bounds are rejected since CoreML7."""
    try:
        low, high = change.node.scalar("alpha"), change.node.scalar("beta")
    except ValueError:
        return
    if low is not None and high is not None and not low < high:
        raise Unraisable(f"it clips to [{low}, {high}], and alpha has to be less than beta")


def _gru(change: Change) -> None:
    """The reset gate came before the product, and there was one bias."""
    change.set_default("reset_after", immediate_value(np.bool_(False)))
    weight = change.node.constant_input("weight_hh")
    if weight is None:
        raise Unraisable("weight_hh, from which the shape of input_bias follows, is computed")
    zeros = np.zeros(weight.shape[:1], np.float32)
    change.set_default("input_bias", immediate_value(zeros, weight.dtype))


def _to_inputs(change: Change) -> None:
    change.attributes_to_inputs = True


def _along_axis(data: str) -> Rule:
    """Return a rule that makes indices into one axis of ``data`` non-negative."""

    def rule(change: Change) -> None:
        node = change.node

        def extent() -> np.ndarray:
            try:
                axis = int(node.scalar("axis", 0))
            except ValueError:
                raise Unraisable("its indices may be negative, and its axis is computed") from None
            sizes = _sizes(node, data)
            size = sizes[axis] if -len(sizes) <= axis < len(sizes) else None
            if size is None:
                raise Unraisable(_NOT_FIXED.format(data))
            return np.array(size, np.int32)

        _make_non_negative(change, extent)

    return rule


def _nd(data: str) -> Rule:
    """Return a rule that makes indices into the leading axes of ``data`` non-negative."""

    def rule(change: Change) -> None:
        node = change.node

        def extent() -> np.ndarray:
            try:
                skipped = int(node.scalar("batch_dims", 0))
            except ValueError:
                raise Unraisable(
                    "its indices may be negative, and batch_dims is computed"
                ) from None
            index_sizes = _sizes(node, "indices")
            depth = index_sizes[-1] if index_sizes else None
            if depth is None:
                raise Unraisable(_NOT_FIXED.format("indices"))
            sizes = _sizes(node, data)[skipped : skipped + depth]
            if None in sizes or len(sizes) != depth:
                raise Unraisable(_NOT_FIXED.format(data))
            return np.array(sizes, np.int32)

        _make_non_negative(change, extent)

    return rule


def _make_non_negative(change: Change, extent: Callable[[], np.ndarray]) -> None:
    """Replace the parameter ``indices`` by ``indices >= 0 ? indices : indices + extent()``.

    ``extent`` gives int32 that broadcasts against the indices; it is called only if they may be
    negative.
    """
    node = change.node
    bound = node.inputs.get("indices", ())
    if len(bound) != 1 or bound[0] is None:
        raise Unraisable("its indices are bound to nothing")
    constant = node.constant_input("indices")
    if constant is not None:
        indices = np.asarray(constant.value())
        if (indices >= 0).all():
            return
        raised = np.where(indices < 0, indices + extent(), indices).astype(indices.dtype)
        name = change.add_const(immediate_value(raised), f"{node.name}_indices_nonnegative")
        change.bindings["indices"] = name
        return
    variable = bound[0]
    assert isinstance(variable, Variable)
    if _is_never_negative(variable):
        return
    tensor = variable.type.tensorType
    kind = tensor_type(dtype="bool", shape=())
    integer = tensor_type(dtype="int32", shape=())
    if tensor.dataType not in (integer.tensorType.dataType, _INT16):
        return  # unsigned
    size = extent()
    index = variable.name
    stem = f"{node.name}_indices"
    result = _retyped(variable.type, integer)
    if tensor.dataType == _INT16:  # neither greater_equal nor add takes 16-bit integers
        dtype = change.add_const(string_value("int32"), f"{stem}_dtype_0")
        index = change.add_op("cast", {"x": index, "dtype": dtype}, result, f"{stem}_int32")
    zero = change.add_const(immediate_value(np.int32(0)), f"{stem}_zero")
    shift = change.add_const(immediate_value(size), f"{stem}_extent")
    inside = change.add_op(
        "greater_equal", {"x": index, "y": zero}, _retyped(variable.type, kind), f"{stem}_inside"
    )
    moved = change.add_op("add", {"x": index, "y": shift}, result, f"{stem}_moved")
    change.bindings["indices"] = change.add_op(
        "select", {"cond": inside, "a": index, "b": moved}, result, f"{stem}_nonnegative"
    )


_INT16 = scalar_type("int16").tensorType.dataType


def _retyped(value_type: Any, element: Any) -> Any:
    """Return a tensor type with the shape of ``value_type`` and the elements of ``element``."""
    result = type(value_type)()
    result.CopyFrom(value_type)
    result.tensorType.dataType = element.tensorType.dataType
    return result


_NOT_FIXED = (
    "its indices may be negative, which the newer opset does not allow, and the shape of {} is not "
    "fixed"
)
#: Operations that give positions or counts.
_POSITIONS = frozenset({"topk", "reduce_argmax", "reduce_argmin", "argsort", "non_zero", "shape"})
#: Operations whose output has no other values than their input ``x``, but for rounding.
_SAME_VALUES = frozenset(
    {"cast", "identity", "reshape", "expand_dims", "squeeze", "transpose", "tile", "slice_by_index"}
)


def _is_never_negative(variable: Variable) -> bool:
    """Return whether it is known to be a position, which needs no rewrite."""
    node = variable.node
    while node is not None and node.op_type in _SAME_VALUES:
        bound = node.inputs.get("x", ())
        if len(bound) != 1 or not isinstance(bound[0], Variable):
            return False
        variable = bound[0]
        node = variable.node
    if node is None or node.op_type not in _POSITIONS:
        return False
    # The first output of topk holds values, not positions.
    return node.op_type != "topk" or (len(node.outputs) == 2 and variable is node.outputs[1])


def _sizes(node: Node, parameter: str) -> tuple[int | None, ...]:
    """Return the shape of what is bound to a parameter, None for sizes that are not fixed."""
    bound = node.inputs.get(parameter, ())
    if len(bound) != 1 or bound[0] is None:
        return ()
    what = bound[0]
    tensor = (what.message.type if isinstance(what, Constant) else what.type).tensorType
    return tuple(
        size.constant.size if size.WhichOneof("dimension") == "constant" else None
        for size in tensor.dimensions
    )


_VALIDATE = _defaults(validate_indices=np.bool_(False))
_REPACK = _refuse(
    "the newer opset stores its compressed weight in another form; decompress the weight first"
)

#: What each opset changed: new opset -> operation type -> rule.
RULES: dict[str, dict[str, Rule]] = {
    "CoreML5": {},
    "CoreML6": {
        "gather": _defaults(batch_dims=np.int32(0)),
        "gather_nd": _defaults(batch_dims=np.int32(0)),
        "topk": _defaults(sort=np.bool_(True), return_indices=np.bool_(True)),
        "upsample_bilinear": _upsample_bilinear,
        "crop_resize": _crop_resize,
    },
    "CoreML7": {
        "gather": _both(_along_axis("x"), _VALIDATE),
        "gather_along_axis": _both(_along_axis("x"), _VALIDATE),
        "gather_nd": _both(_nd("x"), _VALIDATE),
        "scatter": _both(_along_axis("data"), _VALIDATE),
        "scatter_along_axis": _both(_along_axis("data"), _VALIDATE),
        "scatter_nd": _both(_nd("data"), _VALIDATE),
        "topk": _defaults(output_indices_dtype="int32"),
        "reduce_argmax": _defaults(output_dtype="int32"),
        "reduce_argmin": _defaults(output_dtype="int32"),
        "clip": _clip,
        "crop_resize": _refuse("the newer opset takes boxes and box_indices instead of roi"),
        "non_maximum_suppression": _refuse(
            "the newer opset orders boxes along the last axis, has no score_threshold and does not "
            "return the number of boxes"
        ),
    },
    "CoreML8": {
        "gru": _gru,
        "constexpr_cast": _to_inputs,
        "constexpr_lut_to_dense": _REPACK,
        "constexpr_sparse_to_dense": _REPACK,
    },
    "CoreML9": {},
}
