"""Unique mode: tables of the distinct values of a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.errors import ConfigError

Floats = npt.NDArray[Any]


def padded_nbits(entries: int, allowed_nbits: tuple[int, ...]) -> int | None:
    """Return the smallest allowed width whose table holds ``entries``; None if none does."""
    return min((nbits for nbits in allowed_nbits if entries <= 1 << nbits), default=None)


def padded_table(table: Floats, nbits: int) -> Floats:
    """Pad a table [m, d] to [2**nbits, d], 1 <= m <= 2**nbits, by repeating its last entry."""
    missing = (1 << nbits) - len(table)
    return np.concatenate([table, np.repeat(table[-1:], missing, axis=0)])


def unique_tables(
    groups: Floats, allowed_nbits: tuple[int, ...]
) -> tuple[Floats, npt.NDArray[np.uint8]] | None:
    """Return tables of the distinct values, or distinct vectors, of each group: lossless.

    All groups get the width that the group with the most distinct values needs. Values are kept:
    -0.0 and 0.0 are equal, take one entry, and come back as 0.0. All else is bit for bit the same.

    Parameters
    ----------
    groups
        [G, n, d] with n >= 1: vectors of d weights (1 for scalars) in each of G groups; float16,
        bfloat16, float32 or float64, finite.
    allowed_nbits
        Widths that can be stored, each in 1 .. 8.

    Returns
    -------
    (tables, indices): [G, 2**nbits, d] in the dtype of ``groups``, each table ascending
    (vectors: lexicographically) and padded by repeating its last entry; and uint8[G, n]. None where
    a group has more distinct values than the largest table holds.

    Raises
    ------
    ConfigError
        ``groups`` is not a non-empty array of rank 3.
    """
    if groups.ndim != 3 or not groups.size:
        raise ConfigError(
            f"unique needs non-empty groups of vectors [groups, n, d], got shape {groups.shape}; "
            "use d = 1 for scalars"
        )
    most = 1 << max(allowed_nbits)
    distinct_of = []
    for group in groups:
        distinct = _distinct(group, most)
        if distinct is None:
            return None
        distinct_of.append(distinct)
    nbits = padded_nbits(max(len(rows) for rows, _ in distinct_of), allowed_nbits)
    if nbits is None:
        return None
    tables = np.stack([padded_table(table, nbits) for table, _ in distinct_of])
    return tables, np.stack([labels for _, labels in distinct_of])


def _distinct(group: Floats, most: int) -> tuple[Floats, npt.NDArray[np.uint8]] | None:
    """Return ascending distinct vectors [m, d] of a group [n, d] and the label of each, uint8[n].

    None as soon as there are more than ``most`` of them, which for most weights is early.
    """
    bits = np.dtype(f"u{group.dtype.itemsize}").type
    codes = np.ascontiguousarray(group).view(bits)
    # Rows are compared by their bits, so equal values must have equal bits.
    minus_zero = bits(1 << (8 * group.dtype.itemsize - 1))
    if (codes == minus_zero).any():
        codes = np.where(codes == minus_zero, bits(0), codes)
    rows = np.empty(most, np.int64)
    labels = np.empty(len(codes), np.int32)
    count = _find_distinct(codes, rows, labels)
    if count > most:
        return None
    table = codes[rows[:count]].view(group.dtype)
    order = np.lexsort(table.T[::-1].astype(np.float64))
    rank = np.empty(count, np.uint8)
    rank[order] = np.arange(count)
    return table[order], rank[labels]


_SLOTS = 1024
"""Slots of the hash table, a power of two; at most 256 are filled."""


@njit(cache=True, nogil=True)
def _find_distinct(codes, rows, labels):  # type: ignore[no-untyped-def]
    """Find the first row of each distinct row of codes [n, d], and the label of each row.

    Fills rows int64[most] and labels int32[n]; returns the count, ``most + 1`` if there are more.
    """
    slots = np.full(_SLOTS, -1, np.int32)
    count = 0
    d = codes.shape[1]
    for i in range(codes.shape[0]):
        key = np.uint64(0)
        for j in range(d):
            key = (key ^ np.uint64(codes[i, j])) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(32)
        slot = key & np.uint64(_SLOTS - 1)
        while True:
            known = slots[slot]
            if known < 0:
                if count == rows.size:
                    return count + 1
                rows[count] = i
                slots[slot] = count
                labels[i] = count
                count += 1
                break
            same = True
            for j in range(d):
                same = same and codes[rows[known], j] == codes[i, j]
            if same:
                labels[i] = known
                break
            slot = (slot + np.uint64(1)) & np.uint64(_SLOTS - 1)
    return count
