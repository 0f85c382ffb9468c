"""Exact k-means of very many floats without sorting them: zooming in on where bounds can be.

Most values are far from every bound between clusters, and what they add to a cluster is known from
sums. So values are counted into cells of equal width, and the problem is solved with bounds at the
edges of cells only. Its solution exists, so its cost is a ceiling for the optimum. The optimum, in
turn, with each of its bounds moved to an edge of the cell that it lies in, is a solution of that
coarse problem and costs at most ``slack`` more:

    A bound of the optimum is halfway between two centres, at a distance d from both. A value t away
    from the bound costs 4 t d more on its other side. Moving the bound to the better edge of a cell
    of width w and importance h costs at most h w d (at worst half of h is w / 2 away). And d is no
    larger than D(cell), the largest distance at which the values within d / 2 of the bound, which
    all err by d / 2 or more, do not exceed the ceiling on their own. Nor are the d of all bounds
    together larger than half the way from the first centre to the last, so all moves together
    cost at most the largest h times w times half the range.

So edges where the forward and backward cost of the coarse problem exceed the ceiling by more than
the slack are not next to any bound of the optimum. Cells that are left are cut into smaller ones,
a few times, and at last their values are sorted. Between them whole spans of values are one step:
thousands of positions in the place of millions of values, with the same optimum, for the plain and
for the stored cost alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.distinct import NEGLIGIBLE
from mlopt.palette.kmeans1d import scratch, solve
from mlopt.palette.segments import mirror_sums, penalised_paths
from mlopt.palette.stored import refine_for_storage, stored_cost, stored_table

Floats = npt.NDArray[Any]
Sums = npt.NDArray[np.float64]
Parts = Callable[[], Iterator[tuple[Floats, npt.NDArray[np.float64]]]]
"""Goes over the values once more: (values[n], importance float64[n], or empty for 1) at a time."""

CELLS = 1 << 16
FEW_CELLS = 1 << 14
"""Of the first level: fewer where there are few values and bounds, and the programme costs most."""
FINER = 1 << 4
MOST_CELLS = 1 << 22
FEW_ENOUGH = 1 << 16
"""Values that are sorted in the end, unless more cells would be needed than ``MOST_CELLS``."""


def table_by_zooming(
    parts: Parts, entries: int, constants: tuple[float, float, float]
) -> npt.NDArray[np.float64] | None:
    """The best stored table of ``entries`` ascending centres.

    Parameters
    ----------
    parts
        The values, finite, and their importance, part by part. Called several times.
    entries
        Centres, 2 or more.
    constants
        ``rounding_constants`` of the table's dtype.

    Returns
    -------
    float64[entries], or None where cells do not separate the values well enough (too few distinct
    values, or nearly all of them beside a few huge ones): sorting is the way then.
    """
    low, high, mass, moment, count = _extent(parts)
    if not (high > low and mass > 0.0):
        return None
    mean = moment / mass
    # a little less than the cells, so that the largest value does not fall out
    size = FEW_CELLS if entries <= 32 and count < 1 << 21 else CELLS
    per_width = size * (1.0 - 2.0**-40) / (high - low)
    if not np.isfinite(per_width):
        return None

    grid = _Grid(low, per_width, size)
    cells, counts = grid.count(parts, mean)
    lower = np.concatenate([np.zeros((3, 1)), np.cumsum(cells, axis=1)], axis=1)
    total = lower[:, -1:].copy()
    masses = lower[0].copy()
    lower, upper = lower[:, :-1], lower[:, 1:]
    occupied = np.flatnonzero(cells[0] > 0.0)
    if occupied.size < 8 * entries:
        return None
    coarse, width, penalty = np.arange(size), 1.0 / per_width, 0.0
    while True:
        lower, upper, counts = lower[:, occupied], upper[:, occupied], counts[occupied]
        coarse, held = coarse[occupied], cells[0, occupied]
        found = _near_bounds(
            lower,
            upper,
            total,
            mean,
            entries,
            penalty,
            constants,
            masses,
            held,
            coarse,
            1.0 / per_width,
            width,
            0.5 * (high - low),
        )
        if found is None:
            return None
        kept, penalty = found
        lower, upper, counts = lower[:, kept], upper[:, kept], counts[kept]
        coarse = coarse[kept]
        grid.refine(occupied[kept])
        if counts.sum() <= FEW_ENOUGH or kept.size * FINER > MOST_CELLS:
            break
        cells, counts = grid.count(parts, mean)
        lower, upper = _cut(lower, upper, cells)
        coarse = np.repeat(coarse, FINER)
        width /= FINER
        occupied = np.flatnonzero(cells[0] > 0.0)

    values, importance, cell = grid.gather(parts)
    order = np.argsort(values, kind="stable")
    edges = _positions(
        values[order].astype(np.float64), importance[order], cell[order], mean, lower, upper
    )
    sums = _with_ends(edges, total)
    n = sums.shape[1] - 1
    if n <= entries:
        return None
    bounds = np.empty(n + 1, np.int64)
    space = scratch(n)
    penalty = solve(np.empty(n), sums, mean, entries, penalty, bounds, *space)
    refine_for_storage(sums, mean, n, entries, penalty, constants, bounds, *space)
    table = np.empty(entries)
    stored_table(sums, mean, bounds, entries, *constants, table)
    return table


class _Grid:
    """Cells at several levels: the first of equal width, each next one parts of those kept.

    A value's place in units of the first cells is computed once, with rounding; all steps after
    that are exact, so cells never decrease as values grow.
    """

    def __init__(self, low: float, per_width: float, size: int) -> None:
        self.low = low
        self.per_width = per_width
        # for each level but the last, the rank of each cell among those kept, or -1
        self.ranks = np.empty(0, np.int32)
        self.offsets = np.array([0])
        self.size = size

    def refine(self, kept: npt.NDArray[np.int64]) -> None:
        """Keep these cells (ascending) of the last level, and cut each into ``FINER``."""
        ranks = np.full(self.size, -1, np.int32)
        ranks[kept] = np.arange(kept.size, dtype=np.int32)
        self.ranks = np.concatenate([self.ranks, ranks])
        self.offsets = np.append(self.offsets, self.ranks.size)
        self.size = kept.size * FINER

    def count(self, parts: Parts, mean: float) -> tuple[Sums, npt.NDArray[np.int64]]:
        """By cell of the last level: importance and moments [3, size], number of values [size]."""
        cells = np.zeros((3, self.size))
        counts = np.zeros(self.size, np.int64)
        for values, importance in parts():
            _count(values, importance, self._places(), mean, cells, counts)
        return cells, counts

    def gather(self, parts: Parts) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """The values in the kept cells, their importance, and the ranks of the cells."""
        found = [_gather(*part, self._places()) for part in parts()]
        values, importance, cell = zip(*found, strict=True)
        return np.concatenate(values), np.concatenate(importance), np.concatenate(cell)

    def _places(self) -> tuple[Any, ...]:
        return self.low, self.per_width, self.ranks, self.offsets


def _extent(parts: Parts) -> tuple[float, float, float, float, int]:
    """Smallest and largest value of any importance, sums of importance and moment; all values."""
    extent = np.array([np.inf, -np.inf, 0.0, 0.0])
    count = 0
    for values, importance in parts():
        _extend(values, importance, extent)
        count += values.size
    low, high, mass, moment = extent.tolist()
    return low, high, mass, moment, count


@njit(cache=True, nogil=True)
def _extend(values, importance, extent):  # type: ignore[no-untyped-def]
    low, high, mass, moment = extent
    weighted = importance.size > 0
    for i in range(values.size):
        h = importance[i] if weighted else 1.0
        if h == 0.0:
            continue
        x = np.float64(values[i])
        low = min(low, x)
        high = max(high, x)
        mass += h
        moment += h * x
    extent[0] = low
    extent[1] = high
    extent[2] = mass
    extent[3] = moment


@njit(cache=True, nogil=True)
def _cell_of(x, places):  # type: ignore[no-untyped-def]
    """The cell of the last level that ``x`` falls into, or -1."""
    low, per_width, ranks, offsets = places
    place = (x - low) * per_width
    cell = np.int64(place)
    for level in range(offsets.size - 1):
        rank = ranks[offsets[level] + cell]
        if rank < 0:
            return np.int64(-1)
        place = (place - np.floor(place)) * FINER
        cell = rank * np.int64(FINER) + np.int64(place)
    return cell


@njit(cache=True, nogil=True)
def _count(values, importance, places, mean, cells, counts):  # type: ignore[no-untyped-def]
    weighted = importance.size > 0
    for i in range(values.size):
        h = importance[i] if weighted else 1.0
        if h == 0.0:
            continue
        x = np.float64(values[i])
        cell = _cell_of(x, places)
        if cell < 0:
            continue
        distance = x - mean
        cells[0, cell] += h
        cells[1, cell] += h * distance
        cells[2, cell] += h * distance * distance
        counts[cell] += 1


@njit(cache=True, nogil=True)
def _gather(values, importance, places):  # type: ignore[no-untyped-def]
    weighted = importance.size > 0
    kept = 0
    for i in range(values.size):
        if weighted and importance[i] == 0.0:
            continue
        if _cell_of(np.float64(values[i]), places) >= 0:
            kept += 1
    out = np.empty(kept, values.dtype)
    weights = np.ones(kept)
    ranks = np.empty(kept, np.int32)
    kept = 0
    for i in range(values.size):
        if weighted and importance[i] == 0.0:
            continue
        cell = _cell_of(np.float64(values[i]), places)
        if cell >= 0:
            out[kept] = values[i]
            if weighted:
                weights[kept] = importance[i]
            ranks[kept] = cell // FINER
            kept += 1
    return out, weights, ranks


def _cut(lower: Sums, upper: Sums, cells: Sums) -> tuple[Sums, Sums]:
    """Prefix sums at the lower and upper edges of the parts of cells.

    The last part takes the upper edge of its cell as it is, so that neighbours agree to the bit.
    """
    parts = cells.reshape(3, lower.shape[1], FINER)
    inner = lower[:, :, None] + np.cumsum(parts, axis=2)
    inner[:, :, -1] = upper
    below = np.concatenate([lower[:, :, None], inner[:, :, :-1]], axis=2)
    return below.reshape(3, -1), inner.reshape(3, -1)


def _with_ends(edges: Sums, total: Sums) -> Sums:
    """Sums at the edges that have some importance between one and the next, and at both ends."""
    rising = np.empty(edges.shape[1], np.bool_)
    most = float(total[0, 0])
    _mark_rising(edges[0], most, most * NEGLIGIBLE, rising)
    return np.ascontiguousarray(np.concatenate([np.zeros((3, 1)), edges[:, rising], total], axis=1))


@njit(cache=True, nogil=True)
def _mark_rising(masses, most, negligible, rising):  # type: ignore[no-untyped-def]
    highest = 0.0
    for i in range(masses.size):
        rising[i] = highest + negligible < masses[i] < most - negligible
        if rising[i]:
            highest = masses[i]


def _near_bounds(
    lower: Sums,
    upper: Sums,
    total: Sums,
    mean: float,
    k: int,
    penalty: float,
    constants: tuple[float, float, float],
    masses: npt.NDArray[np.float64],
    held: npt.NDArray[np.float64],
    coarse: npt.NDArray[np.int64],
    first_width: float,
    width: float,
    reach: float,
) -> tuple[npt.NDArray[np.int64], float] | None:
    """The cells that a bound of the optimum can lie in, and a penalty that leads to ``k`` segments.

    masses: summed importance below each cell of the first level; held: importance of the cells at
    hand, and ``width`` theirs; coarse: the cells of the first level that they are parts of, of
    ``first_width``; reach: half the range of the values.
    """
    sums = _with_ends(np.stack([lower, upper], axis=2).reshape(3, -1), total)
    n = sums.shape[1] - 1
    if n <= k:
        return None
    bounds = np.empty(n + 1, np.int64)
    space = scratch(n)
    penalty = penalty or _first_penalty(sums, n, k)
    penalty = solve(np.empty(n), sums, mean, k, penalty, bounds, *space)
    ceiling = 0.0
    for i, j in zip(bounds[:k].tolist(), bounds[1 : k + 1].tolist(), strict=True):
        ceiling += stored_cost(sums, mean, i, j, *constants)
    forward, backward = _both_ways(sums, n, penalty, *space)
    distance = _largest_distances(masses, coarse, first_width, ceiling)
    slack = min((k - 1) * float(np.max(held * distance)), float(np.max(held)) * reach) * width
    limit = (ceiling + slack + penalty * k) * (1.0 + 1e-12)
    through = forward + backward[::-1]
    near = through[1:n] <= limit
    positions = np.searchsorted(sums[0, 1:n], np.stack([lower[0], upper[0]]))
    near = np.append(near, False)
    inside = np.minimum(positions, n - 1)
    return np.flatnonzero(near[inside].any(axis=0)), penalty


@njit(cache=True, nogil=True, error_model="numpy")
def _first_penalty(sums, n, k):  # type: ignore[no-untyped-def]
    """A penalty to begin with: twice the error over k of segments of equal importance."""
    error = 0.0
    last = 0
    for j in range(1, k + 1):
        i = n
        if j < k:
            i = min(n, max(np.searchsorted(sums[0], sums[0, n] * j / k), last + 1))
        if i > last:
            mass = sums[0, i] - sums[0, last]
            moment = sums[1, i] - sums[1, last]
            error += max(0.0, sums[2, i] - sums[2, last] - moment * moment / mass)
        last = i
    return max(error, sums[2, n] * 1e-12) / k


@njit(cache=True, nogil=True, error_model="numpy")
def _both_ways(sums, n, penalty, cost, offset, start, queue, since):  # type: ignore[no-untyped-def]
    """Penalised costs of all prefixes, and of all suffixes by their length."""
    forward = np.empty(n + 1)
    penalised_paths(sums, n, penalty, forward, offset, start, queue, since)
    mirrored = np.empty((3, n + 1))
    mirror_sums(sums, n, mirrored)
    penalised_paths(mirrored, n, penalty, cost, offset, start, queue, since)
    return forward, cost.copy()


@njit(cache=True, nogil=True)
def _largest_distances(masses, cells, width, ceiling):  # type: ignore[no-untyped-def]
    """D of the module's text for cells of the first level (ascending, of ``width``): float64[m].

    If a bound in cell c is d = 2 r widths from its centres, the cells c - r + 1 .. c + r - 1 lie
    within d / 2 of it.
    """
    out = np.empty(cells.size)
    for m in range(cells.size):
        c = cells[m]
        if m > 0 and cells[m - 1] == c:
            out[m] = out[m - 1]
            continue
        low = 0
        high = masses.size
        while high - low > 1:
            r = (low + high) >> 1
            inside = masses[min(c + r, masses.size - 1)] - masses[max(c - r + 1, 0)]
            if inside * (r * width) ** 2 <= ceiling:
                low = r
            else:
                high = r
        out[m] = 2.0 * width * (low + 1)
    return out


def _positions(
    values: npt.NDArray[np.float64],
    importance: npt.NDArray[np.float64],
    cell: npt.NDArray[np.int32],
    mean: float,
    lower: Sums,
    upper: Sums,
) -> Sums:
    """Prefix sums at every place for a bound: edges, and between distinct values in the cells."""
    out = np.empty((3, values.size + 2 * lower.shape[1]))
    count = _fill_positions(values, importance, cell, mean, lower, upper, out)
    return out[:, :count]


@njit(cache=True, nogil=True)
def _fill_positions(values, importance, cell, mean, lower, upper, out):  # type: ignore[no-untyped-def]
    count = 0
    i = 0
    n = values.size
    for c in range(lower.shape[1]):
        s0, s1, s2 = lower[0, c], lower[1, c], lower[2, c]
        out[0, count], out[1, count], out[2, count] = s0, s1, s2
        count += 1
        while i < n and cell[i] == c:
            value = values[i]
            while i < n and cell[i] == c and values[i] == value:
                distance = value - mean
                s0 += importance[i]
                s1 += importance[i] * distance
                s2 += importance[i] * distance * distance
                i += 1
            if i < n and cell[i] == c:
                out[0, count], out[1, count], out[2, count] = s0, s1, s2
                count += 1
        out[0, count], out[1, count], out[2, count] = upper[0, c], upper[1, c], upper[2, c]
        count += 1
    return count
