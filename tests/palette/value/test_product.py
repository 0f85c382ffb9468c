"""Products with one rounding, against exact ones that are rounded to the nearest number."""

import numpy as np
import pytest

from mlopt.palette.value.product import product
from tests.palette import references as ref


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_rounded_once_from_the_exact_product(name):
    rng = np.random.default_rng(0)
    dtype = ref.FORMATS[name]
    a, b = (rng.standard_normal((2, 5000)) * 2.0 ** rng.integers(-5, 5, 5000)).astype(dtype)
    got = product(a, b)
    assert got.dtype == a.dtype
    # exact in float64, and the nearest number of the format is the only choice but for ties
    exact = a.astype(np.float64) * b.astype(np.float64)
    miss = np.abs(got.astype(np.float64) - exact)
    least = np.abs(ref.nearest_storable(exact, dtype).astype(np.float64) - exact)
    np.testing.assert_array_equal(miss, least)


def test_ties_of_bfloat16_go_to_even():
    dtype = ref.FORMATS["bfloat16"]
    # 3 * 87 = 261 and 3 * 89 = 267 lie between even and odd multiples of 2
    a, b = np.array([3, 3, -3], dtype), np.array([87, 89, 87], dtype)
    assert product(a, b).astype(float).tolist() == [260, 268, -260]


def test_bfloat16_broadcasts_and_overflows_as_floats_do():
    dtype = ref.FORMATS["bfloat16"]
    a, b = np.array([[1.5], [3e38]], dtype), np.array([[2, -1.5, 0]], dtype)
    with np.errstate(over="ignore"):
        got = product(a, b).astype(np.float64)
    assert got[0].tolist() == [3, -2.25, 0]
    assert got[1].tolist() == [np.inf, -np.inf, 0]
