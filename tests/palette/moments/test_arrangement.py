"""Weights as matrices: round trips, and the outputs that they stand for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlopt.errors import ConfigError
from mlopt.palette.moments import Arrangement
from tests.palette.moments.examples import convolution, matrix, transposed


@st.composite
def arrangements(draw):
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    split = []
    for length in lengths:
        factor = draw(st.sampled_from([f for f in range(1, length + 1) if length % f == 0]))
        split += draw(st.sampled_from([[length], [factor, length // factor]]))
    order = draw(st.permutations(range(len(split))))
    first, second = sorted(draw(st.tuples(*[st.integers(0, len(split))] * 2)))
    moved = [split[axis] for axis in order]
    cuts = [moved[:first], moved[first:second], moved[second:]]
    return Arrangement(
        tuple(lengths), tuple(split), tuple(order), *(int(np.prod(cut, dtype=int)) for cut in cuts)
    )


@given(arrangements())
def test_matrices_and_weight_are_inverse(arrangement):
    weight = np.arange(np.prod(arrangement.shape)).reshape(arrangement.shape)
    matrices = arrangement.matrices(weight)
    assert matrices.shape == (arrangement.blocks, arrangement.rows, arrangement.columns)
    np.testing.assert_array_equal(arrangement.weight(matrices), weight)


@given(arrangements())
def test_positions_say_where_elements_lie(arrangement):
    weight = np.arange(np.prod(arrangement.shape)).reshape(arrangement.shape)
    of_rows, of_columns = arrangement.positions()
    places = of_rows[:, :, None] + of_columns[:, None, :]
    flat = arrangement.matrices(weight).reshape(-1, arrangement.columns)
    np.testing.assert_array_equal(weight[tuple(places)], flat)


@given(arrangements(), st.data())
def test_some_outputs_are_rows_of_the_matrices(arrangement, data):
    axis = arrangement.output_axis()
    if axis is None:
        return
    weight = np.arange(np.prod(arrangement.shape)).reshape(arrangement.shape)
    rows = arrangement.rows
    unit = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
    units = data.draw(st.integers(1, rows // unit))
    some, channels = arrangement.some_outputs(units, unit)
    matrices = some.matrices(np.take(weight, channels, axis=axis))
    assert matrices.shape == (arrangement.blocks, units * unit, arrangement.columns)
    of_block = channels[: units * unit] % rows
    np.testing.assert_array_equal(matrices, arrangement.matrices(weight)[:, of_block])
    starts = of_block.reshape(units, unit)[:, 0]
    assert len(set(starts)) == units
    assert not np.any(starts % unit)


def test_outputs_lie_along_one_axis():
    linear, conv, deconv = matrix(6, 4), convolution(6, 2, (3,), 2), transposed(4, 3, (2,), 2)
    guided = matrix(3, 4, blocks=2)
    in_two = Arrangement((2, 3, 4), (2, 3, 4), (0, 1, 2), 1, 6, 4)
    axes = [each.output_axis() for each in (linear, conv, deconv, guided, in_two)]
    assert axes == [0, 0, 1, 0, None]


def test_matrices_of_a_linear_weight_are_a_view():
    weight = np.zeros((6, 5))
    assert np.shares_memory(matrix(3, 5, blocks=2).matrices(weight), weight)


def test_outputs_of_linear_and_matmul():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((3, 4)), rng.standard_normal(4)
    np.testing.assert_allclose(matrix(3, 4).matrices(weight)[0] @ x, weight @ x)
    of_matmul = Arrangement((3, 4), (3, 4), (1, 0), 1, 4, 3)
    np.testing.assert_allclose(of_matmul.matrices(weight)[0] @ x[:3], x[:3] @ weight)


def test_outputs_of_einsum():
    # bhid,hod->bhio: one block per head
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4))
    y = Arrangement((2, 3, 4), (2, 3, 4), (0, 1, 2), 2, 3, 4).matrices(weight) @ x[:, :, None]
    np.testing.assert_allclose(y[..., 0], np.einsum("hod,hd->ho", weight, x))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_outputs_of_convolutions_by_their_patches(groups):
    rng = np.random.default_rng(groups)
    arrangement = convolution(8, 4 // groups, (3, 2), groups)
    weight = torch.from_numpy(rng.standard_normal(arrangement.shape))
    image = torch.from_numpy(rng.standard_normal((1, 4, 5, 6)))
    wanted = torch.nn.functional.conv2d(image, weight, groups=groups)
    patches = torch.nn.functional.unfold(image, (3, 2)).numpy()[0]
    inputs = patches.reshape(groups, arrangement.columns, -1)
    outputs = arrangement.matrices(weight.numpy()) @ inputs
    np.testing.assert_allclose(outputs.reshape(wanted.shape), wanted.numpy(), rtol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_of_transposed_convolutions_by_patches(groups):
    rng = np.random.default_rng(groups)
    arrangement = transposed(4, 3, (3, 2), groups)
    weight = torch.from_numpy(rng.standard_normal(arrangement.shape))
    image = torch.from_numpy(rng.standard_normal((1, 4, 5, 6)))
    wanted = torch.nn.functional.conv_transpose2d(image, weight, groups=groups)
    # a convolution of the padded image with the flipped kernel; patches are flipped instead
    padded = torch.nn.functional.pad(image, (1, 1, 2, 2))
    patches = torch.nn.functional.unfold(padded, (3, 2)).numpy()[0]
    flipped = patches.reshape(4, 3, 2, -1)[:, ::-1, ::-1]
    inputs = flipped.reshape(groups, arrangement.columns, -1)
    outputs = arrangement.matrices(weight.numpy()) @ inputs
    np.testing.assert_allclose(outputs.reshape(wanted.shape), wanted.numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((4, 0), (4, 0), (0, 1), 1, 4, 0), "with elements"),
        (((), (), (), 1, 1, 1), "with elements"),
        (((4, 6), (8, 3), (0, 1), 1, 8, 3), "cut each axis"),
        (((4, 6), (4, 6, 2), (0, 1, 2), 1, 4, 12), "cut each axis"),
        (((4, 6), (4, 6), (0, 0), 1, 4, 6), "permutation"),
        (((4, 6), (4, 6), (0, 1), 1, 8, 3), "products of consecutive axes"),
        (((4, 6), (4, 6), (0, 1), 1, 4, 5), "products of consecutive axes"),
        (((4, 6), (4, 6), (0, 1), 0, 4, 6), "products of consecutive axes"),
    ],
)
def test_contradictions_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Arrangement(*arguments)
