"""The best choice of points, against all subsets of them and against a dense dynamic program."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.lattice import choose_table, choose_table_of_parts
from mlopt.palette.value.quantized import Lattice
from tests.palette import references as ref


def least_by_subsets(values, masses, points, k):
    """The least error over all subsets of at most ``k`` points; every value goes to the nearest."""
    squares = np.square(values[:, None] - points)
    sizes = range(1, min(k, len(points)) + 1)
    return min(
        (masses * squares[:, list(subset)].min(axis=1)).sum()
        for size in sizes
        for subset in itertools.combinations(range(len(points)), size)
    )


def least_by_dp(values, masses, points, k):
    """The same by a dense dynamic program over pairs of points; no property of errors is used."""
    x, h, p = (np.asarray(a, np.longdouble) for a in (values, masses, points))
    m = len(p)
    pairs = np.full((m, m), np.inf, np.longdouble)
    squares = np.square(x - p[:, None])
    below = np.searchsorted(x, p, side="right")
    for i in range(m):
        for j in range(i + 1, m):
            held = slice(below[i], below[j])
            pairs[i, j] = (h[held] * np.minimum(squares[i, held], squares[j, held])).sum()
    path = np.array([(h * np.square(x - q))[x <= q].sum() for q in p])
    beyond = np.array([(h * np.square(x - q))[x > q].sum() for q in p])
    least = (path + beyond).min()
    for _ in range(1, min(k, m)):
        path = (path[:, None] + pairs).min(axis=0)
        least = min(least, (path + beyond).min())
    return least


def both_ways(values, masses, points, k):
    """The table of sorted values and of counted ones, checked for their form."""
    tables = (
        choose_table(values, masses, points, k),
        choose_table_of_parts(lambda: iter([(values, masses)]), points, k),
    )
    for table in tables:
        assert table.shape == (k,)
        assert np.isin(table, points).all()
        rising = np.diff(table) > 0
        # ascending, then padding: nothing rises after the first repetition
        assert not (~rising[:-1] & rising[1:]).any()
        distinct = table[: int(rising.sum()) + 1]
        nearest = np.abs(values[:, None] - distinct).argmin(axis=1)
        assert set(nearest) == set(range(len(distinct))), "an entry serves no value"
    return tables


def test_by_hand():
    # 0.4 and 0.6 cannot have a point each; 10 can
    values, points = np.array([0.4, 0.6, 10.0]), np.array([0.0, 1.0, 2.0, 9.0, 10.0])
    for table in both_ways(values, np.array([1.0, 3.0, 1.0]), points, 2):
        assert table.tolist() == [1, 10]
    for table in both_ways(values, np.array([3.0, 1.0, 1.0]), points, 2):
        assert table.tolist() == [0, 10]
    for table in both_ways(values, np.ones(3), points, 4):
        assert table.tolist() == [0, 1, 10, 10]
    for table in both_ways(values, np.ones(3), points, 1):
        assert table.tolist() == [2]  # 2.56 + 1.96 + 64, against 73.96 + 70.56 + 1


numbers = st.integers(-40, 40).map(lambda n: n / 4)


@given(
    values=st.lists(numbers, min_size=1, max_size=25, unique=True),
    seed=st.integers(0, 9),
    points=st.lists(numbers, min_size=1, max_size=9, unique=True),
    k=st.integers(1, 6),
)
@settings(max_examples=300, deadline=None)
def test_no_subset_of_the_points_is_better(values, seed, points, k):
    values, points = np.sort(values), np.sort(points)
    masses = np.random.default_rng(seed).exponential(size=len(values)) + 1e-3
    least = least_by_subsets(values, masses, points, k)
    for table in both_ways(values, masses, points, k):
        assert ref.nearest_cost(values, table, masses) == pytest.approx(least, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("k", [2, 16, 64])
@pytest.mark.parametrize("lut_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_no_path_is_better(k, lut_dtype, dtype):
    rng = np.random.default_rng(k)
    values = np.unique(rng.standard_t(4, 700) * 0.03)
    masses = rng.integers(1, 5, len(values)).astype(float)
    lattice = Lattice.spanning(-0.11, 0.1, lut_dtype, np.dtype(ref.FORMATS[dtype]))
    least = least_by_dp(values, masses, lattice.points, k)
    for table in both_ways(values, masses, lattice.points, k):
        assert float(ref.nearest_cost(values, table, masses)) == pytest.approx(
            float(least), rel=1e-9
        )


def test_all_points_that_serve_where_there_is_room_for_all():
    rng = np.random.default_rng(0)
    values = np.unique(rng.standard_normal(3000))
    points = Lattice.spanning(-4, 4, "uint8", np.dtype(np.float32)).points
    for table in both_ways(values, np.ones(len(values)), points, 256):
        cost = ref.nearest_cost(values, table)
        assert cost == pytest.approx(ref.nearest_cost(values, points), rel=1e-12)


def test_values_outside_of_the_points():
    for table in both_ways(np.array([-9.0, 7.0, 8.0]), np.ones(3), np.array([0.0, 1.0, 2.0]), 2):
        assert table.tolist() == [0, 2]


def test_points_and_values_at_the_ends_of_float64():
    values = np.array([-1.7e308, -1e300, 3.0, 1.7e308])
    points = np.array([-1.7e308, 0.0, 1.7e308])
    parts = [(values, np.ones(4))]
    with np.errstate(over="ignore"):
        # squares are beyond float64, so all that is asked for is an answer
        assert np.isin(choose_table_of_parts(lambda: iter(parts), points, 2), points).all()
    for table in both_ways(values[2:3], np.ones(1), points, 2):
        assert table.tolist() == [0, 0]


def test_nothing_of_importance():
    values, points = np.ones(3, np.float32), np.arange(4.0)
    assert choose_table_of_parts(lambda: iter([(values, np.zeros(3))]), points, 2) is None


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("n", [1, 90, 70_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows(name, n, weighted):
    """Each row as if alone, with points for all of them or a choice of points for each."""
    rng = np.random.default_rng(n)
    rows = (0.05 * rng.standard_normal((3, n))).astype(ref.FORMATS[name])
    importance = rng.integers(0, 3, rows.shape).astype(float) if weighted else None
    shared = np.arange(-9, 10)[None] * 0.015
    own = shared * np.array([[1.0], [0.5], [2.0]])
    dtype = np.dtype(np.float64)
    for points in (shared, own):
        found = cluster_rows(rows, 2, table_dtype=dtype, importance=importance, points=points)
        again = cluster_rows(
            rows, 2, table_dtype=dtype, importance=importance, points=points, workers=3
        )
        assert found.tables.tobytes() == again.tables.tobytes()
        noise = 0.0
        for g, row in enumerate(rows):
            h = np.ones(n) if not weighted or not importance[g].any() else importance[g]
            values, masses = ref.distinct(row, h)
            table = choose_table(values, masses, points[g if len(points) > 1 else 0], 4)
            np.testing.assert_array_equal(found.tables[g], table)
            wide = row.astype(np.float64)
            misses = np.square(wide - table[found.labels[g]])
            np.testing.assert_allclose(misses, np.square(wide[:, None] - table).min(axis=1))
            noise += (h * misses).sum()
        assert found.noise == pytest.approx(noise, rel=1e-10)
