"""Exact k-means of sorted values against brute force, scikit-learn and a dense dynamic program."""

import functools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from mlopt.palette import kmeans1d, kmeans1d_curve
from mlopt.palette.scalar.kmeans1d import first_penalty, solve
from mlopt.palette.scalar.segments import fill_sums, make_scratch
from tests.palette import references as ref

KINDS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "integers": lambda rng, n: rng.integers(-20, 20, n).astype(float),
    "equal steps": lambda rng, n: np.arange(float(n)),
    "equal steps, inexact": lambda rng, n: 0.1 * np.arange(n),
    "blocks": lambda rng, n: rng.integers(0, 4, n) * 100.0 + rng.integers(0, 4, n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "offset": lambda rng, n: 1e4 + 1e-3 * rng.standard_normal(n),
    "tiny": lambda rng, n: 1e-40 * rng.standard_normal(n),
    "powers of two": lambda rng, n: 2.0 ** -np.arange(n),
}
MASSES = {
    "ones": lambda rng, n: np.ones(n),
    "counts": lambda rng, n: rng.integers(1, 9, n).astype(float),
    "fractions": lambda rng, n: rng.random(n) + 1e-3,
}


@functools.cache
def inputs(kind, masses):
    """Ten small inputs: values ascending and distinct, their masses, all least costs."""
    rng = np.random.default_rng([list(KINDS).index(kind), list(MASSES).index(masses)])
    made = []
    for n in (1, 2, 3, 5, 8, 13, 21, 28, 33, 40):
        values = np.unique(KINDS[kind](rng, n))
        h = MASSES[masses](rng, len(values))
        least = ref.least_costs(ref.segment_costs(values, h), len(values))
        made.append((values, h, least, ref.spread(values, h)))
    return made


def check_bounds(bounds, n, k):
    assert bounds.shape == (k + 1,)
    assert bounds[0] == 0
    assert bounds[-1] == n
    assert (np.diff(bounds) > 0).all()


def test_by_hand():
    values = np.array([0.0, 1.0, 10.0, 11.0, 30.0])
    assert kmeans1d(values, np.ones(5), 3).tolist() == [0, 2, 4, 5]
    assert kmeans1d(values, np.ones(5), 2).tolist() == [0, 4, 5]
    # 30 is far from the others, but too light to have a cluster of its own
    light = np.array([1.0, 1.0, 1.0, 1.0, 0.01])
    assert kmeans1d(values, light, 2).tolist() == [0, 2, 5]
    curve = kmeans1d_curve(values, np.ones(5), 5)
    np.testing.assert_allclose(curve, [581.2, 101.0, 1.0, 0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize("masses", MASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_k_against_brute_force(kind, masses):
    for values, h, least, spread in inputs(kind, masses):
        n = len(values)
        for k in range(1, n + 1):
            bounds = kmeans1d(values, h, k)
            check_bounds(bounds, n, k)
            assert ref.cost_of_bounds(values, h, bounds) <= least[k - 1] + 1e-13 * spread


@pytest.mark.parametrize("masses", MASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_curve_against_brute_force(kind, masses):
    for values, h, least, spread in inputs(kind, masses):
        n = len(values)
        curve = kmeans1d_curve(values, h, n)
        slack = 1e-11 * float(spread)
        np.testing.assert_allclose(curve, least.astype(float), rtol=1e-11, atol=slack)
        steps = np.diff(curve)
        assert (steps <= slack).all()
        assert (np.diff(steps) >= -2 * slack).all()


def test_more_clusters_than_values():
    values = np.array([-2.0, 0.0, 5.0])
    for k in (3, 4, 256):
        assert kmeans1d(values, np.ones(3), k).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(
        kmeans1d_curve(values, np.ones(3), 5), [26.0, 2.0, 0.0, 0.0, 0.0], atol=1e-12
    )
    assert kmeans1d(np.array([7.0]), np.ones(1), 1).tolist() == [0, 1]


def test_curve_of_fewer_clusters_is_its_start():
    values = np.sort(np.random.default_rng(0).standard_normal(300))
    whole = kmeans1d_curve(values, np.ones(300), 40)
    np.testing.assert_array_equal(kmeans1d_curve(values, np.ones(300), 12), whole[:12])


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-12, 1.0, 2.0**40])
def test_scale_of_values_and_of_masses_changes_no_bound(scale):
    rng = np.random.default_rng(3)
    values, h = np.sort(rng.standard_normal(400)), rng.random(400) + 0.1
    for k in (2, 7, 32):
        expected = kmeans1d(values, h, k)
        np.testing.assert_array_equal(kmeans1d(values * scale, h, k), expected)
        np.testing.assert_array_equal(kmeans1d(values, h * scale, k), expected)


@pytest.mark.parametrize("k", [2, 5, 16])
def test_reflection_keeps_the_cost(k):
    rng = np.random.default_rng(4)
    values, h = np.sort(rng.standard_normal(500)), rng.random(500) + 0.1
    there = ref.cost_of_bounds(values, h, kmeans1d(values, h, k))
    back = -values[::-1].copy(), h[::-1].copy()
    here = ref.cost_of_bounds(*back, kmeans1d(*back, k))
    assert float(here) == pytest.approx(float(there), rel=1e-12)


def density(name, rng, n):
    if name == "two modes":
        return np.r_[rng.standard_normal(n // 2) - 4, 0.2 * rng.standard_normal(n - n // 2) + 3]
    if name == "gap":
        return np.r_[rng.random(n // 2), rng.random(n - n // 2) + 1e3]
    return {
        "normal": lambda: rng.standard_normal(n),
        "laplace": lambda: rng.laplace(size=n),
        "heavy tails": lambda: rng.standard_t(2, n),
        "grid": lambda: np.arange(float(n)),
        "uniform": lambda: rng.random(n),
    }[name]()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "name", ["normal", "laplace", "heavy tails", "two modes", "gap", "grid", "uniform"]
)
def test_long_input_against_a_dense_dynamic_program(name, weighted):
    rng = np.random.default_rng(5)
    values = np.unique(density(name, rng, 1200))
    h = rng.exponential(size=len(values)) + 1e-3 if weighted else np.ones(len(values))
    least = ref.least_costs(ref.segment_costs(values, h).astype(float), 64)
    spread = float(ref.spread(values, h))
    for k in (2, 3, 4, 8, 15, 16, 17, 31, 47, 64):
        bounds = kmeans1d(values, h, k)
        check_bounds(bounds, len(values), k)
        paid = float(ref.cost_of_bounds(values, h, bounds))
        assert paid <= least[k - 1] * (1 + 1e-11) + 1e-15 * spread
    curve = kmeans1d_curve(values, h, 20)
    np.testing.assert_allclose(curve, least[:20], rtol=1e-10, atol=1e-14 * spread)


@pytest.mark.parametrize("k", [2, 8, 16, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_never_above_scikit_learn(k, weighted):
    rng = np.random.default_rng(k)
    below = 0
    for name in ("normal", "laplace", "heavy tails", "two modes"):
        values = np.unique(density(name, rng, 3000))
        h = rng.random(len(values)) + 0.01 if weighted else np.ones(len(values))
        ours = ref.cost_of_bounds(values, h, kmeans1d(values, h, k))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = KMeans(k, n_init=1, random_state=0).fit(values[:, None], sample_weight=h)
        centres = np.sort(theirs.cluster_centers_.ravel())
        cost = ref.nearest_cost(values, centres, h)
        assert ours <= cost * (1 + 1e-12)
        below += ours < cost * (1 - 1e-9)
    assert below >= 2


def test_integer_masses_are_repetitions():
    rng = np.random.default_rng(6)
    values = np.sort(rng.standard_normal(20))
    counts = rng.integers(1, 6, 20)
    # repeated points, hardly apart, so that no value occurs twice
    repeated = np.repeat(values, counts) + 1e-12 * np.arange(counts.sum())
    ends = np.concatenate([[0], np.cumsum(counts)])
    for k in (2, 3, 7, 12):
        bounds = kmeans1d(values, counts.astype(float), k)
        apart = kmeans1d(repeated, np.ones(len(repeated)), k)
        np.testing.assert_array_equal(ends[bounds], apart)


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=30, unique=True),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_integers(numbers, k, seed):
    values = np.sort(np.array(numbers, float))
    h = np.random.default_rng(seed).integers(1, 100, len(values)).astype(float)
    bounds = kmeans1d(values, h, k)
    k = min(k, len(values))
    check_bounds(bounds, len(values), k)
    least = ref.least_costs(ref.segment_costs(values, h), k)[-1]
    assert ref.cost_of_bounds(values, h, bounds) <= least + 1e-14 * ref.spread(values, h)


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_outlier_does_not_cost_precision(sign):
    rng = np.random.default_rng(7)
    values = np.unique(np.r_[sign * 65504.0, 0.02 * rng.standard_normal(500)])
    h = np.ones(len(values))
    least = ref.least_costs(ref.segment_costs(values, h), 128)
    for k in (4, 16, 64, 128):
        paid = ref.cost_of_bounds(values, h, kmeans1d(values, h, k))
        assert paid <= least[k - 1] * (1 + 1e-6)


@pytest.mark.parametrize("penalty", [0.0, 1e-9, 0.03, 1e6])
def test_a_poor_penalty_to_begin_with_leads_to_the_optimum(penalty):
    values, h, least, spread = inputs("normal", "fractions")[-1]
    n = len(values)
    prefix, space = fill_sums(values, h, np.empty((3, n + 1))), make_scratch(n)
    for k in range(1, n):
        solve(prefix, k, penalty, space)
        bounds = space.bounds[: k + 1]
        check_bounds(bounds, n, k)
        assert ref.cost_of_bounds(values, h, bounds) <= least[k - 1] + 1e-13 * spread


@pytest.mark.parametrize("name", ["normal", "laplace", "heavy tails", "two modes", "uniform"])
def test_cells_of_many_values_predict_the_penalty(name):
    passes = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = np.unique(density(name, rng, 3000))
        n = len(values)
        prefix, space = fill_sums(values, np.ones(n), np.empty((3, n + 1))), make_scratch(n)
        passes.append(solve(prefix, 16, first_penalty(values, prefix, 16, space), space)[1])
    assert sum(passes) <= 10
