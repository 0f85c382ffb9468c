"""How many values of a weight are zeros, and how many are distinct.

Without a compiled kernel: numba takes half a second to load, in which this counts the values of
half a gigabyte of 16-bit weights on one processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: A value of at most this magnitude counts as zero.
ZERO = 1e-12

_CHUNK = 1 << 20  # elements of 32 or 64 bits that are compared at a time
_PIECE = 1 << 16  # codes that are looked at together, and stay in the cache
_TOGETHER = 8  # codes that are marked or passed over together


def zeros_and_distinct(values: Array) -> tuple[int, int]:
    """Return the number of ``values`` of magnitude at most ``ZERO``, and of distinct ones.

    As `numpy.unique` counts them: 0 and -0 are one value, and all NaNs are one. ``values`` may have
    any shape. Types of 8 and 16 bits take about 1 MB of memory, others a sorted copy.
    """
    flat = values.reshape(-1)
    if flat.size == 0:
        return 0, 0
    if flat.dtype.itemsize <= 2:
        return _counted_by_code(flat)
    bound = flat.dtype.type(ZERO)
    zeros = sum(
        int(np.count_nonzero((chunk <= bound) & (chunk >= -bound))) for chunk in _chunks(flat)
    )
    ordered = np.sort(flat)
    # NaNs are at the end, each different from every other.
    nans = sum(int(np.count_nonzero(chunk != chunk)) for chunk in _chunks(ordered))
    numbers = ordered[: ordered.size - nans]
    changes = int(np.count_nonzero(numbers[1:] != numbers[:-1]))
    return zeros, changes + bool(numbers.size) + bool(nans)


def _chunks(flat: Array) -> Iterator[Array]:
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _counted_by_code(flat: Array) -> tuple[int, int]:
    """Return the same for types of 8 and 16 bits, by marking the codes (bit patterns) that occur.

    Marking takes 2 ns a code. In a large weight, every code of the frequent magnitudes soon has
    been seen, and codes that are among them need no mark: finding the others takes 0.5 ns a code.
    """
    unsigned = np.dtype(f"u{flat.dtype.itemsize}")
    codes = flat.view(unsigned)
    sign, largest_zero = _format(flat.dtype)
    seen = np.zeros(1 << (8 * unsigned.itemsize), np.bool_)
    zeros, known, next_look = 0, range(0), 4 * _PIECE
    for start in range(0, codes.size, _PIECE):
        piece = codes[start : start + _PIECE]
        if known and piece.size == _PIECE:
            piece = _besides(known, piece, sign)
            if piece.size > _PIECE // 2:
                known = range(0)  # not worth it, until the next look
        # zeros are never in `known`
        zeros += int(np.count_nonzero((piece & ~sign) <= largest_zero))
        seen[piece.astype(np.intp)] = True
        if sign and start >= next_look:
            next_look = 2 * start
            known = _longest_run(seen[:sign] & seen[sign:], int(largest_zero) + 1)
    # In float32, since numpy 2.3 does not sort float16 correctly on every machine.
    with np.errstate(invalid="ignore"):  # widening a signalling NaN raises the flag
        present = np.flatnonzero(seen).astype(unsigned).view(flat.dtype).astype(np.float32)
    return zeros, len(np.unique(present))


def _besides(known: range, piece: Array, sign: Any) -> Array:
    """Return the codes of a piece, without groups whose magnitudes are all in ``known``."""
    magnitudes = piece & ~sign
    magnitudes -= piece.dtype.type(known.start)  # what is below it wraps around and becomes large
    groups = (magnitudes >= len(known)).view(np.uint64)  # a byte for each code
    return np.asarray(piece.reshape(-1, _TOGETHER)[np.flatnonzero(groups)].reshape(-1))


@cache
def _format(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the sign bit of a code, and the largest magnitude of a zero; unsigned, of its size.

    Only of floats of 16 bits; of other types the sign bit is 0, and the magnitude the whole code.
    """
    unsigned = np.dtype(f"u{dtype.itemsize}").type
    if dtype.name not in ("float16", "bfloat16"):
        return unsigned(0), unsigned(0)
    with np.errstate(invalid="ignore"):
        positive = np.arange(1 << 15, dtype=np.uint16).view(dtype).astype(np.float32)
    return unsigned(1 << 15), unsigned(np.count_nonzero(positive <= np.float32(ZERO)) - 1)


def _longest_run(is_seen: Array, first: int) -> range:
    """Return the longest run of true elements at ``first`` or after."""
    ends = np.flatnonzero(np.diff(is_seen[first:], prepend=False, append=False)) + first
    if not ends.size:
        return range(0)
    longest = 2 * int(np.argmax(ends[1::2] - ends[::2]))
    return range(int(ends[longest]), int(ends[longest + 1]))
