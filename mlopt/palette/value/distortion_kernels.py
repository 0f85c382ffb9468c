"""The kernels of ``measure_distortion``: sums in float64, in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def of_codes(codes, other, value_of):  # type: ignore[no-untyped-def]
    """Return signal and noise of two arrays of 16-bit codes; value_of float64[65536]."""
    signal = 0.0
    noise = 0.0
    for i in range(codes.size):
        value = value_of[codes[i]]
        miss = value - value_of[other[i]]
        signal += value * value
        noise += miss * miss
    return signal, noise


@njit(cache=True, nogil=True)
def of_floats(values, other):  # type: ignore[no-untyped-def]
    """Return signal and noise of two arrays of floats."""
    signal = 0.0
    noise = 0.0
    for i in range(values.size):
        value = np.float64(values[i])
        miss = value - np.float64(other[i])
        signal += value * value
        noise += miss * miss
    return signal, noise
