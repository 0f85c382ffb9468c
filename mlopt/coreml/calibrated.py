"""Calibration as clustering uses it: the guidance of the weights of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mlopt.choices import Method
from mlopt.coreml.biases import BiasPlace, bias_place
from mlopt.coreml.plans import WeightDecision
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import CalibrationSource, Candidate, Guides, guides_for


def guides_of(
    decisions: Iterable[WeightDecision],
    source: CalibrationSource | None,
    *,
    method: Method = "auto",
    correct_biases: bool = True,
) -> Guides[BiasPlace]:
    """Match a calibration with the weights that are to be palettized.

    Raises
    ------
    ConfigError
        A method that needs a calibration has none, or the calibration knows none of the weights.
    """
    candidates = _candidates(decisions, correct_biases=correct_biases)
    return guides_for(candidates, source, method=method)


def _candidates(
    decisions: Iterable[WeightDecision], *, correct_biases: bool
) -> Iterator[Candidate[BiasPlace]]:
    for decision in decisions:
        weight, spec = decision.weight, decision.result
        if not isinstance(spec, PaletteSpec):
            continue
        assert decision.config is not None
        yield Candidate(
            weight=weight,
            name=weight.name,
            shape=weight.shape,
            spec=spec,
            value=weight.value,
            release=weight.release,
            is_lookup=all(each.op_type.startswith("gather") for each in weight.consumers),
            bias=bias_place(weight) if correct_biases else None,
            method=decision.config.method,
        )
