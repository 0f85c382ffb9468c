"""Checks of weights against ``numpy.isfinite``."""

import ml_dtypes
import numpy as np
import pytest

from mlopt.errors import ConfigError
from mlopt.palette.checks import check_dtype_and_size, check_finite, is_finite
from tests.palette import references as ref


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite(name, bad):
    weight = np.random.default_rng(0).standard_normal((5, 7)).astype(ref.FORMATS[name])
    check_finite(weight)
    for place in ((0, 0), (2, 3), (4, 6)):
        damaged = weight.copy()
        damaged[place] = bad
        assert not is_finite(damaged)
        assert not is_finite(damaged.T)
        with pytest.raises(ConfigError, match=r"shape \(5, 7\) has an infinity or a NaN"):
            check_finite(damaged)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_code(name):
    numbers = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(ref.FORMATS[name])
    with np.errstate(invalid="ignore"):  # widening a signalling NaN
        finite = np.isfinite(numbers.astype(np.float64))
    assert is_finite(numbers[finite])
    assert not any(is_finite(numbers[i : i + 1]) for i in np.flatnonzero(~finite))


@pytest.mark.parametrize("name", ref.FORMATS)
def test_largest_numbers_are_finite(name):
    largest = ml_dtypes.finfo(ref.FORMATS[name]).max
    assert is_finite(np.array([largest, -largest], ref.FORMATS[name]))


@pytest.mark.parametrize("dtype", [*ref.FORMATS.values(), np.int8, np.uint8])
def test_dtypes_of_weights(dtype):
    check_dtype_and_size(np.zeros((1, 1), dtype))
    with pytest.raises(ConfigError, match=r"must not be empty, got shape \(3, 0\)"):
        check_dtype_and_size(np.zeros((3, 0), dtype))
    with pytest.raises(ConfigError, match=r"must not be empty, got shape \(\)"):
        check_dtype_and_size(np.zeros((), dtype))


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.bool_])
def test_other_dtypes(dtype):
    with pytest.raises(ConfigError, match=f"must be one of .* got {np.dtype(dtype)}"):
        check_dtype_and_size(np.zeros(3, dtype))
