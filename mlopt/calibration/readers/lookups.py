"""Lookups: how often each row of a table is read.

A lookup multiplies the table by a vector that is 1 at the row and 0 elsewhere. Its second moments
are diagonal: how often each row is read, a share of all reads, which is its mean as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mlopt.calibration.readers.reader import Arguments, NoStatisticsError, Reader, Use
from mlopt.palette.moments import Arrangement


def gather_reader(use: Use) -> Reader:
    """Return the reader of a gather's table: along its axis the columns, all else rows."""
    axis = _axis(use)
    if use.constant("batch_dims", 0):
        raise NoStatisticsError(f"{use.step.title} looks up rows of several tables (batch_dims)")
    length = use.shape[axis]

    before, _, after = _cut(use.shape, axis)

    def counts(arguments: Arguments, weights: Tensor | None) -> tuple[Tensor, int]:
        return row_counts(_indices(arguments), length, weights)

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        # the axis is replaced by those of the indices
        return [result.reshape(before, -1, after).transpose(0, 1).reshape(1, -1, before * after)]

    return Reader(
        arrangement=lookup_arrangement(use.shape, axis),
        sources=use.sources("indices"),
        geometry=("lookup", length),
        counts=counts,
        outputs=outputs,
    )


def lookup_arrangement(shape: tuple[int, ...], axis: int) -> Arrangement:
    """Return a table whose rows lie along an axis: that axis the columns, all else rows."""
    before, length, after = _cut(shape, axis)
    return Arrangement(
        shape=shape,
        split=shape,
        order=_with_last(axis, len(shape)),
        blocks=1,
        rows=before * after,
        columns=length,
    )


def row_counts(indices: Tensor, length: int, weights: Tensor | None = None) -> tuple[Tensor, int]:
    """Return how often each of ``length`` rows is read, [1, length], and the number of reads.

    weights: what each read counts, of as many elements as the indices; None: 1.
    """
    indices = indices.reshape(-1)
    indices = torch.where(indices < 0, indices + length, indices)
    given = None if weights is None else weights.reshape(-1)
    return torch.bincount(indices, given, minlength=length).reshape(1, -1), indices.numel()


def gather_along_axis_reader(use: Use) -> Reader:
    """Return the reader of a gather_along_axis's table: each place beside its axis is a block."""
    axis = _axis(use)
    before, length, after = _cut(use.shape, axis)
    arrangement = Arrangement(
        shape=use.shape,
        split=use.shape,
        order=_with_last(axis, len(use.shape)),
        blocks=before * after,
        rows=1,
        columns=length,
    )

    def by_blocks(x: Tensor) -> Tensor:
        return x.reshape(before, x.shape[axis], after).transpose(1, 2).reshape(before * after, -1)

    def counts(arguments: Arguments, weights: Tensor | None) -> tuple[Tensor, int]:
        each = by_blocks(_indices(arguments))
        each = torch.where(each < 0, each + length, each)
        given = torch.ones_like(each) if weights is None else weights
        result = given.new_zeros(before * after, length)
        return result.scatter_add_(1, each, given), each.shape[1]

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        return [by_blocks(result)[..., None]]

    return Reader(
        arrangement=arrangement,
        sources=use.sources("indices"),
        geometry=("lookup along", before, length, after),
        counts=counts,
        outputs=outputs,
    )


def _axis(use: Use) -> int:
    axis = int(use.constant("axis", 0))
    return axis + len(use.shape) if axis < 0 else axis


def _with_last(axis: int, rank: int) -> tuple[int, ...]:
    return (*(each for each in range(rank) if each != axis), axis)


def _cut(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _indices(arguments: Arguments) -> Tensor:
    indices: Tensor = arguments["indices"]
    return indices.long()
