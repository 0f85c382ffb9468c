"""What is known of the forms that run on the Neural Engine; the lint's rules say from where."""

from __future__ import annotations

from mlopt.coreml.channels import output_axes
from mlopt.coreml.weights import Weight
from mlopt.mil.program import Consumer
from mlopt.palette.value.spec import PaletteSpec

GROUP_SIZES = (8, 32)
"""The fewest and the most channels that models are shipped with one table for."""

LARGEST_STRIDE = 2
"""Of a convolution with a palettized weight."""


def reason_against(weight: Weight, spec: PaletteSpec) -> str | None:
    """Return why a weight in a form is said to keep an operation off the engine; None if nothing.

    These are the findings that the rules of ``mlopt.coreml.lint.rules_device`` would have.
    """
    if any(is_depthwise(user, weight.shape) for user in weight.consumers):
        return "palettized depthwise convolutions do not run on the Neural Engine"
    if max(map(stride_of, weight.consumers), default=1) > LARGEST_STRIDE:
        return "palettized convolutions with a stride above 2 do not run on the Neural Engine"
    if spec.scale_axis is not None:
        return "a scale after a table does not load for the Neural Engine"
    if spec.lut_dtype is not None:
        return "tables of 8-bit integers do not run on the Neural Engine"
    if spec.group_size is None or spec.channel_axis is None:
        return None
    if spec.channel_axis not in output_axes(weight.consumers, len(weight.shape)):
        return "tables along another axis than that of the output channels"
    is_one = spec.group_size == weight.shape[spec.channel_axis]
    if not is_one and not GROUP_SIZES[0] <= spec.group_size <= GROUP_SIZES[1]:
        return f"tables for groups of {spec.group_size} channels"
    return None


def is_depthwise(user: Consumer, shape: tuple[int, ...]) -> bool:
    """Whether it is a convolution with one input channel, and more than one group."""
    if user.op_type != "conv" or user.parameter != "weight" or len(shape) < 3:
        return False
    try:
        groups = user.node.scalar("groups", 1)
    except ValueError:
        return False
    return isinstance(groups, int) and groups > 1 and shape[1] == 1


def stride_of(user: Consumer) -> int:
    """Return the largest stride of a convolution, 1 for another operation."""
    if user.op_type not in ("conv", "conv_transpose") or user.parameter != "weight":
        return 1
    strides = user.node.constant_input("strides")
    if strides is None or strides.dtype != "int32" or not strides.size:
        return 1
    return int(strides.value().max())
