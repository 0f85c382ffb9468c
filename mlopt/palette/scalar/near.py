"""Cells in which a bound of the optimum can lie: one level of :mod:`mlopt.palette.scalar.zoom`."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.cells import Sums
from mlopt.palette.scalar.distinct import NEGLIGIBLE
from mlopt.palette.scalar.kmeans1d import penalty_of_bounds, solve
from mlopt.palette.scalar.segments import Prefix, make_scratch, suffix_costs, total_cost
from mlopt.palette.scalar.stored import Rounding, is_worth_proving, settle

MOST_ROUNDS = 64
LITTLE_CHANGE = 0.95
"""Maximum number of rounds that leave out cells of a level; it ends earlier when few go in one."""
ROOM_TO_SETTLE = 0.005
"""In units of a cluster's share of the error: moves a bound by 1/25 of the cluster's width."""


@attrs.define(eq=False)
class Level:
    """The cells of a level that are not empty.

    lower, upper: prefix sums [3, m] at their edges; counts: of their values; coarse: the cells of
    the first level that they are parts of (int64[m], ascending); width: that of each cell.
    """

    lower: Sums
    upper: Sums
    counts: npt.NDArray[np.int64]
    coarse: npt.NDArray[np.int64]
    width: float

    def keep(self, which: npt.NDArray[np.int64]) -> None:
        """Keep only the cells at these positions (ascending)."""
        self.lower, self.upper = self.lower[:, which], self.upper[:, which]
        self.counts, self.coarse = self.counts[which], self.coarse[which]


@attrs.frozen(eq=False)
class Whole:
    """Quantities that stay the same from level to level.

    masses: summed importance below each cell of the first level; width: that of those cells; reach:
    half the range of the values.
    """

    mean: float
    total: Sums
    masses: npt.NDArray[np.float64]
    width: float
    reach: float
    entries: int
    rounding: Rounding


@attrs.frozen(eq=False)
class Near:
    """The cells in which a bound of the optimum can lie.

    penalty: one that leads to the optimum; slack, price: by how much the limit exceeds the plain
    cost of the coarse solution, for the width of the cells and for rounding its centres; limited:
    whether the latter is more than is allowed for, so that this is of the plain optimum.
    """

    kept: npt.NDArray[np.int64]
    penalty: float
    slack: float
    price: float
    limited: bool


def with_ends(edges: Sums, total: Sums) -> tuple[Sums, npt.NDArray[np.int64]]:
    """Return the sums at both ends, and at edges with some importance before the next one.

    Also the position of each edge; that of an edge that is left out is the one before it.
    """
    sums = np.empty((3, edges.shape[1] + 2))
    positions = np.empty(edges.shape[1], np.int64)
    n = _fill_rising(edges, total, sums, positions)
    # kernels are compiled for contiguous sums only
    return np.ascontiguousarray(sums[:, : n + 1]), positions


@njit(cache=True, nogil=True)
def _fill_rising(edges, total, sums, positions):  # type: ignore[no-untyped-def]
    """Write what :func:`with_ends` returns; returns the last position."""
    whole = total[0, 0]
    negligible = whole * NEGLIGIBLE
    sums[:, 0] = 0.0
    n = 0
    for i in range(edges.shape[1]):
        if sums[0, n] + negligible < edges[0, i] < whole - negligible:
            n += 1
            sums[0, n], sums[1, n], sums[2, n] = edges[0, i], edges[1, i], edges[2, i]
        positions[i] = n
    for row in range(3):
        sums[row, n + 1] = total[row, 0]
    return n + 1


def near_bounds(
    level: Level, whole: Whole, spread: npt.NDArray[np.float64], penalty: float
) -> Near | None:
    """Return the cells of a level next to which a bound of the optimum can be.

    ``spread`` of each cell: see :func:`spread_in_cells`. None where there are no more positions
    than clusters.
    """
    lower, upper, k = level.lower, level.upper, whole.entries
    sums, positions = with_ends(np.stack([lower, upper], axis=2).reshape(3, -1), whole.total)
    n = sums.shape[1] - 1
    if n <= k:
        return None
    prefix, scratch = Prefix(sums, whole.mean, n), make_scratch(n)
    if not penalty:
        _equal_shares(sums, n, k, scratch.bounds)
        penalty = penalty_of_bounds(prefix, k, scratch)
    penalty, _ = solve(prefix, k, penalty, scratch)
    forward = scratch.cost.copy()
    plain = total_cost(sums, scratch.bounds, k)
    price, limited = 0.0, False
    if whole.rounding.splitter > 0.0:
        price = max(0.0, settle(prefix, k, whole.rounding, scratch.bounds) - plain)
        # settled better in the end, it may still be proven, but not if it is twice as much
        limited = not is_worth_proving(0.5 * price, plain, k)
        if limited:
            price = ROOM_TO_SETTLE * plain / k
    ceiling = plain + price
    backward = suffix_costs(prefix, penalty, scratch)
    far = np.zeros(whole.masses.size, np.int64)
    _largest_distances(whole.masses, level.coarse, whole.width, ceiling, far)
    through = forward + backward[::-1]
    through[0] = through[n] = np.inf
    # an edge that is no position lies between the one before it and the next
    after = np.diff(positions, prepend=0) == 0
    at_edge = np.minimum(through[positions], through[positions + after])
    through = np.minimum(at_edge[::2], at_edge[1::2])
    kept = np.arange(spread.size)
    for _ in range(MOST_ROUNDS):
        slack = level.width * _most_for_moves(spread[kept], level.coarse[kept], far, whole)
        limit = (ceiling + slack + penalty * k) * (1.0 + 1e-12)
        near = kept[through[kept] <= limit]
        # bounds in the cells that are left may cost less to move
        few = near.size == 0 or near.size > LITTLE_CHANGE * kept.size
        kept = near
        if few:
            break
    return Near(kept, penalty, slack, price, limited)


@njit(cache=True, nogil=True, error_model="numpy")
def _equal_shares(sums, n, k, bounds):  # type: ignore[no-untyped-def]
    """Set bounds of ``k`` segments of about equal importance, one position long at least."""
    bounds[0] = 0
    for j in range(1, k):
        share = np.searchsorted(sums[0, : n + 1], sums[0, n] * j / k)
        bounds[j] = min(max(share, bounds[j - 1] + 1), n - (k - j))
    bounds[k] = n


def spread_in_cells(
    cells: Sums, counts: npt.NDArray[np.int64], width: float
) -> npt.NDArray[np.float64]:
    """Return how far values in cells lie from their means: float64[m], importance times ``width``.

    It is at least twice the sum of importance times distance, by Cauchy's inequality, allows for
    the rounding of sums of ``counts`` values, and is at most the importance in the cell. Very many
    equal values have a spread near 0.
    """
    mass, moment, second = cells
    errors = second - moment * moment / mass + (counts + 4) * 2.0**-51 * second
    return np.asarray(np.minimum(mass, 2.0 * np.sqrt(mass * np.maximum(errors, 0.0)) / width))


def _most_for_moves(
    spread: npt.NDArray[np.float64],
    coarse: npt.NDArray[np.int64],
    far: npt.NDArray[np.int64],
    whole: Whole,
) -> float:
    """Return the most that it costs to move bounds to edges of cells, in widths of a cell.

    spread: of the cells that a bound can be in; coarse: their cells of the first level; far: D of
    all cells of the first level, in two widths. See the proof in ``zoom``.
    """
    first = np.flatnonzero(np.diff(coarse, prepend=-1))
    cells, most = coarse[first], np.maximum.reduceat(spread, first)
    reach = far[cells]
    each = 2.0 * whole.width * float((most * reach).max())
    order = np.argsort(-most)
    area = float(_area_of_boxes(most[order], cells[order], reach[order], far.size))
    return min(
        (whole.entries - 1) * each, float(most.max()) * whole.reach, 0.5 * area * whole.width
    )


@njit(cache=True, nogil=True)
def _area_of_boxes(heights, cells, far, size):  # type: ignore[no-untyped-def]
    """Return the area under boxes, the highest first, in cells.

    A box reaches from its cell so far as a bound there can be from its centres, and one cell on.
    Each of ``size`` cells is covered once, by the first box that reaches it.
    """
    # the first cell from here on that is not covered yet
    uncovered = np.arange(size + 1)
    area = 0.0
    for m in range(heights.size):
        reach = 2 * far[m] + 1
        last = min(cells[m] + reach, size - 1)
        cell = max(cells[m] - reach, 0)
        while True:
            root = cell
            while uncovered[root] != root:
                root = uncovered[root]
            while cell != root:
                following = uncovered[cell]
                uncovered[cell] = root
                cell = following
            if root > last:
                break
            area += heights[m]
            uncovered[root] = root + 1
            cell = root + 1
    return area


@njit(cache=True, nogil=True)
def _largest_distances(masses, cells, width, ceiling, out):  # type: ignore[no-untyped-def]
    """Write D of ``zoom``'s proof for first-level cells (ascending, of ``width``) to their places.

    In units of two widths. If a bound in cell c is d = 2 r widths from its centres, the cells
    c - r + 1 .. c + r - 1 lie within d / 2 of it.
    """
    for m in range(cells.size):
        c = cells[m]
        if m > 0 and cells[m - 1] == c:
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
        out[c] = low + 1
