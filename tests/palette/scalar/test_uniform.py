"""Uniform tables against fractions, brute force and coremltools."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.palette.scalar.uniform import uniform_labels, uniform_table

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def nearest_exactly(value, table):
    """Label by rational arithmetic; the first of equally near entries."""
    distances = [abs(Fraction(float(value)) - Fraction(float(entry))) for entry in table]
    return distances.index(min(distances))


def test_two_bits():
    table = uniform_table(np.float16(-1), np.float16(2), 2, np.float16)
    assert table.tolist() == [-1, 0, 1, 2]
    assert table.dtype == np.float16
    # -0.5 and 1.5 lie in the middle and go down.
    values = np.array([-1, -0.6, -0.5, -0.4, 1.4, 1.5, 1.6, 2], np.float16)
    assert uniform_labels(values, table).tolist() == [0, 0, 0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_is_lossless(dtype):
    weight = np.full((3, 5), 0.3, dtype)
    table = uniform_table(weight.min(), weight.max(), 4, dtype)
    labels = uniform_labels(weight, table)
    np.testing.assert_array_equal(table[labels], weight)
    assert not labels.any()


def test_extremes_of_float16_and_float64_do_not_overflow():
    for dtype in (np.float16, np.float64):
        most = np.finfo(dtype).max
        table = uniform_table(-most, most, 1, dtype)
        assert table.tolist() == [-most, most]
        labels = uniform_labels(np.array([-most, -1, 1, most], dtype), table)
        assert labels.tolist() == [0, 0, 1, 1]


@given(
    st.sampled_from(DTYPES),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-7, 0.02, 1.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_table_ascends_between_the_ends_and_labels_are_nearest(dtype, nbits, seed, size):
    weight = (np.random.default_rng(seed).standard_normal((2, 40)) * size).astype(dtype)
    low, high = weight.min(axis=1), weight.max(axis=1)
    table = uniform_table(low, high, nbits, dtype)
    assert table.shape == (2, 1 << nbits)
    wide = table.astype(np.float64)
    assert (np.diff(wide, axis=1) >= 0).all()
    np.testing.assert_array_equal(table[:, 0], low)
    np.testing.assert_array_equal(table[:, -1], high)
    labels = uniform_labels(weight, table)
    for row in range(2):
        exact = [nearest_exactly(value, table[row]) for value in weight[row]]
        # Of two equal entries, or ones a rounding of float64 apart, either will do.
        if dtype == np.float64:
            np.testing.assert_allclose(table[row][labels[row]], table[row][exact])
        else:
            np.testing.assert_array_equal(labels[row], exact)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_large_weights_take_the_way_by_code(dtype):
    weight = np.random.default_rng(0).standard_normal((200, 100)).astype(dtype)
    table = uniform_table(weight.min(), weight.max(), 6, dtype)
    small = np.concatenate([uniform_labels(rows, table) for rows in weight])
    np.testing.assert_array_equal(uniform_labels(weight, table).reshape(-1), small)
    np.testing.assert_array_equal(uniform_labels(weight.T, table), small.reshape(weight.shape).T)


def test_tables_that_are_not_uniform():
    table = np.array([-5, 0, 0.001, 100], np.float32)
    values = np.linspace(-10, 120, 500, dtype=np.float32)
    exact = [nearest_exactly(value, table) for value in values]
    np.testing.assert_array_equal(uniform_labels(values, table), exact)


def test_larger_values_have_no_smaller_labels():
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = np.sort(codes[np.isfinite(codes)])
    labels = uniform_labels(values, uniform_table(np.float16(-0.1), np.float16(0.3), 8, np.float16))
    assert (np.diff(labels.astype(int)) >= 0).all()


@pytest.mark.parametrize("nbits", [1, 4, 8])
def test_error_is_not_above_that_of_coremltools(nbits):
    passes = pytest.importorskip("coremltools.optimize.coreml._quantization_passes")
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    compress = passes.palettize_weights.blockwise_compress
    theirs = passes.palettize_weights.decompress(compress(weight, "UNIFORM", nbits, [0, 0]))
    table = uniform_table(weight.min(), weight.max(), nbits, weight.dtype)
    ours = table[uniform_labels(weight, table)]

    def error(stored):
        return ((stored.astype(np.float64) - weight) ** 2).sum()

    assert error(ours) <= error(theirs) * (1 + 1e-3)
