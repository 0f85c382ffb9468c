"""Distortion: the error of a stored palette against the weight it stands for."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.value.palettized import Palettized

NOTEWORTHY = 0.005
"""Reports mention errors that are not proven to be within this share above the least."""


@attrs.frozen
class Distortion:
    """Signal and noise over the elements of a weight ``w`` and of the values stored for it, ``v``.

    signal: sum of ``w**2``; noise: sum of ``(w - v)**2``, with ``v`` after every rounding. within:
    an upper bound on how far the error that clustering minimizes is above the least, as a share of
    the least; 0.0 where it is proven the least, or nothing is claimed.
    """

    signal: float
    noise: float
    within: float = attrs.field(default=0.0, eq=False)

    @property
    def note(self) -> str | None:
        """How near to the least the error is proven to be, for a report; None where that is near.

        The bound is on tables before they are rounded. Where most of the error is rounding, such as
        of values that differ only in their last digits, it says nothing.
        """
        if self.within < NOTEWORTHY:
            return None
        if self.within > 1.0:
            return "its distance from the least error could not be proven: rounding outweighs it"
        return f"proven within {100 * self.within:.2g} % of the least error"

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels, ``10 log10(signal / noise)``; inf if lossless."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def measure_distortion(
    weight: npt.NDArray[Any], palettized: Palettized, counted: npt.NDArray[np.bool_] | None = None
) -> Distortion:
    """The distortion of ``palettized.dequantize()`` against ``weight`` (same shape and dtype).

    ``counted``: of the weight's shape, false where the palette is not what is stored (the zeros of
    a sparse weight, say): there nothing is counted as lost. None: all count.
    """
    # with them comes numba, and reports need only the class above
    from mlopt.palette.scalar.distinct import is_coded, value_of_key
    from mlopt.palette.value.distortion_kernels import of_codes, of_floats

    stored = palettized.dequantize()
    weight = np.ascontiguousarray(weight)
    if counted is not None:
        np.copyto(stored, weight, where=~counted)
    if is_coded(weight.dtype):
        codes, other = (a.reshape(-1).view(np.uint16) for a in (weight, stored))
        return Distortion(*of_codes(codes, other, _by_code(value_of_key(weight.dtype.name))))
    return Distortion(*of_floats(weight.reshape(-1), stored.reshape(-1)))


def _by_code(value_of_key: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    codes = np.arange(1 << 16, dtype=np.uint32)
    keys = np.where(codes & 0x8000, codes ^ 0xFFFF, codes ^ 0x8000)
    return np.asarray(value_of_key[keys])
