"""Weights, inputs and moments for the tests, and the objective by plain numpy."""

from __future__ import annotations

import numpy as np

from mlopt.palette.moments import Arrangement, InputMoments

DAMPING = 0.01


def matrix(rows, columns, blocks=1):
    """The arrangement of a weight [rows, columns], or [blocks * rows, columns]."""
    shape = (blocks * rows, columns)
    return Arrangement(shape, (blocks, rows, columns), (0, 1, 2), blocks, rows, columns)


def convolution(out, per_group, kernel, groups=1):
    """The arrangement of a convolution's weight [out, per_group, *kernel]."""
    columns = per_group * int(np.prod(kernel))
    split = (groups, out // groups, per_group, *kernel)
    shape = (out, per_group, *kernel)
    return Arrangement(shape, split, tuple(range(len(split))), groups, out // groups, columns)


def transposed(inputs, per_group, kernel, groups=1):
    """The arrangement of a conv_transpose's weight [inputs, per_group, *kernel]."""
    columns = inputs // groups * int(np.prod(kernel))
    split = (groups, inputs // groups, per_group, *kernel)
    shape = (inputs, per_group, *kernel)
    order = (0, 2, 1, *range(3, len(split)))
    return Arrangement(shape, split, order, groups, per_group, columns)


def of_inputs(arrangement, inputs):
    """The moments of inputs [count, blocks, columns]."""
    wide = inputs.astype(np.float64)
    second = np.einsum("nbi,nbj->bij", wide, wide) / len(wide)
    second = ((second + second.swapaxes(1, 2)) / 2).astype(np.float32)
    return InputMoments(
        arrangement,
        second,
        np.ascontiguousarray(np.einsum("bii->bi", second)),
        wide.mean(axis=0).astype(np.float32),
        len(wide),
    )


def random_inputs(arrangement, seed=0, count=None):
    """Correlated inputs of very different sizes, with a mean."""
    rng = np.random.default_rng(seed)
    blocks, columns = arrangement.blocks, arrangement.columns
    count = count or 4 * columns + 8
    mix = rng.standard_normal((blocks, columns, columns)) / np.sqrt(columns)
    mix += 0.3 * np.eye(columns)
    sizes = np.exp(rng.standard_normal((blocks, columns)))
    plain = rng.standard_normal((count, blocks, columns))
    return np.einsum("nbi,bij->nbj", plain, mix) * sizes + 0.3


def random_moments(arrangement, seed=0, count=None):
    return of_inputs(arrangement, random_inputs(arrangement, seed, count))


def identity_moments(arrangement):
    """Inputs of the same size, without correlation."""
    blocks, columns = arrangement.blocks, arrangement.columns
    second = np.tile(np.eye(columns, dtype=np.float32), (blocks, 1, 1))
    ones, zeros = np.ones((blocks, columns), np.float32), np.zeros((blocks, columns), np.float32)
    return InputMoments(arrangement, second, ones, zeros, 1)


def damped(moments):
    """float64[blocks, columns, columns]."""
    second = moments.second.astype(np.float64)
    means = np.einsum("bii->b", second) / second.shape[1]
    means = np.where(means > 0, means, means.mean())
    return second + DAMPING * means[:, None, None] * np.eye(second.shape[1])


def objective(moments, weight, stored, importance=None):
    """tr(E H E^T) with the damped H, by einsum."""
    errors = stored.astype(np.float64) - weight.astype(np.float64)
    if importance is not None:
        errors = errors * np.sqrt(importance.astype(np.float64))
    rows = moments.arrangement.matrices(errors)
    return float(np.einsum("bri,bij,brj->", rows, damped(moments), rows))
