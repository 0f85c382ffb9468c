"""Palettization of weights that are stored as they are."""

from __future__ import annotations

from mlopt.coreml.biases import BiasPlace, corrected
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.joint.strategy import Clustered, Strategy
from mlopt.coreml.weights import Weight
from mlopt.palette.value.spec import PaletteSpec
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


def _check(weight: Weight, spec: PaletteSpec) -> None:
    """Nothing to check: any plain weight can be clustered."""


PLAIN = Strategy(_palettize, _check)
