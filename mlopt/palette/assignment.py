"""Palettes from given tables: each point of a weight takes its nearest entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.palette.checks import check_dtype_and_size, check_finite
from mlopt.palette.layout import Layout
from mlopt.palette.scalar.labels import fill_middles, label_floats
from mlopt.palette.scalar.unique import padded_nbits, padded_table
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import quantized_table
from mlopt.palette.vector.clustering import assign_vectors
from mlopt.palette.vector.points import floats

Floats = npt.NDArray[Any]


def assign(
    weight: Floats, tables: Floats, layout: Layout, *, lut_dtype: str | None = None
) -> Palettized:
    """Return the palette of a weight with given tables: each point takes the nearest of its group.

    Parameters
    ----------
    weight
        float16, bfloat16, float32 or float64, finite, of ``layout.shape`` and any memory layout.
    tables
        [G, m, d] as the layout says, floats, 1 <= m <= 256, in any order. They are rounded to the
        dtype of the weight, and what is equal then becomes one entry.
    layout
        Which points share a table.
    lut_dtype
        ``"int8"`` or ``"uint8"`` to round the entries, once points have theirs, to 8-bit codes with
        one scale. Where the scale would be subnormal, the table stays in floats. None: no codes.

    Returns
    -------
    Palettized, without a scale, with tables in lexicographic order of the smallest width that holds
    m entries, padded by repeating the last of each. Of equally near entries the first is taken, as
    if all distances had been compared in float64.

    Raises
    ------
    ConfigError
        The weight or the tables are not as described.
    """
    _check(weight, tables, layout)
    nbits = padded_nbits(tables.shape[1], NBITS)
    assert nbits is not None
    distinct = [np.unique(table.astype(weight.dtype), axis=0) for table in tables]
    points = layout.points(weight)
    labels = [_nearest(*group) for group in zip(points, distinct, strict=True)]
    table = layout.table(np.stack([padded_table(entries, nbits) for entries in distinct]))
    quantized = None if lut_dtype is None else quantized_table(table, lut_dtype)
    return Palettized(
        table=table if quantized is None else quantized.decode(),
        indices=layout.indices(np.stack(labels)),
        vector_axis=layout.vector_axis,
        quantized=quantized,
    )


def _check(weight: Floats, tables: Floats, layout: Layout) -> None:
    check_dtype_and_size(weight)
    if weight.dtype.kind in "iu" or weight.shape != layout.shape:
        raise ConfigError(
            f"the weight must be a float array of the layout's shape {layout.shape}, got "
            f"{weight.dtype} {weight.shape}; convert it, or make a layout for its shape"
        )
    check_finite(weight)
    groups, d = layout.groups, layout.cluster_dim
    if tables.ndim != 3 or tables.shape != (groups, tables.shape[1], d):
        raise ConfigError(
            f"tables must have the shape [{groups}, m, {d}] that the layout has, got "
            f"{tables.shape}; give one table per group"
        )
    if not 1 <= tables.shape[1] <= 1 << max(NBITS):
        raise ConfigError(
            f"a table must have from 1 to {1 << max(NBITS)} entries, got {tables.shape[1]}; give "
            "fewer"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        stored = tables.astype(weight.dtype).astype(np.float64)
    if not np.isfinite(stored).all():
        raise ConfigError(
            f"tables must be finite in {weight.dtype}, got {tables[~np.isfinite(stored)][0]}; clip "
            "them to the range of the weight"
        )


def _nearest(points: Floats, entries: Floats) -> npt.NDArray[np.uint8]:
    """The nearest of entries [m, d], distinct and ascending, to points [N, d]: uint8[N]."""
    if points.shape[1] > 1:
        return assign_vectors(points, entries)
    middles = np.empty(len(entries) - 1)
    fill_middles(entries[:, 0].astype(np.float64), middles)
    labels = np.empty(len(points), np.uint8)
    label_floats(np.ascontiguousarray(floats(points)[:, 0]), middles, labels)
    return labels
