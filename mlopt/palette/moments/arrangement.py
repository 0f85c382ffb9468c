"""``Arrangement``: a weight as the matrices that its inputs are multiplied by."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError


@attrs.frozen
class Arrangement:
    """The matrices of a weight: ``y = W x`` for one vector of inputs x per block.

    These hold, for a weight of ``shape``::

        matrices(weight) == weight.reshape(split).transpose(order).reshape(blocks, rows, columns)
        weight(matrices(weight)) == weight
        y[b, r] == sum_c matrices[b, r, c] x[b, c]

    Rows are outputs, columns are inputs. Blocks have inputs of their own: they are the groups of a
    grouped convolution. Examples::

        weight                       split                   order            blocks, rows, columns
        linear [O, I]                (O, I)                  (0, 1)           1, O, I
        y of a matmul [I, O]         (I, O)                  (1, 0)           1, O, I
        conv [O, I/g, *k]            (g, O/g, I/g, *k)       (0, 1, 2, ...)   g, O/g, I/g prod(k)
        conv_transpose [I, O/g, *k]  (g, I/g, O/g, *k)       (0, 2, 1, ...)   g, O/g, I/g prod(k)

    Parameters
    ----------
    shape
        Shape of the weight, of rank 1 or more, without an axis of length 0.
    split
        Each axis of ``shape`` as one or more axes whose lengths multiply to its length.
    order
        A permutation of the axes of ``split``. First come the axes that make the blocks, then those
        of the rows, then those of the columns.
    blocks, rows, columns
        The lengths of the result.

    Raises
    ------
    ConfigError
        The lengths contradict each other.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    blocks: int
    rows: int
    columns: int

    def __attrs_post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(
                f"an arrangement needs a weight with elements, got the shape {self.shape}; leave "
                "the weight out"
            )
        if _axes_of(self.shape, self.split) is None:
            raise ConfigError(
                f"split must cut each axis of the shape {self.shape} by itself, got {self.split}; "
                "give factors of each length, in the order of the axes"
            )
        if sorted(self.order) != list(range(len(self.split))):
            raise ConfigError(
                f"order must be a permutation of the {len(self.split)} axes of split "
                f"{self.split}, got {self.order}; name each axis once"
            )
        if self._ends is None:
            lengths = tuple(self.split[axis] for axis in self.order)
            raise ConfigError(
                f"blocks, rows and columns must be products of consecutive axes of {lengths}, got "
                f"{self.blocks}, {self.rows} and {self.columns}; choose where to cut these"
            )

    @property
    def _ends(self) -> tuple[int, int] | None:
        """Positions in ``order`` where the rows and where the columns begin."""
        lengths = [self.split[axis] for axis in self.order]
        products = [math.prod(lengths[:end]) for end in range(len(lengths) + 1)]
        counts = (self.blocks, self.blocks * self.rows, self.blocks * self.rows * self.columns)
        if min(counts) < 1 or counts[2] != products[-1]:
            return None
        if counts[0] not in products or counts[1] not in products:
            return None
        return products.index(counts[0]), products.index(counts[1])

    def matrices(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the matrices [blocks, rows, columns] of a weight; a view where memory allows."""
        ordered = weight.reshape(self.split).transpose(self.order)
        return ordered.reshape(self.blocks, self.rows, self.columns)

    def weight(self, matrices: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the weight of these matrices: the inverse of :meth:`matrices`."""
        ordered = matrices.reshape([self.split[axis] for axis in self.order])
        return ordered.transpose(np.argsort(self.order)).reshape(self.shape)

    def output_axis(self) -> int | None:
        """Return the axis of the weight along which outputs lie; None if that is not one alone.

        Consecutive elements along it are consecutive rows of a block, or of one block and the next.
        """
        part = self._output_part()
        axes = _axes_of(self.shape, self.split)
        assert axes is not None
        return None if part is None else axes[part]

    def _output_part(self) -> int | None:
        """Return the axis of ``split`` that is all of the rows; None where none is."""
        axes = _axes_of(self.shape, self.split)
        assert axes is not None
        assert self._ends is not None
        rows = [part for part in self.order[slice(*self._ends)] if self.split[part] > 1]
        if len(rows) != 1:
            return None
        axis = axes[rows[0]]
        parts = [part for part in range(len(axes)) if axes[part] == axis and self.split[part] > 1]
        before = [part for part in self.order[: self._ends[0]] if self.split[part] > 1]
        # blocks that are not cut from this axis alone would lie elsewhere
        return rows[0] if parts == [*before, rows[0]] or parts == rows else None

    def some_outputs(self, units: int, unit: int = 1) -> tuple[Arrangement, npt.NDArray[np.int64]]:
        """Return the arrangement of some of the outputs of each block, spread evenly over it.

        The arrangement must have an :meth:`output_axis`.

        Parameters
        ----------
        units
            How many to take of each block, at least 1.
        unit
            Consecutive outputs that stay together; divides the rows of a block.

        Returns
        -------
        arrangement, channels
            That of a weight with these elements along the output axis alone; which they are, int64.
        """
        axis, part = self.output_axis(), self._output_part()
        assert axis is not None
        first = np.arange(units) * (self.rows // unit) // units * unit
        rows = (first[:, None] + np.arange(unit)).reshape(-1)
        blocks = np.arange(self.shape[axis] // self.rows)
        channels = (blocks[:, None] * self.rows + rows).reshape(-1)
        split = tuple(len(rows) if i == part else n for i, n in enumerate(self.split))
        shape = tuple(len(channels) if i == axis else n for i, n in enumerate(self.shape))
        return attrs.evolve(self, shape=shape, split=split, rows=len(rows)), channels

    def positions(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where rows and columns lie in the weight.

        Returns
        -------
        of_rows, of_columns
            int64[rank, blocks * rows] and int64[rank, columns]: the element [b, r, c] of the
            matrices is the weight's at ``of_rows[:, b * rows + r] + of_columns[:, c]``.
        """
        axes = _axes_of(self.shape, self.split)
        assert axes is not None
        assert self._ends is not None
        lengths = [self.split[axis] for axis in self.order]
        first_column = self._ends[1]
        of_rows = np.zeros((len(self.shape), self.blocks * self.rows), np.int64)
        of_columns = np.zeros((len(self.shape), self.columns), np.int64)
        for place, axis in enumerate(self.order):
            # an axis of the weight is written in its parts, the last of them the units
            after = [i for i in range(axis + 1, len(axes)) if axes[i] == axes[axis]]
            step = math.prod(self.split[i] for i in after)
            in_rows = place < first_column
            end = first_column if in_rows else len(lengths)
            start = 0 if in_rows else first_column
            inner = math.prod(lengths[place + 1 : end])
            outer = math.prod(lengths[start:place])
            index = np.tile(np.repeat(np.arange(lengths[place]) * step, inner), outer)
            (of_rows if in_rows else of_columns)[axes[axis]] += index
        return of_rows, of_columns


def _axes_of(shape: tuple[int, ...], split: tuple[int, ...]) -> list[int] | None:
    """Return the axis of ``shape`` that each axis of ``split`` is a part of, or None."""
    axes: list[int] = []
    position = 0
    for axis, length in enumerate(shape):
        product = 1
        while position < len(split) and (product < length or split[position] == 1):
            product *= split[position]
            axes.append(axis)
            position += 1
        if product != length:
            return None
    return axes if position == len(split) else None
