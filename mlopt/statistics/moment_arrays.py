"""Moments of an input, as a calibration holds them."""

from __future__ import annotations

from typing import Any

import attrs
import numpy.typing as npt

from mlopt.statistics.held_out import HeldOut

Array = npt.NDArray[Any]


@attrs.frozen(eq=False, kw_only=True)
class MomentArrays:
    """Moments of one input: means over ``count`` positions.

    second: float32 [blocks, columns, columns], of x x^T, None where only its diagonal is known;
    diagonal: float32 [blocks, columns], of x^2; mean: float32 [blocks, columns], of x;
    sensitivity: float32 [blocks], of guided statistics the sum of the factors s that positions are
    weighted by, all 0 if these are equal after all. Second moments are then the sums of s x x^T
    divided by the mean sensitivity of all blocks, means those of s x divided by that of their own.
    held_out: whether they are of enough samples; None where that is not known.
    """

    second: Array | None
    diagonal: Array
    mean: Array
    count: int
    sensitivity: Array | None = None
    held_out: HeldOut | None = None

    @property
    def is_guided(self) -> bool:
        """Whether positions are weighted by gradients."""
        return self.sensitivity is not None and bool(self.sensitivity.any())

    @property
    def shares(self) -> Array | None:
        """The sensitivity of each block by their mean, float32 [blocks]; None if not guided."""
        if self.sensitivity is None or not self.is_guided:
            return None
        shares: Array = self.sensitivity / self.sensitivity.mean()
        return shares
