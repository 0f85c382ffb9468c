"""Rounding to float16 against numpy's, bit for bit."""

import numpy as np
import pytest

from mlopt.palette.value.half import to_float16


def same_bits(values):
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(to_float16(values).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("start", range(0, 4099, 1000))
def test_numbers_of_all_magnitudes(start):
    every = np.arange(start, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    same_bits(every[~np.isnan(every)])


def test_all_float16_numbers_their_middles_and_the_neighbours_of_these():
    halves = np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = finite[:-1] + np.diff(finite) / 2
    for numbers in (halves[~np.isnan(halves)], middles):
        same_bits(numbers)
        same_bits(np.nextafter(numbers, np.float32(np.inf)))
        same_bits(np.nextafter(numbers, np.float32(-np.inf)))


def test_the_largest_numbers_and_what_is_none():
    edges = [65519.99, 65520.0, 65535.0, 65536.0, 1e30, np.inf, 0.0, 2.0**-25, 2.0**-24, 1e-40]
    same_bits(np.array([*edges, *(-edge for edge in edges)], np.float32))
    signalling = np.array([0x7F800001, 0xFFC12345, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(to_float16(signalling)).all()


def test_any_shape_and_layout():
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    for array in (values, values.T, values[:, ::2], values[:0], np.float32(1.5).reshape(())):
        got = to_float16(array)
        assert got.shape == array.shape
        np.testing.assert_array_equal(got, array.astype(np.float16))
