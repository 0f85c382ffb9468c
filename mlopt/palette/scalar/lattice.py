"""Optimal tables whose entries are chosen from given numbers.

An integer table with a scale holds points of a lattice, at most 256. So the best table of ``k``
entries is the best choice of ``k`` points, and that is a shortest path: between two neighbouring
points of a choice lie values that go to the nearer one, whatever the rest of the choice is. With
``W(i, j)`` their squared error, the dynamic program

    D_1(j) = error of all values below point j about it
    D_s(j) = min over i < j of D_{s-1}(i) + W(i, j)

finds the optimum of every size. ``W`` has the Monge property (it is that of medians on a line:
Hassin and Tamir, "Improved complexity bounds for location problems on the real line", 1991), so the
best ``i`` grows with ``j`` and with ``s``, and all layers together look at a few pairs per point.

Nothing is assumed of the spacing: the points are what is *stored*, after rounding, and the middle
between two of them is where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.buckets import (
    MOST_BUCKETS,
    bucket_of,
    buckets_per_unit,
    fill_starts,
    first_not_below,
)
from mlopt.palette.scalar.cells import Parts
from mlopt.palette.scalar.segments import Prefix, fill_sums


class Choice(NamedTuple):
    """The numbers that entries may be: float64[m], m >= 1, distinct and ascending.

    costs: scratch of [>= m, >= m], for the costs of all pairs.
    """

    points: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]


def choose_table(
    values: npt.NDArray[np.float64],
    masses: npt.NDArray[np.float64],
    points: npt.NDArray[np.float64],
    k: int,
) -> npt.NDArray[np.float64]:
    """Return the best table of at most ``k`` of the points.

    Parameters
    ----------
    values, masses
        float64[n], n >= 1: distinct and ascending, and their importance, positive.
    points
        float64[m], m >= 1, distinct and ascending.
    k
        1 or more.

    Returns
    -------
    float64[k], ascending; the last entry is repeated where fewer than ``k`` points are nearest to
    any value.
    """
    prefix = fill_sums(values, masses, np.empty((3, values.size + 1)))
    table = np.empty(k)
    fill_from_points(values, prefix, _choice(points), table)
    return table


def choose_table_of_parts(
    parts: Parts, points: npt.NDArray[np.float64], k: int
) -> npt.NDArray[np.float64] | None:
    """As :func:`choose_table`, for too many values to be sorted: they are counted once, in cells.

    Cells end at the points and at the midpoints of any two of them: nothing else matters.
    None where no value has any importance.
    """
    middles = (0.5 * points[:, None] + 0.5 * points[None, :])[np.tri(points.size, dtype=bool)]
    ends = np.append(np.unique(middles), np.inf)
    origin = float(points[points.size // 2])
    cells = np.zeros((3, ends.size))
    low = float(ends[0])
    per_unit = buckets_per_unit(low, low + (float(points[-1]) - float(points[0])), MOST_BUCKETS)
    starts = np.empty(MOST_BUCKETS + 1, np.int64)
    # the last end is infinite
    fill_starts(ends, ends.size - 1, low, per_unit, starts)
    for values, importance in parts():
        _count(values, importance, ends, (low, per_unit, starts), origin, cells)
    if not cells[0].any():
        return None
    held = cells[0] > 0.0
    held[-1] = True
    # an empty cell joins the next one, so that the first and the last hold something
    joined = np.add.reduceat(cells, np.append(0, np.flatnonzero(held)[:-1] + 1), axis=1)
    ends = ends[held]
    if joined[0, -1] == 0.0:
        joined, ends = joined[:, :-1], ends[:-1]
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(joined, axis=1)], axis=1)
    table = np.empty(k)
    fill_from_points(ends, Prefix(sums, origin, ends.size), _choice(points), table)
    return table


def _choice(points: npt.NDArray[np.float64]) -> Choice:
    return Choice(points, np.empty((points.size, points.size)))


@njit(cache=True, nogil=True)
def _count(values, importance, ends, buckets, origin, cells):  # type: ignore[no-untyped-def]
    """Add importance and moments of values to the cells that they fall into (ends included)."""
    start, per_unit, starts = buckets
    rows = max(1, importance.size)
    run = values.size // rows
    for row in range(rows):
        h = importance[row] if importance.size else 1.0
        if h == 0.0:
            continue
        for i in range(row * run, (row + 1) * run):
            x = np.float64(values[i])
            bucket = bucket_of(x, start, per_unit, starts.size - 1)
            cell = first_not_below(x, ends, starts[bucket], starts[bucket + 1])
            distance = x - origin
            cells[0, cell] += h
            cells[1, cell] += h * distance
            cells[2, cell] += h * distance * distance


@njit(cache=True, nogil=True, error_model="numpy")
def fill_from_points(values, prefix, choice, table):  # type: ignore[no-untyped-def]
    """Fill ``table`` (float64[k]) with the best choice of at most ``k`` points, ascending.

    Parameters
    ----------
    values
        float64[n], ascending: ``n`` values, or the upper ends of ``n`` cells that hold some, as
        long as no point and no midpoint of two points lies within a cell.
    prefix
        Of the ``n`` values.
    choice
        The points.
    """
    points, n, k = choice.points, prefix.n, table.size
    # points beyond the outermost values are of no use, except the nearest on either side
    first = 0
    while first + 1 < points.size and points[first + 1] < values[0]:
        first += 1
    last = points.size - 1
    while last > first and points[last - 1] >= values[n - 1]:
        last -= 1
    points = points[first : last + 1]
    m = points.size
    chosen = np.empty(min(m, k), np.int64)
    if m <= k:
        for i in range(m):
            chosen[i] = i
        count = m
    else:
        count = _choose(values, prefix, Choice(points, choice.costs), chosen)

    used = 0
    below = 0
    for c in range(count):
        upto = n
        if c + 1 < count:
            middle = 0.5 * points[chosen[c]] + 0.5 * points[chosen[c + 1]]
            upto = _advance(values, below, middle)
        if upto > below:
            table[used] = points[chosen[c]]
            used += 1
        below = upto
    for c in range(used, k):
        table[c] = table[used - 1]


@njit(cache=True, nogil=True, error_model="numpy")
def _advance(values, position, limit):  # type: ignore[no-untyped-def]
    """Count the values that are not above ``limit``; at least ``position`` of them are not."""
    n = values.size
    step = 1
    while position + step <= n and values[position + step - 1] <= limit:
        position += step
        step *= 2
    far = min(position + step, n + 1) - 1
    while position < far:
        probe = (position + far) >> 1
        if values[probe] <= limit:
            position = probe + 1
        else:
            far = probe
    return position


@njit(cache=True, nogil=True, error_model="numpy")
def _error_about(sums, i, j, away):  # type: ignore[no-untyped-def]
    """Return the squared error of the values ``[i, j)`` about a point ``away`` from the origin."""
    mass = sums[0, j] - sums[0, i]
    moment = sums[1, j] - sums[1, i]
    square = sums[2, j] - sums[2, i]
    return max(0.0, square - away * (2.0 * moment - away * mass))


@njit(cache=True, nogil=True, error_model="numpy")
def _choose(values, prefix, choice, chosen):  # type: ignore[no-untyped-def]
    """Write the best at most ``k`` of ``m > k`` points into ``chosen`` [k]; returns their number.

    1. The number of values below each point.
    2. The costs of all pairs of neighbours, W in the module's text.
    3. Layer by layer the best table that ends at each point, D_s there; the best start of each end
       lies between those of the same end a layer before and of the next end in this layer.
    4. The points of the best table of all sizes, from the last one back.
    """
    sums, origin, n = prefix
    points, costs = choice
    m, k = points.size, chosen.size
    # 1
    below = np.empty(m, np.int64)
    position = 0
    for i in range(m):
        position = _advance(values, position, points[i])
        below[i] = position
    # 2
    for i in range(m):
        position = below[i]
        away = points[i] - origin
        for j in range(i + 1, m):
            position = _advance(values, position, 0.5 * points[i] + 0.5 * points[j])
            # symmetric, so that the dynamic program over the starts of one end reads along a row
            costs[j, i] = _error_about(sums, below[i], position, away) + _error_about(
                sums, position, below[j], points[j] - origin
            )

    # 3
    best = np.empty(m)
    here = np.empty(m)
    before = np.zeros((k, m), np.int16)
    lowest = np.inf
    size = 1
    end = 0
    for j in range(m):
        best[j] = _error_about(sums, 0, below[j], points[j] - origin)
    for layer in range(k):
        if layer > 0:
            highest = m - 2
            for j in range(m - 1, -1, -1):
                here[j] = np.inf
                if j < layer:
                    continue
                far = min(highest, j - 1)
                near = max(min(np.int64(before[layer - 1, j]), far), layer - 1)
                row = costs[j]
                for i in range(near, far + 1):
                    candidate = best[i] + row[i]
                    if candidate < here[j]:
                        here[j] = candidate
                        before[layer, j] = i
                highest = np.int64(before[layer, j])
            best, here = here, best
        for j in range(layer, m):
            whole = best[j] + _error_about(sums, below[j], n, points[j] - origin)
            if whole < lowest:
                lowest = whole
                size = layer + 1
                end = j
    # 4
    for layer in range(size - 1, -1, -1):
        chosen[layer] = end
        end = int(before[layer, end])
    return size
