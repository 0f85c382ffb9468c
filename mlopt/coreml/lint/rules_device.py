"""Rules about devices: forms that load but run slowly, on another processor, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from mlopt.coreml.channels import output_axes
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.rules_form import sound_palettes
from mlopt.coreml.lint.subject import (
    SHIFT_SCALE,
    Palette,
    Subject,
    palettes_of,
    place_of_weight,
    type_of_input,
)
from mlopt.coreml.neural_engine import GROUP_SIZES, LARGEST_STRIDE, is_depthwise, stride_of
from mlopt.coreml.weights import Weight

_FLOATS = ("fp16", "fp32", "bf16")
_MEASURE = "measure where it runs on the devices that count (Xcode's performance report)"


@rule(
    "float-scale-on-float-data",
    severity="error",
    certainty="reported",
    source="apple/coremltools #2688",
    remedy="palettize the original again with per_grouped_channel tables instead of "
    "enable_per_channel_scale: a scale folded into the tables has the same effect",
)
def float_scale_on_float_data(subject: Subject) -> Iterator[Hit]:
    """A scale on data that are already floating-point, such as a per-channel scale after a palette.

    On macOS 26 such a model aborts when it is loaded for the Neural Engine, which expects integers
    there; it loads for the CPU and the GPU.
    """
    for weight in subject.compressed:
        for node in reversed(weight.chain):
            if node.op_type == SHIFT_SCALE and "data" in node.inputs:
                dtype, _ = type_of_input(node, "data")
                if dtype.name in _FLOATS:
                    yield Hit(
                        f"{SHIFT_SCALE} on data of type {dtype.name}", place_of_weight(weight)
                    )


@rule(
    "float-zero-point",
    severity="warning",
    certainty="reported",
    source="Apple Developer Forums, thread 759608",
    remedy="quantize with zero points of the type of the data, or symmetrically without them",
)
def float_zero_point(subject: Subject) -> Iterator[Hit]:
    """Quantized weights whose zero points (offsets) are floating-point.

    Operations that read them did not run on the Neural Engine; they do with zero points of the
    same type as the data.
    """
    for weight in subject.compressed:
        for node in reversed(weight.chain):
            if node.op_type == SHIFT_SCALE and "offset" in node.inputs:
                dtype, _ = type_of_input(node, "data")
                offset, _ = type_of_input(node, "offset")
                if offset.name in _FLOATS and dtype.name not in _FLOATS:
                    yield Hit(
                        f"{dtype.name} data with {offset.name} offsets", place_of_weight(weight)
                    )


@rule(
    "table-per-block",
    severity="warning",
    certainty="reported",
    remedy="group along the output channels alone (per_grouped_channel), or use one table",
)
def table_per_block(subject: Subject) -> Iterator[Hit]:
    """Tables for blocks along more than one axis.

    The Neural Engine runs weights with one table, or with one table per group of output channels,
    but not with one table per block of a row.
    """
    for weight, palette in _palettes(subject):
        if sum(count > 1 for count in palette.groups) > 1:
            counts = "x".join(map(str, palette.groups))
            yield Hit(f"{counts} tables, along several axes", place_of_weight(weight))


@rule(
    "table-along-other-axis",
    severity="note",
    certainty="reported",
    remedy=f"group along the output channels, or {_MEASURE}",
)
def table_along_other_axis(subject: Subject) -> Iterator[Hit]:
    """Tables for groups along an axis other than that of the output channels.

    Only one table, or one table per group of output channels, is known to run on the Neural Engine.
    """
    for weight, palette in _palettes(subject):
        axis = _only_grouped_axis(palette)
        outputs = output_axes(weight.consumers, len(weight.shape))
        if axis is not None and outputs and axis not in outputs:
            shown = " or ".join(map(str, sorted(outputs)))
            yield Hit(
                f"{palette.tables} tables along axis {axis}; output channels are on {shown}",
                place_of_weight(weight),
            )


@rule(
    "group-size",
    severity="warning",
    certainty="documented",
    source="coremltools guide, Palettization: Performance",
    remedy=f"use a group_size of {GROUP_SIZES[0]} to {GROUP_SIZES[1]}, or {_MEASURE}",
)
def group_size(subject: Subject) -> Iterator[Hit]:
    """Tables for groups of fewer than 8 channels, or of more than 32.

    The more tables a weight has, the slower it runs. Groups of 8 to 32 channels are what models are
    shipped with; larger ones (a note) are merely untested.
    """
    for weight, palette in _palettes(subject):
        axis = _only_grouped_axis(palette)
        if axis is None:
            continue
        size = weight.shape[axis] // palette.groups[axis]
        if not GROUP_SIZES[0] <= size <= GROUP_SIZES[1]:
            yield Hit(
                f"{palette.groups[axis]} tables for groups of {size} channels",
                place_of_weight(weight),
                severity="note" if size > GROUP_SIZES[1] else None,
            )


@rule(
    "integer-table",
    severity="warning",
    certainty="reported",
    remedy="use float16 tables (lut_dtype=None), which are hardly larger, unless activations are "
    f"quantized to 8 bits too; {_MEASURE}",
)
def integer_table(subject: Subject) -> Iterator[Hit]:
    """Tables of 8-bit integers.

    They move operations off the Neural Engine. They are meant for models whose activations are
    quantized to 8 bits as well.
    """
    for weight, palette in _palettes(subject):
        if palette.has_integer_table:
            yield Hit(f"a table of {_integers_of(palette)}", place_of_weight(weight))


@rule(
    "palettized-depthwise-conv",
    severity="warning",
    certainty="reported",
    remedy="leave depthwise convolutions as they are: they hold few of the weights",
)
def palettized_depthwise_conv(subject: Subject) -> Iterator[Hit]:
    """A palettized weight of a depthwise convolution.

    Such convolutions ran on the CPU, each with a copy to the CPU and back.
    """
    for weight in subject.compressed:
        users = [user for user in weight.consumers if is_depthwise(user, weight.shape)]
        if palettes_of(weight) and users:
            groups = weight.shape[0]
            yield Hit(f"a depthwise convolution of {groups} channels", place_of_weight(weight))


@rule(
    "palettized-large-stride",
    severity="warning",
    certainty="reported",
    remedy="leave the weight of this convolution as it is",
)
def palettized_large_stride(subject: Subject) -> Iterator[Hit]:
    """A palettized weight of a convolution with a stride above 2.

    The Neural Engine does not support this, so the convolution runs on another processor.
    """
    for weight in subject.compressed:
        stride = max((stride_of(user) for user in weight.consumers), default=1)
        if palettes_of(weight) and stride > LARGEST_STRIDE:
            yield Hit(f"stride {stride}", place_of_weight(weight))


def _palettes(subject: Subject) -> Iterator[tuple[Weight, Palette]]:
    for weight in subject.compressed:
        for palette in sound_palettes(weight):
            if len(palette.groups) == len(weight.shape):
                yield weight, palette


def _only_grouped_axis(palette: Palette) -> int | None:
    """The axis that tables are for groups along; None with one table, and with several axes."""
    axes = [axis for axis, count in enumerate(palette.groups) if count > 1]
    return axes[0] if len(axes) == 1 else None


def _integers_of(palette: Palette) -> str:
    if palette.lut is not None:
        return palette.lut_dtype.name
    return "scaled integers"
