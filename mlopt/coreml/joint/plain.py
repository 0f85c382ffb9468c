"""Palettization of weights that are stored as they are."""

from __future__ import annotations

import math

from mlopt.coreml.biases import corrected
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.guidance import Guidance
from mlopt.coreml.joint.strategy import Clustered, Strategy
from mlopt.coreml.weights import Weight
from mlopt.palette.palettize import palettize
from mlopt.palette.value.spec import PaletteSpec


def _palettize(weight: Weight, spec: PaletteSpec, workers: int, guidance: Guidance) -> Clustered:
    value, moments = weight.value(), guidance.moments
    palettized, distortion = palettize(value, spec, workers=workers, moments=moments)
    notes = guidance.notes if distortion.note is None else (*guidance.notes, distortion.note)
    packed = PackedPalette.of(palettized)
    if moments is None:
        return Clustered(packed, distortion, notes)
    stored = palettized.dequantize()
    error, power = moments.output_error(value, stored), moments.output_power(value)
    bias = None
    if guidance.bias is not None:
        assert guidance.uncentred is not None
        bias = corrected(guidance.bias, guidance.uncentred.mean_error(value, stored))
    return Clustered(packed, distortion, notes, bias, _decibels(power, error))


def _decibels(power: float, error: float) -> float:
    if error <= 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power > 0.0 else -math.inf


def _check(weight: Weight, spec: PaletteSpec) -> None:
    """Nothing to check: any plain weight can be clustered."""


PLAIN = Strategy(_palettize, _check)
