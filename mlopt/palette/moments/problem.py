"""State of the solver of :mod:`mlopt.palette.moments.solve`, and its two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.moments.feedback import decompose, feed_back
from mlopt.palette.moments.grid import TableGrid, spans, table_starts
from mlopt.palette.moments.kernels import (
    TOGETHER,
    Normal,
    Quadratic,
    Tables,
    Units,
    add_normal,
    add_products,
    fill_all_middles,
    relabel,
    solve_normal,
    sweep_scalars,
    sweep_vectors,
)
from mlopt.palette.moments.moments import InputMoments, read_only
from mlopt.palette.scale import normalised
from mlopt.palette.value.palettized import Palettized

Floats = npt.NDArray[Any]
Given = TypeVar("Given")
Result = TypeVar("Result")

SWEEPS = 2
"""Passes over the columns each time that indices are assigned."""

_PULL = 1e-9
"""Weight of the present entries in a table's system, as a share of its mean diagonal."""

_WORK = 1 << 17
"""Elements that a thread takes at a time, at least one group of units."""

_PART = 256
"""Units whose normal equations are summed together. The result depends on it."""

_NORMAL_BYTES = 1 << 26
"""Memory for normal equations that wait for their turn."""

_NEGLIGIBLE = 2.0**-60
"""Factors below this share of the largest count as 0: float32 products would not resolve them."""

_EXPONENTS = 40
"""Second moments within ``2**-40 .. 2**40`` are used as they are, others are copied and scaled."""


def damped(moments: InputMoments) -> Quadratic | None:
    """Return the damped second moments; None where all inputs were always 0.

    A block whose inputs were always 0 is damped as the mean of the others.
    """
    damping = moments.damping()
    if not damping.any():
        return None
    assert moments.second is not None
    exponent = int(np.frexp(float(moments.diagonal.max()))[1])
    second = moments.second
    if abs(exponent) > _EXPONENTS:
        second = np.ldexp(second, -exponent)
        damping = np.ldexp(damping, -exponent)
    # a power of two on all moments changes no decision
    least = float(np.finfo(np.float32).tiny)
    return Quadratic(read_only(second), np.maximum(damping, least).astype(np.float32))


@attrs.frozen(eq=False)
class ArrangedInputs:
    """Moments, with the grid of a palette on their matrices."""

    moments: InputMoments
    grid: TableGrid
    quadratic: Quadratic

    def rows(self, array: Floats) -> Floats:
        """Return an array of the weight's shape as rows in the order of the grid: [n, columns]."""
        flat = self.moments.arrangement.matrices(array).reshape(-1, len(self.grid.columns))
        if np.array_equal(self.grid.rows, np.arange(len(self.grid.rows))):
            rows = flat
        else:
            rows = flat[self.grid.rows]
        return rows if self.columns_in_order else rows[:, self.grid.columns]

    def weight(self, rows: Floats) -> Floats:
        """Return the array of the weight's shape that has these rows: the inverse of `rows`."""
        arrangement = self.moments.arrangement
        flat = np.empty_like(rows)
        flat[self.grid.rows] = rows[:, np.argsort(self.grid.columns)]
        return arrangement.weight(
            flat.reshape(arrangement.blocks, arrangement.rows, arrangement.columns)
        )

    @property
    def columns_in_order(self) -> bool:
        """Whether the columns of the grid are those of the matrices."""
        return bool(np.all(np.diff(self.grid.columns) > 0))

    def ordered(self) -> Quadratic:
        """Return the damped second moments in the order of the grid's columns."""
        if self.columns_in_order:
            return self.quadratic
        columns = self.grid.columns
        second = self.quadratic.second[:, columns[:, None], columns]
        return Quadratic(read_only(second), self.quadratic.damping)


def make_problem(
    weight: Floats,
    palettized: Palettized,
    inputs: ArrangedInputs,
    roots: Floats | None,
    pool: ThreadPoolExecutor | None,
) -> Problem:
    """Return the solver's state for a palette; roots: of the importance, or None."""
    grid, d = inputs.grid, palettized.cluster_dim
    indices, scale = palettized.indices, palettized.scale
    if palettized.vector_axis is not None:
        indices = np.repeat(indices, d, axis=palettized.vector_axis)
    columns = len(grid.columns)
    factors = np.empty((0, columns), np.float32)
    points, factor = weight, roots
    if scale is not None:
        points = normalised(weight, scale)
        wide = scale.astype(np.float64)
        wide /= max(wide.max(), np.finfo(np.float64).tiny)
        factor = wide if roots is None else wide * roots
    if factor is not None:
        spread = np.broadcast_to(factor, weight.shape)
        factors = np.array(inputs.rows(spread), np.float32, order="C")
        largest = float(factors.max())
        factors /= np.float32(largest if largest > 0 else 1)
        factors[factors < _NEGLIGIBLE] = 0
    tables = palettized.table.reshape(-1, *palettized.table.shape[-2:]).astype(np.float64)
    exponent = int(np.frexp(np.abs(tables).max())[1])
    return Problem(
        points=points,
        inputs=inputs,
        quadratic=inputs.ordered(),
        labels=np.array(inputs.rows(indices)[::d], np.uint8, order="C"),
        products=np.zeros((len(grid.rows), columns), np.float32),
        factors=factors,
        entries=np.ldexp(tables[grid.flat], -exponent),
        exponent=exponent,
        pool=pool,
    )


@attrs.define(eq=False)
class Problem:
    """State of the two steps: rows and columns are those of the grid, see :class:`Units`.

    points: what is clustered, the weight or its quotient by the scale, of its shape; entries:
    float64[tables, segments, k, d], over ``2**exponent`` like the errors; pool: threads, or None.
    """

    points: Floats
    inputs: ArrangedInputs
    quadratic: Quadratic
    labels: npt.NDArray[np.uint8]
    products: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]
    entries: npt.NDArray[np.float64]
    exponent: int
    pool: ThreadPoolExecutor | None

    @property
    def _grid(self) -> TableGrid:
        return self.inputs.grid

    @property
    def _spans(self) -> list[slice]:
        """Units that a thread takes at a time: whole groups of rows that share a read of H."""
        units, columns = self.labels.shape
        groups = max(1, _WORK // (columns * TOGETHER))
        return spans(units, groups * TOGETHER)

    def _each(
        self, function: Callable[[Given], Result], items: Iterable[Given]
    ) -> Iterator[Result]:
        return map(function, items) if self.pool is None else self.pool.map(function, items)

    def _rows(self, span: slice) -> slice:
        d = self.entries.shape[3]
        return slice(span.start * d, span.stop * d)

    def _units(self, span: slice) -> Units:
        rows = self._rows(span)
        return Units(
            labels=self.labels[span],
            products=self.products[rows],
            factors=self.factors[rows] if len(self.factors) else self.factors,
            table=self._grid.table[span],
            block=self._grid.block[span],
        )

    def restart(self) -> float:
        """Compute the products from labels and tables; return the objective."""
        points = self.inputs.rows(self.points)

        def one(span: slice) -> float:
            rows = self._rows(span)
            everywhere = slice(0, self.labels.shape[1])
            errors = self._values(self.entries, span, everywhere) - self._in_units(points[rows])
            if len(self.factors):
                errors *= self.factors[rows]
            products = self.products[rows]
            products[:] = 0
            narrow = errors.astype(np.float32)
            add_products(narrow, 0, self._units(span), self.quadratic)
            return float(np.cumsum(np.cumsum(errors * products, axis=1)[:, -1])[-1])

        return sum(self._each(one, self._spans))

    def _in_units(self, points: Floats) -> npt.NDArray[np.float64]:
        return np.ldexp(points.astype(np.float64), -self.exponent)

    def _values(self, entries: Floats, span: slice, columns: slice) -> Floats:
        """Return the rows that labels stand for, with other entries: [n * d, columns]."""
        table = self._grid.table[span, None]
        segment = self._grid.segment[columns]
        values = entries[table, segment, self.labels[span, columns]]
        units, width, d = values.shape
        return values.transpose(0, 2, 1).reshape(units * d, width)

    def fit_tables(self) -> float:
        """Set all entries to the best for the labels; returns by how much the objective falls."""
        gain = 0.0
        ends = np.searchsorted(self._grid.segment, np.arange(self.entries.shape[1] + 1))
        for segment in range(self.entries.shape[1]):
            columns = slice(int(ends[segment]), int(ends[segment + 1]))
            steps = np.zeros_like(self.entries)
            for table, normal in enumerate(self._normals(columns)):
                gain += solve_normal(normal, _PULL, steps[table, segment])
            self._move(steps, columns)
        self._sort()
        return gain

    def _normals(self, columns: slice) -> Iterator[Normal]:
        """Yield the normal equations of each table, over some of the columns."""
        k, d = self.entries.shape[2:]
        halves = d if len(self.factors) else 1
        starts = table_starts(self._grid)
        parts = [
            (table, slice(starts[table] + part.start, starts[table] + part.stop))
            for table in range(len(self.entries))
            for part in spans(int(starts[table + 1] - starts[table]), _PART)
        ]

        def one(part: tuple[int, slice]) -> tuple[int, Normal]:
            normal = Normal(np.zeros((halves, k, k)), np.zeros((d, k)))
            units = self._units(part[1])
            add_normal(units, (columns.start, columns.stop), self.quadratic, normal)
            return part[0], normal

        waiting = max(1, _NORMAL_BYTES // (8 * k * k * halves))
        total: Normal | None = None
        for few in spans(len(parts), waiting):
            for table, normal in self._each(one, parts[few]):
                if total is None:
                    total, of_table = normal, table
                elif table == of_table:
                    total.half[:] += normal.half
                    total.gradient[:] += normal.gradient
                else:
                    yield total
                    total, of_table = normal, table
        assert total is not None
        yield total

    def _move(self, steps: npt.NDArray[np.float64], columns: slice) -> None:
        """Add steps, those of one segment, to the entries, and their errors to the products."""
        self.entries += steps

        def one(span: slice) -> None:
            errors = self._values(steps, span, columns)
            if len(self.factors):
                errors = errors * self.factors[self._rows(span), columns]
            narrow = np.ascontiguousarray(errors, np.float32)
            add_products(narrow, columns.start, self._units(span), self.quadratic)

        list(self._each(one, self._spans))

    def _sort(self) -> None:
        """Bring entries into lexicographic order, and labels with them."""
        keys = [self.entries[..., j] for j in reversed(range(self.entries.shape[3]))]
        order = np.lexsort(keys)
        if np.all(np.diff(order, axis=-1) > 0):
            return
        self.entries = np.take_along_axis(self.entries, order[..., None], axis=2)
        places = np.argsort(order, axis=-1).astype(np.uint8)

        def one(span: slice) -> None:
            relabel(self._units(span), self._grid.segment, places)

        list(self._each(one, self._spans))

    def feed_back(self) -> None:
        """Assign labels anew by error feedback; the products must be computed after it."""
        second, damping = self.quadratic
        factor = np.zeros_like(second)
        list(self._each(lambda b: decompose(second[b], damping[b], factor[b]), range(len(second))))
        points, tables = self.inputs.rows(self.points), self._tables()

        def one(span: slice) -> None:
            wide = self._in_units(points[self._rows(span)])
            feed_back(np.ascontiguousarray(wide), self._units(span), tables, factor)

        list(self._each(one, self._spans))

    def _tables(self) -> Tables:
        k, d = self.entries.shape[2:]
        middles = np.empty((*self.entries.shape[:2], k - 1 if d == 1 else 0))
        if d == 1:
            fill_all_middles(self.entries, middles)
        return Tables(self.entries, middles, self._grid.segment)

    def assign(self) -> float:
        """Improve the labels for the tables; returns by how much the objective falls."""
        tables = self._tables()
        sweep = sweep_scalars if self.entries.shape[3] == 1 else sweep_vectors

        def one(span: slice) -> float:
            return float(sweep(self._units(span), tables, self.quadratic, SWEEPS))

        return sum(self._each(one, self._spans))

    def indices(self, vector_axis: int | None) -> npt.NDArray[np.uint8]:
        """Return the labels as the indices of a palette, C-contiguous."""
        d = self.entries.shape[3]
        indices = self.inputs.weight(np.repeat(self.labels, d, axis=0))
        if vector_axis is not None:
            one_per_vector = [slice(None)] * indices.ndim
            one_per_vector[vector_axis] = slice(None, None, d)
            indices = indices[tuple(one_per_vector)]
        return np.ascontiguousarray(indices)
