"""Distinct values of a weight, with the importance of each.

Equal values may share a cluster at no loss, so all one-dimensional clustering starts from distinct
values. float16 and bfloat16 have at most 65,536 codes: a count over the codes replaces a sort, and
a code's *key* (its bits, arranged so that keys ascend with values) replaces the value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

CODED = ("float16", "bfloat16")
"""Dtypes, by name, whose values are handled through their 16-bit codes."""

NEGLIGIBLE = 2.0**-46
"""Share of the total importance below which a value's importance is added to a neighbour's."""

_SORT_BELOW = 16_384
_SIGN = 0x8000


class Distinct(NamedTuple):
    """Distinct values, ascending, and the importance of each.

    values, masses: float64[n]; keys: uint16[n], the lowest key of each value, for 16-bit codes;
    empty for other dtypes.
    """

    values: npt.NDArray[np.float64]
    masses: npt.NDArray[np.float64]
    keys: npt.NDArray[np.uint16]


@njit(cache=True, nogil=True)
def first_of(distinct, count):  # type: ignore[no-untyped-def]
    """Return the first ``count`` distinct values, in the same memory."""
    return Distinct(distinct.values[:count], distinct.masses[:count], distinct.keys[:count])


def is_coded(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype are handled through their 16-bit codes."""
    return dtype.name in CODED


@lru_cache(maxsize=2)
def value_of_key(dtype_name: str) -> npt.NDArray[np.float64]:
    """Return the value of each key of float16 or bfloat16: float64[65536], ascending where finite.

    NaN stands for infinities and NaNs alike.
    """
    keys = np.arange(1 << 16, dtype=np.uint32)
    codes = np.where(keys & _SIGN, keys ^ _SIGN, keys ^ 0xFFFF)
    if dtype_name == "float16":
        values = codes.astype(np.uint16).view(np.float16).astype(np.float64)
    else:
        with np.errstate(invalid="ignore"):  # widening a signalling NaN raises the flag
            values = (codes << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


@njit(cache=True, nogil=True)
def key_of(code):  # type: ignore[no-untyped-def]
    """Return the key of a 16-bit float code; it ascends with the value, -0 just before +0."""
    if code & np.uint16(_SIGN):
        return np.uint16(code ^ np.uint16(0xFFFF))
    return np.uint16(code ^ np.uint16(_SIGN))


@njit(cache=True, nogil=True)
def count_keys(codes, counts):  # type: ignore[no-untyped-def]
    """Count keys into ``counts`` (int64[65536], set to zero first); codes: uint16[n]."""
    # two tallies, because an increment must wait for the previous one on the same key
    even = np.zeros(1 << 16, np.uint32)
    odd = np.zeros(1 << 16, np.uint32)
    n = codes.size
    # a uint32 tally could overflow past 2**32 weights; spans of 2**31 cannot
    counts[:] = 0
    for first in range(0, n, 1 << 31):
        last = min(first + (1 << 31), n)
        i = first
        while i + 1 < last:
            even[codes[i]] += np.uint32(1)
            odd[codes[i + 1]] += np.uint32(1)
            i += 2
        if i < last:
            even[codes[i]] += np.uint32(1)
        for code in range(1 << 16):
            counts[key_of(np.uint16(code))] += even[code] + odd[code]
            even[code] = 0
            odd[code] = 0


@njit(cache=True, nogil=True)
def weigh_keys(codes, importance, masses):  # type: ignore[no-untyped-def]
    """Add up importance by key into ``masses`` (float64[65536], set to zero first)."""
    masses[:] = 0.0
    for i in range(codes.size):
        masses[key_of(codes[i])] += importance[i]


@njit(cache=True, nogil=True)
def _sort_keys(codes, keys, spare):  # type: ignore[no-untyped-def]
    """Radix-sort the keys of ``codes`` into ``keys`` (both uint16[n]); two passes of a byte."""
    low = np.zeros(257, np.int64)
    high = np.zeros(257, np.int64)
    n = codes.size
    for i in range(n):
        key = key_of(codes[i])
        keys[i] = key
        low[(key & 0xFF) + 1] += 1
        high[(key >> 8) + 1] += 1
    for digit in range(256):
        low[digit + 1] += low[digit]
        high[digit + 1] += high[digit]
    for i in range(n):
        digit = keys[i] & 0xFF
        spare[low[digit]] = keys[i]
        low[digit] += 1
    for i in range(n):
        digit = spare[i] >> 8
        keys[high[digit]] = spare[i]
        high[digit] += 1


@njit(cache=True, nogil=True)
def distinct_of_codes(codes, value_of, distinct, spare):  # type: ignore[no-untyped-def]
    """Find the distinct values of 16-bit codes, and count the occurrences of each.

    Parameters
    ----------
    codes
        uint16[n].
    value_of
        :func:`value_of_key` of the dtype.
    distinct
        Output, min(n, 65536) long. -0 and +0 are one value.
    spare
        uint16[2, n], scratch for short rows.

    Returns
    -------
    Number of distinct values; -1 if one of them is infinite or NaN.
    """
    n = codes.size
    count = 0
    if n < _SORT_BELOW:
        keys = spare[0]
        _sort_keys(codes, keys, spare[1])
        i = 0
        while i < n:
            key = keys[i]
            run = i + 1
            while run < n and keys[run] == key:
                run += 1
            count = _append(count, key, float(run - i), value_of, distinct)
            if count < 0:
                return -1
            i = run
        return count
    counts = np.empty(1 << 16, np.int64)
    count_keys(codes, counts)
    for key in range(1 << 16):
        if counts[key]:
            count = _append(count, np.uint16(key), float(counts[key]), value_of, distinct)
            if count < 0:
                return -1
    return count


@njit(cache=True, nogil=True)
def _append(count, key, mass, value_of, distinct):  # type: ignore[no-untyped-def]
    """Add the value of a key to ``count`` distinct ones; returns their number, -1 if not finite."""
    values, masses = distinct.values, distinct.masses
    value = value_of[key]
    if np.isnan(value):
        return -1
    if count and values[count - 1] == value:
        masses[count - 1] += mass
        return count
    distinct.keys[count] = key
    values[count] = value
    masses[count] = mass
    return count + 1


@njit(cache=True, nogil=True)
def join_value(count, value, mass, negligible, distinct):  # type: ignore[no-untyped-def]
    """Add a value, not below those before it, to ``count`` distinct ones; returns their number.

    A mass below ``negligible`` would be lost in prefix sums: it goes to a neighbour.
    """
    values, masses = distinct.values, distinct.masses
    if count and (values[count - 1] == value or mass < negligible):
        masses[count - 1] += mass
        return count
    if count and masses[count - 1] < negligible:
        values[count - 1] = value
        masses[count - 1] += mass
        return count
    values[count] = value
    masses[count] = mass
    return count + 1


@njit(cache=True, nogil=True)
def collapse_sorted(sorted_values, importance, distinct):  # type: ignore[no-untyped-def]
    """Find the distinct values of an ascending row; importance float64[n], or empty for 1 each.

    Values of no importance are left out: they pull no centre. Returns how many there are;
    ``distinct`` is an output of n elements.
    """
    count = 0
    weighted = importance.size > 0
    negligible = 0.0
    if weighted:
        for i in range(importance.size):
            negligible += importance[i]
        negligible *= NEGLIGIBLE
    for i in range(sorted_values.size):
        mass = importance[i] if weighted else 1.0
        if mass > 0.0:
            count = join_value(count, np.float64(sorted_values[i]), mass, negligible, distinct)
    return count


def distinct_values(
    weight: npt.NDArray[Any], importance: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the distinct values of a weight, ascending, and the importance of each.

    Parameters
    ----------
    weight
        float16, bfloat16, float32 or float64, finite, of any shape and memory layout.
    importance
        Of the weight's shape, not negative; None counts occurrences.

    Returns
    -------
    values, masses
        float64[U] each. Nothing is rounded. -0 and +0 are one value. Values whose total importance
        is zero are left out.
    """
    if is_coded(weight.dtype):
        codes = np.ascontiguousarray(weight).reshape(-1).view(np.uint16)
        if importance is None:
            counts = np.empty(1 << 16, np.int64)
            count_keys(codes, counts)
            masses = counts.astype(np.float64)
        else:
            masses = np.empty(1 << 16)
            weigh_keys(codes, np.ascontiguousarray(importance, np.float64).reshape(-1), masses)
        present = np.flatnonzero(masses)
        return _merged(value_of_key(weight.dtype.name)[present], masses[present])
    flat = np.ascontiguousarray(weight).reshape(-1)
    distinct = Distinct(np.empty(flat.size), np.empty(flat.size), np.empty(0, np.uint16))
    if importance is None:
        count = collapse_sorted(np.sort(flat), np.empty(0), distinct)
    else:
        order = np.argsort(flat, kind="stable")
        weights = np.ascontiguousarray(importance, np.float64).reshape(-1)[order]
        count = collapse_sorted(flat[order], weights, distinct)
    return distinct.values[:count].copy(), distinct.masses[:count].copy()


def _merged(
    values: npt.NDArray[np.float64], masses: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Join the masses of -0 and +0, which are adjacent."""
    zeros = np.flatnonzero(values == 0.0)
    if zeros.size == 2:
        masses[zeros[1]] += masses[zeros[0]]
        values, masses = np.delete(values, zeros[0]), np.delete(masses, zeros[0])
    return values, masses
