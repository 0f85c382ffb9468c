"""Kernels of :mod:`mlopt.runtime.weights.lookup`: entries of float32 move as integers.

They are compiled at the first call on a machine, in a second or two, and kept on disk.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def fill_from_bytes(data, tables, out):  # type: ignore[no-untyped-def]
    """Copy entries at indices of a byte each: ``out[run, i] = tables[run, data[run, i]]``.

    data: uint8[runs, n]; tables: int32[runs, 256], out: int32[runs, n].
    """
    for run in range(data.shape[0]):
        for i in range(data.shape[1]):
            out[run, i] = tables[run, data[run, i]]


@njit(cache=True, nogil=True)
def fill_from_pairs(data, tables, out):  # type: ignore[no-untyped-def]
    """Copy entries at indices of 4 bits, two at once: all 256 pairs of a table are made first.

    data: uint8[runs, n], the first index in the low bits; tables: int32[runs, 16]; out: int64[runs,
    n].
    """
    entries = np.empty((256, 2), np.int32)
    pairs = entries.view(np.int64).reshape(256)
    for run in range(data.shape[0]):
        for value in range(256):
            entries[value, 0] = tables[run, value & 15]
            entries[value, 1] = tables[run, value >> 4]
        for i in range(data.shape[1]):
            out[run, i] = pairs[data[run, i]]


@njit(cache=True, nogil=True)
def fill_from_words(data, tables, out, bits):  # type: ignore[no-untyped-def]
    """Copy entries at indices of 1, 2, 3 or 6 bits, those of three bytes at once.

    data: uint8[runs, 3 * n]; tables: int32[runs, 2 ** bits]; out: int32[runs, n * 24 / bits].
    """
    count, mask = 24 // bits, (1 << bits) - 1
    for run in range(data.shape[0]):
        for i in range(data.shape[1] // 3):
            word = (
                np.int64(data[run, 3 * i])
                | np.int64(data[run, 3 * i + 1]) << 8
                | np.int64(data[run, 3 * i + 2]) << 16
            )
            for place in range(count):
                out[run, i * count + place] = tables[run, (word >> place * bits) & mask]
