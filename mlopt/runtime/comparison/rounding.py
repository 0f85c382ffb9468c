"""Rounding losses of a tensor in a narrower float type."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Rounded:
    """A float32 tensor rounded to a narrower type.

    values: rounded, in float32; overflow: where finite elements become infinite; vanished: how many
    nonzero elements become zero; subnormal: how many others are below the smallest normal number;
    least, greatest: the smallest magnitude that is not zero and the largest, of finite elements,
    NaN if there is none.
    """

    values: Tensor
    overflow: Tensor
    vanished: int
    subnormal: int
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype) -> Rounded:
        """Round a float32 tensor to a float dtype."""
        rounded = values.to(dtype).float()
        is_finite, magnitude = values.isfinite(), values.abs()
        counted = magnitude[is_finite & (magnitude > 0)]
        least, greatest = math.nan, math.nan
        if counted.numel():
            least, greatest = (float(end) for end in torch.aminmax(counted))
        small = rounded.abs() < torch.finfo(dtype).tiny
        is_zero = rounded == 0
        return cls(
            rounded,
            rounded.isinf() & is_finite,
            int((is_zero & (values != 0)).sum()),
            int((small & ~is_zero).sum()),
            least,
            greatest,
        )

    @property
    def overflowed(self) -> int:
        """How many finite elements become infinite."""
        return int(self.overflow.sum())
