"""Vectors of consecutive elements: their distinct values, and their floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

_CHUNK = 1 << 16
"""Vectors that are widened at a time where only a number about all of them is needed."""


def floats(values: Floats) -> Floats:
    """Return values as float32 or float64, unchanged, with -0.0 as 0.0. May be a view."""
    if values.dtype.name == "bfloat16":
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << np.uint32(16)
        values = wide.view(np.float32)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    return np.asarray(values + values.dtype.type(0))


def fine_enough(points: Floats, centers: Floats) -> Floats:
    """Return the points, in float64 where centres are finer than the dtype of their distances."""
    if points.dtype == np.float64:
        return points
    wide = floats(centers)
    return points if np.array_equal(wide.astype(np.float32), wide) else floats(points).astype("f8")


def exponent_of(points: Floats) -> int:
    """Return the exponent e with ``2**(e-1) <= max |points| < 2**e``; 0 where all are zero.

    Vectors are clustered after division by ``2**e``: squares cannot overflow or vanish, and a
    power of two on the weights is the same power of two on the centres.
    """
    starts = range(0, len(points), _CHUNK)
    largest = max(float(np.abs(floats(points[i : i + _CHUNK])).max()) for i in starts)
    return math.frexp(largest)[1]


def scaled_columns(points: Floats, exponent: int) -> Floats:
    """Return ``points`` [m, d] over ``2**exponent`` as [d, m], C-contiguous, float32 or float64."""
    scaled = np.ascontiguousarray(floats(points).T)
    # Two exact factors, as one can be out of float32's range. (ldexp is ten times slower.)
    half = exponent // 2
    scaled *= scaled.dtype.type(2.0**-half)
    scaled *= scaled.dtype.type(2.0 ** (half - exponent))
    return scaled


def distinct_vectors(
    points: Floats, importance: npt.NDArray[np.float64] | None, most: int
) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """Return distinct vectors, their summed importances, and the place of each vector among them.

    Vectors come out in an order that depends only on their values, so that a permutation of the
    input is one of the labels and nothing else. None where there are more than ``most`` vectors and
    hardly any two alike: sorting them would cost more than it saves.

    One sort: O(n log n) time, about 40 bytes per vector while it runs.
    """
    n = len(points)
    if n > most:
        some = points[:: -(-n // (1 << 15))]
        if _group(some)[1].max() + 1 > len(some) // 2:
            return None
    first, inverse = _group(points)
    weights = np.bincount(inverse, weights=importance, minlength=len(first))
    return points[first], weights.astype(np.float64), inverse


def _group(points: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first row of each distinct vector, and for each row the number of its vector."""
    words = _words(points)
    short = len(words) == 1 and 8 * points.dtype.itemsize * points.shape[1] <= 32
    if short and len(points) < 1 << 32:
        # word and row in one number: sorting numbers is several times faster than sorting rows
        joined = (words[0] << np.uint64(32)) | np.arange(len(points), dtype=np.uint64)
        joined.sort()
        order = (joined & np.uint64(0xFFFFFFFF)).astype(np.int64)
    else:
        order = np.argsort(words[0], kind="stable") if len(words) == 1 else np.lexsort(words[::-1])
    starts = np.zeros(len(points), bool)
    starts[0] = True
    for word in words:
        in_order = word[order]
        starts[1:] |= in_order[1:] != in_order[:-1]
    inverse = np.empty(len(points), np.int64)
    inverse[order] = np.cumsum(starts) - 1
    return order[starts], inverse


def _words(points: Floats) -> list[npt.NDArray[np.uint64]]:
    """Return bit patterns of vectors as 64-bit words: equal words are equal vectors.

    The order of words is lexicographic in keys that grow with a power of two as the values do.
    """
    narrow = points.dtype.itemsize == 2
    bits = 16 if narrow else 8 * points.dtype.itemsize
    per_word = 64 // bits
    words = []
    for start in range(0, points.shape[1], per_word):
        word = np.zeros(len(points), np.uint64)
        for column in range(start, min(start + per_word, points.shape[1])):
            values = np.ascontiguousarray(points[:, column])
            codes = values.view(f"u{values.dtype.itemsize}")
            sign = codes.dtype.type(1 << (bits - 1))
            # -0.0 is the value 0.0; ascending codes make ascending values.
            codes = np.where(codes == sign, codes.dtype.type(0), codes)
            keys = np.where(codes & sign, ~codes, codes | sign)
            word = (word << np.uint64(bits % 64)) | keys.astype(np.uint64)
        words.append(word)
    return words
