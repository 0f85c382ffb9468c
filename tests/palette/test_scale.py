"""Per-channel scale against numpy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.palette.scale import channel_scale, normalised, scaled_importance

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def test_largest_magnitude_of_each_row():
    weight = np.array([[1, -4], [0, -0.0], [0.5, 0.25]], np.float16)
    scale = channel_scale(weight, 0)
    assert scale.tolist() == [[4], [0], [0.5]]
    assert scale.dtype == np.float16
    assert normalised(weight, scale).tolist() == [[0.25, -1], [0, 0], [1, 0.5]]
    # Relative to the largest channel, whose 4 = 2**3 / 2 squares to 1/4.
    assert scaled_importance(scale, (3, 2))[:, 0].tolist() == [1 / 4, 0, 1 / 256]


@given(
    st.sampled_from(DTYPES), st.integers(-3, 2), st.sampled_from([-1, 0, 1]), st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_scale_is_the_maximum_of_magnitudes(dtype, axis, sign, seed):
    weight = np.random.default_rng(seed).standard_normal((4, 3, 5)).astype(dtype)
    weight = weight if sign == 0 else sign * np.abs(weight)
    weight[2], weight[:, 1] = 0, dtype(-0.0)
    before = weight.copy()
    weight.flags.writeable = False
    others = tuple(i for i in range(3) if i != axis % 3)
    largest = np.abs(weight.astype(np.float64)).max(axis=others, keepdims=True)
    scale = channel_scale(weight, axis)
    assert scale.dtype == weight.dtype
    np.testing.assert_array_equal(scale, largest)
    largest[largest == 0] = 1
    quotient = normalised(weight, scale)
    assert quotient.flags.c_contiguous
    assert quotient.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.abs(quotient).max() <= 1
    np.testing.assert_allclose(quotient, weight.astype(np.float64) / largest, rtol=1e-7)
    np.testing.assert_array_equal(weight.astype(np.float64), before.astype(np.float64))


def test_axis_follows_a_transposition():
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float16)
    np.testing.assert_array_equal(channel_scale(weight, 0).T, channel_scale(weight.T, 1))


def test_weighted_error_of_quotients_is_the_error_of_weights():
    rng = np.random.default_rng(0)
    weight, importance = rng.standard_normal((4, 6)), rng.random((4, 6))
    scale, center = channel_scale(weight, 0), 0.25
    h = scaled_importance(scale, weight.shape, importance)
    ours = (h * (normalised(weight, scale) - center) ** 2).sum()
    theirs = (importance * (weight - center * scale) ** 2).sum()
    factor = 2.0 ** (2 * np.frexp(scale.max())[1])
    assert ours * factor == pytest.approx(theirs)


def test_squares_of_tiny_scales_do_not_vanish():
    tiny = np.array([[2.0**-1000], [2.0**-1001]])
    assert scaled_importance(tiny, (2, 3))[:, 0].tolist() == [1 / 4, 1 / 16]
