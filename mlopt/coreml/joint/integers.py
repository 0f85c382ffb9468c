"""Palettization of the integers of quantized weights, whose scales become those of tables."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.biases import BiasPlace, corrected
from mlopt.coreml.constexpr.parameters import unpacked
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.plain import foreseen_palette
from mlopt.coreml.joint.strategy import Clustered, Strategy, joint_notes
from mlopt.coreml.weights import Weight
from mlopt.mil.program import Constant
from mlopt.mil.sizing import unknown
from mlopt.palette.palettize import NoPaletteError, palettize
from mlopt.palette.value.distortion import measure_distortion
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import Guidance

Array = npt.NDArray[Any]

PARAMETERS = {
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_affine_dequantize": "quantized_data",
}
"""The parameter that holds the integers, by operation."""


def _check(weight: Weight, spec: PaletteSpec) -> None:
    scale, _ = _blocks_of(weight)
    _check_vectors(weight.shape, scale.shape, spec)


def _data(weight: Weight) -> Constant:
    node = weight.chain[-1]
    constant = node.constant_input(PARAMETERS[node.op_type])
    assert constant is not None
    return constant


def _palettize(
    weight: Weight, spec: PaletteSpec, workers: int, guidance: Guidance[BiasPlace]
) -> Clustered:
    """Cluster the integers; the tables are repeated for each block with its own scale."""
    codes = unpacked(_data(weight))
    scale, offset = _blocks_of(weight)
    _check_vectors(codes.shape, scale.shape, spec)
    palettized, _ = palettize(
        codes,
        spec,
        importance=_importance(scale, codes),
        workers=workers,
        moments=guidance.fitted(),
    )
    table = _scaled_table(palettized, scale, offset)
    joint = Palettized(table.decode(), palettized.indices, palettized.vector_axis, quantized=table)
    value = weight.value()
    distortion = measure_distortion(value, joint)
    if not math.isfinite(distortion.noise):
        raise NoPaletteError(
            "its scales would take entries of the table out of the range of floats"
        )
    entries = palettized.table.size * scale.dtype.itemsize
    palette = PackedPalette.of(joint)
    mean_error, ratio = guidance.outcome(value, joint.dequantize)
    notes = (*guidance.notes, *joint_notes(palette.nbytes, joint.indices_nbytes + entries))
    return Clustered(palette, distortion, notes, corrected(guidance.bias, mean_error), ratio)


def _blocks_of(weight: Weight) -> tuple[Array, Array | None]:
    """Scale and offset of a quantized weight's blocks, of its rank; the offset as its integers.

    ``constexpr_affine_dequantize`` gives them as scalars or for the channels of an axis.
    """
    rank, node = len(weight.shape), weight.chain[-1]
    values: dict[str, Array | None] = {}
    for key, names in (("scale", ("scale",)), ("offset", ("offset", "zero_point"))):
        constant = next((c for name in names if (c := node.constant_input(name))), None)
        values[key] = None if constant is None else unpacked(constant)
    axis = int(node.scalar("axis", 0))
    shape = [1] * rank
    shape[axis] = -1
    scale, offset = values["scale"], values["offset"]
    assert scale is not None
    if offset is None:
        return scale, None
    if scale.ndim < rank:
        scale, offset = np.broadcast_arrays(scale.reshape(shape), offset.reshape(shape))
    return scale, _as_codes(offset, unsigned=_data(weight).dtype.startswith("u"))


def _as_codes(offset: Array, *, unsigned: bool) -> Array:
    """An offset, which may have another type, in the codes' type, as a table requires."""
    bounds = np.iinfo(np.uint8 if unsigned else np.int8)
    # NaN compares false
    fits = (offset >= bounds.min) & (offset <= bounds.max) & (offset == np.rint(offset))
    if not fits.all():
        raise NoPaletteError(f"an offset of its integers cannot be stored as {bounds.dtype}")
    return offset.astype(bounds.dtype)


def _check_vectors(shape: tuple[int, ...], blocks: tuple[int, ...], spec: PaletteSpec) -> None:
    if spec.cluster_dim == 1:
        return
    assert spec.channel_axis is not None
    axis = spec.channel_axis % len(shape)
    if shape[axis] // blocks[axis] % spec.cluster_dim:
        raise NoPaletteError(
            f"vectors of {spec.cluster_dim} on axis {axis} reach over blocks with scales of their "
            "own"
        )


def _importance(scale: Array, codes: Array) -> Array | None:
    """The weight of an error of 1 in a code: its squared scale; None if all are equal."""
    squares = np.square(scale.astype(np.float64))
    if (squares == squares.reshape(-1)[0]).all():
        return None
    return np.broadcast_to(_repeated(squares, codes.shape), codes.shape)


def _scaled_table(palettized: Palettized, scale: Array, offset: Array | None) -> QuantizedTable:
    """The tables of integers, repeated for blocks with different scales.

    Looking up scaled entries gives the same as scaling looked-up integers. coremltools puts the two
    operations in this order too, before CoreML9.
    """
    blocks = _tables_of(palettized.table_shape, scale)
    codes = _repeated(palettized.table, (*blocks, *palettized.table.shape[-2:]))
    return _quantized(codes, scale, offset)


def _foresee(weight: Weight, spec: PaletteSpec) -> PackedPalette:
    palette = foreseen_palette(weight, spec)
    scale, offset = _blocks_of(weight)
    blocks = _tables_of(palette.table.shape[:-2], scale)
    shape = (*blocks, *palette.table.shape[-2:])
    table = _quantized(unknown(shape, unpacked(_data(weight)).dtype), scale, offset)
    return attrs.evolve(
        palette,
        table=unknown(shape, scale.dtype),
        quantized=table,
        nbytes=palette.packed.nbytes + table.nbytes,
    )


def _tables_of(groups: tuple[int, ...], scale: Array) -> tuple[int, ...]:
    """Return how many tables there are along each axis, where blocks have scales of their own."""
    return tuple(math.lcm(g, s) for g, s in zip(groups, scale.shape, strict=True))


def _quantized(codes: Array, scale: Array, offset: Array | None) -> QuantizedTable:
    """Return the tables of these codes, with the scales and offsets of blocks."""

    def of_tables(array: Array) -> Array:
        return _repeated(array, codes.shape[:-2])[..., None, None]

    return QuantizedTable(codes, of_tables(scale), None if offset is None else of_tables(offset))


def _repeated(array: Array, shape: tuple[int, ...]) -> Array:
    """Repeat elements to fill ``shape``, whose lengths those of the array divide."""
    for axis, (n, length) in enumerate(zip(shape, array.shape, strict=True)):
        if length < n:
            array = np.repeat(array, n // length, axis)
    return array


INTEGERS = Strategy(_palettize, _foresee, _check, has_scales=True)
