"""The cells that are kept against the bounds of the optimum, which a dense search finds."""

import numpy as np
import pytest

from mlopt.palette.scalar import near
from mlopt.palette.scalar.stored import rounding_of
from tests.palette import references as ref

SIZE = 256


def level_of(values, masses, entries, name, size=SIZE):
    """Distinct ascending values in [0, 1), in cells of equal width: as zooming sees them."""
    mean = np.average(values, weights=masses)
    cell = np.floor(values * size).astype(int)
    away = values - mean
    sums = np.stack([np.bincount(cell, masses * away**p, size) for p in range(3)])
    edges = np.concatenate([np.zeros((3, 1)), np.cumsum(sums, axis=1)], axis=1)
    counts = np.bincount(cell, minlength=size)
    width = 1.0 / size
    whole = near.Whole(
        mean, edges[:, -1:].copy(), edges[0].copy(), width, 0.5, entries, rounding_of(name)
    )
    level = near.Level(edges[:, :-1], edges[:, 1:], counts, np.arange(size), width)
    level.keep(np.flatnonzero(counts))
    spread = near.spread_in_cells(sums[:, counts > 0], level.counts, width)
    return level, whole, spread, cell


def best_bounds(costs, entries):
    """The inner bounds of the cheapest segmentation."""
    path, starts = costs[0], []
    for _ in range(entries - 1):
        through = path[:, None] + costs
        starts.append(through.argmin(axis=0))
        path = through.min(axis=0)
    bounds, end = [], len(costs) - 1
    for start in reversed(starts):
        end = int(start[end])
        bounds.append(end)
    return bounds


def made(kind, seed):
    rng = np.random.default_rng(seed)
    draws = {
        "even": rng.random(300),
        "bell": 0.5 + 0.1 * rng.standard_normal(300),
        "clumps": rng.choice([0.1, 0.35, 0.6, 0.85], 300) + 0.03 * rng.standard_normal(300),
    }
    values = np.unique(np.clip(draws[kind], 0, 0.999).astype(np.float32).astype(np.float64))
    return values, rng.integers(1, 5, values.size).astype(np.float64)


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
@pytest.mark.parametrize("entries", [2, 4, 8])
@pytest.mark.parametrize("kind", ["even", "bell", "clumps"])
def test_cells_at_bounds_of_the_optimum_are_kept(kind, entries, name):
    shares = []
    for seed in range(3):
        values, masses = made(kind, seed)
        costs = {
            stored: ref.segment_costs(values, masses, ref.FORMATS[name] if stored else None)
            for stored in {False, name != "float64"}
        }
        for size in (2 * entries, 40, SIZE):
            level, whole, spread, cell = level_of(values, masses, entries, name, size)
            got = near.near_bounds(level, whole, spread, 0.0)
            bounds = best_bounds(costs[name != "float64" and not got.limited], entries)
            kept = level.coarse[got.kept]
            assert (np.diff(kept) > 0).all()
            for bound in bounds:
                assert {cell[bound - 1], cell[bound]} <= set(kept)
            if name == "float64":
                assert got.price == 0.0
                assert not got.limited
        shares.append(kept.size / spread.size)
    # what is of no use goes, where the clusters are as many as the clumps
    if (kind, entries) == ("clumps", 4):
        assert max(shares) < 0.5


def test_a_known_penalty_changes_nothing():
    values, masses = made("clumps", 0)
    level, whole, spread, _ = level_of(values, masses, 4, "float64")
    first = near.near_bounds(level, whole, spread, 0.0)
    again = near.near_bounds(level, whole, spread, first.penalty)
    np.testing.assert_array_equal(again.kept, first.kept)
    assert again.slack == pytest.approx(first.slack, rel=1e-9)


def test_the_price_of_rounding_widens_what_is_kept():
    values, masses = made("even", 0)
    level, whole, spread, _ = level_of(values, masses, 4, "bfloat16")
    coarse = near.near_bounds(level, whole, spread, 0.0)
    level, whole, spread, _ = level_of(values, masses, 4, "float64")
    plain = near.near_bounds(level, whole, spread, 0.0)
    assert coarse.price > 0.0
    assert set(plain.kept) <= set(coarse.kept)


def test_no_more_cells_than_clusters():
    values = np.array([0.1, 0.3, 0.5, 0.9])
    level, whole, spread, _ = level_of(values, np.ones(4), 4, "float64")
    assert near.near_bounds(level, whole, spread, 0.0) is None
    level, whole, spread, _ = level_of(values, np.ones(4), 3, "float64")
    assert near.near_bounds(level, whole, spread, 0.0) is not None


def test_edges_without_importance_between_them_are_one():
    masses = np.array([0.0, 2.0, 2.0, 2.0 + 1e-15, 5.0, 7.0, 7.0])
    sums = np.stack([masses, np.arange(7.0), np.arange(7.0) ** 2])
    with_ends, positions = near.with_ends(sums, np.array([[7.0], [6.0], [36.0]]))
    assert with_ends.tolist() == [[0, 2, 5, 7], [0, 1, 4, 6], [0, 1, 16, 36]]
    assert positions.tolist() == [0, 1, 1, 1, 2, 2, 2]


def test_spread_is_twice_the_distances_from_the_mean_or_more():
    rng = np.random.default_rng(0)
    width = 0.25
    sums, counts, least = [], [], []
    for count in (1, 2, 3, 50, 2000):
        for values in (0.5 + width * rng.random(count), np.full(count, 0.7)):
            h = rng.uniform(0.5, 2, count)
            sums.append([np.sum(h * (values - 3.0) ** p) for p in range(3)])
            counts.append(count)
            least.append(2 * np.sum(h * abs(values - np.average(values, weights=h))) / width)
    mass = np.array(sums)[:, 0]
    spread = near.spread_in_cells(np.transpose(sums), np.array(counts), width)
    assert (spread >= np.array(least) * (1 - 1e-12)).all()
    assert (spread <= mass).all()
    # evenly filled cells err by the root of 4/3; equal values have next to none
    assert spread[-2] == pytest.approx(least[-2] * np.sqrt(4 / 3), rel=0.02)
    assert spread[-1] < 1e-4 * mass[-1]


def test_area_under_boxes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        m, size = rng.integers(1, 12), 60
        heights = -np.sort(-rng.random(m))
        cells, far = rng.integers(0, size, m), rng.integers(0, 6, m)
        under = np.zeros(size)
        for height, cell, reach in zip(heights, cells, 2 * far + 1, strict=True):
            span = slice(max(cell - reach, 0), cell + reach + 1)
            under[span] = np.maximum(under[span], height)
        got = near._area_of_boxes(heights, cells, far, size)
        assert got == pytest.approx(under.sum(), rel=1e-12)


def test_distances_within_which_a_centre_lies():
    rng = np.random.default_rng(0)
    masses = np.concatenate([[0.0], np.cumsum(rng.integers(0, 9, 40).astype(np.float64))])
    cells, width, ceiling = np.array([0, 3, 3, 20, 39]), 0.125, 15.0
    got = np.zeros(masses.size, np.int64)
    near._largest_distances(masses, cells, width, ceiling, got)
    for c in cells:
        held = [masses[min(c + r, 40)] - masses[max(c - r + 1, 0)] for r in range(1, masses.size)]
        over = [r for r, mass in enumerate(held, 1) if mass * (r * width) ** 2 > ceiling]
        assert got[c] == over[0]
