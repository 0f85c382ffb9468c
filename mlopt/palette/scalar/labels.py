"""Labels of single values: the nearest entry of an ascending table, ties to the lower one.

Floats are labelled by the midpoints between entries, 16-bit codes by the keys at which the entry
changes. Where entries are equal the first one takes the values: the others are padding, or centres
that round alike.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mlopt.palette.scalar.buckets import MOST_BUCKETS, bucket_of, buckets_per_unit, fill_starts
from mlopt.palette.scalar.distinct import key_of

BLOCK = 1 << 12
"""Keys that are compared with all thresholds at a time: they stay in the nearest cache."""

WALK = 4
"""Ends in a bucket that are tried one after the other; where there are more, search is binary."""


@njit(cache=True, nogil=True)
def fill_middles(table, middles):  # type: ignore[no-untyped-def]
    """Find the midpoints between neighbours of an ascending table: float64[entries - 1], ascending.

    Infinity where an entry equals its left neighbour and all after it do: padding takes nothing.
    """
    for j in range(middles.size):
        middle = 0.5 * (table[j] + table[j + 1])
        if not np.isfinite(middle):
            middle = 0.5 * table[j] + 0.5 * table[j + 1]
        middles[j] = np.inf if table[j] == table[j + 1] else middle
    for j in range(middles.size - 2, -1, -1):
        middles[j] = min(middles[j], middles[j + 1])


@njit(cache=True, nogil=True)
def label_floats(values, middles, labels):  # type: ignore[no-untyped-def]
    """Set ``labels[i]`` to the number of midpoints below ``values[i]``; ties go to the lower entry.

    middles: float64, ascending, infinite ones last; labels: uint8[values.size].
    """
    finite = 0
    while finite < middles.size and np.isfinite(middles[finite]):
        finite += 1
    if finite == 0:
        labels[:] = 0
        return
    low = middles[0]
    # more buckets than values would cost more than they save
    buckets = max(1, min(MOST_BUCKETS, values.size >> 2))
    per_unit = buckets_per_unit(low, middles[finite - 1], buckets)
    starts = np.empty(buckets + 1, np.int64)
    fill_starts(middles, finite, low, per_unit, starts)
    for i in range(values.size):
        value = np.float64(values[i])
        bucket = bucket_of(value, low, per_unit, buckets)
        label = starts[bucket]
        last = starts[bucket + 1]
        while last - label > WALK:
            probe = (label + last) >> 1
            if middles[probe] < value:
                label = probe + 1
            else:
                last = probe
        while label < last and middles[label] < value:
            label += 1
        labels[i] = label


@njit(cache=True, nogil=True, error_model="numpy")
def fill_thresholds(distinct, value_of, table, thresholds):  # type: ignore[no-untyped-def]
    """Find the lowest key that belongs to each entry but the first; ties go to the lower entry.

    thresholds: uint32[entries - 1], ascending. An entry equal to its left neighbour takes nothing:
    it is padding at the end of a table (65536), or one of two centres that round alike.
    """
    values, keys, count = distinct.values, distinct.keys, distinct.values.size
    position = 0
    for j in range(table.size - 1):
        middle = 0.5 * (table[j] + table[j + 1])
        if table[j + 1] == table[j]:
            thresholds[j] = 1 << 16
            continue
        step = 1
        while position < count and values[min(position + step, count) - 1] <= middle:
            position = min(position + step, count)
            step *= 2
        far = min(position + step, count)
        while position < far:
            probe = (position + far) >> 1
            if values[probe] <= middle:
                position = probe + 1
            else:
                far = probe
        if position == count or position == 0:
            thresholds[j] = 1 << 16 if position else 0
            continue
        # a key of no importance may lie between the values on either side
        lower = np.int64(keys[position - 1])
        upper = np.int64(keys[position])
        while upper - lower > 1:
            between = (lower + upper) >> 1
            if value_of[between] <= middle:
                lower = between
            else:
                upper = between
        thresholds[j] = upper
    for j in range(thresholds.size - 2, -1, -1):
        thresholds[j] = min(thresholds[j], thresholds[j + 1])


@njit(cache=True, nogil=True)
def label_codes(codes, thresholds, labels):  # type: ignore[no-untyped-def]
    """Set ``labels[i]`` to the number of thresholds that the key of ``codes[i]`` has reached."""
    n = codes.size
    if n >= 1 << 16:
        label_of = np.empty(1 << 16, np.uint8)
        label = 0
        for key in range(1 << 16):
            while label < thresholds.size and thresholds[label] <= key:
                label += 1
            code = key ^ 0x8000 if key & 0x8000 else key ^ 0xFFFF
            label_of[code] = label
        for i in range(n):
            labels[i] = label_of[codes[i]]
        return
    # One threshold after the other over a block of keys: the inner loop takes many keys at a time.
    keys = np.empty(min(n, BLOCK), np.uint16)
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        block = labels[first : first + size]
        for i in range(size):
            keys[i] = key_of(codes[first + i])
            block[i] = 0
        for j in range(thresholds.size):
            if thresholds[j] >= 1 << 16:  # ascending: no key reaches the others either
                break
            reached = np.uint16(thresholds[j])
            for i in range(size):
                block[i] += np.uint8(reached <= keys[i])
