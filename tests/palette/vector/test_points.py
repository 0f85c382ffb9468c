"""Distinct vectors against ``numpy.unique``; scaling against ``ldexp``."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopt.palette.vector.points import (
    distinct_vectors,
    exponent_of,
    fine_enough,
    floats,
    scaled_columns,
)
from tests.palette import references as ref


@pytest.mark.parametrize("name", ref.FORMATS)
def test_floats_are_the_same_numbers_without_minus_zero(name):
    values = np.array([[-0.0, 1.5, -2.25e-3], [0.0, -7.0, 1e-7]], ref.FORMATS[name])
    wide = floats(values)
    assert wide.dtype == (np.float64 if name == "float64" else np.float32)
    np.testing.assert_array_equal(wide, values.astype(np.float64))
    assert not np.signbit(wide[wide == 0]).any()


def test_points_are_widened_only_for_centres_that_need_it():
    points = np.ones((3, 2), np.float16)
    assert fine_enough(points, np.array([0.5])) is points
    assert fine_enough(points, np.array([0.1])).dtype == np.float64
    double = np.ones((3, 2))
    assert fine_enough(double, np.array([0.1])) is double


@given(st.floats(-1e30, 1e30))
def test_exponent(number):
    exponent = exponent_of(np.array([[0.0, number]]))
    if number == 0:
        assert exponent == 0
    else:
        assert 0.5 <= np.ldexp(abs(number), -exponent) < 1


def test_exponent_of_the_last_vector():
    points = np.ones((70_000, 1), np.float16)  # more than are looked at together
    points[-1] = -9
    assert exponent_of(points) == 4


@pytest.mark.parametrize("name", ref.FORMATS)
def test_columns(name):
    points = np.random.default_rng(0).standard_normal((9, 3)).astype(ref.FORMATS[name])
    columns = scaled_columns(points, 3)
    assert columns.flags.c_contiguous
    np.testing.assert_array_equal(columns, np.ldexp(points.astype(np.float64), -3).T)
    huge = np.array([[2.0**127, -(2.0**126)]], np.float32)
    assert scaled_columns(huge, 128).tolist() == [[0.5], [-0.25]]
    small = np.array([[2.0**-149]], np.float32)
    assert scaled_columns(small, -148).tolist() == [[0.5]]


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_distinct_vectors(d, name):
    rng = np.random.default_rng(d)
    points = rng.integers(-1, 2, (300, d)) * rng.choice([1.0, -0.5], (300, 1))
    points = points.astype(ref.FORMATS[name])  # with zeros of both signs
    importance = rng.integers(0, 5, 300).astype(np.float64)
    values, weights, inverse = distinct_vectors(points, importance, 1000)
    wide = values.astype(np.float64)
    # numbers ascend, the first element first
    expected, labels = np.unique(points.astype(np.float64) + 0.0, axis=0, return_inverse=True)
    np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal(inverse, labels.reshape(-1))
    np.testing.assert_array_equal(weights, np.bincount(labels.reshape(-1), importance))
    np.testing.assert_array_equal(distinct_vectors(points, None, 1000)[1], np.bincount(inverse))


def test_many_that_are_hardly_alike_are_not_sorted():
    different = np.arange(400, dtype=np.float32).reshape(200, 2)
    assert distinct_vectors(different, None, 199) is None
    assert len(distinct_vectors(different, None, 200)[0]) == 200
    alike = np.tile(different[:50], (4, 1))
    assert len(distinct_vectors(alike, None, 199)[0]) == 50
