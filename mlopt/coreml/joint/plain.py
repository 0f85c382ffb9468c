"""Palettization of weights that are stored as they are."""

from __future__ import annotations

import numpy as np

from mlopt.coreml.biases import BiasPlace, corrected
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.strategy import Clustered, Strategy
from mlopt.coreml.weights import Weight
from mlopt.mil.sizing import unknown
from mlopt.palette.layout import Layout
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import palette_nbytes
from mlopt.statistics.fitting import fit
from mlopt.statistics.guidance import Guidance


def _palettize(
    weight: Weight, spec: PaletteSpec, workers: int, guidance: Guidance[BiasPlace]
) -> Clustered:
    fitted = fit(weight.value(), spec, guidance, workers=workers)
    return Clustered(
        PackedPalette.of(fitted.palettized),
        fitted.distortion,
        fitted.notes,
        corrected(guidance.bias, fitted.mean_error),
        fitted.output_snr_db,
    )


def foreseen_palette(weight: Weight, spec: PaletteSpec) -> PackedPalette:
    """Return the palette of a weight with an index for each element or vector, values unknown."""
    assert spec.nbits is not None
    layout, dtype = Layout.of(spec, weight.shape), np.dtype(weight.dtype)
    table_shape = (*layout.table_shape, 1 << spec.nbits, spec.cluster_dim)
    scale = quantized = None
    if spec.scale_axis is not None:
        axis = spec.scale_axis % len(weight.shape)
        scale = unknown([n if i == axis else 1 for i, n in enumerate(weight.shape)], dtype)
    if spec.lut_dtype is not None:
        one = (1,) * len(table_shape)
        offset = np.zeros(one, np.uint8) if spec.lut_dtype == "uint8" else None
        codes = unknown(table_shape, spec.lut_dtype)
        quantized = QuantizedTable(codes, np.ones(one, dtype), offset)
    count = weight.size // spec.cluster_dim
    return PackedPalette(
        packed=unknown((packed_nbytes(count, nbits=spec.nbits),), np.uint8),
        indices_shape=layout.indices_shape,
        nbits=spec.nbits,
        table=unknown(table_shape, dtype),
        scale=scale,
        vector_axis=layout.vector_axis,
        shape=weight.shape,
        nbytes=palette_nbytes(spec, weight.shape, nbits=spec.nbits, itemsize=dtype.itemsize),
        quantized=quantized,
    )


def _check(weight: Weight, spec: PaletteSpec) -> None:
    """Nothing to check: any plain weight can be clustered."""


PLAIN = Strategy(_palettize, foreseen_palette, _check)
