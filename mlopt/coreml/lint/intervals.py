"""Bounds of the integers in a program, as far as the program itself determines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mlopt.mil.dtypes import dtype_of_proto
from mlopt.mil.program import Constant, Node, Variable

Interval = tuple[float, float]
"""The least and the greatest of what numbers can be; infinite where that is not known."""

Shape = tuple[int | None, ...]

UNKNOWN: Interval = (-math.inf, math.inf)

_DEPTH = 40
"""How many operations back are looked at; further ones are unknown."""
_NARROW = {
    "bool": (0, 1),
    "int8": (-(1 << 7), (1 << 7) - 1),
    "uint8": (0, (1 << 8) - 1),
    "int16": (-(1 << 15), (1 << 15) - 1),
    "uint16": (0, (1 << 16) - 1),
    "uint32": (0, math.inf),
}
_HELD = {
    # rearranged
    **dict.fromkeys(("expand_dims", "identity", "reshape", "reshape_like", "squeeze"), ("x",)),
    **dict.fromkeys(("tile", "transpose", "reverse", "depth_to_space", "space_to_depth"), ("x",)),
    # chosen
    **dict.fromkeys(("slice_by_index", "slice_by_size", "split"), ("x",)),
    **dict.fromkeys(("gather", "gather_along_axis", "gather_nd"), ("x",)),
    **dict.fromkeys(("reduce_max", "reduce_min"), ("x",)),
    # joined
    **dict.fromkeys(("concat", "stack"), ("values",)),
    "select": ("a", "b"),
}
"""Inputs of operations whose results hold elements of them, and nothing else: no padding."""


def declared(value: Variable | Constant | None) -> tuple[str, Shape | None]:
    """Element type ("" if not a tensor) and shape of a value; None if the rank is not known."""
    if isinstance(value, Constant):
        return value.dtype, value.shape
    if value is None or value.type.WhichOneof("type") != "tensorType":
        return "", None
    tensor = value.type.tensorType
    dtype = dtype_of_proto(tensor.dataType).name
    if tensor.rank < 0 or any(dimension.unknown.variadic for dimension in tensor.dimensions):
        return dtype, None
    return dtype, tuple(
        d.constant.size if d.WhichOneof("dimension") == "constant" else None
        for d in tensor.dimensions
    )


def given(node: Node, parameter: str) -> Variable | Constant | None:
    """What is bound to a parameter that takes one value; None where that is missing."""
    bound = node.inputs.get(parameter, ())
    return bound[0] if len(bound) == 1 else None


def axis_length(node: Node, parameter: str, default: int) -> int | None:
    """The length of a parameter's value along the ``axis`` of the operation; None if unknown."""
    shape = declared(given(node, parameter))[1]
    try:
        axis = node.scalar("axis", default)
    except ValueError:
        return None
    if shape is None or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis]


def interval_of(value: Variable | Constant | None, depth: int = _DEPTH) -> Interval:
    """Bounds of a value."""
    constant = value.constant if isinstance(value, Variable) else value
    if constant is not None:
        return _of_constant(constant)
    if not isinstance(value, Variable):
        return UNKNOWN
    by_type = _NARROW.get(declared(value)[0], UNKNOWN)
    if value.node is None or depth == 0:
        return by_type
    low, high = _of_result(value.node, value, depth - 1)
    return max(low, by_type[0]), min(high, by_type[1])


def _of_constant(constant: Constant) -> Interval:
    if constant.numpy_dtype is None or constant.numpy_dtype.kind not in "iub" or not constant.size:
        return UNKNOWN
    if constant.dtype not in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"):
        return UNKNOWN  # packed
    values = np.asarray(constant.value())
    return int(values.min()), int(values.max())


def _of_result(node: Node, value: Variable, depth: int) -> Interval:
    op_type = node.op_type
    if op_type in _HELD:
        bound = [one for name in _HELD[op_type] for one in node.inputs.get(name, ())]
        return _union(interval_of(one, depth) for one in bound)
    if op_type == "cast":
        source = given(node, "x")
        is_float = declared(source)[0] in ("fp16", "fp32", "bf16", "")
        return UNKNOWN if is_float else interval_of(source, depth)
    if op_type in _ARITHMETIC:
        x, y = (interval_of(given(node, name), depth) for name in ("x", "y"))
        return _ARITHMETIC[op_type](x, y)
    if op_type in ("reduce_argmax", "reduce_argmin") or (
        op_type == "topk" and _is_last(node, value)
    ):
        length = axis_length(node, "x", -1)
        return (0, math.inf if length is None else length - 1)
    if op_type == "shape":
        shape = declared(given(node, "x"))[1]
        known = [length for length in shape or () if length is not None]
        is_known = shape is not None and len(known) == len(shape) and bool(known)
        return (min(known), max(known)) if is_known else (0, math.inf)
    if op_type == "range_1d":
        start, end = (interval_of(given(node, name), depth) for name in ("start", "end"))
        return _union((start, end))
    return UNKNOWN


def _is_last(node: Node, value: Variable) -> bool:
    return bool(node.outputs) and node.outputs[-1] is value


def _union(intervals: Iterable[Interval]) -> Interval:
    parts = list(intervals)
    if not parts:
        return UNKNOWN
    return min(low for low, _ in parts), max(high for _, high in parts)


def _product(x: Interval, y: Interval) -> Interval:
    if not all(map(math.isfinite, (*x, *y))):
        return (0, math.inf) if x[0] >= 0 and y[0] >= 0 else UNKNOWN
    ends = [a * b for a in x for b in y]
    return min(ends), max(ends)


def _remainder(x: Interval, y: Interval) -> Interval:
    # of a positive divisor, with the sign of the divisor
    return (0, y[1] - 1) if y[0] > 0 else UNKNOWN


_ARITHMETIC: dict[str, Callable[[Any, Any], Interval]] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]),
    "mul": _product,
    "mod": _remainder,
    "maximum": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "minimum": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    **dict.fromkeys(
        ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
        lambda x, y: (0, 1),
    ),
}
