"""Kernels over rows, against dense searches of each row alone."""

from itertools import combinations

import numpy as np
import pytest

from mlopt.palette.scalar import row_kernels as kernels
from mlopt.palette.scalar.distinct import value_of_key
from mlopt.palette.scalar.stored import rounding_of
from tests.palette import references as ref


def read_only(array):
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def wanted_of(entries, name, *, uniform=False):
    return kernels.Wanted(entries, uniform, rounding_of(name))


def output_of(rows, n, entries):
    return kernels.RowOutput(
        np.full((rows, entries), 77.0),
        np.full((rows, n), 77, np.uint8),
        np.full(rows, 77.0),
        np.full(rows, 77.0),
        np.zeros(rows),
    )


def of_codes(rows, entries, importance=None, points=None, **more):
    name = rows.dtype.name
    out = output_of(*rows.shape, entries)
    coded = kernels.Coded(read_only(rows).view(np.uint16), value_of_key(name))
    wanted = wanted_of(entries, name, **more)
    if importance is None:
        kernels.cluster_code_rows(coded, wanted, points, out)
    else:
        kernels.cluster_weighted_code_rows(coded, read_only(importance), wanted, points, out)
    return out


def of_floats(rows, entries, importance=None, name="float64", points=None):
    out = output_of(*rows.shape, entries)
    order = np.argsort(rows, axis=1, kind="stable")
    weights = np.empty((len(rows), 0))
    if importance is not None:
        weights = np.take_along_axis(importance, order, axis=1)
    ordered = kernels.Ordered(np.take_along_axis(rows, order, axis=1), weights)
    kernels.cluster_float_rows(read_only(rows), ordered, wanted_of(entries, name), points, out)
    return out


def check(rows, out, importance=None, stored_as=None):
    """Each row is at the least of all tables, labels are of nearest entries, sums are true."""
    for row, values in enumerate(rows.astype(np.float64)):
        h = np.ones(values.size) if importance is None else importance[row]
        table, labels = out.tables[row], out.labels[row]
        assert (np.diff(table) >= 0).all()
        misses = np.abs(values[:, None] - table)
        np.testing.assert_array_equal(misses.min(axis=1), np.abs(values - table[labels]))
        noise = (h * (values - table[labels]) ** 2).sum()
        signal = (h * values**2).sum()
        assert out.noise[row] == pytest.approx(noise, rel=1e-11, abs=1e-15 * signal)
        assert out.signal[row] == pytest.approx(signal, rel=1e-12)
        distinct, masses = ref.distinct(values, h)
        if distinct.size > table.size:
            costs = ref.segment_costs(distinct, masses, stored_as)
            least = float(ref.least_costs(costs, table.size).min())
            assert noise == pytest.approx(least, rel=1e-9)
        else:
            assert noise == 0.0


def some_rows(name, n=40):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, n)) * [[1.0], [0.01], [30.0]]
    values[1] = np.round(values[1], 2)  # few distinct values
    return values.astype(ref.FORMATS[name])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("entries", [2, 8])
def test_codes(entries, name):
    rows = some_rows(name)
    check(rows, of_codes(rows, entries), stored_as=ref.FORMATS[name])


def test_a_row_that_is_not_finite_gets_nothing_but_its_noise():
    rows = some_rows("float16")
    clean = of_codes(rows, 4)
    rows[1, 5] = np.inf
    out = of_codes(rows, 4)
    assert np.isnan(out.noise[1])
    assert (out.tables[1] == 77).all()
    assert (out.labels[1] == 77).all()
    for row in (0, 2):
        np.testing.assert_array_equal(out.tables[row], clean.tables[row])
        np.testing.assert_array_equal(out.labels[row], clean.labels[row])


def test_codes_with_importance():
    rows = some_rows("float16")
    importance = np.random.default_rng(1).integers(0, 4, rows.shape).astype(np.float64)
    check(rows, of_codes(rows, 4, importance), importance, np.float16)
    # a row that does not matter at all is as good as one that matters everywhere
    importance[2] = 0
    out = of_codes(rows, 4, importance)
    np.testing.assert_array_equal(out.tables[2], of_codes(rows, 4).tables[2])
    # powers of two on the importance, beyond the squares of float64 too, change no table
    shifted = of_codes(rows, 4, importance * 2.0**900)
    np.testing.assert_array_equal(shifted.tables, out.tables)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_floats(name, weighted):
    rows = some_rows(name)
    importance = None
    if weighted:
        importance = np.random.default_rng(1).integers(0, 4, rows.shape).astype(np.float64)
    out = of_floats(rows, 4, importance, name)
    check(rows, out, importance, np.float32 if name == "float32" else None)


def test_floats_without_importance_count_alike():
    rows = some_rows("float32")
    out = of_floats(rows, 4, np.zeros(rows.shape), "float32")
    plain = of_floats(rows, 4, name="float32")
    np.testing.assert_array_equal(out.tables, plain.tables)
    np.testing.assert_array_equal(out.noise, plain.noise)


@pytest.mark.parametrize("exponent", [-500, 500])
def test_squares_out_of_range(exponent):
    rows = some_rows("float64")[:1]
    plain = of_floats(rows, 4)
    out = of_floats(np.ldexp(rows, exponent), 4)
    np.testing.assert_array_equal(out.tables, np.ldexp(plain.tables, exponent))
    np.testing.assert_array_equal(out.labels, plain.labels)
    for theirs, ours in ((plain.noise, out.noise), (plain.signal, out.signal)):
        assert ours[0] == pytest.approx(np.ldexp(theirs[0], 2 * exponent), rel=1e-12)
    weights = np.random.default_rng(2).random(rows.shape)
    plain, out = (of_floats(rows, 4, np.ldexp(weights, e)) for e in (0, exponent))
    np.testing.assert_array_equal(out.tables, plain.tables)
    assert out.noise[0] == pytest.approx(np.ldexp(plain.noise[0], exponent), rel=1e-12)


def test_values_that_rescaling_makes_equal_are_joined():
    rows = np.array([[0.0, 5e-324, 1e-323, 1e200, 4e200]])
    out = of_floats(rows, 2)
    # three near 0 and one at 1e200 share a centre
    np.testing.assert_allclose(out.tables[0], [0.25e200, 4e200], rtol=1e-12)
    assert out.labels[0].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("make", [of_codes, of_floats])
def test_the_best_choice_of_given_points(make):
    rows = some_rows("float16" if make is of_codes else "float32", n=12)
    points = np.sort(np.random.default_rng(3).standard_normal((3, 7)), axis=1).round(2)
    shared = make(rows, 2, points=points[:1].copy())
    own = make(rows, 2, points=points)
    for out, choices in ((shared, points[[0, 0, 0]]), (own, points)):
        for row, values in enumerate(rows):
            least = min(float(ref.nearest_cost(values, t)) for t in combinations(choices[row], 2))
            assert set(out.tables[row]) <= set(choices[row])
            paid = float(ref.nearest_cost(values, out.tables[row]))
            assert paid == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_uniform_steps(name):
    rows = some_rows(name)
    out = of_codes(rows, 4, uniform=True)
    wide = rows.astype(np.float64)
    low, high = wide.min(axis=1), wide.max(axis=1)
    steps = ref.nearest_storable(np.linspace(low, high, 4).T, ref.FORMATS[name])
    np.testing.assert_array_equal(out.tables, steps.astype(np.float64))
    nearest = np.abs(wide[..., None] - out.tables[:, None]).min(axis=2)
    chosen = np.abs(wide - np.take_along_axis(out.tables, out.labels.astype(int), axis=1))
    np.testing.assert_array_equal(chosen, nearest)


def test_rows_of_an_output_share_its_memory():
    out = output_of(4, 3, 2)
    part = kernels.rows_of(out, slice(1, 3))
    for field, whole in zip(part, out, strict=True):
        assert len(field) == 2
        assert np.shares_memory(field, whole)
        field[...] = 5
        assert (whole[1:3] == 5).all()
        assert not (whole[[0, 3]] == 5).any()


@pytest.mark.parametrize("magnitude", [5e-324, 2.0**-401, 2.0**401, 1.7e308])
def test_powers_of_two_bring_numbers_within_range(magnitude):
    factor = kernels.power_of_two(magnitude)
    assert np.frexp(factor)[0] == 0.5
    assert 1.0 / kernels.RANGE < magnitude * factor < kernels.RANGE


@pytest.mark.parametrize("magnitude", [0.0, 2.0**-399, 1.0, 2.0**399])
def test_numbers_within_range_stay(magnitude):
    assert kernels.power_of_two(magnitude) == 1.0
