"""Kernels of :mod:`mlopt.palette.moments.solve`.

A *unit* is a row of the matrices, or the ``d`` rows that the vectors of one row of indices lie
across. All kernels add up in a fixed order and without fast-math; their inner loops run along a row
of the second moments and vectorize as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.labels import fill_middles

TOGETHER = 16
"""Rows for which a row of the second moments is read once."""

_UNITS = 4
"""Units whose normal equations are summed in one pass over the second moments."""

_TILE = 1 << 14
"""Sums of one unit's normal equations that are kept in cache."""

MARGIN = 1e-5
"""Share of a squared distance that another entry must gain; float32 rounding is far below it."""


class Quadratic(NamedTuple):
    """The damped second moments ``H[b] = second[b] + damping[b] I``.

    second: float32[blocks, columns, columns], read-only; damping: float32[blocks].
    """

    second: npt.NDArray[np.float32]
    damping: npt.NDArray[np.float32]


class Units(NamedTuple):
    """Some of the units, in memory that all kernels share.

    labels: uint8[n, columns]; products: float32[n * d, columns], ``R = E H`` for the errors
    ``E = F (Q - W)``; factors: float32[n * d, columns], the F, or [0, columns] for 1; table, block:
    int64[n].
    """

    labels: npt.NDArray[np.uint8]
    products: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]
    table: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]


class Tables(NamedTuple):
    """Entries of all tables.

    entries: float64[tables, segments, k, d], ascending where d is 1; middles: float64[tables,
    segments, k - 1], see :func:`mlopt.palette.scalar.labels.fill_middles`; segment: int64[columns],
    the segment of tables that a column belongs to.
    """

    entries: npt.NDArray[np.float64]
    middles: npt.NDArray[np.float64]
    segment: npt.NDArray[np.int64]


class Normal(NamedTuple):
    """Normal equations of one table: ``(half + half.T) @ step == -gradient``.

    half: float64[1 or d, k, k], one for each element of an entry, or one for all; gradient:
    float64[d, k].
    """

    half: npt.NDArray[np.float64]
    gradient: npt.NDArray[np.float64]


@njit(cache=True, nogil=True)
def end_of_group(block, first, most):  # type: ignore[no-untyped-def]
    """Return the end of at most ``most`` units from ``first`` on that share a block."""
    last = first + 1
    while last < block.size and last - first < most and block[last] == block[first]:
        last += 1
    return last


@njit(cache=True, nogil=True)
def add_products(errors, first, units, quadratic):  # type: ignore[no-untyped-def]
    """Add ``errors @ H`` to the products.

    errors: float32[n * d, m], of the columns from ``first`` on; the others have none.
    """
    products, block = units.products, units.block
    d = len(products) // block.size
    m, columns = errors.shape[1], products.shape[1]
    start = 0
    while start < block.size:
        end = end_of_group(block, start, max(1, TOGETHER // d))
        second = quadratic.second[block[start]]
        damping = quadratic.damping[block[start]]
        a = 0
        while a < m:
            # four rows of the second moments for each time that the products are written
            if a + 4 <= m:
                h0, h1 = second[first + a], second[first + a + 1]
                h2, h3 = second[first + a + 2], second[first + a + 3]
                for r in range(start * d, end * d):
                    row = products[r]
                    e0, e1, e2, e3 = (
                        errors[r, a],
                        errors[r, a + 1],
                        errors[r, a + 2],
                        errors[r, a + 3],
                    )
                    for b in range(columns):
                        row[b] += (e0 * h0[b] + e1 * h1[b]) + (e2 * h2[b] + e3 * h3[b])
                a += 4
            else:
                h0 = second[first + a]
                for r in range(start * d, end * d):
                    row = products[r]
                    e0 = errors[r, a]
                    for b in range(columns):
                        row[b] += e0 * h0[b]
                a += 1
        for r in range(start * d, end * d):
            for a in range(m):
                products[r, first + a] += damping * errors[r, a]
        start = end


@njit(cache=True, nogil=True, error_model="numpy")
def sweep_scalars(units, tables, quadratic, sweeps):  # type: ignore[no-untyped-def]
    """Coordinate descent over the labels where d is 1; returns by how much the objective falls.

    For an element i of a row, with all others fixed, the objective is
    ``f_i**2 H_ii (q - x)**2`` and a constant, with ``x = q_i - R_i / (f_i H_ii)``. So the entry
    nearest to x is the best one.
    """
    labels, products, factors = units.labels, units.products, units.factors
    columns = labels.shape[1]
    weighted = factors.size > 0
    gain = 0.0
    start = 0
    while start < len(labels):
        end = end_of_group(units.block, start, TOGETHER)
        second = quadratic.second[units.block[start]]
        damping = quadratic.damping[units.block[start]]
        for _ in range(sweeps):
            before = gain
            for i in range(columns):
                h = np.float64(second[i, i] + damping)
                s = tables.segment[i]
                for u in range(start, end):
                    factor = np.float64(factors[u, i]) if weighted else 1.0
                    if factor == 0.0:
                        continue
                    entries = tables.entries[units.table[u], s]
                    middles = tables.middles[units.table[u], s]
                    old = np.int64(labels[u, i])
                    value = entries[old, 0]
                    away = -np.float64(products[u, i]) / (factor * h)
                    target = value + away
                    new = old
                    while new < middles.size and middles[new] < target:
                        new += 1
                    while new > 0 and not middles[new - 1] < target:
                        new -= 1
                    step = entries[new, 0] - value
                    won = away * away - (away - step) * (away - step)
                    if not won > MARGIN * away * away:
                        continue
                    labels[u, i] = new
                    gain += factor * factor * h * won
                    _move(products[u], np.float32(factor * step), i, second, damping)
            if gain == before:
                break
        start = end
    return gain


@njit(cache=True, nogil=True)
def _move(products, error, i, second, damping):  # type: ignore[no-untyped-def]
    """Add the products of an error in column i."""
    h = second[i]
    for b in range(products.size):
        products[b] += error * h[b]
    products[i] += error * damping


@njit(cache=True, nogil=True, error_model="numpy")
def sweep_vectors(units, tables, quadratic, sweeps):  # type: ignore[no-untyped-def]
    """Repeat :func:`sweep_scalars` for vectors that lie across the rows of a unit.

    These rows share H, so the best entry is the nearest one, elements weighted by their factors.
    """
    labels, products, factors = units.labels, units.products, units.factors
    columns = labels.shape[1]
    d = tables.entries.shape[3]
    k = tables.entries.shape[2]
    weighted = factors.size > 0
    away = np.empty(d)
    square = np.ones(d)
    gain = 0.0
    start = 0
    while start < len(labels):
        end = end_of_group(units.block, start, max(1, TOGETHER // d))
        second = quadratic.second[units.block[start]]
        damping = quadratic.damping[units.block[start]]
        for _ in range(sweeps):
            before = gain
            for i in range(columns):
                h = np.float64(second[i, i] + damping)
                for u in range(start, end):
                    entries = tables.entries[units.table[u], tables.segment[i]]
                    old = np.int64(labels[u, i])
                    here = 0.0
                    for j in range(d):
                        factor = np.float64(factors[u * d + j, i]) if weighted else 1.0
                        square[j] = factor * factor
                        away[j] = 0.0
                        if factor != 0.0:
                            away[j] = -np.float64(products[u * d + j, i]) / (factor * h)
                        here += square[j] * away[j] * away[j]
                    new = old
                    least = here * (1.0 - MARGIN)
                    for entry in range(k):
                        distance = 0.0
                        for j in range(d):
                            miss = entries[entry, j] - entries[old, j] - away[j]
                            distance += square[j] * miss * miss
                        if distance < least:
                            new = np.int64(entry)
                            least = distance
                    if new == old:
                        continue
                    labels[u, i] = new
                    gain += h * (here - least)
                    for j in range(d):
                        step = entries[new, j] - entries[old, j]
                        error = np.float32(np.sqrt(square[j]) * step)
                        _move(products[u * d + j], error, i, second, damping)
            if gain == before:
                break
        start = end
    return gain


@njit(cache=True, nogil=True)
def add_normal(units, span, quadratic, normal):  # type: ignore[no-untyped-def]
    """Add the normal equations of units that share a table, over a span of columns.

    With P the one-hot labels of a row, times its factors, that is ``P^T H P`` and ``P^T R``. The
    rows of H are added up by label first, in contiguous passes over one half of the symmetric
    matrix. A few units share each pass, tile by tile of columns so that their sums stay in cache.
    """
    first, last = span
    d, k = normal.gradient.shape
    width = min(last - first, max(64, _TILE // k))
    sums = np.zeros((_UNITS, k, width), np.float32)
    start = 0
    while start < len(units.labels):
        end = end_of_group(units.block, start, _UNITS)
        for j in range(d):
            _add_vectors(units, (start, end), j, span, quadratic, normal)
            if j >= len(normal.half):
                continue
            tile = first
            while tile < last:
                columns = (first, tile, min(tile + width, last))
                _add_tile(units, (start, end), j, columns, quadratic, sums, normal.half[j])
                tile += width
        start = end


@njit(cache=True, nogil=True)
def _add_vectors(units, group, j, span, quadratic, normal):  # type: ignore[no-untyped-def]
    """Add the gradient of rows, and what the diagonal of H needs beyond the two halves."""
    first, last = span
    d = len(normal.gradient)
    gradient = normal.gradient[j]
    weighted = units.factors.size > 0
    for u in range(group[0], group[1]):
        second = quadratic.second[units.block[u]]
        damping = np.float64(quadratic.damping[units.block[u]])
        row = u * d + j
        for a in range(first, last):
            label = units.labels[u, a]
            f = np.float64(units.factors[row, a]) if weighted else 1.0
            gradient[label] += f * np.float64(units.products[row, a])
            if j < len(normal.half):
                # the two halves count the diagonal of H twice, and should count its damping once
                excess = damping - np.float64(second[a, a])
                normal.half[j, label, label] += 0.5 * f * f * excess


@njit(cache=True, nogil=True)
def _add_tile(units, group, j, columns, quadratic, sums, half):  # type: ignore[no-untyped-def]
    """Add ``P^T H P`` of rows for the upper triangle of H in a tile of columns.

    columns: where the span of columns starts, where the tile starts and where it ends.
    """
    first, tile, end = columns
    d = len(units.products) // len(units.labels)
    second = quadratic.second[units.block[group[0]]]
    weighted = units.factors.size > 0
    used = np.zeros((sums.shape[0], sums.shape[1]), np.bool_)
    for a in range(first, end):
        near = max(a, tile)
        h = second[a, near:end]
        for u in range(group[0], group[1]):
            label = units.labels[u, a]
            f = units.factors[u * d + j, a] if weighted else np.float32(1.0)
            # slices, since a loop that starts at 0 needs no check for negative indices
            into = sums[u - group[0], label, near - tile :]
            used[u - group[0], label] = True
            for b in range(h.size):
                into[b] += f * h[b]
    for u in range(group[0], group[1]):
        labels = units.labels[u, tile:end]
        for label in range(len(half)):
            if not used[u - group[0], label]:
                continue
            of_label = sums[u - group[0], label]
            into_half = half[label]
            for b in range(labels.size):
                f = units.factors[u * d + j, tile + b] if weighted else np.float32(1.0)
                into_half[labels[b]] += np.float64(f) * np.float64(of_label[b])
            of_label[:] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def solve_normal(normal, share, step):  # type: ignore[no-untyped-def]
    """Fill ``step`` (float64[k, d]) with the step to the best entries; returns what it gains.

    share: of the mean diagonal of a matrix, added to it: entries without weights stay. Where a
    matrix is not positive definite, which only rounding can cause, the step is 0.
    """
    d, k = normal.gradient.shape
    lower = np.empty((k, k))
    answer = np.empty(k)
    gain = 0.0
    is_definite = False
    for j in range(d):
        step[:, j] = 0.0
        if j < len(normal.half):
            half = normal.half[j]
            mean = 0.0
            for i in range(k):
                mean += 2.0 * half[i, i] / k
                for c in range(k):
                    lower[i, c] = half[i, c] + half[c, i]
            for i in range(k):
                lower[i, i] += share * mean
            is_definite = mean > 0.0 and _decompose(lower)
        if not is_definite:
            continue
        for i in range(k):
            rest = -normal.gradient[j, i]
            for c in range(i):
                rest -= lower[i, c] * answer[c]
            answer[i] = rest / lower[i, i]
        for i in range(k - 1, -1, -1):
            rest = answer[i]
            for c in range(i + 1, k):
                rest -= lower[c, i] * answer[c]
            answer[i] = rest / lower[i, i]
        for i in range(k):
            step[i, j] = answer[i]
            gain -= answer[i] * normal.gradient[j, i]
    return gain


@njit(cache=True, nogil=True, error_model="numpy")
def _decompose(matrix):  # type: ignore[no-untyped-def]
    """Cholesky decomposition in place, of the lower half; returns whether there is one."""
    k = len(matrix)
    for i in range(k):
        for j in range(i + 1):
            rest = matrix[i, j]
            for c in range(j):
                rest -= matrix[i, c] * matrix[j, c]
            if j < i:
                matrix[i, j] = rest / matrix[j, j]
            elif rest > 0.0:
                matrix[i, i] = np.sqrt(rest)
            else:
                return False
    return True


@njit(cache=True, nogil=True)
def fill_all_middles(entries, middles):  # type: ignore[no-untyped-def]
    """Fill the middles of all tables, for :class:`Tables`."""
    for table in range(len(entries)):
        for segment in range(entries.shape[1]):
            fill_middles(entries[table, segment, :, 0], middles[table, segment])


@njit(cache=True, nogil=True)
def relabel(units, segment, places):  # type: ignore[no-untyped-def]
    """Replace labels: places is uint8[tables, segments, k]."""
    labels = units.labels
    for u in range(len(labels)):
        of_table = places[units.table[u]]
        for i in range(labels.shape[1]):
            labels[u, i] = of_table[segment[i], labels[u, i]]


@njit(cache=True, nogil=True)
def squared_products(errors, block, quadratic):  # type: ignore[no-untyped-def]
    """Sum of ``e H e^T`` over rows: errors float64[n, columns], block int64[n]. In float64."""
    n, columns = errors.shape
    total = 0.0
    products = np.empty((TOGETHER, columns))
    start = 0
    while start < n:
        end = end_of_group(block, start, TOGETHER)
        second = quadratic.second[block[start]]
        damping = np.float64(quadratic.damping[block[start]])
        products[:] = 0.0
        # the half above the diagonal counts twice
        for a in range(columns):
            h = second[a, a:]
            for r in range(start, end):
                e = errors[r, a]
                total -= e * e * (np.float64(h[0]) - damping)
                into = products[r - start, a:]
                for b in range(h.size):
                    into[b] += e * np.float64(h[b])
        for r in range(start, end):
            of_row = 0.0
            for b in range(columns):
                of_row += errors[r, b] * products[r - start, b]
            total += 2.0 * of_row
        start = end
    return total
