"""Clustering the data of a compressed weight, and what of it is stored."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr.parameters import unpacked
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.weights import JointWeight
from mlopt.palette.palettize import NoPaletteError, palettize
from mlopt.palette.value.bits import pack_bits, packed_nbytes, unpack_bits
from mlopt.palette.value.distortion import Distortion, measure_distortion
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.palette.value.spec import PaletteSpec

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def palettize_joint(
    weight: JointWeight, spec: PaletteSpec, workers: int = 1
) -> tuple[PackedPalette, Distortion, int]:
    """Palettize the nonzero values or the integers of a compressed weight.

    A palette of nonzero values comes with their mask. The tables of integers have the scales of the
    weight, and stand there once for each block that has a scale of its own.

    Parameters
    ----------
    spec
        What is wanted, for the plain weight's shape. For a quantized weight it has neither a scale
        nor a ``lut_dtype``: the table holds integers, and the weight brings its scales.

    Returns
    -------
    palette, distortion, plain_nbytes
        The distortion is that of the plain weight; zeros of a sparse one stay zero. The last is
        what the plain weight takes in a palette of as many tables and bits.

    Raises
    ------
    NoPaletteError
        There is no such palette; the message is the reason.
    """
    of_kind = _palettize_sparse if weight.is_sparse else _palettize_quantized
    return of_kind(weight, spec, workers)


def check_joint(weight: JointWeight, spec: PaletteSpec) -> None:
    """Find out, without clustering, that :func:`palettize_joint` has what it needs.

    Raises
    ------
    NoPaletteError
        It has not; the message is the reason.
    """
    if weight.is_sparse:
        _mask_of_indices(mask_of(weight), spec)
        return
    scale, _ = _blocks_of(weight)
    _check_vectors(weight.shape, scale.shape, spec)


def mask_of(weight: JointWeight) -> Mask:
    """Where a sparse weight has values, of its shape."""
    constant = weight.node.constant_input("mask")
    assert constant is not None
    # Both forms of the operation have the same bits.
    packed = np.asarray(constant.value()).reshape(-1)
    return unpack_bits(packed, 1, weight.size).reshape(weight.shape).view(np.bool_)


def _palettize_sparse(
    weight: JointWeight, spec: PaletteSpec, workers: int
) -> tuple[PackedPalette, Distortion, int]:
    value, mask = weight.value(), mask_of(weight)
    stored = _mask_of_indices(mask, spec)
    palettized, _ = palettize(value, spec, importance=mask, workers=workers)
    distortion = measure_distortion(value, palettized, counted=mask)

    indices, plain_nbytes = palettized.indices[stored], palettized.nbytes
    packed = pack_bits(indices, palettized.nbits)
    saved = palettized.indices_nbytes - packed.nbytes - packed_nbytes(stored.size, nbits=1)
    palette = attrs.evolve(
        PackedPalette.of(palettized),
        packed=packed,
        indices_shape=indices.shape,
        nbytes=plain_nbytes - saved,
        mask=stored,
    )
    return palette, distortion, plain_nbytes


def _mask_of_indices(mask: Mask, spec: PaletteSpec) -> Mask:
    """Where an index is stored, of the indices' shape."""
    if not mask.any():
        raise NoPaletteError("all of it is zero")
    if spec.cluster_dim == 1:
        return mask
    assert spec.channel_axis is not None
    return _mask_of_vectors(mask, spec.channel_axis % mask.ndim, spec.cluster_dim)


def _mask_of_vectors(mask: Mask, axis: int, d: int) -> Mask:
    """The mask with one element for every ``d`` along ``axis``, which have to be alike."""
    parts = np.moveaxis(mask, axis, 0)
    parts = parts.reshape(parts.shape[0] // d, d, *parts.shape[1:])
    if not (parts == parts[:, :1]).all():
        raise NoPaletteError(
            f"vectors of {d} on axis {axis} reach over zeros and other values, and zeros have to "
            "stay zero"
        )
    return np.ascontiguousarray(np.moveaxis(parts[:, 0], 0, axis))


def _palettize_quantized(
    weight: JointWeight, spec: PaletteSpec, workers: int
) -> tuple[PackedPalette, Distortion, int]:
    codes = unpacked(weight.data)
    scale, offset = _blocks_of(weight)
    _check_vectors(codes.shape, scale.shape, spec)
    palettized, _ = palettize(codes, spec, importance=_importance(scale, codes), workers=workers)
    table = _scaled_table(palettized, scale, offset)
    joint = Palettized(table.decode(), palettized.indices, palettized.vector_axis, quantized=table)
    distortion = measure_distortion(weight.value(), joint)
    if not math.isfinite(distortion.noise):
        raise NoPaletteError(
            "its scales would take entries of the table out of the range of floats"
        )
    entries = palettized.table.size * scale.dtype.itemsize
    return PackedPalette.of(joint), distortion, joint.indices_nbytes + entries


def _blocks_of(weight: JointWeight) -> tuple[Array, Array | None]:
    """Scale and offset of a quantized weight's blocks, of its rank; the offset as its integers.

    ``constexpr_affine_dequantize`` gives them as scalars or for the channels of an axis.
    """
    rank, node = len(weight.shape), weight.node
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
    return scale, _as_codes(offset, unsigned=weight.data.dtype.startswith("u"))


def _as_codes(offset: Array, *, unsigned: bool) -> Array:
    """An offset, which may be of another type, in that of the codes: a table wants them alike."""
    bounds = np.iinfo(np.uint8 if unsigned else np.int8)
    # NaN compares false
    fits = (offset >= bounds.min) & (offset <= bounds.max) & (offset == np.rint(offset))
    if not fits.all():
        raise NoPaletteError(f"an offset of its integers is no {bounds.dtype}")
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
    """What an error of 1 in a code weighs: the square of its scale; None where all are alike."""
    squares = np.square(scale.astype(np.float64))
    if (squares == squares.reshape(-1)[0]).all():
        return None
    return np.broadcast_to(_repeated(squares, codes.shape), codes.shape)


def _scaled_table(palettized: Palettized, scale: Array, offset: Array | None) -> QuantizedTable:
    """The tables of integers, each as often as blocks with other scales have it.

    A look-up of scaled entries gives what scaling looked-up integers does. coremltools brings the
    two operations into this order too, before CoreML9.
    """
    groups = palettized.table_shape
    blocks = [math.lcm(g, s) for g, s in zip(groups, scale.shape, strict=True)]
    codes = _repeated(palettized.table, (*blocks, *palettized.table.shape[-2:]))

    def of_tables(array: Array) -> Array:
        return _repeated(array, tuple(blocks))[..., None, None]

    shift = None if offset is None else of_tables(offset)
    return QuantizedTable(codes, of_tables(scale), shift)


def _repeated(array: Array, shape: tuple[int, ...]) -> Array:
    """Each element as often as it takes to fill ``shape``, whose lengths the array's divide."""
    for axis, (n, length) in enumerate(zip(shape, array.shape, strict=True)):
        if length < n:
            array = np.repeat(array, n // length, axis)
    return array
