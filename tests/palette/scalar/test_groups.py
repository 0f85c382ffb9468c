"""Tables and labels of many rows against rows alone, brute force and plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.palette.scalar.groups import cluster_rows
from tests.palette import references as ref

WIDTHS = (1, 2, 3, 4, 6, 8)


def random_rows(name, shape, seed=0):
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal(shape)).astype(ref.FORMATS[name])


def cluster(rows, nbits, table=None, **arguments):
    return cluster_rows(rows, nbits, table_dtype=np.dtype(table or rows.dtype), **arguments)


def nearest_labels(row, table):
    """Index of the nearest entry of an ascending table; the lowest where several are as near."""
    values, inverse = np.unique(row.astype(np.float64), return_inverse=True)
    labels = [np.abs(part[:, None] - table).argmin(axis=1) for part in np.array_split(values, 64)]
    return np.concatenate(labels)[inverse]


def check(rows, found, nbits, importance=None, dtype=None):
    """Check everything about a result but that its tables are the best ones."""
    count, n = rows.shape
    dtype = rows.dtype if dtype is None else dtype
    assert found.tables.shape == (count, 1 << nbits)
    assert found.tables.dtype == np.float64
    assert found.labels.shape == (count, n)
    assert found.labels.dtype == np.uint8
    assert (np.diff(found.tables) >= 0).all()
    stored = found.tables.astype(dtype).astype(np.float64)
    np.testing.assert_array_equal(stored, found.tables)
    noise = signal = 0.0
    for g in range(count):
        row, table = rows[g].astype(np.float64), found.tables[g]
        np.testing.assert_array_equal(found.labels[g], nearest_labels(rows[g], table))
        h = np.ones(n) if importance is None or not importance[g].any() else importance[g]
        noise += (h * (row - table[found.labels[g]]) ** 2).sum()
        signal += (h * row**2).sum()
        values, _ = ref.distinct(row, h)
        if len(values) <= 1 << nbits:
            padded = np.r_[values, np.repeat(values[-1], (1 << nbits) - len(values))]
            np.testing.assert_array_equal(table, padded)
    assert found.noise == pytest.approx(noise, rel=1e-10, abs=1e-300)
    assert found.signal == pytest.approx(signal, rel=1e-10, abs=1e-300)


def test_by_hand():
    rows = np.array([[0, 1, 10, 11, 0], [5, 5, 5, 5, 5], [3, -0.0, 0.0, 0, 3]], np.float16)
    found = cluster(rows, 1)
    assert found.tables.tolist() == [[float(np.float16(1 / 3)), 10.5], [5, 5], [0, 3]]
    assert found.labels.tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]
    assert found.noise == pytest.approx(2 / 3 + 0.5, rel=1e-5)
    assert found.signal == 222 + 125 + 18


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("repeats", [1, 40_000])  # sorted rows and counted ones
@pytest.mark.covering(2)
def test_ties_go_to_the_lower_entry(name, repeats):
    # 2, of no importance, is as far from 1 as from 3
    row = np.repeat([1.0, 3.0, 2.0], repeats).astype(ref.FORMATS[name])
    found = cluster(row[None], 1, importance=np.where(row == 2, 0.0, 1.0)[None])
    assert found.tables.tolist() == [[1, 3]]
    np.testing.assert_array_equal(found.labels[0], np.repeat([0, 1, 0], repeats))


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("nbits", WIDTHS)
@pytest.mark.parametrize("n", [1, 2, 15, 1000])
@pytest.mark.covering(2)
def test_rows_are_as_if_alone(n, nbits, name):
    rows = random_rows(name, (5, n), seed=n)
    rows[1] = 0.25
    rows[2, ::2] = -0.0
    rows[3] = np.abs(rows[3])
    found = cluster(rows, nbits)
    check(rows, found, nbits)
    for g in range(5):
        alone = cluster(rows[g : g + 1].copy(), nbits)
        assert alone.tables.tobytes() == found.tables[g : g + 1].tobytes()
        assert alone.labels.tobytes() == found.labels[g : g + 1].tobytes()


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("nbits", [1, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_long_rows(nbits, name, weighted):
    rows = random_rows(name, (2, 70_000))
    rng = np.random.default_rng(1)
    importance = rng.integers(0, 4, rows.shape).astype(float) if weighted else None
    found = cluster(rows, nbits, importance=importance)
    check(rows, found, nbits, importance)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("nbits", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_cost_is_the_least(nbits, name, weighted):
    rows = random_rows(name, (4, 120), seed=nbits)
    rng = np.random.default_rng(nbits)
    importance = rng.exponential(size=rows.shape) if weighted else None
    found = cluster(rows, nbits, importance=importance)
    check(rows, found, nbits, importance)
    best = 0.0
    for g in range(4):
        values, masses = ref.distinct(rows[g], None if importance is None else importance[g])
        costs = ref.segment_costs(values, masses, rows.dtype)
        best += float(ref.least_costs(costs, min(1 << nbits, len(values))).min())
    assert found.noise == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [40, 1000, 16_383, 16_384, 70_000])
@pytest.mark.parametrize("nbits", [2, 4])
def test_codes_give_what_floats_give(n, name, nbits, weighted):
    rows = random_rows(name, (2, n), seed=n)
    importance = np.random.default_rng(n).integers(0, 9, rows.shape) * 1.0 if weighted else None
    codes = cluster(rows, nbits, importance=importance)
    floats = cluster(rows.astype(np.float64), nbits, table=rows.dtype, importance=importance)
    assert codes.noise == pytest.approx(floats.noise, rel=1e-12)
    np.testing.assert_array_equal(codes.tables, floats.tables)
    np.testing.assert_array_equal(codes.labels, floats.labels)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ref.FORMATS)
def test_workers_change_no_byte(name, weighted):
    rows = random_rows(name, (700, 1000))  # more than one thread takes at a time
    importance = np.random.default_rng(0).random(rows.shape) if weighted else None
    one = cluster(rows, 3, importance=importance, workers=1)
    for workers in (2, 4):
        many = cluster(rows, 3, importance=importance, workers=workers)
        assert many.tables.tobytes() == one.tables.tobytes()
        assert many.labels.tobytes() == one.labels.tobytes()
        assert (many.noise, many.signal) == (one.noise, one.signal)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("nbits", WIDTHS)
@pytest.mark.parametrize("n", [600, 70_000])
def test_few_distinct_values_are_lossless(n, nbits, name):
    rng = np.random.default_rng(nbits)
    for distinct in {1, 2, (1 << nbits) - 1, 1 << nbits}:
        choices = rng.choice(np.arange(-250, 250), distinct, replace=False) / 8
        rows = rng.choice(choices, (2, n)).astype(ref.FORMATS[name])
        found = cluster(rows, nbits)
        check(rows, found, nbits)
        assert found.noise == 0.0
        got = np.take_along_axis(found.tables, found.labels.astype(int), axis=1)
        np.testing.assert_array_equal(got, rows.astype(np.float64))


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("n", [200, 70_000])
def test_rows_without_importance_count_as_uniform(n, name):
    rows = random_rows(name, (3, n))
    importance = np.random.default_rng(0).integers(1, 5, rows.shape).astype(float)
    importance[1] = 0
    found = cluster(rows, 3, importance=importance)
    check(rows, found, 3, importance)
    plain = cluster(rows[1:2].copy(), 3)
    np.testing.assert_array_equal(found.tables[1], plain.tables[0])
    np.testing.assert_array_equal(found.labels[1], plain.labels[0])


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("n", [300, 70_000])
@pytest.mark.parametrize("nbits", [1, 4, 8])
def test_values_without_importance_pull_no_entry_but_get_the_nearest(n, nbits, name):
    rows = random_rows(name, (1, n))
    rng = np.random.default_rng(1)
    # outside all others, and in between
    ignored = rng.random(rows.shape) < 0.5
    rows[ignored] *= rows.dtype.type(4)
    importance = np.where(ignored, 0.0, 1.0)
    found = cluster(rows, nbits, importance=importance)
    check(rows, found, nbits, importance)
    kept = cluster(rows[:, ~ignored[0]].copy(), nbits)
    np.testing.assert_array_equal(found.tables, kept.tables)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("n", [90, 70_000])
def test_integer_importance_is_repetition(n, name):
    row = random_rows(name, (1, n))
    counts = np.random.default_rng(0).integers(0, 4, n)
    weighted = cluster(row, 4, importance=counts[None].astype(float))
    repeated = cluster(np.repeat(row, counts, axis=1), 4)
    np.testing.assert_array_equal(weighted.tables, repeated.tables)
    np.testing.assert_array_equal(np.repeat(weighted.labels, counts, axis=1), repeated.labels)
    assert weighted.noise == pytest.approx(repeated.noise, rel=1e-12)


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("n", [100, 70_000])
def test_importance_may_be_a_broadcast_view(n, name):
    rows = random_rows(name, (3, n))
    per_row = np.array([[1.0], [4.0], [0.25]])
    view = np.broadcast_to(per_row, rows.shape)
    found = cluster(rows, 3, importance=view)
    check(rows, found, 3, view)
    np.testing.assert_array_equal(found.tables, cluster(rows, 3).tables)


@pytest.mark.parametrize("power", [-150, -40, 40, 150])
def test_powers_of_two_pass_through_float64(power):
    rows = random_rows("float64", (2, 400))
    there = cluster(rows, 4)
    here = cluster(np.ldexp(rows, power), 4)
    np.testing.assert_array_equal(here.tables, np.ldexp(there.tables, power))
    np.testing.assert_array_equal(here.labels, there.labels)
    weighted = cluster(rows, 4, importance=np.full(rows.shape, 2.0**power))
    np.testing.assert_array_equal(weighted.tables, there.tables)


def test_input_is_not_written_to():
    rows, importance = random_rows("float16", (3, 400)), np.ones((3, 400))
    for weighted in (None, importance):
        for dtype in ref.FORMATS.values():
            given_ = rows.astype(dtype)
            before = given_.copy()
            given_.flags.writeable = False
            importance.flags.writeable = False
            cluster(given_, 3, importance=weighted)
            assert given_.tobytes() == before.tobytes()


@given(
    st.sampled_from(sorted(ref.FORMATS)),
    st.lists(st.integers(-4000, 4000), min_size=1, max_size=40),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_row_has_its_best_table(name, numbers, nbits, seed, weighted):
    row = (np.array([numbers]) / 64).astype(ref.FORMATS[name])
    rng = np.random.default_rng(seed)
    importance = rng.integers(0, 4, row.shape).astype(float) if weighted else None
    found = cluster(row, nbits, importance=importance)
    check(row, found, nbits, importance)
    h = None if importance is None or not importance.any() else importance
    values, masses = ref.distinct(row, h)
    costs = ref.segment_costs(values, masses, row.dtype)
    best = float(ref.least_costs(costs, min(1 << nbits, len(values))).min())
    slack = 1e-13 * float(ref.spread(values, masses))
    assert found.noise == pytest.approx(best, rel=1e-9, abs=slack)
