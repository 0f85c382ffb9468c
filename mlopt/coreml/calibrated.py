"""Calibration as clustering uses it: the statistics of the inputs that each weight multiplies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs
import numpy as np

from mlopt.choices import Method
from mlopt.coreml.biases import bias_place
from mlopt.coreml.guidance import UNGUIDED, Guidance
from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight
from mlopt.errors import ConfigError
from mlopt.palette.moments import InputMoments
from mlopt.palette.moments.solve import can_refine
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics import Calibration, content_of
from mlopt.text.names import shortlist
from mlopt.text.words import counted

CalibrationSource: TypeAlias = "Calibration | str | os.PathLike[str]"
"""A calibration, or the path of its file."""


@attrs.frozen(eq=False)
class Guides:
    """The guidance of every weight that is to be palettized, and notes on the whole run."""

    by_weight: Mapping[int, Guidance] = attrs.Factory(dict)
    notes: tuple[str, ...] = ()

    def of(self, weight: Weight) -> Guidance:
        """The guidance of a weight; plain clustering if there is none."""
        return self.by_weight.get(id(weight), UNGUIDED)


def guides_for(
    decisions: Iterable[WeightDecision],
    source: CalibrationSource | None,
    *,
    method: Method = "auto",
    correct_biases: bool = True,
) -> Guides:
    """Match the statistics of a calibration with the weights that are to be palettized.

    Raises
    ------
    ConfigError
        A method that needs a calibration has none, or the calibration knows none of the weights.
    """
    if source is None:
        if method in ("hessian", "diagonal"):
            raise ConfigError(
                f"method {method!r} needs a calibration, got None; make one with "
                "mlopt.calibration.calibrate, or use method='plain'"
            )
        return Guides()
    calibration = source if isinstance(source, Calibration) else Calibration.load(source)
    guides: dict[int, Guidance] = {}
    unknown: list[str] = []
    changed: list[str] = []
    chosen = [d for d in decisions if isinstance(d.result, PaletteSpec)]
    for decision in chosen:
        weight, spec = decision.weight, decision.result
        assert isinstance(spec, PaletteSpec)
        assert decision.config is not None
        asked = decision.config.method or method
        if spec.mode != "kmeans" or asked == "plain":
            continue
        match = calibration.find(weight.name, weight.shape, content_of(weight.value()))
        weight.release()
        if match is None:
            unknown.append(weight.name)
            continue
        if not match.is_exact:
            changed.append(weight.name)
        guides[id(weight)] = _guidance(
            weight, spec, match.moments, method=asked, correct_biases=correct_biases
        )
    if unknown and not guides:
        raise ConfigError(
            f"the calibration has no statistics of any of the {len(unknown)} weights to be "
            f"palettized, such as {shortlist(unknown)}; it was made of another model: calibrate "
            "this one"
        )
    notes = list(calibration.notes)
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'weight')} without statistics in the calibration, clustered "
            f"by their values: {shortlist(unknown)}."
        )
    if changed:
        notes.append(
            f"The calibration was made with other values of {counted(len(changed), 'weight')} of "
            f"the same names and shapes ({shortlist(changed)}): of another version of the model."
        )
    return Guides(guides, tuple(notes))


def _guidance(
    weight: Weight,
    spec: PaletteSpec,
    moments: InputMoments,
    *,
    method: Method,
    correct_biases: bool,
) -> Guidance:
    notes: tuple[str, ...] = ()
    if all(consumer.op_type.startswith("gather") for consumer in weight.consumers):
        # how often rows are read: as if each had been read once more, since others will be
        return Guidance(
            "diagonal",
            attrs.evolve(moments, diagonal=moments.diagonal + np.float32(1 / moments.count)),
        )
    if moments.second is None or method == "diagonal":
        return Guidance("diagonal", attrs.evolve(moments, second=None))
    reason = can_refine(spec, moments)
    if reason is not None:
        notes = (f"clustered by the mean squares of its inputs alone: {reason}",)
        return Guidance("diagonal", attrs.evolve(moments, second=None), notes=notes)
    place = bias_place(weight) if correct_biases and moments.mean is not None else None
    if place is None:
        return Guidance("hessian", moments)
    return Guidance("hessian", moments.centred(), place, moments)
