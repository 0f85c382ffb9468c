"""Raising crop_resize to CoreML7, which takes boxes and image numbers instead of ``roi``."""

from __future__ import annotations

import numpy as np

from mlopt.mil.dtypes import DType
from mlopt.mil.messages import ValueType
from mlopt.mil.program import Variable
from mlopt.mil.raising.change import (
    FLOATS,
    Change,
    Unraisable,
    constant_scalar,
    dtype_of,
    sizes_of,
    type_of,
)
from mlopt.mil.values import immediate_value, tensor_type, tensor_type_of

#: The parameter values that are known to have kept their meaning, and the defaults.
_KEPT = {
    "sampling_mode": ("ALIGN_CORNERS", "DEFAULT"),
    "box_coordinate_mode": ("CORNERS_HEIGHT_FIRST", "CORNERS_HEIGHT_FIRST"),
    "spatial_scale": (1.0, 1.0),
}


def pad_value(change: Change) -> None:
    """Outside the image are zeros of the image's type."""
    dtype = dtype_of(type_of(change.node, "x"))
    if dtype is None or dtype.name not in FLOATS:
        raise Unraisable(f"the type of x, which pad_value takes, is not one of {FLOATS}")
    change.set_default("pad_value", immediate_value(np.zeros((), np.float32), dtype))


def boxes(change: Change) -> None:
    """``roi`` [N, 1, 4 or 5, 1, 1] becomes ``boxes`` [N, 4]; the output loses its axis 1.

    With several images the number in ``roi`` (5) or the crops of every image (4) would have to be
    spread over boxes, and what the output's axis 1 is then, documentation and coremltools disagree
    about: that is refused. With one image it has the number 0, and axis 1 the size 1, which an
    expand_dims puts back.

    The other parameters are documented as before, but for what ``_KEPT`` leaves out nothing shows
    that devices agree, and for UNALIGN_CORNERS something against it: coremltools' tests for older
    targets expect the whole image, whatever the box. coremltools itself writes only what ``_KEPT``
    has, for targets of both kinds, and its tests expect the same pixels from both.
    """
    node = change.node
    for parameter, (kept, default) in _KEPT.items():
        why = f"only {kept} is known to mean the same in the newer opset"
        value = constant_scalar(node, parameter, default, type(kept), why)
        if value != kept:
            raise Unraisable(f"its {parameter} is {value}, and {why}")
    image, roi = sizes_of(type_of(node, "x")), sizes_of(type_of(node, "roi"))
    output = sizes_of(node.outputs[0].type)
    dtype = dtype_of(type_of(node, "roi"))
    if dtype is None or dtype.name not in FLOATS:
        raise Unraisable(f"its roi is not one of {FLOATS}")
    if image is None or len(image) != 4 or image[0] != 1:
        raise Unraisable("the newer opset takes boxes for roi, which is rewritten for one image")
    count = roi[0] if roi else None
    if count is None or roi not in [(count, 1, 4, 1, 1), (count, 1, 5, 1, 1)]:
        raise Unraisable(
            "the newer opset takes boxes for roi, whose shape is not a fixed [N, 1, 4 or 5, 1, 1]"
        )
    if output is None or len(output) != 5 or output[:2] != (count, 1) or None in output:
        raise Unraisable(f"its output is not of the shape [{count}, 1, channels, height, width]")

    change.removed.add("roi")
    change.bindings["boxes"] = _boxes(change, dtype, count, roi[2] or 0)
    indices = np.zeros(count, np.int32)
    change.bindings["box_indices"] = change.add_const(
        immediate_value(indices), f"{node.name}_box_indices"
    )
    axes = change.add_ints([1], f"{node.name}_axes_0")
    change.finish_with(
        "expand_dims",
        {"axes": axes},
        x="x",
        result=_without_axis_1(node.op.outputs[0].type),
        wanted_name=f"{node.name}_crops",
    )


def _boxes(change: Change, dtype: DType, count: int, numbers: int) -> str:
    """Add an operation that gives the last 4 ``numbers`` per row as [N, 4]; return its name."""
    node = change.node
    constant = node.constant_input("roi")
    if constant is not None:
        rows = np.asarray(constant.value()).reshape(count, numbers)[:, -4:]
        return change.add_const(immediate_value(rows, dtype), f"{node.name}_boxes")
    variable = node.inputs["roi"][0]
    assert isinstance(variable, Variable)
    shape = change.add_ints([count, numbers], f"{node.name}_boxes_shape_0")
    rows_name = change.add_op(
        "reshape",
        {"x": variable.name, "shape": shape},
        tensor_type(dtype, [count, numbers]),
        f"{node.name}_roi",
    )
    if numbers == 4:
        return rows_name
    begin = change.add_ints([0, 1], f"{node.name}_boxes_begin_0")
    size = change.add_ints([count, 4], f"{node.name}_boxes_size_0")
    return change.add_op(
        "slice_by_size",
        {"x": rows_name, "begin": begin, "size": size},
        tensor_type(dtype, [count, 4]),
        f"{node.name}_boxes",
    )


def _without_axis_1(value_type: ValueType) -> ValueType:
    typed = tensor_type_of(value_type)
    assert typed is not None
    dtype, shape = typed
    return tensor_type(dtype, (shape[0], *shape[2:]))
