"""Uniform tables: equal steps from the smallest to the largest element."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.buckets import first_not_below

Floats = npt.NDArray[Any]

_BLOCK = 1 << 15
"""Elements that are labelled at a time."""

_WALK = 4
"""Neighbours of the first guess that are tried before a search of all ends."""


def uniform_table(minimum: Floats, maximum: Floats, nbits: int, dtype: npt.DTypeLike) -> Floats:
    """Return tables of ``2**nbits`` equal steps from ``minimum`` to ``maximum``.

    Entries are weighted sums of the two ends in float64: neither the difference of float16 extremes
    (above 65504) nor that of float64 extremes can overflow.

    Parameters
    ----------
    minimum, maximum
        Finite, of one shape ``s``, of any float dtype; ``minimum <= maximum``. Where they are
        equal, so are all entries.
    nbits
        1 .. 8.
    dtype
        The table's dtype: that of the weight.

    Returns
    -------
    [*s, 2**nbits] of ``dtype``, ascending; its first and last entries are the two ends.
    """
    last = (1 << nbits) - 1
    position = np.arange(last + 1) / last
    low = np.asarray(minimum, np.float64)[..., None]
    high = np.asarray(maximum, np.float64)[..., None]
    # Where low == high, the weighted sum can miss both by a rounding.
    steps = np.clip(low * position[::-1] + high * position, low, high)
    steps[..., :1], steps[..., -1:] = low, high
    # Rounding is monotonic, the sum of rounded products only nearly so.
    return np.maximum.accumulate(steps, axis=-1).astype(dtype)


def uniform_labels(values: Floats, table: Floats) -> npt.NDArray[np.uint8]:
    """Label each value with the nearest entry of its table; this is fast where steps are equal.

    Parameters
    ----------
    values
        float16, bfloat16, float32 or float64, finite, of any layout: any shape for one table, or
        [groups, n] for a table of each row.
    table
        [2**nbits] or [groups, 2**nbits], nbits in 1 .. 8, ascending, of the dtype of ``values``.
        Distances are to these entries, as rounded.

    Returns
    -------
    uint8 of the shape of ``values``; the first of equally near entries. Larger values never have
    smaller labels.
    """
    ends = _label_ends(np.atleast_2d(table))
    if table.ndim == 1 and values.dtype.itemsize == 2 and values.size >= 1 << 14:
        codes = np.arange(1 << 16, dtype=np.uint16)
        of_code = _by_search(codes.view(values.dtype).reshape(1, -1), ends)[0]
        labels = np.empty(values.shape, np.uint8)
        flat_codes = np.ascontiguousarray(values).view(np.uint16).reshape(-1)
        _take(of_code, flat_codes, labels.reshape(-1))
        return labels
    return _by_search(values.reshape(len(ends), -1), ends).reshape(values.shape)


def _label_ends(table: Floats) -> npt.NDArray[np.float64]:
    """Return the midpoints between neighbours: float64[groups, m - 1] of tables [groups, m].

    A value has the label ``count(midpoints < value)``: a value on a midpoint goes to the lower one.
    """
    entries = _widened(table).astype(np.float64)
    # Halves first: the sum of two float64 extremes overflows.
    return np.asarray(entries[:, :-1] * 0.5 + entries[:, 1:] * 0.5)


def _by_search(values: Floats, ends: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return labels uint8[groups, n] of values [groups, n], computed in parts of rows at a time."""
    groups, n = values.shape
    labels = np.empty((groups, n), np.uint8)
    rows, columns = max(1, _BLOCK // max(n, 1)), _BLOCK
    for row in range(0, groups, rows):
        for column in range(0, n, columns):
            part = slice(row, row + rows), slice(column, column + columns)
            _search(_widened(values[part]), ends[part[0]], labels[part])
    return labels


def _widened(values: Floats) -> Floats:
    """Return the same values in float32 or float64."""
    if values.dtype.name == "bfloat16":
        codes = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
        return np.asarray((codes << np.uint32(16)).view(np.float32))
    return values.astype(np.float32) if values.dtype == np.float16 else values


@njit(cache=True, nogil=True)
def _search(values, ends, labels):  # type: ignore[no-untyped-def]
    """Count the ends below each value: values [rows, n], ends float64[rows, m - 1].

    The ends of a uniform table form a straight line except for rounding, so the count is estimated
    from that and corrected by its neighbours. Where those do not settle it, as with other tables,
    or subnormal ends that coincide, all ends are searched: O(log m).
    """
    most = ends.shape[1]
    for row in range(values.shape[0]):
        of_row = ends[row]
        first, span = of_row[0], of_row[most - 1] - of_row[0]
        slope = (most - 1) / span if span > 0.0 else 0.0
        if not slope < np.inf:
            slope = 0.0
        for i in range(values.shape[1]):
            x = np.float64(values[row, i])
            # Converted to an integer only after the clip: far values exceed the range of integers.
            label = int(min(max((x - first) * slope + 1.0, 0.0), most * 1.0))
            for _ in range(_WALK):
                if label < most and of_row[label] < x:
                    label += 1
                elif label > 0 and of_row[label - 1] >= x:
                    label -= 1
                else:
                    break
            else:
                label = first_not_below(x, of_row, 0, most)
            labels[row, i] = label


@njit(cache=True, nogil=True)
def _take(of_code, codes, labels):  # type: ignore[no-untyped-def]
    """Write ``of_code[codes]`` to ``labels``; all arrays are flat."""
    for i in range(codes.size):
        labels[i] = of_code[codes[i]]
