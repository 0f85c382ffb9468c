"""Palettization of the nonzero values of sparse weights, whose mask stays."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.biases import BiasPlace, corrected
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.plain import foreseen_palette
from mlopt.coreml.joint.strategy import Clustered, Strategy, joint_notes
from mlopt.coreml.weights import Weight
from mlopt.mil.sizing import unknown
from mlopt.palette.palettize import NoPaletteError, palettize
from mlopt.palette.value.bits import pack_bits, packed_nbytes, unpack_bits
from mlopt.palette.value.distortion import measure_distortion
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import Guidance

Mask = npt.NDArray[np.bool_]


def _check(weight: Weight, spec: PaletteSpec) -> None:
    _mask_of_indices(mask_of(weight), spec)


def mask_of(weight: Weight) -> Mask:
    """Where a sparse weight has values, of its shape."""
    constant = weight.chain[-1].constant_input("mask")
    assert constant is not None
    # Both forms of the operation have the same bits.
    packed = np.asarray(constant.value()).reshape(-1)
    return unpack_bits(packed, 1, weight.size).reshape(weight.shape).view(np.bool_)


def _palettize(
    weight: Weight, spec: PaletteSpec, workers: int, guidance: Guidance[BiasPlace]
) -> Clustered:
    value, mask = weight.value(), mask_of(weight)
    stored = _mask_of_indices(mask, spec)
    palettized, _ = palettize(
        guidance.target(value), spec, importance=mask, workers=workers, moments=guidance.fitted()
    )
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
    mean_error, ratio = guidance.outcome(
        value, lambda: np.where(mask, palettized.dequantize(), value)
    )
    notes = (*guidance.notes, *joint_notes(palette.nbytes, plain_nbytes))
    return Clustered(palette, distortion, notes, corrected(guidance.bias, mean_error), ratio)


def _foresee(weight: Weight, spec: PaletteSpec) -> PackedPalette:
    palette = foreseen_palette(weight, spec)
    mask = _mask_of_indices(mask_of(weight), spec)
    count = int(np.count_nonzero(mask))
    packed = unknown((packed_nbytes(count, nbits=palette.nbits),), np.uint8)
    more = packed.nbytes + packed_nbytes(mask.size, nbits=1) - palette.packed.nbytes
    return attrs.evolve(
        palette,
        packed=packed,
        indices_shape=(count,),
        nbytes=palette.nbytes + more,
        mask=mask,
    )


def _mask_of_indices(mask: Mask, spec: PaletteSpec) -> Mask:
    """Where an index is stored, of the indices' shape."""
    if not mask.any():
        raise NoPaletteError("all of it is zero")
    if spec.cluster_dim == 1:
        return mask
    assert spec.channel_axis is not None
    return _mask_of_vectors(mask, spec.channel_axis % mask.ndim, spec.cluster_dim)


def _mask_of_vectors(mask: Mask, axis: int, d: int) -> Mask:
    """The mask with one element for every ``d`` along ``axis``, which must be equal."""
    parts = np.moveaxis(mask, axis, 0)
    parts = parts.reshape(parts.shape[0] // d, d, *parts.shape[1:])
    if not (parts == parts[:, :1]).all():
        raise NoPaletteError(
            f"vectors of {d} on axis {axis} reach over zeros and other values, and zeros must "
            "stay zero"
        )
    return np.ascontiguousarray(np.moveaxis(parts[:, 0], 0, axis))


SPARSE = Strategy(_palettize, _foresee, _check)
