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
from mlopt.coreml.joint import Clustered, strategy_of
from mlopt.coreml.weights import Weight
from mlopt.palette.moments import InputMoments
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import UNGUIDED, Guidance

_LOOKED_AT = 1 << 12
_FEW = 256
"""Weights of no more distinct values among those looked at may well share tables or indices."""


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
        if spec.nbits is None or (moments is None and _is_made(weight, spec)):
            made = compute(weight, spec, self._workers)
            return made.palette if isinstance(made, Clustered) else None
        key = (spec, weight.shape, weight.dtype, _looked_at(weight).tobytes())
        known = self._known.setdefault(key, [])
        for other, its_moments, palette in known:
            if _are_alike(its_moments, moments) and _are_equal(other, weight):
                return palette
        palette = strategy_of(weight).foresee(weight, spec)
        known.append((weight, moments, palette))
        return palette


def _is_made(weight: Weight, spec: PaletteSpec) -> bool:
    """Whether a palette may well be equal in a part to that of another weight.

    Tables of equal steps are, where weights have the same range, and tables of integers.
    """
    if spec.mode == "uniform" or strategy_of(weight).has_scales:
        return True
    return len(np.unique(_looked_at(weight))) <= _FEW


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
