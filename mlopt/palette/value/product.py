"""Products with one rounding, in the dtype of the factors; bfloat16 included."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def product(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``a * b`` with one rounding, in the dtype of both."""
    if a.dtype.name != "bfloat16":
        # numpy multiplies float16 in float32, where the product is exact.
        return np.asarray(np.multiply(a, b))
    codes = _bfloat16_codes(_widened(a.view(np.uint16)) * _widened(b.view(np.uint16)))
    return np.asarray(codes.view(a.dtype))


def _widened(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return bfloat16 bit patterns as float32 values; exact."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bfloat16_codes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite or infinite float32 values to nearest even bfloat16; returns bit patterns."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.asarray((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16), np.uint16)
