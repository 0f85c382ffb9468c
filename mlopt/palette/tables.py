"""Tables and labels of one weight, by mode: the parts of :func:`mlopt.palette.palettize`.

A weight is cut along one axis into groups of channels, each with a table of its own.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.layout import Layout
from mlopt.palette.scalar.distinct import is_coded
from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.uniform import uniform_labels, uniform_table
from mlopt.palette.scalar.unique import unique_tables
from mlopt.palette.scalar.whole import cluster_whole, is_worth_zooming
from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.quantized import Lattice
from mlopt.palette.value.spec import PaletteSpec
from mlopt.palette.vector.clustering import cluster_vectors
from mlopt.palette.vector.importance import assign_weighted, settle_centers
from mlopt.palette.vector.lattice import settle_on_lattice

Floats = npt.NDArray[Any]


class NoPaletteError(Exception):
    """Raised where a weight has no palette of the kind asked for; the message is for a report."""


@attrs.frozen(eq=False)
class ClusteringInput:
    """What is cut into rows, and how.

    points: the weight, or what it is after division by its scale; dtype: of the tables, floats;
    importance: of the points' shape, or None; integers: the lattice of tables that are integers,
    or None.
    """

    points: Floats
    dtype: np.dtype[Any]
    importance: npt.NDArray[Any] | None
    spec: PaletteSpec
    layout: Layout
    integers: Lattice | None = None
    workers: int = 1

    @property
    def rows(self) -> Floats:
        """Return the points [groups, n]."""
        return self.layout.rows(self.points)

    @property
    def important_rows(self) -> npt.NDArray[Any] | None:
        """Return the importance [groups, n], or None."""
        return None if self.importance is None else self.layout.rows(self.importance)

    def vectors(self, array: Floats) -> Floats:
        """Return an array of the points' shape as vectors [groups, n, d], C-contiguous."""
        return np.ascontiguousarray(self.layout.points(array))


@attrs.frozen(eq=False)
class Tables:
    """Tables and labels of all groups.

    tables: [groups, entries, d] of the input's dtype; labels: uint8[groups, n]; lattice: what
    the tables lie on, or None; distortion: where it costs nothing extra, or None; within: see
    :class:`mlopt.palette.value.distortion.Distortion`.
    """

    tables: Floats
    labels: npt.NDArray[np.uint8]
    lattice: Lattice | None = None
    distortion: Distortion | None = None
    within: float = 0.0


def make_tables(inputs: ClusteringInput) -> Tables:
    """Return the tables and labels of any mode but ``custom``.

    Raises
    ------
    NoPaletteError
        ``unique``: more distinct values than the largest table holds.
    """
    if inputs.spec.mode == "unique":
        return _unique(inputs)
    if inputs.spec.mode == "uniform":
        return _uniform(inputs)
    return _vectors(inputs) if inputs.spec.cluster_dim > 1 else _scalars(inputs)


def _scalars(inputs: ClusteringInput) -> Tables:
    lattice = inputs.integers
    if lattice is None:
        in_floats = _clustered(inputs)
        lattice = _spanning(inputs, in_floats.tables)
        if lattice is None:
            return in_floats
    return attrs.evolve(_clustered(inputs, lattice.points), lattice=lattice)


def _clustered(inputs: ClusteringInput, points: npt.NDArray[np.float64] | None = None) -> Tables:
    """Return optimal tables, or uniform ones; with ``points`` the best choice of these numbers."""
    spec = inputs.spec
    assert spec.nbits is not None
    uniform = spec.mode == "uniform"
    if (
        inputs.layout.groups == 1
        and not uniform
        and is_worth_zooming(inputs.points, 1 << spec.nbits, weighted=inputs.importance is not None)
        and (
            whole := cluster_whole(
                np.ascontiguousarray(inputs.points),
                spec.nbits,
                table_dtype=inputs.dtype,
                importance=inputs.importance,
                points=points,
                workers=inputs.workers,
            )
        )
    ):
        table, labels, within = whole
        return Tables(
            table.astype(inputs.dtype)[None, :, None], labels.reshape(1, -1), within=within
        )
    rows = cluster_rows(
        inputs.rows,
        spec.nbits,
        table_dtype=inputs.dtype,
        importance=inputs.important_rows,
        uniform=uniform,
        points=None if points is None else points[None],
        workers=inputs.workers,
    )
    plain = Distortion(rows.signal, rows.noise) if inputs.importance is None else None
    tables = rows.tables.astype(inputs.dtype)[..., None]
    within = rows.gap / (rows.noise - rows.gap) if 0.0 < rows.gap < rows.noise else 0.0
    return Tables(tables, rows.labels, distortion=plain, within=within)


def _uniform(inputs: ClusteringInput) -> Tables:
    spec, lattice = inputs.spec, inputs.integers
    assert spec.nbits is not None
    free = lattice is None and spec.lut_dtype is None and inputs.importance is None
    if free and is_coded(inputs.points.dtype):
        return _clustered(inputs)
    rows = inputs.rows
    ranged = _without_unimportant(rows, inputs.important_rows)
    table = uniform_table(ranged.min(axis=1), ranged.max(axis=1), spec.nbits, inputs.dtype)
    lattice = lattice or _spanning(inputs, table)
    if lattice is not None:
        nearest = lattice.nearest(table.astype(np.float64))
        table = lattice.points[nearest].astype(inputs.dtype)
    # a single table is indexed without its axis of groups, in the dtype of the result
    one = inputs.layout.groups == 1
    alike = table if table.dtype == rows.dtype else table.astype(rows.dtype)
    labels = uniform_labels(rows[0] if one else rows, alike[0] if one else alike)
    return Tables(table[..., None], labels.reshape(rows.shape), lattice)


def _unique(inputs: ClusteringInput) -> Tables:
    spec, dtype = inputs.spec, inputs.dtype
    if spec.cluster_dim == 1:
        rows = inputs.rows.astype(dtype, copy=False)
        vectors = _without_unimportant(rows, inputs.important_rows)[..., None]
    else:
        vectors = inputs.vectors(inputs.points).astype(dtype, copy=False)
        if inputs.importance is not None:
            important = np.asarray(inputs.vectors(inputs.importance).any(axis=2))
            vectors = _without_unimportant(vectors, important)
    unique = unique_tables(vectors, spec.allowed_nbits)
    if unique is None:
        what = "values" if spec.cluster_dim == 1 else f"vectors of {spec.cluster_dim}"
        raise NoPaletteError(f"more than {1 << max(spec.allowed_nbits)} distinct {what}")
    return Tables(*unique, lattice=inputs.integers)


def _without_unimportant(rows: Floats, importance: npt.NDArray[Any] | None) -> Floats:
    """Return rows [groups, n, ...] where the first important value replaces those of no importance.

    Each row has an important value.
    """
    if importance is None:
        return rows
    important = importance > 0
    first = rows[np.arange(len(rows)), important.argmax(axis=1)][:, None]
    return np.where(important.reshape(*important.shape, *[1] * (rows.ndim - 2)), rows, first)


def _vectors(inputs: ClusteringInput) -> Tables:
    spec, dtype, workers = inputs.spec, inputs.dtype, inputs.workers
    assert spec.nbits is not None
    entries = 1 << spec.nbits
    vectors = inputs.vectors(inputs.points)
    weights = None
    if inputs.importance is not None:
        weights = inputs.vectors(inputs.importance)
    tables = np.empty((inputs.layout.groups, entries, spec.cluster_dim), dtype)
    labels = np.empty(vectors.shape[:2], np.uint8)

    def importance_of(g: int) -> npt.NDArray[np.float64] | None:
        return None if weights is None else weights[g].astype(np.float64)

    for g in range(inputs.layout.groups):
        part = importance_of(g)
        if part is None:
            centres, labels[g] = cluster_vectors(
                vectors[g], entries, stored_as=dtype, workers=workers
            )
            table = centres.astype(dtype)
        else:
            # to begin with, one importance per vector: the mean of its elements'
            mean = np.cumsum(part, axis=1)[:, -1] / spec.cluster_dim
            centres, _ = cluster_vectors(vectors[g], entries, mean, workers=workers)
            wide = vectors[g].astype(np.float64 if dtype == np.float64 else np.float32)
            table = settle_centers(wide, part, centres, workers=workers).astype(dtype)
            labels[g] = assign_weighted(wide, part, table, workers=workers)
        tables[g] = np.concatenate([table, np.repeat(table[-1:], entries - len(table), axis=0)])

    lattice = inputs.integers or _spanning(inputs, tables)
    if lattice is not None:
        for g in range(inputs.layout.groups):
            positions, labels[g] = settle_on_lattice(
                vectors[g], tables[g], lattice, importance_of(g), workers=workers
            )
            tables[g] = lattice.points[positions].astype(dtype)
    return Tables(tables, labels, lattice)


def _spanning(inputs: ClusteringInput, tables: Floats) -> Lattice | None:
    """Return the lattice for the 8-bit codes asked for, as wide as the float tables, or None."""
    if inputs.spec.lut_dtype is None:
        return None
    wide = tables.astype(np.float64)
    return Lattice.spanning(wide.min(), wide.max(), inputs.spec.lut_dtype, inputs.dtype)
