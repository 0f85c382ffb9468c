"""Distinct values and their masses against a sort in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.palette.scalar.distinct import (
    Distinct,
    distinct_of_codes,
    distinct_values,
    first_of,
    is_coded,
    key_of,
    value_of_key,
)
from tests.palette import references as ref

CODED = ("float16", "bfloat16")


def layouts(weight):
    """The same matrix in several memory layouts, each with the matrix it shows."""
    rows, columns = weight.shape
    wide = np.zeros((2 * rows, 3 * columns), weight.dtype)
    wide[::2, 1::3] = weight
    return {
        "contiguous": weight,
        "fortran": np.asfortranarray(weight),
        "transposed": weight.T,
        "strided": wide[::2, 1::3],
        "reversed": weight[::-1, ::-1],
        "read-only": np.broadcast_to(weight[:1], (rows, columns)),
        "no axes": weight[0, 0].reshape(()),
    }


@pytest.mark.parametrize("name", ref.FORMATS)
def test_by_hand(name):
    weight = np.array([[0.5, -0.0, 0.0], [2.0, 0.5, -3.0]]).astype(ref.FORMATS[name])
    values, masses = distinct_values(weight)
    assert values.tolist() == [-3.0, 0.0, 0.5, 2.0]
    assert masses.tolist() == [1.0, 2.0, 2.0, 1.0]
    assert values.dtype == masses.dtype == np.float64
    # 2.0 matters to nobody, and -0.0 with 0.0 as much as both together
    importance = np.array([[1.0, 0.25, 0.5], [0.0, 2.0, 4.0]])
    values, masses = distinct_values(weight, importance)
    assert values.tolist() == [-3.0, 0.0, 0.5]
    assert masses.tolist() == [4.0, 0.75, 3.0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("layout", layouts(np.zeros((2, 2))))
@pytest.mark.covering(2)
def test_any_layout(layout, name, weighted):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((37, 53)).astype(np.float16).astype(ref.FORMATS[name])
    weight = layouts(weight)[layout]
    importance = rng.integers(0, 3, weight.shape).astype(np.float64) if weighted else None
    before = weight.copy()
    values, masses = distinct_values(weight, importance)
    expected = ref.distinct(weight, importance)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(masses, expected[1])
    assert weight.tobytes() == before.tobytes()


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("size", [1, 2, 16_383, 16_384, 16_385, 70_000, 300_001])
def test_any_size(name, size):
    rng = np.random.default_rng(size)
    weight = (rng.standard_normal(size) * 0.02).astype(ref.FORMATS[name])
    values, masses = distinct_values(weight)
    expected = ref.distinct(weight)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(masses, expected[1])
    assert masses.sum() == size


def all_codes(name):
    """All codes of a 16-bit format and the number each stands for, float64."""
    codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # widening a signalling NaN
        return codes, codes.view(ref.FORMATS[name]).astype(np.float64)


def collapse(codes, name):
    """What the kernel for 16-bit codes finds: keys, values, masses; None if not finite."""
    most = min(codes.size, 1 << 16)
    distinct = Distinct(np.empty(most), np.empty(most), np.empty(most, np.uint16))
    spare = np.empty((2, codes.size), np.uint16)
    count = distinct_of_codes(codes, value_of_key(name), distinct, spare)
    return None if count < 0 else first_of(distinct, count)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("size", [1, 7, 16_383, 16_384, 16_385, 100_000])
def test_counting_and_sorting_agree(name, size):
    rng = np.random.default_rng(size)
    # all finite codes, subnormals and both zeros among them, some many times
    codes, numbers = all_codes(name)
    codes = rng.choice(codes[np.isfinite(numbers)], size)
    codes[rng.random(size) < 0.2] = 0x8000
    codes[rng.random(size) < 0.2] = 0
    values, masses, keys = collapse(codes, name)
    expected = ref.distinct(codes.view(ref.FORMATS[name]))
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(masses, expected[1])
    np.testing.assert_array_equal(value_of_key(name)[keys], values)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("size", [100, 20_000])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_non_finite_codes_are_noticed(name, size, number):
    weight = np.random.default_rng(0).standard_normal(size).astype(ref.FORMATS[name])
    assert collapse(weight.view(np.uint16), name) is not None
    weight[size // 2] = number
    assert collapse(weight.view(np.uint16), name) is None


@pytest.mark.parametrize("name", CODED)
def test_keys_ascend_with_values(name):
    values = value_of_key(name)
    finite = values[~np.isnan(values)]
    assert (np.diff(finite) >= 0).all()
    # -0 and +0 are the only neighbours that are equal
    assert np.flatnonzero(np.diff(finite) == 0).size == 1
    codes, numbers = all_codes(name)
    keys = np.array([key_of(code) for code in codes])
    assert sorted(keys.tolist()) == list(range(1 << 16))
    numbers[~np.isfinite(numbers)] = np.nan
    np.testing.assert_array_equal(values[keys], numbers)
    assert finite.size == {"float16": 63_488, "bfloat16": 65_280}[name]


def test_which_formats_have_codes():
    coded = [name for name, dtype in ref.FORMATS.items() if is_coded(np.dtype(dtype))]
    assert coded == ["float16", "bfloat16"]


@given(
    st.sampled_from(sorted(ref.FORMATS)),
    st.lists(st.integers(0, (1 << 16) - 1), min_size=1, max_size=60),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_any_values(name, codes, seed):
    weight = np.array(codes, np.uint16).view(np.float16)
    weight = weight[np.isfinite(weight)].astype(ref.FORMATS[name])
    if not weight.size:
        return
    importance = np.random.default_rng(seed).integers(0, 3, weight.size).astype(float)
    for h in (None, importance):
        for got, expected in zip(distinct_values(weight, h), ref.distinct(weight, h), strict=True):
            np.testing.assert_array_equal(got, expected)
