"""Tables optimal for the format they are stored in, against brute force over storable centres."""

import numpy as np
import pytest
from numba import njit

from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.stored import round_to_stored, rounding_of
from mlopt.palette.value.palettized import TABLE_DTYPES
from tests.palette import references as ref

NARROW = ("float16", "bfloat16", "float32")


def test_every_format_of_a_table_is_known():
    exact = rounding_of("float64")
    assert {name for name in TABLE_DTYPES if rounding_of(name) != exact} == set(NARROW)
    assert set(TABLE_DTYPES) == set(ref.FORMATS) == {*NARROW, "float64"}


@njit
def _round_all(numbers, rounding):
    rounded = np.empty_like(numbers)
    for i in range(numbers.size):
        rounded[i] = round_to_stored(numbers[i], rounding)
    return rounded


def rounded_to(numbers, name):
    return _round_all(np.ascontiguousarray(numbers, np.float64), rounding_of(name))


def all_of_format(name):
    """Finite numbers of a format, ascending, as float64: all of a 16-bit one."""
    if name == "float32":
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)
        edges = np.array([0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0x7F7FFFFF], np.uint32)
        numbers = np.concatenate([codes, edges, edges | np.uint32(1 << 31)]).view(np.float32)
    else:
        numbers = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(ref.FORMATS[name])
    with np.errstate(invalid="ignore"):  # widening a signalling NaN
        numbers = numbers.astype(np.float64)
    return np.unique(numbers[np.isfinite(numbers)])


@pytest.mark.parametrize("name", NARROW)
def test_storable_numbers_stay(name):
    numbers = all_of_format(name)
    np.testing.assert_array_equal(rounded_to(numbers, name), numbers)


@pytest.mark.parametrize("name", NARROW)
def test_numbers_round_to_the_nearest(name):
    dtype, storable = ref.FORMATS[name], all_of_format(name)
    rng = np.random.default_rng(1)
    # Between neighbours of the format: random places, and next to the ties. float32 has no list of
    # all its numbers here, so its neighbour is asked for.
    upper = storable[1:]
    if name == "float32":
        upper = np.nextafter(storable[:-1].astype(dtype), dtype(np.inf)).astype(np.float64)
    lower, tie = storable[:-1], 0.5 * storable[:-1] + 0.5 * upper
    assert np.isfinite(upper).all()
    for numbers in (
        lower + rng.random(len(lower)) * (upper - lower),
        np.nextafter(tie, -np.inf),
        np.nextafter(tie, np.inf),
    ):
        inside = (lower < numbers) & (numbers < upper) & (numbers != tie)
        assert inside.mean() > 0.9
        nearest = np.where(numbers < tie, lower, upper)
        np.testing.assert_array_equal(rounded_to(numbers, name)[inside], nearest[inside])
    at_ties = rounded_to(tie, name)
    assert ((at_ties == lower) | (at_ties == upper)).all()


def test_float16_rounds_as_numpy_does_up_to_ties():
    rng = np.random.default_rng(2)
    numbers = rng.standard_normal(50_000) * 2.0 ** rng.integers(-26, 15, 50_000)
    expected = numbers.astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(rounded_to(numbers, "float16"), expected)


def test_float64_is_not_rounded():
    numbers = np.random.default_rng(3).standard_normal(100) * 1e300
    np.testing.assert_array_equal(rounded_to(numbers, "float64"), numbers)


def made(kind, rng, name):
    """Values, of any float64, whose best centres the format resolves poorly."""
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[name]
    n = int(rng.integers(18, 40))
    if kind == "a few steps apart":
        return 1.0 + step * rng.integers(0, 60, n) / 4
    if kind == "many steps apart":
        return 1.5 + step * np.cumsum(rng.integers(1, 12, n))
    if kind == "across powers of two":
        return 4.0 ** rng.integers(-2, 3, n) * (1 + 8 * step * rng.standard_normal(n))
    if kind == "subnormal":
        smallest = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}[name]
        return smallest * rng.uniform(-12, 12, n)
    return rng.standard_normal(n)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize(
    "kind",
    ["a few steps apart", "many steps apart", "across powers of two", "subnormal", "normal"],
)
def test_best_of_all_storable_tables(kind, name, weighted):
    rng = np.random.default_rng([len(kind), len(name), weighted])
    for _ in range(12):
        values = np.unique(made(kind, rng, name))
        h = rng.random(len(values)) + 0.05 if weighted else np.ones(len(values))
        least = ref.least_costs(ref.segment_costs(values, h, ref.FORMATS[name]), 16)
        for nbits in (1, 2, 3, 4):
            if len(values) <= 1 << nbits:
                continue
            found = cluster_rows(
                values[None],
                nbits,
                table_dtype=np.dtype(ref.FORMATS[name]),
                importance=h[None] if weighted else None,
            )
            table = found.tables[0]
            stored = table.astype(ref.FORMATS[name]).astype(np.float64)
            np.testing.assert_array_equal(stored, table)
            best = float(least[: 1 << nbits].min())
            paid = float(ref.nearest_cost(values, table, h))
            # float64 sums resolve a 1e-15th of the values' spread
            slack = 1e-14 * float(ref.spread(values, h))
            assert paid == pytest.approx(best, rel=1e-9, abs=slack)


@pytest.mark.parametrize("nbits", [2, 4, 6])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_long_rows_are_near_the_best_storable_table(name, nbits):
    dtype = ref.FORMATS[name]
    weight = np.random.default_rng(nbits).standard_normal((1, 700)).astype(dtype)
    found = cluster_rows(weight, nbits, table_dtype=np.dtype(dtype))
    values, masses = ref.distinct(weight)
    if len(values) <= 1 << nbits:
        pytest.skip("lossless")
    best = float(ref.least_costs(ref.segment_costs(values, masses, dtype), 1 << nbits).min())
    paid = float(ref.nearest_cost(weight, found.tables))
    assert best * (1 - 1e-12) <= paid <= best * (1 + 2e-3)
    if nbits <= 4 and name == "float16":
        assert paid <= best * (1 + 1e-10)
