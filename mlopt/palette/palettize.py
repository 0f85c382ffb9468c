"""``palettize``: the one way from a weight to its palette, for every front end."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.palette.checks import check_dtype_and_size, check_finite, is_finite
from mlopt.palette.custom import custom_palette
from mlopt.palette.layout import Layout
from mlopt.palette.moments.moments import InputMoments
from mlopt.palette.moments.solve import can_refine, refine
from mlopt.palette.scalar.row_kernels import power_of_two
from mlopt.palette.scale import channel_scale, normalised, scaled_importance
from mlopt.palette.tables import ClusteringInput, NoPaletteError, make_tables
from mlopt.palette.value.distortion import Distortion, measure_distortion
from mlopt.palette.value.palettized import INTEGER_TABLE_DTYPES, Palettized
from mlopt.palette.value.quantized import Lattice, is_wide_enough, quantized_table
from mlopt.palette.value.spec import PaletteSpec

__all__ = ["NoPaletteError", "can_quantize_table", "is_finite", "palettize"]

Floats = npt.NDArray[Any]

_ENOUGH = 1 << 16
"""Elements, about, that are checked first: most weights have a large one among these."""


def palettize(
    weight: Floats,
    spec: PaletteSpec,
    importance: npt.NDArray[Any] | None = None,
    workers: int = 1,
    moments: InputMoments | None = None,
) -> tuple[Palettized, Distortion]:
    """Palettize one weight.

    Parameters
    ----------
    weight
        float16, bfloat16, float32 or float64, finite, of rank 1 or more and any memory layout. It
        is read, never written to. Also int8 or uint8, the data of a quantized weight: its tables
        are integers of that dtype, for ``kmeans`` with ``cluster_dim`` 1 the best of them, and it
        has no scale.
    spec
        The request. With ``lut_dtype`` the table has 8-bit codes, in ``Palettized.quantized``;
        for ``kmeans`` with ``cluster_dim`` 1 it is the best table on the lattice that spans the
        float table. Where the weight is so small that the codes' scale would be subnormal, the
        table stays in floats and ``quantized`` is None.
    importance
        Of the weight's shape, not negative, bool or any number: squared errors are weighted by it
        (docs/algorithms.md, "Scalar k-means, exact"). None weights all alike. Only ``kmeans``
        depends on its magnitudes. All modes but ``custom`` leave out values of importance 0: they
        pull no centre, extend no range, and take no entry; each gets the index of some entry. So a
        mask clusters only the nonzero values of a sparse weight. A group without any importance is
        treated as uniformly important.
    workers
        Threads for groups. The result does not depend on it.
    moments
        Of the inputs that multiply the weight, for ``kmeans``: errors of outputs are minimized
        instead of errors of elements. The means of squares multiply the importance; where
        :func:`mlopt.palette.moments.can_refine` has no reason against it, the palette is then
        refined for all second moments. None: all inputs count alike.

    Returns
    -------
    palettized, distortion
        The palette, in the weight's dtype, and the unweighted distortion of what it stores,
        including values without importance.

    Raises
    ------
    NoPaletteError
        ``unique``: more distinct values than the largest table holds.
    ConfigError
        The weight, its importance or its moments are not as described, or its channels cannot be
        divided as the spec says.
    """
    _check(weight, spec, importance)
    if moments is not None:
        return _for_outputs(weight, spec, importance, moments, workers)
    is_integer = weight.dtype.name in INTEGER_TABLE_DTYPES
    if spec.lut_dtype is not None and (is_integer or not can_quantize_table(weight, spec)):
        spec = attrs.evolve(spec, lut_dtype=None)
    scale = None if spec.scale_axis is None else channel_scale(weight, spec.scale_axis)
    if spec.mode == "custom":
        palettized = _custom(weight, spec, scale)
        return palettized, measure_distortion(weight, palettized)

    # float16 can represent all bytes, and its values are counted instead of sorted
    points = weight.astype(np.float16) if is_integer else weight
    layout = Layout.of(spec, weight.shape)
    if layout.groups == layout.cluster_dim == 1:
        # one table for all elements: their own order will do, without a copy
        layout = attrs.evolve(layout, axis=0)
    if importance is not None:
        importance = _with_some_everywhere(importance, layout)
        importance = _levelled(importance) if spec.mode == "kmeans" else importance > 0
    if scale is not None:
        points = normalised(weight, scale, workers=workers)
        if spec.mode == "kmeans" or not scale.all():
            # a channel of zeros counts for nothing: any entry times its scale 0 is right
            importance = scaled_importance(scale, weight.shape, importance)
            importance = _with_some_everywhere(importance, layout)
    if importance is not None and spec.mode != "kmeans":
        importance = None if importance.all() else importance > 0
    made = make_tables(
        ClusteringInput(
            points,
            points.dtype if scale is None else weight.dtype,
            importance,
            spec,
            layout,
            Lattice.of_integers(weight.dtype) if is_integer else None,
            workers,
        )
    )

    table, quantized = layout.table(made.tables), None
    if made.lattice is not None:
        positions = made.lattice.nearest(table.astype(np.float64))
        if is_integer:
            table = made.lattice.codes[positions]
        else:
            quantized = made.lattice.quantized(positions)
            table = quantized.decode()
    palettized = Palettized(
        table=table,
        indices=layout.indices(made.labels),
        vector_axis=layout.vector_axis,
        scale=scale,
        quantized=quantized,
    )
    distortion = made.distortion or measure_distortion(weight, palettized)
    return palettized, attrs.evolve(distortion, within=made.within)


def _for_outputs(
    weight: Floats,
    spec: PaletteSpec,
    importance: npt.NDArray[Any] | None,
    moments: InputMoments,
    workers: int,
) -> tuple[Palettized, Distortion]:
    """Palettize one weight for the inputs that multiply it."""
    if spec.mode != "kmeans":
        raise ConfigError(
            f"moments choose tables for mode 'kmeans' alone, got {spec.mode!r}; leave them out"
        )
    if moments.arrangement.shape != weight.shape:
        raise ConfigError(
            f"moments must be those of the weight's inputs, got some for the shape "
            f"{moments.arrangement.shape} with a weight {weight.shape}; calibrate this model"
        )
    squares = moments.importance()
    if importance is not None:
        squares = squares * importance
    start = palettize(weight, spec, squares, workers)
    if can_refine(spec, moments) is not None:
        return start
    refined = refine(weight, start[0], moments, importance=importance, workers=workers)
    if refined is start[0]:
        return start
    return refined, measure_distortion(weight, refined)


def can_quantize_table(weight: Floats, spec: PaletteSpec) -> bool:
    """Whether the weight is large enough, or zero, for the 8-bit codes that the spec asks for.

    The codes' scale must not be subnormal. Scaled channels reach 1, so with a scale they always
    are; the tables of a function are known only once it has made them.
    """
    if spec.lut_dtype is None:
        return False
    if spec.mode == "custom" or spec.scale_axis is not None:
        return True
    low = high = 0.0
    step = max(1, _ENOUGH * len(weight) // weight.size)
    for start in range(0, len(weight), step):
        part = weight[start : start + step]
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        if low < high and is_wide_enough(low, high, spec.lut_dtype, weight.dtype):
            return True
    return low == high


def _check(weight: Floats, spec: PaletteSpec, importance: npt.NDArray[Any] | None) -> None:
    check_dtype_and_size(weight)
    if weight.dtype.name in INTEGER_TABLE_DTYPES and spec.scale_axis is not None:
        raise ConfigError(
            f"a weight of integers ({weight.dtype}) has no per-channel scale, got scale_axis="
            f"{spec.scale_axis}; use scale_axis=None"
        )
    for name, axis in (("channel_axis", spec.channel_axis), ("scale_axis", spec.scale_axis)):
        if axis is not None and not -weight.ndim <= axis < weight.ndim:
            raise ConfigError(
                f"{name} must be in [{-weight.ndim}, {weight.ndim}), got {axis}; choose an axis "
                f"of the weight of shape {weight.shape}"
            )
    if spec.channel_axis is not None:
        channels = weight.shape[spec.channel_axis]
        unit = spec.group_size or spec.cluster_dim
        if channels % unit:
            name = "group_size" if spec.group_size else "cluster_dim"
            raise ConfigError(
                f"{name} must divide the channels, got {unit} for the {channels} channels on "
                f"axis {spec.channel_axis} of a weight of shape {weight.shape}; choose a divisor"
            )
    check_finite(weight)
    if importance is None:
        return
    if importance.shape != weight.shape:
        raise ConfigError(
            f"importance must have the weight's shape {weight.shape}, got {importance.shape}"
        )
    lowest, highest = importance.min(), importance.max()
    if not (lowest >= 0 and np.isfinite(highest)):
        raise ConfigError(
            f"importance must be finite and not negative, got values from {lowest} to {highest}"
        )


def _with_some_everywhere(importance: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Return the importance, with 1 throughout the groups that have none."""
    axis, groups = layout.axis, layout.groups
    before, channels, after = np.split(np.array(importance.shape), [axis, axis + 1])
    grouped = importance.reshape(*before, groups, channels[0] // groups, *after)
    others = tuple(i for i in range(grouped.ndim) if i != axis)
    some = grouped.any(axis=others, keepdims=True)
    if some.all():
        return importance
    return np.where(some, grouped, grouped.dtype.type(1)).reshape(importance.shape)


def _levelled(importance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the importance, times a power of two where its sums would leave float64's range."""
    factor = power_of_two(float(importance.max()))
    return importance if factor == 1.0 else importance.astype(np.float64) * factor


def _custom(weight: Floats, spec: PaletteSpec, scale: Floats | None) -> Palettized:
    assert spec.lut_function is not None
    points = weight if scale is None else normalised(weight, scale).astype(weight.dtype)
    palettized = custom_palette(
        points, spec.lut_function, Layout.of(spec, weight.shape), allowed_nbits=spec.allowed_nbits
    )
    quantized = None
    if spec.lut_dtype is not None:
        quantized = quantized_table(palettized.table, spec.lut_dtype)
    table = palettized.table if quantized is None else quantized.decode()
    return attrs.evolve(palettized, table=table, scale=scale, quantized=quantized)
