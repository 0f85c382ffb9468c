"""Counts of values in cells at several levels: the first of equal width, each next one finer.

:mod:`mlopt.palette.scalar.zoom` passes over the values with these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.threads import for_each

Floats = npt.NDArray[Any]
Sums = npt.NDArray[np.float64]
Part = tuple[Floats, npt.NDArray[np.float64]]
"""Values [n], and importance: float64[m] for n / m values each, or empty for 1."""
Parts = Callable[[], Iterator[Part]]
"""One pass over the values, part by part."""
MOST_IN_THREADS = 1 << 18
"""Cells that each thread may count on its own, 8 MB."""


class Extent(NamedTuple):
    """Range of the values with importance, sums of importance and moment, and number of values."""

    low: float
    high: float
    mass: float
    moment: float
    size: int


class Gathered(NamedTuple):
    """Values with their importance, and the ranks (int32) of the kept cells that they are in."""

    values: Floats
    importance: npt.NDArray[np.float64]
    cell: npt.NDArray[np.int32]


class InCells(NamedTuple):
    """Ascending values with their importance; starts: number of values before each cell."""

    values: npt.NDArray[np.float64]
    importance: npt.NDArray[np.float64]
    starts: npt.NDArray[np.int64]


class _Places(NamedTuple):
    """The cells that values fall into: the fields of :class:`Grid` for kernels."""

    low: float
    per_width: float
    ranks: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    finer: npt.NDArray[np.int64]


class Grid:
    """Cells at several levels: the first of equal width, each next one parts of the cells kept.

    A value's place in units of the first cells is computed once, with rounding; all steps after
    that are exact, so cells never decrease as values grow.

    Attributes
    ----------
    size
        Number of cells of the last level.
    passes
        Passes over all values so far.
    workers
        Threads that pass over parts. Results do not depend on it.
    """

    def __init__(self, low: float, per_width: float, size: int, workers: int = 1) -> None:
        self.low = low
        self.per_width = per_width
        # for each level but the last: the rank of each cell among those kept, or -1
        self.ranks = np.empty(0, np.int32)
        self.offsets = np.array([0])
        self.finer = np.empty(0, np.int64)
        self.size = size
        self.passes = 0
        self.workers = workers

    def refine(self, kept: npt.NDArray[np.int64], finer: int) -> None:
        """Keep these cells (ascending) of the last level, and cut each into ``finer`` (2**b)."""
        ranks = np.full(self.size, -1, np.int32)
        ranks[kept] = np.arange(kept.size, dtype=np.int32)
        self.ranks = np.concatenate([self.ranks, ranks])
        self.offsets = np.append(self.offsets, self.ranks.size)
        self.finer = np.append(self.finer, finer)
        self.size = kept.size * finer

    def count(self, parts: Parts, mean: float) -> tuple[Sums, npt.NDArray[np.int64]]:
        """Return, by cell of the last level, importance and moments [3, size] and counts [size]."""
        places, size = self._places(), self.size

        def count_part(part: Part) -> npt.NDArray[np.float64]:
            # the four of a cell side by side: in one line of the cache
            tally = np.zeros((size, 4))
            _count(*part, places, mean, tally)
            return tally

        # a tally for each thread: few threads where they are large
        workers = self.workers if size <= MOST_IN_THREADS else 1
        counted = for_each(parts(), count_part, workers)
        tally = next(counted)
        for more in counted:
            tally += more
        self.passes += 1
        return np.ascontiguousarray(tally[:, :3].T), tally[:, 3].astype(np.int64)

    def gather(self, parts: Parts, size: int) -> Gathered:
        """Return the ``size`` values in the kept cells."""
        places = self._places()

        def gather_part(part: Part) -> Gathered:
            # one more than there can be: where the next value would go
            room = min(size, part[0].size) + 1
            out = Gathered(np.empty(room, part[0].dtype), np.empty(room), np.empty(room, np.int32))
            filled = _gather(*part, places, out)
            return Gathered(
                out.values[:filled].copy(), out.importance[:filled].copy(), out.cell[:filled].copy()
            )

        gathered = list(for_each(parts(), gather_part, self.workers))
        self.passes += 1
        if len(gathered) == 1:
            return gathered[0]
        values, importance, cell = zip(*gathered, strict=True)
        return Gathered(np.concatenate(values), np.concatenate(importance), np.concatenate(cell))

    def _places(self) -> _Places:
        return _Places(self.low, self.per_width, self.ranks, self.offsets, self.finer)


def extent(parts: Parts, workers: int = 1) -> Extent:
    """Summarize the values in one pass."""

    def extent_of(part: Part) -> Extent:
        low, high, mass, moment = _extent(*part)
        return Extent(low, high, mass, moment, part[0].size)

    seen = list(for_each(parts(), extent_of, workers))
    low, high, mass, moment, size = zip(*seen, strict=True)
    return Extent(min(low), max(high), sum(mass), sum(moment), sum(size))


@njit(cache=True, nogil=True)
def _extent(values, importance):  # type: ignore[no-untyped-def]
    low, high, mass, moment = np.inf, -np.inf, 0.0, 0.0
    rows = max(1, importance.size)
    run = values.size // rows
    for row in range(rows):
        h = importance[row] if importance.size else 1.0
        if h == 0.0:
            continue
        for i in range(row * run, (row + 1) * run):
            x = np.float64(values[i])
            low = min(low, x)
            high = max(high, x)
            mass += h
            moment += h * x
    return low, high, mass, moment


@njit(cache=True, nogil=True)
def _cell_of(x, places):  # type: ignore[no-untyped-def]
    """Return the cell of the last level that ``x`` falls into, or -1."""
    low, per_width, ranks, offsets, finer = places
    place = (x - low) * per_width
    cell = np.int64(place)
    for level in range(finer.size):
        rank = ranks[offsets[level] + cell]
        if rank < 0:
            return np.int64(-1)
        place = (place - np.floor(place)) * finer[level]
        cell = rank * finer[level] + np.int64(place)
    return cell


@njit(cache=True, nogil=True)
def _count(values, importance, places, mean, tally):  # type: ignore[no-untyped-def]
    """Add importance, moments about ``mean`` and number of values to their cells' rows."""
    rows = max(1, importance.size)
    run = values.size // rows
    for row in range(rows):
        h = importance[row] if importance.size else 1.0
        if h == 0.0:
            continue
        for i in range(row * run, (row + 1) * run):
            x = np.float64(values[i])
            cell = _cell_of(x, places)
            if cell < 0:
                continue
            distance = x - mean
            tally[cell, 0] += h
            tally[cell, 1] += h * distance
            tally[cell, 2] += h * distance * distance
            tally[cell, 3] += 1.0


@njit(cache=True, nogil=True)
def _gather(values, importance, places, out):  # type: ignore[no-untyped-def]
    """Write the values in kept cells; returns how many there are."""
    rows = max(1, importance.size)
    run = values.size // rows
    shift = 0
    while 1 << shift < places.finer[-1]:
        shift += 1
    filled = 0
    for row in range(rows):
        h = importance[row] if importance.size else 1.0
        if h == 0.0:
            continue
        for i in range(row * run, (row + 1) * run):
            cell = _cell_of(np.float64(values[i]), places)
            # written in any case, as a branch on it would be mispredicted
            out.values[filled] = values[i]
            out.importance[filled] = h
            out.cell[filled] = cell >> shift
            filled += cell >= 0
    return filled


def cut(lower: Sums, upper: Sums, cells: Sums, kept: npt.NDArray[np.int64]) -> tuple[Sums, Sums]:
    """Return the prefix sums at the lower and upper edges of those parts of cells that are kept.

    lower, upper: [3, m], of the cells; cells: [3, m * finer], sums over each part; kept: ascending.
    The last part takes the upper edge of its cell as it is, so that neighbours are equal to the
    bit.
    """
    lowest, highest = np.empty((3, kept.size)), np.empty((3, kept.size))
    _cut(lower, upper, cells, kept, (lowest, highest))
    return lowest, highest


@njit(cache=True, nogil=True)
def _cut(lower, upper, cells, kept, out):  # type: ignore[no-untyped-def]
    lowest, highest = out
    finer = cells.shape[1] // lower.shape[1]
    for row in range(3):
        place = 0
        for c in range(lower.shape[1]):
            edge = lower[row, c]
            for part in range(c * finer, (c + 1) * finer):
                following = edge + cells[row, part]
                if part == (c + 1) * finer - 1:
                    following = upper[row, c]
                if place < kept.size and kept[place] == part:
                    lowest[row, place] = edge
                    highest[row, place] = following
                    place += 1
                edge = following


def sort_in_cells(gathered: Gathered, cells: int) -> InCells:
    """Return gathered values as :class:`InCells` of ``cells`` ascending cells.

    Equal values keep their order.
    """
    # cells ascend with the values
    order = np.argsort(gathered.values, kind="stable")
    starts = np.searchsorted(gathered.cell[order], np.arange(cells + 1, dtype=np.int32))
    values = gathered.values[order].astype(np.float64)
    return InCells(values, gathered.importance[order], starts)


def sums_at_positions(gathered: Gathered, mean: float, lower: Sums, upper: Sums) -> Sums:
    """Return prefix sums wherever a bound may be: at edges, and between distinct values in cells.

    lower, upper: sums at the edges of the cells, [3, m].
    """
    ordered = sort_in_cells(gathered, lower.shape[1])
    out = np.empty((3, gathered.values.size + 2 * lower.shape[1]))
    count = _fill_positions(ordered, mean, lower, upper, out)
    return out[:, :count]


@njit(cache=True, nogil=True)
def _fill_positions(ordered, mean, lower, upper, out):  # type: ignore[no-untyped-def]
    """Write the sums into ``out``, cell by cell; returns how many there are."""
    values, importance, starts = ordered
    count = 0
    for c in range(lower.shape[1]):
        s0, s1, s2 = lower[0, c], lower[1, c], lower[2, c]
        out[0, count], out[1, count], out[2, count] = s0, s1, s2
        count += 1
        i = starts[c]
        last = starts[c + 1]
        while i < last:
            value = values[i]
            while i < last and values[i] == value:
                distance = value - mean
                s0 += importance[i]
                s1 += importance[i] * distance
                s2 += importance[i] * distance * distance
                i += 1
            if i < last:
                out[0, count], out[1, count], out[2, count] = s0, s1, s2
                count += 1
        out[0, count], out[1, count], out[2, count] = upper[0, c], upper[1, c], upper[2, c]
        count += 1
    return count
