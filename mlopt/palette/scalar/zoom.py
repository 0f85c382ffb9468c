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
the slack are not next to any bound of the optimum. Nor do their h and D count any more, which may
make the slack smaller. Cells that are left are cut into smaller ones, a few times, and at last
their values are sorted. Between them whole spans of values are one step:
thousands of positions in the place of millions of values, with the same optimum, for the plain and
for the stored cost alike.

Two things keep cells from ever becoming fewer, however small they are cut. Both are common where a
weight was divided by a scale of each channel:

- *Atoms.* A cell next to a bound may hold very many equal values (the zeros and the largest
  magnitudes of a lattice): no cut separates them. Sorting does, as equal values are one position.
- *The price of rounding.* The ceiling for stored tables is the cost of a stored solution, which
  exceeds the least plain cost by what its centres lose by rounding to, say, float16. No cut makes
  that smaller, and with hundreds of millions of values it keeps thousands of cells around each
  bound. Where it is so large that the stored optimum will not be proven in the end
  (:func:`mlopt.palette.scalar.stored.is_worth_proving`), the ceiling is that of the plain cost and
  ``ROOM_TO_SETTLE`` more, and what is found is the plain optimum, settled to storable centres.

So zooming goes on only while it helps: see :func:`_is_done`, which bounds the work.
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.cells import Grid, Parts, Sums, cut, extent, sums_at_positions
from mlopt.palette.scalar.distinct import NEGLIGIBLE
from mlopt.palette.scalar.kmeans1d import scratch, solve
from mlopt.palette.scalar.segments import mirror_sums, penalised_paths, total_cost
from mlopt.palette.scalar.stored import (
    is_worth_proving,
    refine_for_storage,
    settle,
    stored_cost,
    stored_table,
)

CELLS = 1 << 16
FEW_CELLS = 1 << 14
"""Of the first level: fewer where there are few values and bounds, and the programme costs most."""
FINER = 1 << 4
FINEST = 1 << 10
"""Parts that a cell is cut into: ``FINER``, and up to ``FINEST`` where few cells are left."""
CELLS_AT_HAND = 1 << 17
"""What few cells are cut into at most: their sums stay in a cache."""
MANY_CELLS = 1 << 20
"""The same after a level that was too coarse to leave values out."""
MOST_CELLS = 1 << 22
FEW_ENOUGH = 1 << 16
SHARE_ENOUGH = 6
"""Values are sorted when there are ``FEW_ENOUGH`` or one in ``2**SHARE_ENOUGH`` of all."""
MOST_STUCK = 2
"""Levels that leave more than half of the values they began with, before what is left is sorted."""
MOST_ROUNDS = 64
LITTLE_CHANGE = 0.99
"""Cells of a level are left out in so many rounds at most, or until few of them go in one."""
ROOM_TO_SETTLE = 0.005
"""Of a cluster's share of the error: moves a bound by a twenty-fifth of the cluster's width."""
RANGE = 2.0**400
"""Squares, times importance, of numbers between this and its inverse stay within float64."""


@attrs.frozen(eq=False)
class Zoomed:
    """What zooming found, and what it took.

    table: float64[entries], ascending; gap: how much its stored cost may be above the least, 0.0
    where it is proven the least; plain: the least cost without rounding; passes: how often all
    values were gone over; cells: the most at a time; gathered: values that were sorted; positions:
    those left for a bound; penalties: tried on these.
    """

    table: npt.NDArray[np.float64]
    gap: float
    plain: float
    passes: int
    cells: int
    gathered: int
    positions: int
    penalties: int


@attrs.define(eq=False)
class _Level:
    """The cells at hand, with something in each.

    lower, upper: prefix sums [3, m] at their edges; counts: of their values; coarse: the cells of
    the first level that they are parts of (int64[m], ascending); width: theirs.
    """

    lower: Sums
    upper: Sums
    counts: npt.NDArray[np.int64]
    coarse: npt.NDArray[np.int64]
    width: float

    def keep(self, which: npt.NDArray[np.int64]) -> None:
        self.lower, self.upper = self.lower[:, which], self.upper[:, which]
        self.counts, self.coarse = self.counts[which], self.coarse[which]


@attrs.frozen(eq=False)
class _Whole:
    """What does not change from level to level.

    masses: summed importance below each cell of the first level, which are of ``width``; reach:
    half the range of the values.
    """

    mean: float
    total: Sums
    masses: npt.NDArray[np.float64]
    width: float
    reach: float
    entries: int
    constants: tuple[float, float, float]


@attrs.frozen(eq=False)
class _Left:
    """What zooming leaves: limited, most_cells: at any level, see :class:`_Near`."""

    level: _Level
    whole: _Whole
    penalty: float
    limited: bool
    most_cells: int


@attrs.frozen(eq=False)
class _Near:
    """The cells that a bound of the optimum can lie in.

    penalty: one that leads to the optimum; slack, price: by how much the limit exceeds the plain
    cost of the coarse solution, for the width of the cells and for rounding its centres; limited:
    whether the latter is more than is allowed for, so that this is of the plain optimum.
    """

    kept: npt.NDArray[np.int64]
    penalty: float
    slack: float
    price: float
    limited: bool


def table_by_zooming(
    parts: Parts, entries: int, constants: tuple[float, float, float]
) -> Zoomed | None:
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
    The table and what it took, or None where cells do not separate the values well enough (too few
    distinct values, or nearly all of them beside a few huge ones), or numbers are so large or small
    that squares leave the range of float64: sorting is the way then.
    """
    low, high, mass, moment, count = extent(parts)
    if not (high > low and 1.0 / RANGE < mass < RANGE):
        return None
    if not 1.0 / RANGE < max(-low, high) < RANGE:
        return None
    # a little less than the cells, so that the largest value does not fall out
    size = FEW_CELLS if entries <= 32 and count < 1 << 21 else CELLS
    per_width = size * (1.0 - 2.0**-40) / (high - low)
    if not np.isfinite(per_width):
        return None
    grid = Grid(low, per_width, size)
    left = _zoom(parts, grid, count, 0.5 * (high - low), moment / mass, entries, constants)
    return None if left is None else _finish(parts, grid, left)


def _zoom(
    parts: Parts,
    grid: Grid,
    count: int,
    reach: float,
    mean: float,
    entries: int,
    constants: tuple[float, float, float],
) -> _Left | None:
    """The cells that are left in the end; None where they do not separate the values."""
    width = 1.0 / grid.per_width
    cells, counts = grid.count(parts, mean)
    edges = np.concatenate([np.zeros((3, 1)), np.cumsum(cells, axis=1)], axis=1)
    whole = _Whole(mean, edges[:, -1:].copy(), edges[0].copy(), width, reach, entries, constants)
    level = _Level(edges[:, :-1], edges[:, 1:], counts, np.arange(grid.size), width)
    penalty, stuck, before, most_cells, limited = 0.0, 0, count, grid.size, False
    while True:
        occupied = np.flatnonzero(cells[0] > 0.0)
        if grid.finer.size == 0 and occupied.size < 8 * entries:
            return None
        level.keep(occupied)
        near = _near_bounds(level, whole, cells[0, occupied], penalty)
        if near is None:
            return None
        penalty, limited = near.penalty, limited or near.limited
        level.keep(near.kept)
        left = int(level.counts.sum())
        shrank = 2 * left <= before
        stuck += not shrank
        finer = _cuts(near.kept.size, left, CELLS_AT_HAND if shrank else MANY_CELLS)
        grid.refine(occupied[near.kept], finer)
        if _is_done(left, count, grid.size, near, stuck=stuck, shrank=shrank):
            return _Left(level, whole, penalty, limited, most_cells)
        before, most_cells = left, max(most_cells, grid.size)
        cells, counts = grid.count(parts, mean)
        level.lower, level.upper = cut(level.lower, level.upper, cells)
        level.coarse, level.counts = np.repeat(level.coarse, finer), counts
        level.width /= finer


def _cuts(cells: int, values: int, most: int) -> int:
    """Into how many parts to cut each of so many cells that hold so many values."""
    finer = FINER
    while finer < FINEST and 2 * finer * cells <= min(most, values):
        finer *= 2
    return finer


def _is_done(left: int, count: int, cells: int, near: _Near, *, stuck: int, shrank: bool) -> bool:
    """Whether the values that are ``left`` are to be sorted now.

    When they are few, or one more level would have too many cells. Else each level has to leave
    half of the values at most, which happens ``SHARE_ENOUGH`` times before they are few. One that
    does not may have cells too wide yet, and they are cut ``MOST_STUCK`` times more; but cuts only
    lower the slack, and where it is below the price of rounding they are in vain.

    So there are at most ``1 + SHARE_ENOUGH + MOST_STUCK`` levels, one pass over the values each.
    """
    if left <= max(FEW_ENOUGH, count >> SHARE_ENOUGH) or cells > MOST_CELLS:
        return True
    return not shrank and (near.slack <= near.price or stuck > MOST_STUCK)


def _finish(parts: Parts, grid: Grid, left: _Left) -> Zoomed | None:
    """Solve with the values of the cells that are left, sorted."""
    level, whole = left.level, left.whole
    sums = _with_ends(_sorted_sums(parts, grid, level, whole.mean), whole.total)
    n, k = sums.shape[1] - 1, whole.entries
    if n <= k:
        return None
    bounds = np.empty(n + 1, np.int64)
    space = scratch(n)
    penalty, penalties = solve(sums, n, k, left.penalty, bounds, *space)
    plain = total_cost(sums, bounds, k)
    gap = refine_for_storage(sums, whole.mean, n, k, penalty, whole.constants, bounds, *space)
    if left.limited:
        # proven for the positions that are left, if at all, which need not hold the best bounds
        ends = zip(bounds[:k].tolist(), bounds[1 : k + 1].tolist(), strict=True)
        gap = sum(stored_cost(sums, whole.mean, i, j, *whole.constants) for i, j in ends) - plain
    table = np.empty(k)
    stored_table(sums, whole.mean, bounds, k, *whole.constants, table)
    gathered = int(level.counts.sum())
    return Zoomed(table, gap, plain, grid.passes + 1, left.most_cells, gathered, n, penalties)


def _sorted_sums(parts: Parts, grid: Grid, level: _Level, mean: float) -> Sums:
    """Prefix sums at all positions in the cells that are left."""
    values, importance, cell = grid.gather(parts)
    return sums_at_positions(values, importance, cell, mean, level.lower, level.upper)


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
    level: _Level, whole: _Whole, held: npt.NDArray[np.float64], penalty: float
) -> _Near | None:
    """The cells of a level, ``held`` in each, next to which a bound of the optimum can be.

    None where there are no more positions than clusters.
    """
    lower, upper, k = level.lower, level.upper, whole.entries
    sums = _with_ends(np.stack([lower, upper], axis=2).reshape(3, -1), whole.total)
    n = sums.shape[1] - 1
    if n <= k:
        return None
    bounds = np.empty(n + 1, np.int64)
    space = scratch(n)
    penalty = penalty or _first_penalty(sums, n, k)
    penalty, _ = solve(sums, n, k, penalty, bounds, *space)
    plain = total_cost(sums, bounds, k)
    price, limited = 0.0, False
    if whole.constants[0] > 0.0:
        price = max(0.0, settle(sums, whole.mean, k, *whole.constants, bounds) - plain)
        # settled better in the end, it may yet be proven: not so if it is twice as much
        limited = not is_worth_proving(0.5 * price, plain, k)
        if limited:
            price = ROOM_TO_SETTLE * plain / k
    ceiling = plain + price
    forward, backward = _both_ways(sums, n, penalty, *space)
    held_far = held * _largest_distances(whole.masses, level.coarse, whole.width, ceiling)
    positions = np.searchsorted(sums[0, 1:n], np.stack([lower[0], upper[0]]))
    through = np.append((forward + backward[::-1])[1:n], np.inf)
    through = through[np.minimum(positions, n - 1)].min(axis=0)
    kept = np.arange(held.size)
    for _ in range(MOST_ROUNDS):
        move = min((k - 1) * float(held_far[kept].max()), float(held[kept].max()) * whole.reach)
        slack = move * level.width
        limit = (ceiling + slack + penalty * k) * (1.0 + 1e-12)
        near = kept[through[kept] <= limit]
        # what is left has less in a cell, maybe, and so less slack
        few = near.size == 0 or near.size > LITTLE_CHANGE * kept.size
        kept = near
        if few:
            break
    return _Near(kept, penalty, slack, price, limited)


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
