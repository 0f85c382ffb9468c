"""Bounds on distances against all distances, and sums against plain numpy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mlopt.palette.vector import bounds

DTYPES = [np.float32, np.float64]


def made(dtype, weights_of=0, n=700, d=3, k=12, seed=0):
    """Vectors with weights for none (0), each vector (1) or each element (d), and centres."""
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((d, n)).astype(dtype)
    weights = np.zeros((0, 0))
    if weights_of:
        weights = rng.integers(1, 5, (n, weights_of)).astype(np.float64)
    weights.flags.writeable = False
    table = rng.standard_normal((k, d)).astype(dtype)
    return bounds.Points(columns, weights, weights_of > 1), table


def moves_of(table):
    """As for the first assignment: everything is near to everything."""
    k = len(table)
    half_gap, own, near, far = np.zeros((4, k), table.dtype)
    starts, members = np.full(k + 1, k), np.zeros(k * k, np.int16)
    starts[0], members[:k], far[:] = 0, np.arange(k), np.inf
    return bounds.Moves(starts, members, np.zeros(k * k, table.dtype), half_gap, own, near, far)


def unknown(points):
    n, dtype = points.columns.shape[1], points.columns.dtype
    return bounds.Known(np.zeros(n, np.uint8), np.full(n, np.inf, dtype), np.zeros(n, dtype))


def lengths(points, table):
    """Distances [n, k] in the metric of each vector: element weights relative to the largest."""
    if not points.by_element:
        return cdist(points.columns.T.astype(float), table.astype(float))
    shares = points.weights / points.weights.max(axis=1, keepdims=True)
    squares = (points.columns.T.astype(float)[:, None] - table.astype(float)) ** 2
    return np.sqrt((squares * shares[:, None]).sum(axis=2))


def check(points, table, known, reach):
    """Labels are of the nearest centre, and no bound is on the wrong side."""
    exact = lengths(points, table)
    rows = np.arange(len(exact))
    own = exact[rows, known.labels]
    np.testing.assert_allclose(own, exact.min(axis=1), rtol=1e-6)
    others = exact.copy()
    others[rows, known.labels] = np.inf
    assert (known.upper >= own).all()
    assert (known.lower <= others.min(axis=1)).all()
    for centre, largest in enumerate(reach):
        mine = known.upper[known.labels == centre]
        assert largest == (mine.max() if mine.size else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights_of", [0, 1, 3])
def test_bounds_hold_while_centres_move(weights_of, dtype):
    points, table = made(dtype, weights_of)
    known = unknown(points)
    counted, reach = bounds.reassign(points, table, moves_of(table), known, False)
    assert counted >= known.labels.size * len(table)
    check(points, table, known, reach)
    contraction = 1.0
    if points.by_element:
        least = points.weights.min(axis=1) / points.weights.max(axis=1)
        contraction = float(np.sqrt(least.min()))
    rng = np.random.default_rng(1)
    for size in (0.5, 0.1, 0.01):
        before, table = table, (table + size * rng.standard_normal(table.shape)).astype(dtype)
        moves = moves_of(table)
        moves.starts[:] = 0
        bounds.near_centers(before, table, reach, contraction, moves)
        counted, reach = bounds.reassign(points, table, moves, known, False)
        check(points, table, known, reach)
    # small moves leave most labels as they are, without a look at all centres
    assert counted < known.labels.size * len(table) / 2


def test_centres_that_were_not_compared_bound_the_others_too():
    # pairs of centres far from each other: each vector meets only the two of its own pair
    rng = np.random.default_rng(0)
    table = np.array([[0.0], [1.0], [100.0], [101.0], [200.0]])
    columns = (table[rng.integers(0, 5, 300), 0] + rng.uniform(-0.45, 0.45, 300))[None]
    points = bounds.Points(columns, made(np.float64)[0].weights, False)
    known = unknown(points)
    _, reach = bounds.reassign(points, table, moves_of(table), known, False)
    for step in (0.04, -0.04, 0.04):
        before, table = table, table + step
        moves = moves_of(table)
        moves.starts[:] = 0
        bounds.near_centers(before, table, reach, 1.0, moves)
        known.lower[:] = 0  # every vector is looked at again
        moves.half_gap[:] = 0
        counted, reach = bounds.reassign(points, table, moves, known, False)
        check(points, table, known, reach)
        assert counted < 4 * known.labels.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_centres(dtype):
    _, table = made(dtype, k=30)
    rng = np.random.default_rng(2)
    before = (table + 0.01 * rng.standard_normal(table.shape)).astype(dtype)
    reach = (0.3 * rng.random(30)).astype(dtype)
    moves = moves_of(table)
    moves.starts[:] = 0
    bounds.near_centers(before, table, reach, 1.0, moves)
    gaps = cdist(table.astype(float), table.astype(float))
    moved = np.linalg.norm(table.astype(float) - before.astype(float), axis=1)
    counts = np.diff(moves.starts)
    assert counts.min() < 30
    for a in range(30):
        span = slice(moves.starts[a], moves.starts[a + 1])
        members = moves.members[span]
        assert a in members
        np.testing.assert_allclose(moves.gaps[span], gaps[a, members], rtol=2e-5)
        assert (moves.gaps[span] <= gaps[a, members]).all()
        others = np.delete(np.arange(30), a)
        least = gaps[a, others].min()
        # all within twice the radius are members, the nearest too
        within = others[gaps[a, others] <= 2 * (reach[a] + moved[a])]
        assert set(within) <= set(members)
        assert gaps[a, others].argmin() in np.searchsorted(others, members[members != a])
        left_out = np.setdiff1d(others, members)
        assert moves.far[a] <= (gaps[a, left_out].min() if left_out.size else np.inf)
        assert moves.half_gap[a] <= least / 2
        assert moves.half_gap[a] == pytest.approx(least / 2, rel=3e-5)
        assert moves.own[a] >= moved[a]
        assert moves.near[a] >= moved[members[members != a]].max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_labels_are_of_the_first_of_equal_centres(dtype):
    points, table = made(dtype)
    table[7] = table[3]  # all their distances are equal
    known = unknown(points)
    bounds.reassign(points, table, moves_of(table), known, True)
    expected = lengths(points, table).argmin(axis=1)
    np.testing.assert_array_equal(known.labels, expected)
    assert (known.labels == 3).any()
    assert not (known.labels == 7).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights_of", [0, 1, 3])
def test_sums_and_cost(weights_of, dtype):
    points, table = made(dtype, weights_of)
    n, (k, d) = points.columns.shape[1], table.shape
    labels = np.random.default_rng(1).integers(0, k - 1, n).astype(np.uint8)  # the last one empty
    width = max(weights_of, 1)
    weights = points.weights if weights_of else np.ones((n, 1))
    sums, masses = np.zeros((k, d)), np.zeros((k, width))
    bounds.add_up(points, labels, sums, masses)
    one_hot = (labels[:, None] == np.arange(k)).astype(float)
    wide = points.columns.T.astype(float)
    np.testing.assert_allclose(sums, one_hot.T @ (weights * wide), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(masses, one_hot.T @ weights)
    shares = (weights * (wide - table.astype(float)[labels]) ** 2).sum(axis=1)
    cost, most, row = bounds.weighted_cost(points, labels, table)
    assert cost == pytest.approx(shares.sum(), rel=1e-12)
    assert most == pytest.approx(shares.max(), rel=1e-12)
    assert row == shares.argmax()
