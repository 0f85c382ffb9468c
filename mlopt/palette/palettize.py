"""The one way from a weight to its palette, whichever door it came in by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.errors import ConfigError
from mlopt.palette.custom import custom_palette
from mlopt.palette.distinct import is_coded
from mlopt.palette.distortion import Distortion, measure_distortion
from mlopt.palette.groups import cluster_rows
from mlopt.palette.palettized import TABLE_DTYPES, Palettized
from mlopt.palette.scale import channel_scale, normalised, scaled_importance
from mlopt.palette.spec import PaletteSpec
from mlopt.palette.uniform import nearest_labels, uniform_table
from mlopt.palette.unique import unique_tables
from mlopt.palette.vector_importance import assign_weighted, settle_centers
from mlopt.palette.vectors import as_vectors, assign_vectors, cluster_vectors
from mlopt.palette.whole import cluster_whole, is_worth_zooming

Floats = npt.NDArray[Any]


class NoPaletteError(Exception):
    """A weight has no palette of the kind asked for; the message is the reason, for a report."""


def palettize(
    weight: Floats,
    spec: PaletteSpec,
    importance: npt.NDArray[Any] | None = None,
    workers: int = 1,
) -> tuple[Palettized, Distortion]:
    """Palettize one weight.

    Parameters
    ----------
    weight
        float16, bfloat16, float32 or float64, finite, of rank 1 or more and any memory layout. It
        is read, never written to.
    spec
        What is wanted.
    importance
        Of the weight's shape, not negative: squared errors are weighted by it (ALGORITHMS, "Scalar
        k-means, exact"). None weights all alike. Only ``kmeans`` heeds it.
    workers
        Threads for groups. The result does not depend on it.

    Returns
    -------
    palettized, distortion
        The palette, in the weight's dtype, and the plain (unweighted) distortion of what it stores.

    Raises
    ------
    NoPaletteError
        ``unique``: more distinct values than the largest table holds.
    ConfigError
        The weight or its importance is not as described, or its channels cannot be divided as the
        spec says.
    """
    _check(weight, spec, importance)
    scale = None if spec.scale_axis is None else channel_scale(weight, spec.scale_axis)
    if spec.mode == "custom":
        palettized = _custom(weight, spec, scale)
        return palettized, measure_distortion(weight, palettized)

    points = weight
    if spec.mode == "uniform":
        importance = None
    if scale is not None:
        points = normalised(weight, scale)
        importance = scaled_importance(scale, weight.shape, importance)
    axis = 0 if spec.channel_axis is None else spec.channel_axis % weight.ndim
    groups = 1 if spec.group_size is None else weight.shape[axis] // spec.group_size

    distortion = None
    if spec.cluster_dim > 1:
        tables, labels = _vector_tables(
            points, spec, axis, groups, weight.dtype, importance, workers
        )
    elif spec.mode == "kmeans" or (spec.mode == "uniform" and is_coded(points.dtype)):
        tables, labels, distortion = _scalar_tables(
            points, spec, axis, groups, weight.dtype, importance, workers
        )
    elif spec.mode == "uniform":
        assert spec.nbits is not None
        rows = _rows(points, axis, groups)
        table = uniform_table(rows.min(axis=1), rows.max(axis=1), spec.nbits, weight.dtype)
        labels = nearest_labels(rows if groups > 1 else rows[0], _alike(table, rows, groups))
        tables = table[..., None]
    else:
        rows = _rows(points, axis, groups).astype(weight.dtype, copy=False)
        tables, labels = _unique(rows[..., None], spec)

    palettized = Palettized(
        table=_spread(tables, weight.ndim, axis),
        indices=_unrows(labels, weight.shape, axis, spec.cluster_dim),
        vector_axis=axis if spec.cluster_dim > 1 else None,
        scale=scale,
    )
    return palettized, distortion or measure_distortion(weight, palettized)


def _check(weight: Floats, spec: PaletteSpec, importance: npt.NDArray[Any] | None) -> None:
    if weight.dtype.name not in TABLE_DTYPES:
        raise ConfigError(
            f"a weight to palettize has to be one of {TABLE_DTYPES}, got {weight.dtype}"
        )
    if weight.ndim < 1 or not weight.size:
        raise ConfigError(f"a weight to palettize needs elements, got shape {weight.shape}")
    for name, axis in (("channel_axis", spec.channel_axis), ("scale_axis", spec.scale_axis)):
        if axis is not None and not -weight.ndim <= axis < weight.ndim:
            raise ConfigError(
                f"{name} has to be in [{-weight.ndim}, {weight.ndim}), got {axis}; choose an axis "
                f"of the weight of shape {weight.shape}"
            )
    if spec.channel_axis is not None:
        channels = weight.shape[spec.channel_axis]
        unit = spec.group_size or spec.cluster_dim
        if channels % unit:
            name = "group_size" if spec.group_size else "cluster_dim"
            raise ConfigError(
                f"{name} has to divide the channels, got {unit} for the {channels} channels on "
                f"axis {spec.channel_axis} of a weight of shape {weight.shape}; choose a divisor"
            )
    if not is_finite(weight):
        raise ConfigError(
            f"a weight to palettize has to be finite; one of shape {weight.shape} has an infinity "
            "or a NaN; leave it as it is"
        )
    if importance is None:
        return
    if importance.shape != weight.shape:
        raise ConfigError(
            f"importance has to have the weight's shape {weight.shape}, got {importance.shape}"
        )
    lowest, highest = importance.min(), importance.max()
    if not (lowest >= 0 and np.isfinite(highest)):
        raise ConfigError(
            f"importance has to be finite and not negative, got values from {lowest} to {highest}"
        )


def is_finite(weight: Floats) -> bool:
    """Whether no element is infinite or NaN. Reads the weight once, copies nothing."""
    if is_coded(weight.dtype):
        exponent = np.uint16(0x7C00 if weight.dtype == np.float16 else 0x7F80)
        codes = np.ascontiguousarray(weight).reshape(-1).view(np.uint16)
        return not _has_exponent(codes, exponent)
    # min and max carry a NaN along, and an infinity is one of them
    return bool(np.isfinite(weight.min()) and np.isfinite(weight.max()))


@njit(cache=True, nogil=True)
def _has_exponent(codes, exponent):  # type: ignore[no-untyped-def]
    """Whether a code has all bits of ``exponent`` set; without early exit, to go eight at once."""
    found = False
    for i in range(codes.size):
        found |= (codes[i] & exponent) == exponent
    return found


def _rows(array: Floats, axis: int, groups: int) -> Floats:
    """[groups, n]: the channels of one group after the other, C-contiguous; a view if possible."""
    if groups == 1:
        return np.ascontiguousarray(array).reshape(1, -1)
    return np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(groups, -1)


def _unrows(
    labels: npt.NDArray[np.uint8], shape: tuple[int, ...], axis: int, d: int
) -> npt.NDArray[np.uint8]:
    """Labels of rows as indices of a weight of ``shape``; the inverse of :func:`_rows`."""
    if labels.ndim == 1 or (len(labels) == 1 and d == 1):
        return labels.reshape(shape)
    rest = shape[:axis] + shape[axis + 1 :]
    channels_first = labels.reshape(shape[axis] // d, *rest)
    return np.ascontiguousarray(np.moveaxis(channels_first, 0, axis))


def _spread(tables: Floats, rank: int, axis: int) -> Floats:
    """Tables [groups, entries, d] as [1, ..., groups, ..., 1, entries, d]."""
    groups, entries, d = tables.shape
    lengths = [groups if i == axis else 1 for i in range(rank)]
    return np.ascontiguousarray(tables).reshape(*lengths, entries, d)


def _alike(table: Floats, rows: Floats, groups: int) -> Floats:
    """A uniform table as labels are looked up in it: one row squeezed, dtype as the rows'."""
    table = table if table.dtype == rows.dtype else table.astype(rows.dtype)
    return table if groups > 1 else table[0]


def _scalar_tables(
    points: Floats,
    spec: PaletteSpec,
    axis: int,
    groups: int,
    dtype: np.dtype[Any],
    importance: npt.NDArray[Any] | None,
    workers: int,
) -> tuple[Floats, npt.NDArray[np.uint8], Distortion | None]:
    """Tables [groups, entries, 1], labels [groups, n], and the distortion where it comes free."""
    assert spec.nbits is not None
    uniform = spec.mode == "uniform"
    if groups == 1 and not uniform and is_worth_zooming(points, 1 << spec.nbits):
        whole = cluster_whole(
            np.ascontiguousarray(points),
            spec.nbits,
            table_dtype=dtype,
            importance=importance,
            workers=workers,
        )
        if whole is not None:
            table, labels = whole
            return table.astype(dtype)[None, :, None], labels.reshape(1, -1), None
    found = cluster_rows(
        _rows(points, axis, groups),
        spec.nbits,
        table_dtype=dtype,
        importance=None if importance is None else _rows(importance, axis, groups),
        uniform=uniform,
        workers=workers,
    )
    plain = Distortion(found.signal, found.noise) if importance is None else None
    return found.tables.astype(dtype)[..., None], found.labels, plain


def _vector_tables(
    points: Floats,
    spec: PaletteSpec,
    axis: int,
    groups: int,
    dtype: np.dtype[Any],
    importance: npt.NDArray[Any] | None,
    workers: int,
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Tables [groups, entries, d] of vectors and labels [groups, vectors]."""
    d = spec.cluster_dim
    channels_first = np.moveaxis(points, axis, 0)
    size = channels_first.shape[0] // groups
    vectors = np.stack(
        [as_vectors(channels_first[g * size : (g + 1) * size], 0, d) for g in range(groups)]
    )
    if spec.mode == "unique":
        return _unique(vectors.astype(dtype, copy=False), spec)
    assert spec.nbits is not None
    entries = 1 << spec.nbits
    tables = np.empty((groups, entries, d), dtype)
    labels = np.empty(vectors.shape[:2], np.uint8)
    weights = None if importance is None else np.moveaxis(importance, axis, 0)
    for g in range(groups):
        if weights is None:
            centres, _ = cluster_vectors(vectors[g], entries, workers=workers)
            table = centres.astype(dtype)
            labels[g] = assign_vectors(vectors[g], table, workers=workers)
        else:
            # to begin with, one importance a vector: the mean of its elements'
            part = as_vectors(weights[g * size : (g + 1) * size], 0, d).astype(np.float64)
            mean = np.cumsum(part, axis=1)[:, -1] / d
            centres, _ = cluster_vectors(vectors[g], entries, mean, workers=workers)
            wide = vectors[g].astype(np.float64 if dtype == np.float64 else np.float32)
            table = settle_centers(wide, part, centres).astype(dtype)
            labels[g] = assign_weighted(wide, part, table)
        tables[g] = np.concatenate([table, np.repeat(table[-1:], entries - len(table), axis=0)])
    return tables, labels


def _unique(groups: Floats, spec: PaletteSpec) -> tuple[Floats, npt.NDArray[np.uint8]]:
    found = unique_tables(groups, spec.allowed_nbits)
    if found is None:
        what = "values" if spec.cluster_dim == 1 else f"vectors of {spec.cluster_dim}"
        raise NoPaletteError(f"more than {1 << max(spec.allowed_nbits)} distinct {what}")
    return found


def _custom(weight: Floats, spec: PaletteSpec, scale: Floats | None) -> Palettized:
    assert spec.lut_function is not None
    points = weight if scale is None else normalised(weight, scale).astype(weight.dtype)
    palettized = custom_palette(
        points,
        spec.lut_function,
        channel_axis=spec.channel_axis,
        group_size=spec.group_size,
        cluster_dim=spec.cluster_dim,
        allowed_nbits=spec.allowed_nbits,
    )
    if scale is None:
        return palettized
    return Palettized(palettized.table, palettized.indices, palettized.vector_axis, scale)
