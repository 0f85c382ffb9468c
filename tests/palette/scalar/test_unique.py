"""Unique tables against numpy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette.scalar.unique import padded_nbits, padded_table, unique_tables

ALL = (1, 2, 3, 4, 6, 8)
DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def restored(tables, indices):
    return np.stack([table[labels] for table, labels in zip(tables, indices, strict=True)])


def test_five_values_take_three_bits_or_four():
    group = np.array([3, 1, 3, -2, 8, 5, 1], np.float16).reshape(1, -1, 1)
    tables, indices = unique_tables(group, ALL)
    assert tables.reshape(-1).tolist() == [-2, 1, 3, 5, 8, 8, 8, 8]
    assert indices.tolist() == [[2, 1, 2, 0, 4, 3, 1]]
    assert (tables.dtype, indices.dtype) == (np.float16, np.uint8)
    # A target without 3 bits.
    assert unique_tables(group, (1, 2, 4, 6, 8))[0].shape == (1, 16, 1)


def test_the_group_with_most_values_decides():
    groups = np.array([[1, 1, 1, 1], [1, 2, 3, 1]], np.float32)[..., None]
    tables, indices = unique_tables(groups, ALL)
    assert tables[..., 0].tolist() == [[1, 1, 1, 1], [1, 2, 3, 3]]
    np.testing.assert_array_equal(restored(tables, indices), groups)


def test_256_values_fit_and_257_do_not():
    values = np.arange(257, dtype=np.float32).reshape(1, -1, 1)
    assert unique_tables(values[:, :256], ALL)[0].shape == (1, 256, 1)
    assert unique_tables(values, ALL) is None
    assert unique_tables(values[:, :65], (1, 2, 4, 6)) is None


def test_signs_of_zero_take_one_entry():
    tables, indices = unique_tables(np.array([[[0.0], [-0.0], [1.0]]], np.float16), ALL)
    assert tables.reshape(-1).tolist() == [0, 1]
    assert not np.signbit(tables).any()
    assert indices.tolist() == [[0, 0, 1]]


@given(
    st.sampled_from(DTYPES),
    st.integers(1, 300),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_lossless_or_none_as_numpy_counts(dtype, kinds, d, count, seed):
    rng = np.random.default_rng(seed)
    kinds_of = rng.standard_normal((kinds, d)).astype(dtype)
    groups = kinds_of[rng.integers(0, kinds, (count, 400))]
    most = max(len(np.unique(group.astype(np.float64), axis=0)) for group in groups)
    found = unique_tables(groups, ALL)
    if most > 256:
        assert found is None
        return
    tables, indices = found
    assert tables.shape == (count, 1 << padded_nbits(most, ALL), d)
    np.testing.assert_array_equal(restored(tables, indices), groups)
    for table in tables.astype(np.float64):
        np.testing.assert_array_equal(np.lexsort(table.T[::-1]), np.arange(len(table)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_permutation_permutes_indices(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(-20, 20, (1, 300, 2)).astype(np.float16)[:, :, :1]
    order = rng.permutation(300)
    tables, indices = unique_tables(group, ALL)
    permuted_tables, permuted_indices = unique_tables(group[:, order], ALL)
    np.testing.assert_array_equal(permuted_tables, tables)
    np.testing.assert_array_equal(permuted_indices, indices[:, order])


def test_padding():
    assert [padded_nbits(n, (1, 2, 4)) for n in (1, 2, 3, 5, 16, 17)] == [1, 1, 2, 4, 4, None]
    assert padded_table(np.array([[1.0], [2.0]]), 2).tolist() == [[1], [2], [2], [2]]


def test_refusal_of_other_ranks():
    with pytest.raises(ConfigError, match=r"\[groups, n, d\].*got shape \(4,\)"):
        unique_tables(np.zeros(4, np.float16), ALL)
