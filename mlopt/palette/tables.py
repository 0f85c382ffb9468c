"""The tables and labels of one weight, by mode: what :func:`mlopt.palette.palettize` puts together.

A weight is cut along one axis into groups of channels, each with a table of its own.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.scalar.distinct import is_coded
from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.uniform import nearest_labels, uniform_table
from mlopt.palette.scalar.unique import unique_tables
from mlopt.palette.scalar.whole import cluster_whole, is_worth_zooming
from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.quantized import Lattice
from mlopt.palette.value.spec import PaletteSpec
from mlopt.palette.vector.clustering import cluster_vectors
from mlopt.palette.vector.importance import assign_weighted, settle_centers
from mlopt.palette.vector.lattice import settle_on_lattice
from mlopt.palette.vector.points import as_vectors

Floats = npt.NDArray[Any]


class NoPaletteError(Exception):
    """A weight has no palette of the kind asked for; the message is the reason, for a report."""


@attrs.frozen(eq=False)
class Problem:
    """What is to be clustered, and how.

    points: the weight, or what it is after division by its scale; dtype: of the tables, floats;
    importance: of the points' shape, or None; axis, groups: ``groups`` runs of channels on
    ``axis`` have a table each; integers: the lattice of tables that are integers, or None.
    """

    points: Floats
    dtype: np.dtype[Any]
    importance: npt.NDArray[Any] | None
    spec: PaletteSpec
    axis: int
    groups: int
    integers: Lattice | None = None
    workers: int = 1

    @property
    def rows(self) -> Floats:
        """The points [groups, n]."""
        return self._rows(self.points)

    @property
    def important_rows(self) -> npt.NDArray[Any] | None:
        """The importance [groups, n], or None."""
        return None if self.importance is None else self._rows(self.importance)

    def vectors(self, array: Floats) -> Floats:
        """An array of the points' shape as vectors [groups, n, d] along the axis."""
        d = self.spec.cluster_dim
        channels_first = np.moveaxis(array, self.axis, 0)
        size = channels_first.shape[0] // self.groups
        parts = [channels_first[g * size : (g + 1) * size] for g in range(self.groups)]
        return np.stack([as_vectors(part, 0, d) for part in parts])

    def _rows(self, array: Floats) -> Floats:
        """The channels of one group after the other, C-contiguous; a view if possible."""
        if self.groups == 1:
            return np.ascontiguousarray(array).reshape(1, -1)
        return np.ascontiguousarray(np.moveaxis(array, self.axis, 0)).reshape(self.groups, -1)


@attrs.frozen(eq=False)
class Tables:
    """The outcome for all groups.

    tables: [groups, entries, d] of the problem's dtype; labels: uint8, groups first; lattice: what
    the tables lie on, or None; distortion: where it comes free, or None; within: see
    :class:`mlopt.palette.value.distortion.Distortion`.
    """

    tables: Floats
    labels: npt.NDArray[np.uint8]
    lattice: Lattice | None = None
    distortion: Distortion | None = None
    within: float = 0.0


def make_tables(problem: Problem) -> Tables:
    """The tables and labels of every mode but ``custom``.

    Raises
    ------
    NoPaletteError
        ``unique``: more distinct values than the largest table holds.
    """
    if problem.spec.mode == "unique":
        return _unique(problem)
    if problem.spec.mode == "uniform":
        return _uniform(problem)
    return _vectors(problem) if problem.spec.cluster_dim > 1 else _scalars(problem)


def _scalars(problem: Problem) -> Tables:
    lattice = problem.integers
    if lattice is None:
        found = _clustered(problem)
        lattice = _spanning(problem, found.tables)
        if lattice is None:
            return found
    return attrs.evolve(_clustered(problem, lattice.points), lattice=lattice)


def _clustered(problem: Problem, points: npt.NDArray[np.float64] | None = None) -> Tables:
    """Optimal tables, or uniform ones; with ``points`` the best of these numbers."""
    spec = problem.spec
    assert spec.nbits is not None
    uniform = spec.mode == "uniform"
    if (
        problem.groups == 1
        and not uniform
        and is_worth_zooming(problem.points, 1 << spec.nbits)
        and (
            whole := cluster_whole(
                np.ascontiguousarray(problem.points),
                spec.nbits,
                table_dtype=problem.dtype,
                importance=problem.importance,
                points=points,
                workers=problem.workers,
            )
        )
    ):
        table, labels, within = whole
        return Tables(
            table.astype(problem.dtype)[None, :, None], labels.reshape(1, -1), within=within
        )
    found = cluster_rows(
        problem.rows,
        spec.nbits,
        table_dtype=problem.dtype,
        importance=problem.important_rows,
        uniform=uniform,
        points=None if points is None else points[None],
        workers=problem.workers,
    )
    plain = Distortion(found.signal, found.noise) if problem.importance is None else None
    tables = found.tables.astype(problem.dtype)[..., None]
    within = found.gap / (found.noise - found.gap) if 0.0 < found.gap < found.noise else 0.0
    return Tables(tables, found.labels, distortion=plain, within=within)


def _uniform(problem: Problem) -> Tables:
    spec, lattice = problem.spec, problem.integers
    assert spec.nbits is not None
    free = lattice is None and spec.lut_dtype is None and problem.importance is None
    if free and is_coded(problem.points.dtype):
        return _clustered(problem)
    rows = problem.rows
    ranged = _without_unimportant(rows, problem.important_rows)
    table = uniform_table(ranged.min(axis=1), ranged.max(axis=1), spec.nbits, problem.dtype)
    lattice = lattice or _spanning(problem, table)
    if lattice is not None:
        nearest = lattice.nearest(table.astype(np.float64))
        table = lattice.points[nearest].astype(problem.dtype)
    # one table is looked up in without its axis of groups, in the dtype of what is looked up
    one = problem.groups == 1
    alike = table if table.dtype == rows.dtype else table.astype(rows.dtype)
    labels = nearest_labels(rows[0] if one else rows, alike[0] if one else alike)
    return Tables(table[..., None], labels, lattice)


def _unique(problem: Problem) -> Tables:
    spec, dtype = problem.spec, problem.dtype
    if spec.cluster_dim == 1:
        rows = problem.rows.astype(dtype, copy=False)
        vectors = _without_unimportant(rows, problem.important_rows)[..., None]
    else:
        vectors = problem.vectors(problem.points).astype(dtype, copy=False)
        if problem.importance is not None:
            important = np.asarray(problem.vectors(problem.importance).any(axis=2))
            vectors = _without_unimportant(vectors, important)
    found = unique_tables(vectors, spec.allowed_nbits)
    if found is None:
        what = "values" if spec.cluster_dim == 1 else f"vectors of {spec.cluster_dim}"
        raise NoPaletteError(f"more than {1 << max(spec.allowed_nbits)} distinct {what}")
    return Tables(*found, lattice=problem.integers)


def _without_unimportant(rows: Floats, importance: npt.NDArray[Any] | None) -> Floats:
    """Rows [groups, n, ...] in which the first important value stands for those of no importance.

    Each row has some.
    """
    if importance is None:
        return rows
    important = importance > 0
    first = rows[np.arange(len(rows)), important.argmax(axis=1)][:, None]
    return np.where(important.reshape(*important.shape, *[1] * (rows.ndim - 2)), rows, first)


def _vectors(problem: Problem) -> Tables:
    spec, dtype, workers = problem.spec, problem.dtype, problem.workers
    assert spec.nbits is not None
    entries = 1 << spec.nbits
    vectors = problem.vectors(problem.points)
    weights = None
    if problem.importance is not None:
        weights = problem.vectors(problem.importance)
    tables = np.empty((problem.groups, entries, spec.cluster_dim), dtype)
    labels = np.empty(vectors.shape[:2], np.uint8)

    def importance_of(g: int) -> npt.NDArray[np.float64] | None:
        return None if weights is None else weights[g].astype(np.float64)

    for g in range(problem.groups):
        part = importance_of(g)
        if part is None:
            centres, labels[g] = cluster_vectors(
                vectors[g], entries, stored_as=dtype, workers=workers
            )
            table = centres.astype(dtype)
        else:
            # to begin with, one importance a vector: the mean of its elements'
            mean = np.cumsum(part, axis=1)[:, -1] / spec.cluster_dim
            centres, _ = cluster_vectors(vectors[g], entries, mean, workers=workers)
            wide = vectors[g].astype(np.float64 if dtype == np.float64 else np.float32)
            table = settle_centers(wide, part, centres, workers=workers).astype(dtype)
            labels[g] = assign_weighted(wide, part, table, workers=workers)
        tables[g] = np.concatenate([table, np.repeat(table[-1:], entries - len(table), axis=0)])

    lattice = problem.integers or _spanning(problem, tables)
    if lattice is not None:
        for g in range(problem.groups):
            positions, labels[g] = settle_on_lattice(
                vectors[g], tables[g], lattice, importance_of(g), workers=workers
            )
            tables[g] = lattice.points[positions].astype(dtype)
    return Tables(tables, labels, lattice)


def _spanning(problem: Problem, tables: Floats) -> Lattice | None:
    """The lattice of the 8-bit codes asked for, as wide as the tables in floats; None for none."""
    if problem.spec.lut_dtype is None:
        return None
    wide = tables.astype(np.float64)
    return Lattice.spanning(wide.min(), wide.max(), problem.spec.lut_dtype, problem.dtype)
