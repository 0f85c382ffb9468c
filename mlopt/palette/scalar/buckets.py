"""Bucketed search among few ascending numbers: a bucket of equal width, then a step or halves."""

from __future__ import annotations

import numpy as np
from numba import njit

MOST_BUCKETS = 1 << 13


@njit(cache=True, nogil=True)
def buckets_per_unit(low, high, buckets):  # type: ignore[no-untyped-def]
    """Return the buckets per unit between two numbers; 0, one for all, if that overflows."""
    width = high - low
    per_unit = buckets / width if width > 0.0 else 0.0
    return per_unit if np.isfinite(per_unit) and np.isfinite(low * per_unit) else 0.0


@njit(cache=True, nogil=True)
def bucket_of(x, low, per_unit, buckets):  # type: ignore[no-untyped-def]
    """Return the bucket of a number; it never decreases as numbers grow, however products round."""
    # no difference first: that of float64 extremes overflows
    place = x * per_unit - low * per_unit
    return np.int64(min(max(place, 0.0), buckets - 1.0))


@njit(cache=True, nogil=True)
def fill_starts(ends, count, low, per_unit, starts):  # type: ignore[no-untyped-def]
    """Count, for each bucket, the first ``count`` ends in buckets before it: int64[buckets + 1]."""
    buckets = starts.size - 1
    position = 0
    for bucket in range(buckets):
        while position < count and bucket_of(ends[position], low, per_unit, buckets) < bucket:
            position += 1
        starts[bucket] = position
    starts[buckets] = count


@njit(cache=True, nogil=True)
def first_not_below(x, ends, first, last):  # type: ignore[no-untyped-def]
    """Return the first place from ``first`` on whose end is not below ``x``, at most ``last``."""
    while first < last:
        probe = (first + last) >> 1
        if ends[probe] < x:
            first = probe + 1
        else:
            last = probe
    return first
