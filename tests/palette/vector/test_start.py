"""Starts of Lloyd's iteration, step by step in plain numpy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mlopt.palette.vector.start import local_search, plus_plus, suggested_swaps


def made(dtype, n=61, d=3, seed=0):
    """Vectors of small integers, whose distances are exact, and their weights."""
    rng = np.random.default_rng(seed)
    return rng.integers(-9, 10, (d, n)).astype(dtype), rng.integers(1, 6, n).astype(np.float64)


def cost_of(columns, weights, centers):
    return (weights * cdist(columns.T, centers, "sqeuclidean").min(axis=1)).sum()


def drawn(weights, uniform):
    """The first position whose cumulative weight is above a share of the total."""
    return int(np.flatnonzero(np.cumsum(weights) > uniform * weights.sum())[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_greedy_plus_plus(dtype):
    columns, weights = made(dtype)
    draws = np.random.default_rng(1).random((9, 3))
    chosen = [drawn(weights, draws[0, 0])]
    for step in range(1, 9):
        nearest = cdist(columns.T, columns[:, chosen].T, "sqeuclidean").min(axis=1)
        trials = [drawn(weights * nearest, uniform) for uniform in draws[step]]
        costs = [cost_of(columns, weights, columns[:, [*chosen, t]].T) for t in trials]
        chosen.append(trials[int(np.argmin(costs))])
    assert plus_plus(columns, weights, 9, draws).tolist() == chosen


def test_plus_plus_ends_where_nothing_is_left_to_gain():
    columns = np.array([[0, 0, 5, 5, 9]], np.float32)
    draws = np.random.default_rng(0).random((5, 2))
    chosen = plus_plus(columns, np.ones(5), 5, draws)
    assert sorted(columns[0, chosen]) == [0, 5, 9]


def swapped(centers, gone, point):
    moved = centers.copy()
    moved[gone] = point
    return moved


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_drawn_vector_replaces_the_centre_that_is_missed_least(dtype):
    columns, weights = made(dtype, n=301)  # more than a strip
    centers = columns[:, :6].T.copy()
    draws = np.random.default_rng(2).random(20)
    positions, gone = suggested_swaps(columns, weights, centers, draws)
    costs = weights * cdist(columns.T, centers, "sqeuclidean").min(axis=1)
    assert positions.tolist() == [drawn(costs, uniform) for uniform in draws]
    for position, centre in zip(positions, gone, strict=True):
        after = [
            cost_of(columns, weights, swapped(centers, j, columns[:, position])) for j in range(6)
        ]
        assert after[centre] == min(after)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_local_search_makes_every_swap_that_pays(dtype):
    columns, weights = made(dtype, n=301)
    centers = columns[:, :6].T.copy()
    draws = np.random.default_rng(3).random(30)
    expected, taken = centers.copy(), 0
    for uniform in draws:
        costs = weights * cdist(columns.T, expected, "sqeuclidean").min(axis=1)
        point = columns[:, drawn(costs, uniform)]
        after = [cost_of(columns, weights, swapped(expected, j, point)) for j in range(6)]
        if min(after) < costs.sum():
            expected, taken = swapped(expected, int(np.argmin(after)), point), taken + 1
    assert 0 < taken < len(draws)
    assert local_search(columns, weights, centers, draws) == taken
    np.testing.assert_array_equal(centers, expected)


def test_local_search_has_nothing_to_do():
    columns = np.array([[0, 0, 5, 9]], np.float32)
    draws = np.random.default_rng(0).random(4)
    one = np.array([[1]], np.float32)
    assert local_search(columns, np.ones(4), one, draws) == 0
    all_of_them = np.array([[0], [5], [9]], np.float32)
    assert local_search(columns, np.ones(4), all_of_them, draws) == 0
    assert all_of_them.tolist() == [[0], [5], [9]]
