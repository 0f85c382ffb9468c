"""The Palettized value against its own equations and against coremltools."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette.value.palettized import Palettized

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def by_the_equation(p):
    """weight[p] = table[group(p), indices[p], c] * scale, one position after the other."""
    weight = np.empty(p.shape, p.dtype)
    for position in itertools.product(*map(range, p.indices.shape)):
        blocks = (n // g for n, g in zip(p.indices.shape, p.table_shape, strict=True))
        group = tuple(i // block for i, block in zip(position, blocks, strict=True))
        for c in range(p.cluster_dim):
            where = list(position)
            if p.vector_axis is not None:
                where[p.vector_axis] = where[p.vector_axis] * p.cluster_dim + c
            weight[tuple(where)] = p.table[(*group, p.indices[position], c)]
    return weight if p.scale is None else weight * p.scale


@st.composite
def palettized(draw):
    """Any palettized weight of rank 1 to 4, groups and vectors along any axes."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    groups = [draw(st.sampled_from([g for g in range(1, n + 1) if n % g == 0])) for n in shape]
    nbits, d = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3]))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if d > 1 else None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    table = rng.standard_normal((*groups, 1 << nbits, d)).astype(dtype)
    indices = rng.integers(0, 1 << nbits, shape).astype(np.uint8)
    plain = Palettized(table, indices, axis)
    if not draw(st.booleans()):
        return plain
    scale_axis = draw(st.integers(0, len(shape) - 1))
    scale_shape = [n if i == scale_axis else 1 for i, n in enumerate(plain.shape)]
    return Palettized(table, indices, axis, (rng.random(scale_shape) * 3).astype(dtype))


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def test_two_groups_of_scalars():
    table = np.array([[1, 5, 9, 13], [2, 10, 18, 26]], np.float16).reshape(2, 1, 4, 1)
    p = Palettized(table, np.array([[2, 3], [0, 1]], np.uint8))
    assert p.dequantize().tolist() == [[9, 13], [2, 10]]


def test_vectors_along_the_first_axis():
    table = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(1, 1, 2, 3)
    p = Palettized(table, np.array([[0, 1]], np.uint8), vector_axis=-2)
    assert p.vector_axis == 0
    assert p.shape == (3, 2)
    assert p.dequantize().tolist() == [[1, 4], [2, 5], [3, 6]]


def test_sizes_count_everything():
    p = Palettized(
        np.zeros((2, 1, 8, 1), np.float16),
        np.zeros((4, 5), np.uint8),
        scale=np.ones((4, 1), np.float16),
    )
    # 20 indices of 3 bits, 16 entries and 4 factors of 2 bytes.
    assert (p.indices_nbytes, p.table_nbytes, p.scale_nbytes, p.nbytes) == (8, 32, 8, 48)
    assert p.bits_per_weight == 8 * 48 / 20
    assert (p.nbits, p.cluster_dim, p.table_shape, p.size) == (3, 1, (2, 1), 20)


@given(palettized())
@settings(max_examples=150, deadline=None)
def test_dequantize_is_the_equation(p):
    weight = p.dequantize()
    assert (weight.shape, weight.dtype) == (p.shape, p.dtype)
    assert bits(weight) == bits(by_the_equation(p))


@given(palettized())
@settings(max_examples=100, deadline=None)
def test_coremltools_decompresses_to_the_same_bits(p):
    utils = pytest.importorskip("coremltools.optimize._utils")
    ios18 = pytest.importorskip("coremltools.converters.mil.mil.ops.defs.iOS18")
    dense = utils.lut_to_dense(p.indices, p.table, p.vector_axis)
    if p.scale is not None:
        dense = ios18.constexpr_blockwise_shift_scale.decompress(dense, p.scale, None)
    assert bits(p.dequantize()) == bits(dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_scaled_tables_and_scaled_weights_agree(dtype, axis):
    """Long channels take the first way, short ones the second."""
    rng = np.random.default_rng(0)
    for shape in [(6, 300), (300, 6), (40, 40)]:
        scale_shape = [n if i == axis else 1 for i, n in enumerate(shape)]
        p = Palettized(
            rng.standard_normal((1, 1, 16, 1)).astype(dtype),
            rng.integers(0, 16, shape).astype(np.uint8),
            scale=rng.random(scale_shape).astype(dtype),
        )
        expected = p.table.reshape(-1)[p.indices] * p.scale
        assert bits(p.dequantize()) == bits(expected)


def test_power_of_two_on_table_is_one_on_weight():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 1, 16, 1)).astype(np.float32)
    indices = rng.integers(0, 16, (8, 8)).astype(np.uint8)
    small = Palettized(table * np.float32(2**-12), indices).dequantize()
    np.testing.assert_array_equal(small * 2**12, Palettized(table, indices).dequantize())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": np.zeros((1, 1, 4, 1), np.int16)}, "got int16"),
        ({"table": np.zeros((1, 4, 1), np.float16)}, "rank K"),
        ({"table": np.zeros((1, 1, 5, 1), np.float16)}, "2.*nbits entries.*got 5"),
        ({"table": np.zeros((1, 1, 32, 1), np.float16)}, "got 32"),
        ({"table": np.zeros((3, 1, 4, 1), np.float16)}, "divide.*got 3 for 4 on axis 0"),
        ({"table": np.zeros((1, 1, 4, 2), np.float16)}, "vector_axis"),
        ({"vector_axis": 0}, "vector_axis"),
        ({"table": np.zeros((1, 1, 4, 2), np.float16), "vector_axis": 2}, "vector_axis"),
        ({"indices": np.zeros((4, 6), np.int64)}, "uint8, got int64"),
        ({"indices": np.zeros((6, 4), np.uint8).T}, "C-contiguous"),
        ({"indices": np.full((4, 6), 4, np.uint8)}, "below that, got 4"),
        ({"scale": np.ones((4, 1), np.float32)}, "dtype of its table"),
        ({"scale": np.ones((4, 6), np.float16)}, "one axis"),
        ({"scale": np.ones((2, 1), np.float16)}, "one axis"),
        ({"scale": np.ones(4, np.float16)}, "one axis"),
    ],
)
def test_broken_invariants_are_refused(change, message):
    good = {"table": np.zeros((1, 1, 4, 1), np.float16), "indices": np.zeros((4, 6), np.uint8)}
    Palettized(**good)
    with pytest.raises(ConfigError, match=message):
        Palettized(**{**good, **change})
