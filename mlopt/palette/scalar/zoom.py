"""Exact k-means of very many floats without sorting them, by zooming in on where bounds can be.

Most values are far from every bound between clusters, and what they add to a cluster is known from
sums. So values are counted into cells of equal width, and the problem is solved with bounds at the
edges of cells only. Its solution exists, so its cost is a ceiling for the optimum. The optimum, in
turn, with each of its bounds moved to an edge of the cell that it lies in, is a solution of that
coarse problem and costs at most ``slack`` more:

    A bound of the optimum is halfway between two centres, at a distance d from both. A value t away
    from the bound costs 4 t d more on its other side. Moving the bound to the better edge of its
    cell costs most where the bound is at the mean of the cell's values, 2 d times the sum of their
    distances from there: s w d, with w the width of the cell and s its spread, no more than the
    importance in it (:func:`mlopt.palette.scalar.near.spread_in_cells`). (The same holds for
    several bounds in one cell: all of it goes to the cluster that has the mean.) And d is no
    larger than D(cell), the largest distance at which the values within d / 2 of the bound, which
    all err by d / 2 or more, do not exceed the ceiling on their own. The spans from one centre to
    the next, each 2 d long, lie side by side. So the sum of s d over all bounds is no more than
    half the area under H, where H(x) is the largest s of a cell within D(cell) of x.

So edges where the forward and backward cost of the coarse problem exceed the ceiling by more than
the slack are not next to any bound of the optimum. Nor do their s and D count any more, which may
make the slack smaller. Cells that are left are cut into smaller ones, a few times, and at last
their values are sorted. Between them whole spans of values are one step: thousands of positions
instead of millions of values, with the same optimum, for the plain cost and the stored cost alike.
As soon as the values in the cells that are left are a part of all, they are copied, and only the
copies are counted after that.

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

from itertools import pairwise

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.scalar.cells import (
    Extent,
    Gathered,
    Grid,
    Parts,
    cut,
    extent,
    sums_at_positions,
)
from mlopt.palette.scalar.kmeans1d import solve
from mlopt.palette.scalar.near import (
    Level,
    Near,
    Whole,
    near_bounds,
    spread_in_cells,
    with_ends,
)
from mlopt.palette.scalar.segments import Prefix, make_scratch, total_cost
from mlopt.palette.scalar.stored import Rounding, refine_for_storage, stored_cost, stored_table

MOST_FIRST_CELLS = 1 << 18
FIRST_CELLS_OF_BOUND = 1 << 8, 1 << 12
VALUES_OF_FIRST_CELL = 1 << 6
"""Cells of the first level: one for so many values, but so many for each bound, within a limit."""
FINER = 1 << 2
FINEST = 1 << 10
"""Parts that a cell is cut into: ``FINER``, and up to ``FINEST`` where few cells are left."""
FEW_CELLS = 1 << 13
FEW_CELLS_OF_BOUND = 1 << 6
"""Maximum number of parts that few cells are cut into: solving with them takes as long as a pass
over some hundred thousand values."""
MOST_CELLS = 1 << 20
FEW_ENOUGH = 1 << 12
SHARE_ENOUGH = 6
"""Values are sorted when ``FEW_ENOUGH`` of them, or one in ``2**SHARE_ENOUGH``, are left."""
LITTLE_TO_GAIN = 1e-5
"""Share of the error up to which what rounding costs is not searched for: 0.00004 dB."""
SHARE_TO_COPY = 1
MOST_COPIED = 1 << 22
"""Values left are copied when they are one in ``2**SHARE_TO_COPY``, and not more than this."""
MOST_STUCK = 2
"""Levels that may leave more than half of their values, before what is left is sorted."""
RANGE = 2.0**400
"""Numbers between this and its inverse have squares, times importance, within float64."""


@attrs.frozen(eq=False)
class Zoomed:
    """The result of zooming, with its effort.

    table: float64[entries], ascending; gap: how much its stored cost may be above the least, 0.0
    where it is proven the least; plain: the least cost without rounding; passes: over all values;
    cells: the most at a time; gathered: values that were sorted; positions: those left for a bound;
    penalties: tried on these.
    """

    table: npt.NDArray[np.float64]
    gap: float
    plain: float
    passes: int
    cells: int
    gathered: int
    positions: int
    penalties: int


@attrs.frozen(eq=False)
class _Left:
    """The cells that zooming leaves, and parts with all values in them.

    limited, most_cells: at any level, see :class:`Near`.
    """

    parts: Parts
    level: Level
    whole: Whole
    penalty: float
    limited: bool
    most_cells: int


def table_by_zooming(
    parts: Parts, entries: int, rounding: Rounding, workers: int = 1
) -> Zoomed | None:
    """Return the best stored table of ``entries`` ascending centres.

    Parameters
    ----------
    parts
        The values, finite, and their importance, part by part. Called several times.
    entries
        Centres, 2 or more.
    rounding
        To the table's dtype.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    The table and its effort, or None where cells do not separate the values well enough (too few
    distinct values, or a few huge ones among small ones), or numbers are so large or small that
    squares leave the range of float64: then the caller must sort.
    """
    seen = extent(parts, workers)
    low, high, count = seen.low, seen.high, seen.size
    if not (high > low and 1.0 / RANGE < seen.mass < RANGE):
        return None
    if not 1.0 / RANGE < max(-low, high) < RANGE:
        return None
    size = 1 << max(1, count // VALUES_OF_FIRST_CELL).bit_length()
    fewest, most = (of_bound * entries for of_bound in FIRST_CELLS_OF_BOUND)
    size = min(max(size, fewest), most, MOST_FIRST_CELLS)
    zoomed = _table(parts, seen, _grid(seen, size, workers), entries, rounding)
    if zoomed is None and size < MOST_FIRST_CELLS:
        # most cells are empty where a few values are far from all others
        finest = _grid(seen, MOST_FIRST_CELLS, workers)
        zoomed = _table(parts, seen, finest, entries, rounding)
    return zoomed


def _grid(seen: Extent, size: int, workers: int) -> Grid:
    # a little less than the number of cells, so that the largest value does not fall outside
    return Grid(seen.low, size * (1.0 - 2.0**-40) / (seen.high - seen.low), size, workers)


def _table(
    parts: Parts, seen: Extent, grid: Grid, entries: int, rounding: Rounding
) -> Zoomed | None:
    """Return the table, or None where the cells do not separate the values."""
    if not np.isfinite(grid.per_width):
        return None
    left = _zoom(parts, grid, seen, entries, rounding)
    return None if left is None else _finish(grid, left)


def _zoom(parts: Parts, grid: Grid, seen: Extent, entries: int, rounding: Rounding) -> _Left | None:
    """Return the cells that are left in the end; None where they do not separate the values."""
    count, mean = seen.size, seen.moment / seen.mass
    reach, width = 0.5 * (seen.high - seen.low), 1.0 / grid.per_width
    cells, counts = grid.count(parts, mean)
    edges = np.concatenate([np.zeros((3, 1)), np.cumsum(cells, axis=1)], axis=1)
    whole = Whole(mean, edges[:, -1:].copy(), edges[0].copy(), width, reach, entries, rounding)
    occupied = np.flatnonzero(cells[0] > 0.0)
    if occupied.size < 8 * entries:
        return None
    level = Level(edges[:, occupied], edges[:, occupied + 1], counts[occupied], occupied, width)
    penalty, stuck, before, most_cells, limited = 0.0, 0, count, grid.size, False
    few_cells, copied = max(FEW_CELLS, FEW_CELLS_OF_BOUND * entries), count
    while True:
        spread = spread_in_cells(cells[:, occupied], level.counts, level.width)
        near = near_bounds(level, whole, spread, penalty)
        if near is None:
            return None
        penalty, limited = near.penalty, limited or near.limited
        level.keep(near.kept)
        left = int(level.counts.sum())
        shrank = 2 * left <= before
        stuck += not shrank
        finer = _cuts(near.kept.size, left, few_cells)
        grid.refine(occupied[near.kept], finer)
        if _is_done(left, count, grid.size, near, stuck=stuck, shrank=shrank):
            return _Left(parts, level, whole, penalty, limited, most_cells)
        if left <= min(copied >> SHARE_TO_COPY, MOST_COPIED):
            parts, copied = _parts_of(grid.gather(parts, left)), left
        before, most_cells = left, max(most_cells, grid.size)
        cells, counts = grid.count(parts, mean)
        occupied = np.flatnonzero(cells[0] > 0.0)
        level.lower, level.upper = cut(level.lower, level.upper, cells, occupied)
        level.coarse, level.counts = level.coarse[occupied // finer], counts[occupied]
        level.width /= finer


def _cuts(cells: int, values: int, most: int) -> int:
    """Return the number of parts into which to cut each of these cells."""
    finer = FINER
    while finer < FINEST and 2 * finer * cells <= min(most, values):
        finer *= 2
    return finer


def _is_done(left: int, count: int, cells: int, near: Near, *, stuck: int, shrank: bool) -> bool:
    """Whether the values that are ``left`` are to be sorted now.

    They are when they are few, or when one more level would have too many cells. Otherwise each
    level must leave half of the values at most, which happens ``SHARE_ENOUGH`` times before they
    are few. A level that does not may have cells that are still too wide, and they are cut
    ``MOST_STUCK`` times more; but cuts only lower the slack, and where that is below the price of
    rounding they gain nothing.

    So there are at most ``1 + SHARE_ENOUGH + MOST_STUCK`` levels, each a pass over the values.
    """
    if left <= max(FEW_ENOUGH, count >> SHARE_ENOUGH) or cells > MOST_CELLS:
        return True
    return not shrank and (near.slack <= near.price or stuck > MOST_STUCK)


def _parts_of(gathered: Gathered) -> Parts:
    """Return the gathered values as parts."""
    return lambda: iter([(gathered.values, gathered.importance)])


def _finish(grid: Grid, left: _Left) -> Zoomed | None:
    """Solve with the values of the cells that are left, sorted."""
    level, whole = left.level, left.whole
    gathered = grid.gather(left.parts, int(level.counts.sum()))
    sums = sums_at_positions(gathered, whole.mean, level.lower, level.upper)
    sums, _ = with_ends(sums, whole.total)
    n, k = sums.shape[1] - 1, whole.entries
    if n <= k:
        return None
    prefix, scratch, rounding = Prefix(sums, whole.mean, n), make_scratch(n), whole.rounding
    penalty, penalties = solve(prefix, k, left.penalty, scratch)
    plain = total_cost(sums, scratch.bounds, k)
    gap = refine_for_storage(prefix, k, penalty, rounding, LITTLE_TO_GAIN, scratch)
    bounds = scratch.bounds[: k + 1]
    if left.limited:
        # proven for the positions that are left, if at all, which need not hold the best bounds
        gap = sum(stored_cost(prefix, i, j, rounding) for i, j in pairwise(bounds.tolist())) - plain
    table = np.empty(k)
    stored_table(prefix, bounds, rounding, table)
    sorted_values, passes = gathered.values.size, grid.passes + 1
    return Zoomed(table, gap, plain, passes, left.most_cells, sorted_values, n, penalties)
