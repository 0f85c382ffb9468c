"""Ranges of a model's outputs, by the operations that produce them."""

from __future__ import annotations

import math
from typing import Any

from mlopt.runtime.comparison.answers import makers_of, programs_of
from mlopt.runtime.comparison.content import Ends
from mlopt.runtime.features.images import ImageFeature
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.plan import Step
from mlopt.runtime.program import Program

_ENDS = {
    "sigmoid": (0.0, 1.0),
    "sigmoid_hard": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
}
_PIXELS = (0.0, 255.0)
_PASSING = (
    *("cast", "identity", "reshape", "squeeze", "expand_dims", "transpose"),
    *("slice_by_index", "slice_by_size"),
)
"""Operations that may follow them, since they keep the elements."""


def ends_of_outputs(model: Program | Pipeline) -> dict[str, Ends]:
    """Return the two ends of the interval of each output that cannot leave one, by name."""
    by_name: dict[str, Ends] = {}
    for program in programs_of(model):
        makers = makers_of(program)
        for name, source in zip(program.plan.outputs, program.plan.body.outputs, strict=True):
            ends = _ends(source, makers)
            if ends is not None:
                by_name[name] = ends
    images = (name for name, f in model.outputs.items() if isinstance(f, ImageFeature))
    return by_name | dict.fromkeys(images, _PIXELS)


def _ends(source: Any, makers: dict[int, Step]) -> Ends | None:
    while isinstance(source, int) and source in makers:
        step = makers[source]
        if step.node.op_type == "clip":
            return _ends_of_clip(step)
        if step.node.op_type not in _PASSING:
            return _ENDS.get(step.node.op_type)
        given = {parameter.name: sources for parameter, sources in step.arguments}
        if "x" not in given:
            return None
        (source,) = given["x"]
    return None


def _ends_of_clip(step: Step) -> Ends | None:
    low, high = step.fixed.get("alpha"), step.fixed.get("beta")
    if low is None or high is None or not (math.isfinite(low) and low < high):
        return None  # many informative outputs are 0, where a clip without an upper end begins
    return (low, high) if math.isfinite(high) else None
