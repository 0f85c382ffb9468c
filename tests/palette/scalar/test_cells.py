"""Cells at several levels against sums over plain numpy selections."""

import numpy as np
import pytest

from mlopt.palette.scalar import cells

NAMES = ["float32", "float64"]


def values_of(name, n=500, seed=0):
    """Values in [-1, 1], and integer importances, of which some are 0."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, n).astype(name)
    importance = rng.integers(0, 4, n).astype(np.float64)
    return values, importance


def in_parts(values, importance):
    """The values in two parts of unequal length."""
    spans = slice(0, 123), slice(123, None)
    return lambda: ((values[s], importance[s]) for s in spans)


def first_cells(values, size):
    return np.floor((values.astype(np.float64) + 1.0) * (size / 2)).astype(int)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_extent(name, weighted):
    values, importance = values_of(name)
    values[7], importance[7] = 99, 0  # not important: outside of the range if weighted
    h = importance if weighted else np.empty(0)
    seen = cells.extent(in_parts(values, h))
    wide = values.astype(np.float64)
    weights = importance if weighted else np.ones(wide.size)
    counted = wide[weights > 0]
    assert (seen.low, seen.high) == (counted.min(), counted.max())
    assert (seen.high == 99) is not weighted
    assert seen.mass == weights.sum()
    assert seen.moment == pytest.approx((weights * wide).sum(), rel=1e-12)
    assert seen.size == wide.size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_counts_at_two_levels_and_what_is_gathered(name, weighted):
    values, importance = values_of(name)
    parts = in_parts(values, importance if weighted else np.empty(0))
    wide, weights = values.astype(np.float64), importance if weighted else np.ones(values.size)
    mean, size, finer = 0.25, 16, 4
    grid = cells.Grid(-1.0, size / 2, size)

    def expected(cell, count):
        chosen = (weights > 0) & (cell >= 0)
        place, h, away = cell[chosen], weights[chosen], wide[chosen] - mean
        sums = [np.bincount(place, h * away**power, count) for power in range(3)]
        return np.stack(sums), np.bincount(place, minlength=count)

    coarse = first_cells(values, size)
    got_sums, got_counts = grid.count(parts, mean)
    sums, counts = expected(coarse, size)
    np.testing.assert_allclose(got_sums, sums, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(got_counts, counts)

    kept = np.array([2, 3, 9, 15])
    grid.refine(kept, finer)
    assert grid.size == kept.size * finer
    rank = np.full(size, -1)
    rank[kept] = np.arange(kept.size)
    part = first_cells(values, size * finer) % finer
    fine = np.where(rank[coarse] >= 0, rank[coarse] * finer + part, -1)
    got_sums, got_counts = grid.count(parts, mean)
    sums, counts = expected(fine, grid.size)
    np.testing.assert_allclose(got_sums, sums, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(got_counts, counts)

    chosen = (weights > 0) & (rank[coarse] >= 0)
    gathered = grid.gather(parts, np.count_nonzero(chosen))
    assert gathered.values.dtype == values.dtype
    np.testing.assert_array_equal(gathered.values, values[chosen])
    np.testing.assert_array_equal(gathered.importance, weights[chosen])
    np.testing.assert_array_equal(gathered.cell, rank[coarse][chosen])
    assert grid.passes == 3


def test_a_cut_cell_keeps_its_edges():
    parts = np.random.default_rng(0).random((3, 12))
    sums = np.cumsum(parts, axis=1)
    lower = np.concatenate([np.zeros((3, 1)), sums[:, 3:-1:4]], axis=1)
    upper = sums[:, 3::4] * (1 + 1e-15)  # rounded otherwise than the sums of the parts
    below, above = cells.cut(lower, upper, parts, np.arange(12))
    np.testing.assert_allclose(above, sums, rtol=1e-14)
    np.testing.assert_array_equal(below[:, ::4], lower)
    np.testing.assert_array_equal(above[:, 3::4], upper)
    inner = [i for i in range(12) if i % 4]
    np.testing.assert_array_equal(below[:, inner], above[:, [i - 1 for i in inner]])
    kept = np.array([0, 3, 5, 11])
    some_below, some_above = cells.cut(lower, upper, parts, kept)
    np.testing.assert_array_equal(some_below, below[:, kept])
    np.testing.assert_array_equal(some_above, above[:, kept])


@pytest.mark.parametrize("name", NAMES)
def test_values_are_sorted_in_cells_and_equal_ones_keep_their_order(name):
    rng = np.random.default_rng(1)
    cell = rng.integers(0, 6, 200).astype(np.int32)
    cell[cell == 4] = 3  # an empty cell
    values = (cell + rng.integers(0, 5, 200) / 8).astype(name)
    gathered = cells.Gathered(values, np.arange(200.0), cell)
    got = cells.sort_in_cells(gathered, 6)
    order = np.argsort(values.astype(np.float64), kind="stable")  # cells ascend with the values
    np.testing.assert_array_equal(got.values, values[order])
    np.testing.assert_array_equal(got.importance, order)
    np.testing.assert_array_equal(got.starts, np.searchsorted(np.sort(cell), np.arange(7)))


def test_positions_are_edges_and_gaps_between_distinct_values():
    # two cells after one of mass 10; 1, 1 | 2 in the first, a single 5 in the second
    gathered = cells.Gathered(
        np.array([5.0, 2.0, 1.0, 1.0]), np.array([4.0, 3.0, 2.0, 1.0]), np.int32([1, 0, 0, 0])
    )
    lower = np.array([[10.0, 16.0], [0.0, 9.0], [0.0, 15.0]])
    upper = np.array([[16.0, 20.0], [9.0, 29.0], [15.0, 115.0]])
    sums = cells.sums_at_positions(gathered, 0.0, lower, upper)
    assert sums[0].tolist() == [10, 13, 16, 16, 20]
    assert sums[1].tolist() == [0, 3, 9, 9, 29]
    assert sums[2].tolist() == [0, 3, 15, 15, 115]
    about_one = cells.sums_at_positions(gathered, 1.0, lower, upper)
    assert about_one[:, 1].tolist() == [13, 0, 0]


@pytest.mark.parametrize("workers", [1, 3])
def test_importance_of_rows_and_threads_change_nothing(workers):
    rng = np.random.default_rng(2)
    values, rows = rng.uniform(-1, 1, (60, 40)), rng.integers(0, 3, 60).astype(np.float64)
    each = np.repeat(rows, 40).reshape(60, 40)

    def passed(importance, workers):
        def parts():
            for first in range(0, 60, 7):
                span = slice(first, first + 7)
                yield values[span].reshape(-1), importance[span].reshape(-1)

        grid = cells.Grid(-1.0, 8.0, 16, workers)
        counted = grid.count(parts, 0.1)
        grid.refine(np.array([3, 8]), 4)
        size = int(counted[1][[3, 8]].sum())
        return cells.extent(parts, workers), *counted, *grid.gather(parts, size)

    for got, expected in zip(passed(rows, workers), passed(each, 1), strict=True):
        np.testing.assert_array_equal(got, expected)
