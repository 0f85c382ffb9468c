"""Zeros and distinct values, counted as plain numpy counts them."""

import ml_dtypes
import numpy as np
import pytest

from mlopt.coreml.value_counts import ZERO, zeros_and_distinct

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.uint8, np.int16]
ODD = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-12, -1e-12, 1.1e-12, 6e-8, -6e-8, 1e-40, -1e-40]


def by_numpy(values):
    with np.errstate(invalid="ignore"):
        exact = values.astype(np.float64)
    bound = ZERO if values.dtype == np.float64 else np.float32(ZERO)
    return int((np.abs(exact) <= bound).sum()), np.unique(exact).size


def random_values(dtype, size, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(-40, 40, size).astype(dtype)
    values = (rng.standard_normal(size) * 0.02).astype(np.float32).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        values[rng.integers(0, size, len(ODD))] = np.array(ODD).astype(dtype)
    return values


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("size", [1, 13, 1000, 70_001])
def test_counts_are_those_of_numpy(dtype, size):
    values = random_values(dtype, size)
    assert zeros_and_distinct(values) == by_numpy(values)
    assert zeros_and_distinct(values.reshape(1, -1).T) == by_numpy(values)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int16])
def test_rare_codes_of_a_large_weight_are_seen_wherever_they_are(dtype):
    """By then most codes are passed over in groups; the last piece is not a whole one."""
    values = np.tile(random_values(dtype, 1 << 18), 5)[: (1 << 20) + 12_345]
    assert zeros_and_distinct(values) == by_numpy(values)
    place = 900_000
    rare = np.array([3.0, 0.0] * 4).astype(dtype)
    if np.dtype(dtype).kind != "i":
        assert not (values == rare[0]).any()
    values[place : place + 16 : 2] = rare
    assert zeros_and_distinct(values) == by_numpy(values)
    values[-1] = 100
    assert zeros_and_distinct(values) == by_numpy(values)


def test_every_code_of_a_type():
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.int16):
        values = np.tile(every, 9).view(dtype)
        assert zeros_and_distinct(values) == by_numpy(values)


def test_few_codes_in_a_large_weight():
    """Magnitudes that are seen in both signs, but are too few for passing over others."""
    values = np.random.default_rng(0).choice(random_values(np.float16, 16), 1 << 19)
    assert zeros_and_distinct(values) == by_numpy(values)


def test_no_values():
    assert zeros_and_distinct(np.zeros((0, 3), np.float16)) == (0, 0)
