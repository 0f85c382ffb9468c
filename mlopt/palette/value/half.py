"""Rounding of many numbers to float16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_float16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return float32 values as ``values.astype(np.float16)`` does, ten times faster.

    To the nearest, of equally near ones to the even; no warning where numbers become infinite.
    """
    from mlopt.palette.value.half_kernel import fill_float16_codes  # numba takes a while to load

    codes = np.empty(values.shape, np.uint16)
    fill_float16_codes(np.ascontiguousarray(values).reshape(-1), codes.reshape(-1))
    return codes.view(np.float16)
