"""Cutting a weight and joining it again, against the equations of a palette."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette import Layout, PaletteSpec, Palettized


@st.composite
def layouts(draw):
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    groups, d = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    shape[axis] *= groups * d
    return Layout(tuple(shape), axis, groups, d)


def laid_out(shape, order):
    """Numbers that are all different, in one of several memory layouts."""
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    if order == "reversed":
        return np.ascontiguousarray(weight[::-1])[::-1]
    return np.asfortranarray(weight) if order == "fortran" else weight


@given(layouts(), st.sampled_from(["C", "fortran", "reversed"]))
@settings(deadline=None)
def test_joining_is_the_inverse_of_cutting(layout, order):
    weight = laid_out(layout.shape, order)
    points = layout.points(weight)
    count = weight.size // layout.groups // layout.cluster_dim
    assert points.shape == (layout.groups, count, layout.cluster_dim)
    np.testing.assert_array_equal(layout.weight(points), weight)
    np.testing.assert_array_equal(layout.points(layout.weight(points)), points)


@given(layouts(), st.integers(0, 99))
@settings(deadline=None)
def test_labels_and_tables_make_the_palette_of_the_points(layout, seed):
    rng = np.random.default_rng(seed)
    count = int(np.prod(layout.indices_shape)) // layout.groups
    tables = rng.standard_normal((layout.groups, 4, layout.cluster_dim)).astype(np.float32)
    labels = rng.integers(0, 4, (layout.groups, count)).astype(np.uint8)
    palettized = Palettized(
        layout.table(tables), layout.indices(labels), vector_axis=layout.vector_axis
    )
    assert palettized.table_shape == layout.table_shape
    assert palettized.indices.shape == layout.indices_shape
    points = np.take_along_axis(tables, labels[..., None].astype(int), axis=1)
    np.testing.assert_array_equal(palettized.dequantize(), layout.weight(points))


def test_groups_and_vectors_by_hand():
    weight = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert Layout((2, 4), axis=1, groups=2).rows(weight).tolist() == [[1, 5, 2, 6], [3, 7, 4, 8]]
    pairs = Layout((2, 4), axis=1, groups=2, cluster_dim=2).points(weight)
    assert pairs.tolist() == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]


def test_one_row_of_a_weight_in_c_order_is_a_view():
    weight = np.zeros((3, 4, 5), np.float16)
    assert np.shares_memory(Layout(weight.shape).rows(weight), weight)


def test_tensors_are_cut_alike_and_keep_their_gradient():
    torch = pytest.importorskip("torch")
    layout = Layout((2, 12, 3), axis=1, groups=2, cluster_dim=3)
    weight = np.arange(72, dtype=np.float32).reshape(layout.shape)
    tensor = torch.tensor(weight, requires_grad=True)
    points = layout.points(tensor)
    np.testing.assert_array_equal(points.detach().numpy(), layout.points(weight))
    (layout.weight(points * points).sum() / 2).backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), weight)


@pytest.mark.parametrize(
    ("shape", "axis", "d"), [((8, 6), 0, 4), ((8, 6), 1, 2), ((2, 6, 3), 1, 3)]
)
def test_vectors_are_those_of_coremltools(shape, axis, d):
    utils = pytest.importorskip("coremltools.optimize._utils")
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = utils.reshape_weight_for_vector_lut(weight, d, axis)
    layout = Layout(shape, axis, cluster_dim=d)
    assert layout.indices_shape == expected.shape[:-1]
    np.testing.assert_array_equal(
        layout.points(weight)[0], np.moveaxis(expected, axis, 0).reshape(-1, d)
    )


def test_of_a_spec():
    spec = PaletteSpec(nbits=4, channel_axis=-2, group_size=4, cluster_dim=2)
    assert Layout.of(spec, (6, 12, 5)) == Layout((6, 12, 5), axis=1, groups=3, cluster_dim=2)
    assert Layout.of(PaletteSpec(nbits=4), (6, 12)) == Layout((6, 12))


@pytest.mark.parametrize("layout", [{"groups": 3}, {"cluster_dim": 3}, {"groups": 0}, {"axis": 2}])
def test_what_does_not_divide_is_refused(layout):
    with pytest.raises(ConfigError, match=r"divide the channels|must be in \[0, 2\)"):
        Layout((4, 6), **layout)
