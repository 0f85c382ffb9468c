"""Palettes of given tables: the nearest entry of each point, against brute force."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette import Layout, PaletteSpec, assign, palettize


def test_by_hand():
    weight = np.array([[0.2, -3], [0.9, 1]], np.float16)
    palettized = assign(weight, np.array([[[1.0], [0.0], [1.0]]]), Layout(weight.shape))
    assert palettized.table.reshape(-1).tolist() == [0, 1, 1, 1]
    assert palettized.indices.tolist() == [[0, 0], [1, 1]]
    assert palettized.dtype == np.float16


@given(
    st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.integers(0, 1),
    st.integers(1, 9),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_each_point_has_the_nearest_entry(dtype, groups, d, axis, entries, seed):
    rng = np.random.default_rng(seed)
    shape = [3, 3]
    shape[axis] = groups * d * 2
    layout = Layout(tuple(shape), axis, groups, d)
    # of few values, so that there are ties
    weight = (rng.integers(-8, 9, shape) / 4).astype(dtype)
    tables = rng.integers(-8, 9, (groups, entries, d)) / 4
    palettized = assign(weight, tables, layout)
    stored = layout.points(palettized.dequantize().astype(float))
    points = layout.points(weight.astype(float))
    errors = ((points[:, :, None] - tables[:, None]) ** 2).sum(-1)
    np.testing.assert_array_equal(((points - stored) ** 2).sum(-1), errors.min(-1))
    # of equally near entries the first in lexicographic order
    for g in range(groups):
        distinct = np.unique(tables[g], axis=0)
        nearest = ((points[g][:, None] - distinct) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(stored[g], distinct[nearest])


@pytest.mark.parametrize("d", [1, 2])
def test_the_tables_of_palettize_give_its_palette_back(d):
    weight = np.random.default_rng(1).standard_normal((24, 16)).astype(np.float16)
    spec = PaletteSpec(nbits=3, channel_axis=1, group_size=8, cluster_dim=d)
    palettized, _ = palettize(weight, spec)
    ours = assign(weight, palettized.table[0], Layout.of(spec, weight.shape))
    np.testing.assert_array_equal(ours.table, palettized.table)
    np.testing.assert_array_equal(ours.indices, palettized.indices)


@pytest.mark.parametrize("lut_dtype", ["int8", "uint8"])
def test_tables_in_8_bits(lut_dtype):
    weight = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    tables = np.linspace(-1, 2, 16).reshape(1, 16, 1)
    palettized = assign(weight, tables, Layout(weight.shape), lut_dtype=lut_dtype)
    assert palettized.quantized.codes.dtype == lut_dtype
    assert np.abs(palettized.table.reshape(-1) - tables.reshape(-1)).max() <= 2 / 127 / 2
    tiny = assign(weight, tables * 1e-40, Layout(weight.shape), lut_dtype=lut_dtype)
    assert tiny.quantized is None


@pytest.mark.parametrize(
    ("weight", "tables", "message"),
    [
        (np.zeros((4, 2), np.int8), np.zeros((1, 2, 1)), "float array of the layout's shape"),
        (np.zeros((2, 4), np.float32), np.zeros((1, 2, 1)), r"shape \(4, 2\), got float32 \(2, 4"),
        (np.full((4, 2), np.nan, np.float32), np.zeros((1, 2, 1)), "finite"),
        (np.zeros((4, 2), np.float32), np.zeros((2, 2, 1)), r"\[1, m, 1\]"),
        (np.zeros((4, 2), np.float32), np.zeros((1, 300, 1)), "1 to 256 entries, got 300"),
        (np.zeros((4, 2), np.float16), np.full((1, 2, 1), 1e6), "float16, got 1000000"),
    ],
)
def test_refusals(weight, tables, message):
    with pytest.raises(ConfigError, match=message):
        assign(weight, tables, Layout((4, 2)))
