"""The kernels of ``bits``: words of eight indices are folded to their bits, and unfolded.

``folds`` are three shifts, three masks of the fields that stay and three of those that move.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def fold_to_word(words, packed, folds):  # type: ignore[no-untyped-def]
    """Fold words to values of one machine word each: words and packed are as long."""
    s0, s1, s2, a0, a1, a2, b0, b1, b2 = folds
    for i in range(words.size):
        x = words[i]
        x = (x & a0) | ((x >> s0) & b0)
        x = (x & a1) | ((x >> s1) & b1)
        packed[i] = (x & a2) | ((x >> s2) & b2)


@njit(cache=True, nogil=True)
def fold_to_bytes(words, packed, folds):  # type: ignore[no-untyped-def]
    """Fold words to 3 or 6 bytes each: packed [words.size, 3 or 6]."""
    s0, s1, s2, a0, a1, a2, b0, b1, b2 = folds
    for i in range(words.size):
        x = words[i]
        x = (x & a0) | ((x >> s0) & b0)
        x = (x & a1) | ((x >> s1) & b1)
        x = (x & a2) | ((x >> s2) & b2)
        packed[i, 0] = x & np.uint64(255)
        packed[i, 1] = (x >> np.uint64(8)) & np.uint64(255)
        packed[i, 2] = (x >> np.uint64(16)) & np.uint64(255)
        if packed.shape[1] == 6:
            packed[i, 3] = (x >> np.uint64(24)) & np.uint64(255)
            packed[i, 4] = (x >> np.uint64(32)) & np.uint64(255)
            packed[i, 5] = (x >> np.uint64(40)) & np.uint64(255)


@njit(cache=True, nogil=True)
def unfold_from_word(packed, words, folds):  # type: ignore[no-untyped-def]
    """The inverse of ``fold_to_word``."""
    s0, s1, s2, a0, a1, a2, b0, b1, b2 = folds
    for i in range(words.size):
        x = np.uint64(packed[i])
        x = (x & a2) | ((x & b2) << s2)
        x = (x & a1) | ((x & b1) << s1)
        words[i] = (x & a0) | ((x & b0) << s0)


@njit(cache=True, nogil=True)
def unfold_from_bytes(packed, words, folds):  # type: ignore[no-untyped-def]
    """The inverse of ``fold_to_bytes``."""
    s0, s1, s2, a0, a1, a2, b0, b1, b2 = folds
    for i in range(words.size):
        x = (
            np.uint64(packed[i, 0])
            | (np.uint64(packed[i, 1]) << np.uint64(8))
            | (np.uint64(packed[i, 2]) << np.uint64(16))
        )
        if packed.shape[1] == 6:
            x |= (
                (np.uint64(packed[i, 3]) << np.uint64(24))
                | (np.uint64(packed[i, 4]) << np.uint64(32))
                | (np.uint64(packed[i, 5]) << np.uint64(40))
            )
        x = (x & a2) | ((x & b2) << s2)
        x = (x & a1) | ((x & b1) << s1)
        words[i] = (x & a0) | ((x & b0) << s0)
