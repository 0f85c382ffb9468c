"""A few vectors that meet many centres, four of them at a time, and keep their two least distances.

All numbers of a strip lie in one array, in rows of a fixed length, and are read by unsigned
positions. Compilers then know without a check at run time that rows do not overlap and that no
position counts from the end: what remains of a strip of 32 vectors is SIMD instructions.
(Slices of several arrays cost three times as much for strips of 32, the usual length.)

The order of every sum is explicit, without fast-math: results are the same on every machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

LENGTH = 256
"""Vectors of a strip at most: their distances stay in the first-level cache."""

LANES = 32
"""Strips are filled up to a multiple of this, since remainder loops over a few vectors are slow."""

FOUR = 4
"""Centres that a strip meets at a time."""

_ROW1 = np.uint64(LENGTH)
_ROW2 = np.uint64(2 * LENGTH)
_ROW3 = np.uint64(3 * LENGTH)
_BEST = np.uint64(4 * LENGTH)
_SECOND = np.uint64(5 * LENGTH)
_VECTORS = np.uint64(6 * LENGTH)
_HEAD = 6


class Strip(NamedTuple):
    """Up to :data:`LENGTH` vectors that meet the same centres.

    numbers: flat, float32 or float64, in rows of :data:`LENGTH`: the distances to the last four
    centres, the least distance so far, the second, then one row for each element of the vectors,
    ``width`` in all, and, if elements have weights, one for each of their weights. width: even; a
    last row of zeros makes it so. label: int32, the first of the nearest centres.
    """

    numbers: npt.NDArray[Any]
    label: npt.NDArray[np.int32]
    width: int


@njit(cache=True, nogil=True)
def strip_for(columns, by_element):  # type: ignore[no-untyped-def]
    """Return a strip for some of the vectors ``columns`` [d, m]."""
    width = columns.shape[0] + columns.shape[0] % 2
    rows = _HEAD + (2 * width if by_element else width)
    return Strip(np.zeros(rows * LENGTH, columns.dtype), np.empty(LENGTH, np.int32), width)


@njit(cache=True, nogil=True)
def least_of(strip):  # type: ignore[no-untyped-def]
    """Return the least and the second distance of each vector, views [LENGTH]."""
    numbers = strip.numbers
    return numbers[4 * LENGTH : 5 * LENGTH], numbers[5 * LENGTH : 6 * LENGTH]


@njit(cache=True, nogil=True)
def row_of(strip, row):  # type: ignore[no-untyped-def]
    """Return the row of one element, or after ``width`` of one weight: a view [LENGTH]."""
    start = (_HEAD + row) * LENGTH
    return strip.numbers[start : start + LENGTH]


@njit(cache=True, nogil=True)
def meet(strip, size, centers, names, by_element):  # type: ignore[no-untyped-def]
    """Update the two least distances and the label of the first ``size`` vectors.

    centers: [c, width] with c a multiple of :data:`FOUR`, of the dtype of the strip; the rows added
    to make it one are infinite. names: int16[c], the labels. size: a multiple of :data:`LANES`.
    """
    numbers, label, width = strip
    m = np.uint64(size)
    for q in range(0, centers.shape[0], FOUR):
        if by_element:
            _weighted_distances(numbers, width, m, centers, q)
        else:
            _distances(numbers, width, m, centers, q)
        _keep_two(numbers, label, m, names, q)


@njit(cache=True, nogil=True, inline="always")
def _distances(numbers, width, m, centers, q):  # type: ignore[no-untyped-def]
    """Write the squared distances to four centres, two elements at a time."""
    c0, c1, c2, c3 = centers[q, 0], centers[q + 1, 0], centers[q + 2, 0], centers[q + 3, 0]
    e0, e1, e2, e3 = centers[q, 1], centers[q + 1, 1], centers[q + 2, 1], centers[q + 3, 1]
    for i in range(m):
        x, y = numbers[_VECTORS + i], numbers[_VECTORS + _ROW1 + i]
        a0, a1, a2, a3 = x - c0, x - c1, x - c2, x - c3
        b0, b1, b2, b3 = y - e0, y - e1, y - e2, y - e3
        numbers[i] = a0 * a0 + b0 * b0
        numbers[_ROW1 + i] = a1 * a1 + b1 * b1
        numbers[_ROW2 + i] = a2 * a2 + b2 * b2
        numbers[_ROW3 + i] = a3 * a3 + b3 * b3
    for j in range(2, width, 2):
        c0, c1, c2, c3 = centers[q, j], centers[q + 1, j], centers[q + 2, j], centers[q + 3, j]
        k = j + 1
        e0, e1, e2, e3 = centers[q, k], centers[q + 1, k], centers[q + 2, k], centers[q + 3, k]
        row = _VECTORS + np.uint64(j) * _ROW1
        for i in range(m):
            x, y = numbers[row + i], numbers[row + _ROW1 + i]
            a0, a1, a2, a3 = x - c0, x - c1, x - c2, x - c3
            b0, b1, b2, b3 = y - e0, y - e1, y - e2, y - e3
            numbers[i] += a0 * a0 + b0 * b0
            numbers[_ROW1 + i] += a1 * a1 + b1 * b1
            numbers[_ROW2 + i] += a2 * a2 + b2 * b2
            numbers[_ROW3 + i] += a3 * a3 + b3 * b3


@njit(cache=True, nogil=True, inline="always")
def _weighted_distances(numbers, width, m, centers, q):  # type: ignore[no-untyped-def]
    """As :func:`_distances`, where elements have weights."""
    for i in range(m):
        numbers[i] = 0
        numbers[_ROW1 + i] = 0
        numbers[_ROW2 + i] = 0
        numbers[_ROW3 + i] = 0
    for j in range(width):
        c0, c1, c2, c3 = centers[q, j], centers[q + 1, j], centers[q + 2, j], centers[q + 3, j]
        row = _VECTORS + np.uint64(j) * _ROW1
        weights = row + np.uint64(width) * _ROW1
        for i in range(m):
            x, h = numbers[row + i], numbers[weights + i]
            a0, a1, a2, a3 = x - c0, x - c1, x - c2, x - c3
            numbers[i] += h * a0 * a0
            numbers[_ROW1 + i] += h * a1 * a1
            numbers[_ROW2 + i] += h * a2 * a2
            numbers[_ROW3 + i] += h * a3 * a3


@njit(cache=True, nogil=True, inline="always")
def _with(distance, name, best, second, label):  # type: ignore[no-untyped-def]
    """Return the two least of three distances, and the label of the first."""
    other = best if distance < best else distance
    return (
        distance if distance < best else best,
        other if other < second else second,
        name if distance < best else label,
    )


@njit(cache=True, nogil=True, inline="always")
def _keep_two(numbers, label, m, names, q):  # type: ignore[no-untyped-def]
    """Take in the distances to four centres. One that is not a number changes nothing."""
    n0, n1 = np.int32(names[q]), np.int32(names[q + 1])
    n2, n3 = np.int32(names[q + 2]), np.int32(names[q + 3])
    for i in range(m):
        best, second, a = numbers[_BEST + i], numbers[_SECOND + i], label[i]
        best, second, a = _with(numbers[i], n0, best, second, a)
        best, second, a = _with(numbers[_ROW1 + i], n1, best, second, a)
        best, second, a = _with(numbers[_ROW2 + i], n2, best, second, a)
        best, second, a = _with(numbers[_ROW3 + i], n3, best, second, a)
        numbers[_BEST + i], numbers[_SECOND + i], label[i] = best, second, a
