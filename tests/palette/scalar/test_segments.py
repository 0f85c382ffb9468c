"""Segment costs and penalised paths against dense dynamic programs in extended precision."""

import numpy as np
import pytest

from mlopt.palette.scalar import segments
from tests.palette import references as ref


def sums_of(values, masses):
    prefix = segments.fill_sums(values, masses, np.empty((3, len(values) + 1)))
    return prefix.sums, prefix.origin


def penalised(values, masses, penalty):
    """Costs of prefixes and the bounds of the cheapest path under a penalty."""
    n = len(values)
    prefix = segments.fill_sums(values, masses, np.empty((3, n + 1)))
    scratch = segments.make_scratch(n)
    segments.penalised_paths(prefix, penalty, scratch)
    count = segments.trace_path(scratch.start, n, scratch.bounds)
    return scratch.cost, scratch.bounds[: count + 1]


def test_cost_by_hand():
    # 1 and 3 lie about 2; 3 with mass 2 and 6 lie about 4.
    sums, _ = sums_of(np.array([1.0, 3.0, 6.0]), np.array([1.0, 1.0, 1.0]))
    assert segments.segment_cost(sums, 0, 2) == pytest.approx(2.0, abs=1e-14)
    assert segments.segment_cost(sums, 1, 2) == pytest.approx(0.0, abs=1e-14)
    sums, _ = sums_of(np.array([1.0, 3.0, 6.0]), np.array([1.0, 2.0, 1.0]))
    assert segments.segment_cost(sums, 1, 3) == pytest.approx(6.0, abs=1e-14)
    bounds = np.array([0, 1, 3])
    assert segments.total_cost(sums, bounds, 2) == pytest.approx(6.0, abs=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_costs_of_all_segments(offset):
    rng = np.random.default_rng(1)
    values = offset + np.sort(rng.standard_normal(40)) * 1e-3
    masses = rng.random(40) + 0.01
    sums, _ = sums_of(values, masses)
    expected = ref.segment_costs(values, masses)
    got = np.full((41, 41), np.inf)
    for i in range(40):
        for j in range(i + 1, 41):
            got[i, j] = segments.segment_cost(sums, i, j)
            assert got[i, j] >= 0.0
    np.testing.assert_allclose(got, expected.astype(float), rtol=1e-10, atol=1e-19)


def test_means_from_sums():
    rng = np.random.default_rng(2)
    values, masses = np.sort(rng.standard_normal(30)) + 100, rng.random(30) + 0.1
    sums, origin = sums_of(values, masses)
    for i, j in ((0, 30), (0, 1), (29, 30), (7, 19)):
        mean = origin + (sums[1, j] - sums[1, i]) / (sums[0, j] - sums[0, i])
        assert mean == pytest.approx(np.average(values[i:j], weights=masses[i:j]), rel=1e-14)


def test_mirrored_sums_are_those_of_the_reversed_values():
    rng = np.random.default_rng(3)
    values, masses = np.sort(rng.standard_normal(25)), rng.random(25) + 0.1
    sums, _ = sums_of(values, masses)
    mirrored = np.empty_like(sums)
    segments.mirror_sums(sums, 25, mirrored)
    for i in range(25):
        for j in range(i + 1, 26):
            there = segments.segment_cost(sums, 25 - j, 25 - i)
            here = segments.segment_cost(mirrored, i, j)
            assert here == pytest.approx(there, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("seed", range(40))
def test_penalised_path_is_the_cheapest_of_all_counts(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    if seed % 3 == 0:
        values = np.unique(rng.integers(-30, 30, n)).astype(float)
    elif seed % 3 == 1:
        values = np.arange(float(n))
    else:
        values = np.sort(rng.standard_cauchy(n))
    n = len(values)
    masses = rng.integers(1, 5, n).astype(float) if seed % 2 else np.ones(n)
    costs = ref.segment_costs(values, masses)
    everything = float(ref.spread(values, masses))
    for penalty in everything * 10.0 ** rng.uniform(-6, 0.5, 6) + 1e-9:
        prefix = [np.longdouble(0)]
        for j in range(1, n + 1):
            prefix.append(min(prefix[i] + costs[i, j] for i in range(j)) + penalty)
        got, bounds = penalised(values, masses, penalty)
        np.testing.assert_allclose(
            got, np.array(prefix, float), rtol=1e-12, atol=1e-13 * everything
        )
        assert bounds[0] == 0
        assert bounds[-1] == n
        assert (np.diff(bounds) > 0).all()
        paid = ref.cost_of_bounds(values, masses, bounds) + penalty * (len(bounds) - 1)
        assert paid <= prefix[-1] + 1e-13 * everything


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("room", [0.0, 1e-3, 0.5, 3.0, np.inf])
def test_suffix_costs_are_exact_where_they_matter(seed, room):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    values = np.unique(rng.standard_cauchy(n) if seed % 2 else rng.integers(-40, 40, n) * 1.0)
    n = len(values)
    masses = rng.integers(1, 5, n) * 1.0 if seed % 3 else rng.random(n) + 1e-3
    prefix = segments.fill_sums(values, masses, np.empty((3, n + 1)))
    scratch = segments.make_scratch(n)
    for penalty in float(ref.spread(values, masses)) * 10.0 ** rng.uniform(-5, 0, 4) + 1e-9:
        backward = segments.suffix_costs(prefix, penalty, scratch)
        segments.penalised_paths(prefix, penalty, scratch)
        forward = scratch.cost.copy()
        # a little more than the least, so that rounding leaves out no position of the best path
        most = forward[n] * (1 + 1e-12) + room * penalty
        near = segments.near_suffix_costs(prefix, penalty, most, scratch)
        np.testing.assert_array_equal(scratch.cost, forward)
        np.testing.assert_array_less(backward * (1 - 1e-12), near + 1e-300)
        matters = forward + backward[::-1] <= most - 1e-13 * forward[n]
        np.testing.assert_allclose(near[::-1][matters], backward[::-1][matters], rtol=1e-12)
        assert matters[[0, n]].all() or room == 0.0
