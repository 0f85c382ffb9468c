"""Raising of negative indices, which no operation accepts since CoreML7: count from the front."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from mlopt.mil.dtypes import BY_NAME
from mlopt.mil.messages import ValueType
from mlopt.mil.program import Node, Variable
from mlopt.mil.raising.change import (
    Change,
    Rule,
    Unraisable,
    constant_scalar,
    dtype_of,
    sizes_of,
    type_of,
)
from mlopt.mil.values import immediate_value, string_value, tensor_type

INDEXED = {
    "gather": "x",
    "gather_along_axis": "x",
    "gather_nd": "x",
    "scatter": "data",
    "scatter_along_axis": "data",
    "scatter_nd": "data",
}
"""Operation with ``indices`` -> the input that these index."""


def along_axis(data: str) -> Rule:
    """Return a rule that makes indices into one axis of ``data`` non-negative."""

    def rule(change: Change) -> None:
        _make_non_negative(change, data, _one_axis)

    return rule


def into_leading_axes(data: str) -> Rule:
    """Return a rule that makes indices into the leading axes of ``data`` non-negative."""

    def rule(change: Change) -> None:
        _make_non_negative(change, data, _leading_axes)

    return rule


@attrs.frozen(eq=False)
class _Extents:
    """Sizes of the axes that are indexed: ``sizes[first : first + count]`` of ``data``.

    Attributes
    ----------
    data
        The name of the tensor.
    sizes
        Its shape; None for sizes that are not fixed.
    count
        Number of axes; None: one, and its indices stand alone, not in rows.
    """

    data: str
    sizes: tuple[int | None, ...]
    first: int
    count: int | None

    @property
    def fixed(self) -> np.ndarray | None:
        """Return the sizes as int32 that broadcasts with the indices; None if one is not fixed."""
        sizes = self.sizes[self.first : self.first + (self.count or 1)]
        if None in sizes:
            return None
        return np.array(sizes[0] if self.count is None else sizes, np.int32)


def _one_axis(node: Node, data: str) -> _Extents:
    sizes = _sizes(node, data)
    axis = _scalar(node, "axis")
    if not -len(sizes) <= axis < len(sizes):
        raise Unraisable(f"its axis is {axis}, but {data} has rank {len(sizes)}")
    return _Extents(_name(node, data), sizes, axis % len(sizes), None)


def _leading_axes(node: Node, data: str) -> _Extents:
    skipped = _scalar(node, "batch_dims")
    index_sizes = _sizes(node, "indices")
    depth = index_sizes[-1] if index_sizes else None
    if depth is None:
        raise Unraisable("its indices may be negative, and how many axes they index is not fixed")
    sizes = _sizes(node, data)
    if skipped < 0 or skipped + depth > len(sizes):
        raise Unraisable(f"it indexes more axes than the {len(sizes)} of {data}")
    return _Extents(_name(node, data), sizes, skipped, depth)


def _make_non_negative(change: Change, data: str, extents_of: Any) -> None:
    """Replace the parameter ``indices`` by ``indices >= 0 ? indices : indices + extent``."""
    node = change.node
    bound = node.inputs.get("indices", ())
    if len(bound) != 1 or bound[0] is None:
        raise Unraisable("its indices are bound to nothing")
    constant = node.constant_input("indices")
    if constant is not None:
        _check_index_type(constant.dtype)
        indices = np.asarray(constant.value())
        constant.release()
        if (indices >= 0).all():
            return
        extents = extents_of(node, data)
        if extents.fixed is not None:
            _bind_constant(change, indices, extents.fixed)
            return
        index = change.add_const(
            immediate_value(indices.astype(np.int32)), f"{node.name}_indices_int32"
        )
        _bind_computed(change, index, tensor_type("int32", indices.shape), extents)
        return
    variable = bound[0]
    assert isinstance(variable, Variable)
    if _is_never_negative(variable):
        return
    dtype = dtype_of(variable.type)
    _check_index_type("not a tensor" if dtype is None else dtype.name)
    if dtype in _UNSIGNED:
        return
    result = _retyped(variable.type, _INT32)
    index = variable.name
    if dtype is not BY_NAME["int32"]:  # neither greater_equal nor add accepts short integers
        wanted = change.add_const(string_value("int32"), f"{node.name}_indices_dtype_0")
        index = change.add_op(
            "cast", {"x": index, "dtype": wanted}, result, f"{node.name}_indices_int32"
        )
    _bind_computed(change, index, result, extents_of(node, data))


def _bind_constant(change: Change, indices: np.ndarray, extents: np.ndarray) -> None:
    raised = np.where(indices < 0, indices.astype(np.int32) + extents, indices)
    # A short integer may reach an axis from its end, but not from its beginning.
    if raised.max() <= np.iinfo(indices.dtype).max:
        raised = raised.astype(indices.dtype)
    name = change.add_const(immediate_value(raised), f"{change.node.name}_indices_nonnegative")
    change.bindings["indices"] = name


def _bind_computed(change: Change, index: str, result: ValueType, extents: _Extents) -> None:
    """Bind what is computed from ``index``, the name of an int32 tensor of type ``result``."""
    stem = f"{change.node.name}_indices"
    zero = change.add_const(immediate_value(np.int32(0)), f"{stem}_zero")
    if extents.fixed is not None:
        shift = change.add_const(immediate_value(extents.fixed), f"{stem}_extent")
    else:
        shift = _computed_extents(change, extents, stem)
    inside = change.add_op(
        "greater_equal", {"x": index, "y": zero}, _retyped(result, _BOOL), f"{stem}_inside"
    )
    moved = change.add_op("add", {"x": index, "y": shift}, result, f"{stem}_moved")
    change.bindings["indices"] = change.add_op(
        "select", {"cond": inside, "a": index, "b": moved}, result, f"{stem}_nonnegative"
    )


def _computed_extents(change: Change, extents: _Extents, stem: str) -> str:
    """Add operations that ask the data for its shape when the program runs; return their result."""
    count = extents.count or 1
    shape = change.add_op(
        "shape", {"x": extents.data}, tensor_type("int32", [len(extents.sizes)]), f"{stem}_shape"
    )
    begin = change.add_ints([extents.first], f"{stem}_begin_0")
    size = change.add_ints([count], f"{stem}_size_0")
    name = change.add_op(
        "slice_by_size",
        {"x": shape, "begin": begin, "size": size},
        tensor_type("int32", [count]),
        f"{stem}_extent",
    )
    if extents.count is not None:
        return name
    axes = change.add_ints([0], f"{stem}_axes_0")
    return change.add_op(
        "squeeze", {"x": name, "axes": axes}, tensor_type("int32", ()), f"{stem}_extent_scalar"
    )


_INT32, _BOOL = (BY_NAME[name].proto for name in ("int32", "bool"))
_UNSIGNED = (BY_NAME["uint8"], BY_NAME["uint16"])
_INDEX_TYPES = ("int8", "int16", "int32", "uint8", "uint16")


def _check_index_type(name: str) -> None:
    if name not in _INDEX_TYPES:
        raise Unraisable(f"its indices are {name}, but must be {', '.join(_INDEX_TYPES)}")


def _retyped(value_type: ValueType, proto_dtype: int) -> ValueType:
    """Return a tensor type with the shape of ``value_type`` and other elements."""
    result = type(value_type)()
    result.CopyFrom(value_type)
    result.tensorType.dataType = proto_dtype
    return result


#: Operations that return positions or counts.
_POSITIONS = frozenset({"topk", "reduce_argmax", "reduce_argmin", "argsort", "non_zero", "shape"})
#: Operations whose output has only values of their input ``x``, apart from rounding.
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


def _scalar(node: Node, parameter: str) -> int:
    return int(constant_scalar(node, parameter, 0, int, "its indices may be negative"))


def _name(node: Node, parameter: str) -> str:
    what = node.inputs[parameter][0]
    return what.name if isinstance(what, Variable) else ""


def _sizes(node: Node, parameter: str) -> tuple[int | None, ...]:
    """Return the shape of what is bound to a parameter, None for sizes that are not fixed."""
    sizes = sizes_of(type_of(node, parameter))
    if sizes is None:
        raise Unraisable(f"its indices may be negative, and the rank of {parameter} is not fixed")
    return sizes
