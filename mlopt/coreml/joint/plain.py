"""Palettization of weights that are stored as they are."""

from __future__ import annotations

from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.guidance import Guidance
from mlopt.coreml.joint.strategy import Clustered, Strategy
from mlopt.coreml.weights import Weight
from mlopt.palette.palettize import palettize
from mlopt.palette.value.spec import PaletteSpec


def _palettize(weight: Weight, spec: PaletteSpec, workers: int, guidance: Guidance) -> Clustered:
    value = weight.value()
    palettized, distortion = palettize(value, spec, workers=workers, moments=guidance.moments)
    notes = guidance.notes if distortion.note is None else (*guidance.notes, distortion.note)
    bias, ratio = guidance.outcome(value, palettized.dequantize())
    return Clustered(PackedPalette.of(palettized), distortion, notes, bias, ratio)


def _check(weight: Weight, spec: PaletteSpec) -> None:
    """Nothing to check: any plain weight can be clustered."""


PLAIN = Strategy(_palettize, _check)
