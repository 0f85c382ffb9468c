"""Weights from tables and indices: the gather of :meth:`mlopt.palette.Palettized.dequantize`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlopt.palette.value.product import product


class _Geometry(NamedTuple):
    """Strides of vectors in rows of the last axis.

    across: a vector lies over ``d`` rows of the weight that are ``row_stride`` rows apart, with
    ``vector_length`` vectors on their axis; otherwise it lies within a row. entries: of a table.
    """

    entries: int
    across: bool
    row_stride: int
    vector_length: int


def gather(
    table: npt.NDArray[Any],
    indices: npt.NDArray[np.uint8],
    weight: npt.NDArray[Any],
    *,
    vector_axis: int | None,
) -> None:
    """Fill ``weight`` from ``table[group, index, c]``; indices and weight are C-contiguous.

    table: [g[0], ..., g[K-1], entries, d] of the weight's dtype; indices: uint8 of rank K; weight:
    of their shape, d times as long on the vector axis. See :class:`mlopt.palette.Palettized`.

    The position space is brought to few axes first, so that a kernel over rows of the last axis
    has long rows: most weights end as a single row cut into groups.
    """
    from mlopt.palette.value.gather_kernel import gather_rows  # numba takes a while to load

    # Values move as bit patterns: numba has neither float16 nor bfloat16.
    codes = np.dtype(f"u{weight.dtype.itemsize}")
    table, weight = np.ascontiguousarray(table).view(codes), weight.view(codes)
    *groups, entries, d = table.shape
    lengths, groups, vector = _merged_axes(indices.shape, groups, vector_axis)
    geometry = _Geometry(entries, across=False, row_stride=1, vector_length=1)
    if vector is not None and vector < len(lengths) - 1:
        row_stride = math.prod(lengths[vector + 1 : -1])
        geometry = _Geometry(entries, True, row_stride, lengths[vector])
    gather_rows(
        table.reshape(-1, d),
        indices.reshape(-1, groups[-1], lengths[-1] // groups[-1]),
        weight.reshape(-1),
        _first_entry_of_row(lengths, groups, entries),
        geometry,
    )


def _merged_axes(
    shape: tuple[int, ...], table_groups: list[int], vector_axis: int | None
) -> tuple[list[int], list[int], int | None]:
    """Return the same C-order positions on fewer axes: lengths, groups and vector axis of these.

    An axis without groups of its own can join the one before it, since a block of that stays a
    block; but not across the vector axis, on which consecutive positions are ``d`` apart. Two axes
    with one group for each position join as well.
    """
    lengths: list[int] = []
    groups: list[int] = []
    vector: int | None = None
    for axis, (n, g) in enumerate(zip(shape, table_groups, strict=True)):
        is_vector = axis == vector_axis
        if n == 1 and lengths and not is_vector:
            continue
        after_vector = vector is not None and vector == len(lengths) - 1
        whole = bool(lengths) and lengths[-1] == groups[-1]
        if lengths and not is_vector and not after_vector and (g == 1 or whole):
            lengths[-1] *= n
            groups[-1] *= g
            continue
        lengths.append(n)
        groups.append(g)
        if is_vector:
            vector = len(lengths) - 1
    return lengths, groups, vector


def _first_entry_of_row(
    lengths: list[int], groups: list[int], entries: int
) -> npt.NDArray[np.int64]:
    """Return, for each row of the last axis, where its first group's entry 0 is in the tables.

    int64[prod(lengths[:-1])].
    """
    first = np.zeros((1,) * max(len(lengths) - 1, 1), np.int64)
    stride = entries * groups[-1]
    for axis in range(len(lengths) - 2, -1, -1):
        group = np.arange(lengths[axis]) // (lengths[axis] // groups[axis]) * stride
        first = first + group.reshape([-1 if i == axis else 1 for i in range(len(lengths) - 1)])
        stride *= groups[axis]
    return first.reshape(-1)


_BLOCK = 1 << 16
"""Elements that are scaled at a time, in whole rows of channels."""


def scale_in_place(weight: npt.NDArray[Any], scale: npt.NDArray[Any]) -> None:
    """Multiply a C-contiguous weight by its scale in place, in the dtype of both; rounds once."""
    axis = int(np.argmax(scale.shape))
    inner = math.prod(weight.shape[axis + 1 :])
    blocks = weight.reshape(-1, weight.shape[axis], inner)
    step = max(1, _BLOCK // (weight.shape[axis] * inner))
    for start in range(0, len(blocks), step):
        block = blocks[start : start + step]
        block[...] = product(block, scale.reshape(1, -1, 1))
