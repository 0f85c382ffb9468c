"""Products of matrices: linear, matmul with a constant on either side, einsum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mlopt.calibration.readers.reader import Arguments, NoStatisticsError, Reader, Use
from mlopt.palette.moments import Arrangement

_ROWS = "rows of the last axis"
"""The geometry of inputs that are the rows of a tensor as it is."""


def linear_reader(use: Use) -> Reader:
    """Return the reader of a linear's weight [O, I]; x: [*, I]."""
    rows, columns = use.shape

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        return [arguments["x"].reshape(1, -1, columns)]

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        return [result.reshape(1, -1, rows)]

    return Reader(
        arrangement=matrix_arrangement(use.shape),
        sources=use.sources("x"),
        geometry=(_ROWS, columns),
        inputs=inputs,
        outputs=outputs,
    )


def matmul_reader(use: Use) -> Reader:
    """Return the reader of a constant operand of matmul; matrices in axes before are blocks."""
    on_left = use.parameter == "x"
    other = "y" if on_left else "x"
    is_transposed = bool(use.constant(f"transpose_{use.parameter}", False))
    turns_other = bool(use.constant(f"transpose_{other}", False))
    batch = use.shape[:-2]
    if len(use.shape) == 1:
        arrangement = matrix_arrangement((1, *use.shape), shape=use.shape)
    else:
        # rows are outputs: those of a left operand are, and of a right one the columns
        arrangement = stacked_arrangement(use.shape, has_rows_first=on_left != is_transposed)

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments[other]
        if x.dim() == 1:
            x = x.reshape(1, -1)
        elif on_left != turns_other:
            # columns of a right operand, and rows of a transposed left one, are multiplied
            x = x.transpose(-1, -2)
        return [_by_blocks(x, batch)]

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        if len(use.shape) == 1:
            return [result.reshape(1, -1, 1)]
        if arguments[other].dim() == 1:
            result = result[..., None, :]
        elif on_left:
            result = result.transpose(-1, -2)
        return [_by_blocks(result, batch)]

    is_plain = math.prod(batch) == 1 and on_left == turns_other
    others = ("matmul", batch, on_left != turns_other)
    geometry = (_ROWS, arrangement.columns) if is_plain else others
    return Reader(
        arrangement=arrangement,
        sources=use.sources(other),
        geometry=geometry,
        inputs=inputs,
        outputs=outputs,
    )


def einsum_reader(use: Use) -> Reader:
    """Return the reader of an operand of ``nchw,nwhu->nchu`` or the same without n."""
    if len(use.step.node.inputs["values"]) != 2:
        raise NoStatisticsError(f"{use.step.title} is not a product of two tensors")
    on_left = use.index == 0
    *front, first, middle, last = use.shape
    axes = tuple(range(len(front)))
    end = len(front)
    # [c, h, w] on the left, [w, h, u] on the right: h counts the blocks, w the columns
    rows, columns = (first, last) if on_left else (last, first)
    batch = (*front, middle)
    inner = (end + 1, end, end + 2) if on_left else (end + 1, end + 2, end)
    arrangement = Arrangement(
        shape=use.shape,
        split=use.shape,
        order=(*axes, *inner),
        blocks=math.prod(batch),
        rows=rows,
        columns=columns,
    )

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments["values"][1 - use.index].transpose(-3, -2)
        return [_by_blocks(x.transpose(-1, -2) if on_left else x, batch)]

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        result = result.transpose(-3, -2)
        return [_by_blocks(result.transpose(-1, -2) if on_left else result, batch)]

    return Reader(
        arrangement=arrangement,
        sources=use.sources("values")[1 - use.index : 2 - use.index],
        geometry=("einsum", on_left, batch),
        inputs=inputs,
        outputs=outputs,
    )


def matrix_arrangement(
    lengths: tuple[int, ...], *, shape: tuple[int, ...] | None = None
) -> Arrangement:
    """Return a weight [rows, columns] as its matrix; ``shape``: of the weight if it is another."""
    rows, columns = lengths
    return Arrangement(
        shape=lengths if shape is None else shape,
        split=lengths,
        order=(0, 1),
        blocks=1,
        rows=rows,
        columns=columns,
    )


def stacked_arrangement(shape: tuple[int, ...], *, has_rows_first: bool) -> Arrangement:
    """Return matrices in the last two axes, of rows and columns or the other way round."""
    rank = len(shape)
    inner = (rank - 2, rank - 1) if has_rows_first else (rank - 1, rank - 2)
    return Arrangement(
        shape=shape,
        split=shape,
        order=(*range(rank - 2), *inner),
        blocks=math.prod(shape[:-2]),
        rows=shape[inner[0]],
        columns=shape[inner[1]],
    )


def _by_blocks(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Return rows [*, M, K] as [blocks, positions, K], for blocks of the shape ``batch``.

    The axes before are broadcast. Those that a block has length 1 in, or lacks, hold positions.
    """
    rank = max(len(batch), x.dim() - 2)
    own = (1,) * (rank - len(batch)) + batch
    x = x.reshape((1,) * (rank + 2 - x.dim()) + tuple(x.shape))
    lengths = [a if b == 1 else b for a, b in zip(x.shape[:-2], own, strict=True)]
    x = x.expand(*lengths, *x.shape[-2:])
    of_blocks = [axis for axis in range(rank) if own[axis] != 1]
    others = [axis for axis in range(rank) if own[axis] == 1]
    x = x.permute(*of_blocks, *others, rank, rank + 1)
    return x.reshape(math.prod(batch), -1, x.shape[-1])
