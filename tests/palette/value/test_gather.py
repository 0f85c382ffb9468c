"""The gather against a loop over positions."""

import itertools

import numpy as np
import pytest

from mlopt.palette.value.gather import gather, scale_in_place
from mlopt.palette.value.product import product
from tests.palette import references as ref


def one_by_one(table, indices, vector_axis):
    """table[group, index] of each position, its elements next to each other on the vector axis."""
    *groups, _, d = table.shape
    shape = [n * d if axis == vector_axis else n for axis, n in enumerate(indices.shape)]
    weight = np.empty(shape, table.dtype)
    for place in np.ndindex(indices.shape):
        group = tuple(i // (n // g) for i, n, g in zip(place, indices.shape, groups, strict=True))
        for c in range(d):
            to = list(place)
            if vector_axis is not None:
                to[vector_axis] = place[vector_axis] * d + c
            weight[tuple(to)] = table[(*group, indices[place], c)]
    return weight


def gathered(table, indices, vector_axis):
    d = table.shape[-1]
    shape = [n * d if axis == vector_axis else n for axis, n in enumerate(indices.shape)]
    weight = np.empty(shape, table.dtype)
    gather(table, indices, weight, vector_axis=vector_axis)
    return weight


SHAPES = [(6,), (4, 6), (2, 3, 4), (4, 1, 6), (1, 4, 2, 3), (2, 2, 1, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_choice_of_groups_and_vectors(shape):
    rng = np.random.default_rng(len(shape))
    indices = rng.integers(0, 5, shape).astype(np.uint8)
    divisors = [[g for g in range(1, n + 1) if n % g == 0] for n in shape]
    for groups in itertools.product(*divisors):
        for vector_axis, d in [(None, 1), *((axis, 2) for axis in range(len(shape)))]:
            table = rng.standard_normal((*groups, 5, d)).astype(np.float32)
            expected = one_by_one(table, indices, vector_axis)
            np.testing.assert_array_equal(gathered(table, indices, vector_axis), expected)


@pytest.mark.parametrize("name", ref.FORMATS)
def test_bits_move_unchanged(name):
    dtype = np.dtype(ref.FORMATS[name])
    table = np.random.default_rng(0).bytes(2 * 4 * 3 * dtype.itemsize)
    table = np.frombuffer(table, dtype).reshape(2, 1, 4, 3)  # any NaN as well
    indices = np.arange(32, dtype=np.uint8).reshape(4, 8) % 4
    for axis in (0, 1):
        expected = one_by_one(table.view(f"u{dtype.itemsize}"), indices, axis)
        assert gathered(table, indices, axis).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scales_go_along_their_axis(axis, name):
    rng = np.random.default_rng(axis)
    weight = rng.standard_normal((5, 40, 1000)).astype(ref.FORMATS[name])  # more than one block
    lengths = [n if i == axis else 1 for i, n in enumerate(weight.shape)]
    scale = rng.standard_normal(lengths).astype(weight.dtype)
    expected = product(weight, np.broadcast_to(scale, weight.shape).copy())
    scale_in_place(weight, scale)
    assert weight.tobytes() == expected.tobytes()
