"""Palettes as far as they are known before anything is clustered: the size of all that is stored.

What depends on values alone is not known, and an array of unknown content stands for it. Where a
size depends on values, or where palettes of different weights may well turn out equal in a part,
which is then stored once, the palette is made: that takes no clustering, or hardly any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.execution import compute
from mlopt.coreml.joint import Clustered
from mlopt.coreml.weights import Weight
from mlopt.mil.sizing import unknown
from mlopt.palette.layout import Layout
from mlopt.palette.moments import InputMoments
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import palette_nbytes
from mlopt.statistics.guidance import UNGUIDED, Guidance

_LOOKED_AT = 1 << 12
_FEW = 256
"""Weights of no more distinct values among those looked at may well share tables or indices."""


def has_known_size(weight: Weight, spec: PaletteSpec) -> bool:
    """Whether the size of a palette does not depend on the values of the weight."""
    return spec.nbits is not None and not weight.is_compressed


def palette_of_unknown(weight: Weight, spec: PaletteSpec) -> PackedPalette:
    """Return a palette of the right size and of unknown content, which takes no memory.

    The weight must be such that ``has_known_size``.
    """
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
        quantized = QuantizedTable(
            unknown(table_shape, spec.lut_dtype), np.ones(one, dtype), offset
        )
    indices_nbytes = packed_nbytes(weight.size // spec.cluster_dim, nbits=spec.nbits)
    return PackedPalette(
        packed=unknown((indices_nbytes,), np.uint8),
        indices_shape=layout.indices_shape,
        nbits=spec.nbits,
        table=unknown(table_shape, dtype),
        scale=scale,
        vector_axis=layout.vector_axis,
        shape=weight.shape,
        nbytes=palette_nbytes(spec, weight.shape, nbits=spec.nbits, itemsize=dtype.itemsize),
        quantized=quantized,
    )


class ForeseenPalettes:
    """The palettes of the weights of a package; the same one for weights of equal content.

    workers: threads, for those that are made.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._known: dict[
            tuple[Any, ...], list[tuple[Weight, InputMoments | None, PackedPalette]]
        ] = {}

    def of(
        self, weight: Weight, spec: PaletteSpec, guidance: Guidance[BiasPlace] = UNGUIDED
    ) -> PackedPalette | None:
        """Return the palette of a weight; None where there is none, and the weight is kept."""
        moments = guidance.moments
        if not has_known_size(weight, spec) or (moments is None and _is_made(weight, spec)):
            made = compute(weight, spec, self._workers)
            return made.palette if isinstance(made, Clustered) else None
        key = (spec, weight.shape, weight.dtype, _looked_at(weight).tobytes())
        known = self._known.setdefault(key, [])
        for other, its_moments, palette in known:
            if _are_alike(its_moments, moments) and _are_equal(other, weight):
                return palette
        palette = palette_of_unknown(weight, spec)
        known.append((weight, moments, palette))
        return palette


def _is_made(weight: Weight, spec: PaletteSpec) -> bool:
    """Whether a palette may well be equal in a part to that of another weight.

    Tables of equal steps are, where weights have the same range.
    """
    return spec.mode == "uniform" or len(np.unique(_looked_at(weight))) <= _FEW


def _looked_at(weight: Weight) -> npt.NDArray[Any]:
    """Return some elements of a weight, far from each other."""
    flat = weight.value().reshape(-1)
    values = flat[:: max(1, flat.size // _LOOKED_AT)].copy()
    weight.release()
    return values


def _are_equal(one: Weight, other: Weight) -> bool:
    """Whether two weights of one shape and dtype have the same values, bit for bit."""
    if one.content == other.content:
        return True
    mine, others = one.value().view(np.uint8), other.value().view(np.uint8)
    are_equal = np.array_equal(mine, others)
    one.release()
    other.release()
    return are_equal


def _are_alike(one: InputMoments | None, other: InputMoments | None) -> bool:
    """Whether the same inputs were seen, so that equal weights get equal palettes."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one.diagonal, other.diagonal) and np.array_equal(one.mean, other.mean)
