"""Palettization of weights that are stored as they are."""

from __future__ import annotations

from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.strategy import Clustered, Strategy
from mlopt.coreml.weights import Weight
from mlopt.palette.palettize import palettize
from mlopt.palette.value.spec import PaletteSpec


def _palettize(weight: Weight, spec: PaletteSpec, workers: int) -> Clustered:
    palettized, distortion = palettize(weight.value(), spec, workers=workers)
    notes = () if distortion.note is None else (distortion.note,)
    return Clustered(PackedPalette.of(palettized), distortion, notes)


def _check(weight: Weight, spec: PaletteSpec) -> None:
    """Nothing to check: any plain weight can be clustered."""


PLAIN = Strategy(_palettize, _check)
