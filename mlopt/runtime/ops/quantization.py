"""Activations as integers and back (MIL, ``defs/iOS17/quantization_ops.py``).

``scale`` and ``zero_point`` are scalars, or have one number for each place on ``axis``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlopt.runtime.registry import operation

_DTYPES = {"int8": torch.int8, "uint8": torch.uint8}


# in float16 where that is declared: a quotient that is rounded may be on the other side of a half
@operation("quantize", since="CoreML7", in_half=True)
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """``clip(round(input / scale) + zero_point)`` as int8 or uint8; halves round to even."""
    if output_dtype not in _DTYPES:
        raise ValueError(f"output_dtype must be int8 or uint8, got {output_dtype!r}")
    limits = torch.iinfo(_DTYPES[output_dtype])
    steps = torch.round(input / along(scale, axis, input)).float()
    if zero_point is not None:
        steps = steps + along(zero_point, axis, input)
    return torch.clamp(steps, limits.min, limits.max).to(_DTYPES[output_dtype])


@operation("dequantize", since="CoreML7")
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``(input - zero_point) * scale``."""
    return dequantized(input, scale, zero_point, axis)


def dequantized(data: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None) -> Tensor:
    """``(data - zero_point) * scale`` in the dtype of the scale, rounded once."""
    steps = data.float()
    if zero_point is not None:
        steps = steps - along(zero_point, axis, data)
    return (steps * along(scale, axis, data)).to(scale.dtype)


def along(factors: Tensor, axis: int | None, data: Tensor) -> Tensor:
    """Return factors in a shape that broadcasts with the data: one number, or one per place."""
    if factors.dim() > 1:
        raise ValueError(
            f"scale and zero_point have at most one axis, got shape {list(factors.shape)}"
        )
    if factors.numel() == 1:
        return factors.reshape(())
    if axis is None or not -data.dim() <= axis < data.dim():
        raise ValueError(
            f"axis must be one of the {data.dim()} axes of the data, since there are "
            f"{factors.numel()} scales or zero points; got {axis}"
        )
    if factors.numel() != data.shape[axis]:
        raise ValueError(
            f"there are {factors.numel()} scales or zero points for {data.shape[axis]} places on "
            f"axis {axis}"
        )
    shape = [1] * data.dim()
    shape[axis] = factors.numel()
    return factors.reshape(shape)
