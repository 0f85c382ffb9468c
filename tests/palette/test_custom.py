"""The user's lut_function: what it is given, and what it may return."""

import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette import Layout, custom


def custom_palette(weight, function, axis=0, size=None, d=1, **options):
    axis %= weight.ndim
    groups = 1 if size is None else weight.shape[axis] // size
    return custom.custom_palette(weight, function, Layout(weight.shape, axis, groups, d), **options)


def rounding(group):
    """Nearest of -1, 0, 1, as lists."""
    return [-1, 0, 1], (np.clip(np.round(group.astype(np.float64)), -1, 1) + 1).ravel().tolist()


def test_lists_of_three_entries_become_two_bits():
    weight = np.array([[0.2, -3], [0.9, 1]], np.float16)
    p = custom_palette(weight, rounding)
    assert p.table.reshape(-1).tolist() == [-1, 0, 1, 1]
    assert p.table.shape == (1, 1, 4, 1)
    assert p.indices.tolist() == [[1, 0], [2, 2]]
    assert p.dequantize().tolist() == [[0, -1], [1, 1]]


def test_padding_goes_to_a_width_that_the_target_has():
    weight = np.zeros((2, 2), np.float16)
    p = custom_palette(weight, lambda group: (np.arange(5), np.zeros(4)), allowed_nbits=(1, 2, 4))
    assert p.table.reshape(-1).tolist() == [0, 1, 2, 3] + [4] * 12


def test_groups_of_different_length_get_one_width():
    weight = np.array([[1, 1], [2, 7]], np.float32)
    p = custom_palette(
        weight,
        lambda group: np.unique(group, return_inverse=True),
        size=1,
    )
    assert p.table[:, 0, :, 0].tolist() == [[1, 1], [2, 7]]
    np.testing.assert_array_equal(p.dequantize(), weight)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("d", [1, 2])
def test_coremltools_calls_with_the_same_and_gets_the_same(axis, d):
    passes = pytest.importorskip("coremltools.optimize.coreml._quantization_passes")
    weight = np.random.default_rng(0).integers(0, 2, (4, 8, 4)).astype(np.float32)
    seen = []

    def function(group):
        seen.append(np.array(group))
        vectors = group.reshape(len(group) // d, d, -1).swapaxes(1, 2).reshape(-1, d)
        values, labels = np.unique(vectors, axis=0, return_inverse=True)
        values = np.concatenate([values, np.full((4 - len(values), d), 9, values.dtype)])
        return values if d > 1 else values[:, 0], labels.reshape(-1).astype(np.uint8)

    p = custom_palette(weight, function, axis=axis, size=4, d=d)
    ours = list(seen)
    seen.clear()
    theirs = passes.palettize_weights.grouped_channelwise_compress(
        weight, "CUSTOM", None, axis, 4, function, d
    )
    for mine, yours in zip(ours, seen, strict=True):
        np.testing.assert_array_equal(mine, yours)
    np.testing.assert_array_equal(p.table, theirs.lut)
    np.testing.assert_array_equal(p.indices, theirs.indices)
    assert p.vector_axis == theirs.vector_axis
    np.testing.assert_array_equal(p.dequantize(), weight)


@given(
    st.permutations([2, 4, 6]),
    st.integers(-3, 2),
    st.sampled_from([1, 2]),
    st.sampled_from([np.float16, np.float64, ml_dtypes.bfloat16]),
    st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_a_lossless_function_gives_the_weight_back(shape, axis, size, dtype, seed):
    weight = np.random.default_rng(seed).integers(-9, 9, shape).astype(dtype)

    def function(group):
        values, labels = np.unique(group.astype(np.float64), return_inverse=True)
        return values, labels

    p = custom_palette(weight, function, axis=axis, size=size)
    assert p.dtype == weight.dtype
    np.testing.assert_array_equal(p.dequantize(), weight)


def test_the_group_cannot_be_written_to():
    weight = np.ones((2, 2), np.float32)

    def vandal(group):
        group[...] = 0

    with pytest.raises(ValueError, match="read-only"):
        custom_palette(weight, vandal)
    assert weight.flags.writeable
    assert weight.all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (([0.0, 1.0], [0, 1, 0]), r"indices for a weight of shape \(2, 2\) must be 4.*got 3"),
        (([0.0, 1.0], [0, 1, 0, 2]), "from 0 to 1.*got 0 to 2"),
        (([0.0, 1.0], [0, 1, 0, -1]), "got -1 to 1"),
        (([0.0, 1.0], [0, 1, 0, 0.5]), "whole numbers"),
        (([0.0, 1e6], [0, 1, 0, 0]), "finite in float16, got 1000000"),
        (([0.0, float("nan")], [0, 1, 0, 0]), "finite"),
        (([], [0, 0, 0, 0]), "1 <= m <= 256"),
        ((np.zeros(257), np.zeros(4)), "1 <= m <= 256"),
        ((np.zeros((2, 2)), np.zeros(4)), r"\[m\] or \[m, 1\]"),
        ((["a", "b"], np.zeros(4)), "numbers, got list"),
        ((np.zeros(2), [[0, 0], [0]]), "numbers, got list"),
        (np.zeros(3), "pair"),
        ((np.zeros(2),), "pair.*got 1 of them"),
        (None, "pair"),
    ],
)
def test_what_is_no_palette_is_refused(result, message):
    with pytest.raises(ConfigError, match=message):
        custom_palette(np.zeros((2, 2), np.float16), lambda group: result)


def test_vectors_need_rows():
    weight = np.zeros((4, 2), np.float16)
    with pytest.raises(ConfigError, match=r"\[m, 2\].*got \(4,\)"):
        custom_palette(weight, lambda group: (np.zeros(4), np.zeros(4)), d=2)


def test_tables_beyond_the_target():
    weight = np.zeros((4, 2), np.float16)
    with pytest.raises(ConfigError, match=r"5 entries.*none.*\(1, 2\)"):
        custom_palette(weight, lambda group: (np.zeros(5), np.zeros(8)), allowed_nbits=(1, 2))


def test_an_error_of_the_function_comes_through():
    def broken(group):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        custom_palette(np.zeros((4, 2), np.float16), broken)
    if sys.version_info >= (3, 11):
        assert "shape (4, 2)" in caught.value.__notes__[0]
