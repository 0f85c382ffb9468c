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
LITTLE_CHANGE = 0.99
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


def with_ends(edges: Sums, total: Sums) -> Sums:
    """Return the sums at both ends, and at edges with some importance before the next one."""
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


def near_bounds(
    level: Level, whole: Whole, held: npt.NDArray[np.float64], penalty: float
) -> Near | None:
    """Return the cells of a level, ``held`` in each, next to which a bound of the optimum can be.

    None where there are no more positions than clusters.
    """
    lower, upper, k = level.lower, level.upper, whole.entries
    sums = with_ends(np.stack([lower, upper], axis=2).reshape(3, -1), whole.total)
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
        # the cells that are left may hold less each, and so give less slack
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


@njit(cache=True, nogil=True)
def _largest_distances(masses, cells, width, ceiling):  # type: ignore[no-untyped-def]
    """Return D of ``zoom``'s proof for first-level cells (ascending, of ``width``): float64[m].

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
