"""Kernels of error feedback: a first assignment in one pass over the columns.

With ``H = M D M^T``, M unit upper triangular and D diagonal, the objective of a row's errors e is

    e H e^T = sum_k D_k (e_k + sum_{j<k} e_j M_jk)**2

so once columns before k have their entries, the entry nearest to ``w_k - sum_{j<k} e_j M_jk`` is
the best for its own term. This is LDLQ (Chee et al., *QuIP*, arXiv 2307.13304), the same as GPTQ
(arXiv 2210.17323), without the inverse of H.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mlopt.palette.moments.kernels import TOGETHER, end_of_group

PANEL = 32
"""Columns that are decomposed before all others are brought up to date."""


@njit(cache=True, nogil=True)
def decompose(second, damping, factor):  # type: ignore[no-untyped-def]
    """Fill the upper triangle of ``factor`` with M, and its diagonal with D.

    All matrices are float32[columns, columns].
    H is ``second + damping I``. No element of D can be below the damping but by rounding, which is
    mended.
    """
    n = len(second)
    for i in range(n):
        factor[i, i:] = second[i, i:]
        factor[i, i] += damping
    columns = np.empty((PANEL, n), np.float32)
    end = n
    while end > 0:
        start = max(0, end - PANEL)
        for k in range(end - 1, start - 1, -1):
            column = columns[k - start]
            for i in range(k):
                column[i] = factor[i, k]
            factor[k, k] = max(factor[k, k], damping)
            inverse = np.float32(1.0) / factor[k, k]
            for i in range(k):
                share = column[i] * inverse
                first = max(i, start)
                row, other = factor[i, first:k], column[first:k]
                for b in range(row.size):
                    row[b] -= share * other[b]
                factor[i, k] = share
        for i in range(start):
            row = factor[i, i:start]
            for k in range(start, end):
                share = factor[i, k]
                other = columns[k - start, i:start]
                for b in range(row.size):
                    row[b] -= share * other[b]
        end = start


@njit(cache=True, nogil=True, error_model="numpy")
def feed_back(points, units, tables, factor):  # type: ignore[no-untyped-def]
    """Assign the labels of units column by column, errors fed to the columns that follow.

    points: float64[n * d, columns], the rows to be stored, in the units of the entries; factor:
    float32[blocks, columns, columns], see :func:`decompose`. ``units.products`` is scratch. Rows of
    H are shared by the rows of a group, as in the sweeps.
    """
    labels, fed, factors = units.labels, units.products, units.factors
    columns = labels.shape[1]
    k, d = tables.entries.shape[2], tables.entries.shape[3]
    weighted = factors.size > 0
    target = np.empty(d)
    square = np.ones(d)
    fed[:] = 0
    start = 0
    while start < len(labels):
        end = end_of_group(units.block, start, max(1, TOGETHER // d))
        of_block = factor[units.block[start]]
        for i in range(columns):
            segment = tables.segment[i]
            for u in range(start, end):
                entries = tables.entries[units.table[u], segment]
                any_factor = False
                for j in range(d):
                    f = np.float64(factors[u * d + j, i]) if weighted else 1.0
                    square[j] = f * f
                    target[j] = points[u * d + j, i]
                    if f != 0.0:
                        target[j] -= np.float64(fed[u * d + j, i]) / f
                        any_factor = True
                if not any_factor:
                    continue
                if d == 1:
                    middles = tables.middles[units.table[u], segment]
                    new = np.int64(labels[u, i])
                    while new < middles.size and middles[new] < target[0]:
                        new += 1
                    while new > 0 and not middles[new - 1] < target[0]:
                        new -= 1
                else:
                    new = _nearest(entries, target, square, k)
                labels[u, i] = new
                for j in range(d):
                    row = u * d + j
                    miss = np.sqrt(square[j]) * (entries[new, j] - points[row, i])
                    _add(fed[row, i + 1 :], np.float32(miss), of_block[i, i + 1 :])
        start = end


@njit(cache=True, nogil=True)
def _add(fed, miss, row):  # type: ignore[no-untyped-def]
    for b in range(fed.size):
        fed[b] += miss * row[b]


@njit(cache=True, nogil=True)
def _nearest(entries, target, square, k):  # type: ignore[no-untyped-def]
    """Return the entry nearest to a vector whose elements weigh as given, the first of equals."""
    nearest = np.int64(0)
    least = np.inf
    for entry in range(k):
        distance = 0.0
        for j in range(target.size):
            miss = entries[entry, j] - target[j]
            distance += square[j] * miss * miss
        if distance < least:
            nearest = np.int64(entry)
            least = distance
    return nearest
