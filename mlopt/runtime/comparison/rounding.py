"""What a tensor loses when it is rounded to a narrower type of floats."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Rounded:
    """A tensor of float32 as it is in a narrower type.

    values: rounded, in float32; overflow: where finite elements are infinite; vanished: how many
    that are not zero are; subnormal: how many others are below the smallest normal number; least,
    greatest: the smallest magnitude that is not zero and the largest, of finite elements, NaN where
    there is none.
    """

    values: Tensor
    overflow: Tensor
    vanished: int
    subnormal: int
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype) -> Rounded:
        """Round a tensor of float32 to a dtype of floats."""
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
        """How many finite elements are infinite."""
        return int(self.overflow.sum())
