"""The models of ``plans``: those of ``answers``, and two shapes with random weights."""

from __future__ import annotations

from benchmarks.tasks import answer_trials
from benchmarks.tasks.answer_forms import TRIALS, Trial

PLANNED: dict[str, Trial] = {
    **TRIALS,
    "resnet50": Trial(answer_trials.noise, {}),
    "speech-encoder": Trial(answer_trials.noise, {}),
}
"""Who judges each, and what it is calibrated with; the forms are for plans to choose."""

SMALLEST = {"digits": 200}
"""Weights of more elements than this are palettized, of models in which the default spares many."""
