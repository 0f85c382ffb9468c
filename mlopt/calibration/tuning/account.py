"""The account of a tuning: what moved, what did not and why, and remarks."""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.calibration.tuning.descent import Descent
from mlopt.calibration.tuning.result import TunedConstant
from mlopt.calibration.tuning.substitutes import Substitutes

_FEW = 16
"""Samples to train on, below which the notes say that they are few."""


def tuned_constants(substitutes: Substitutes, outcome: Descent) -> tuple[TunedConstant, ...]:
    """Return the constants that a gradient reached, in program order; none if no step helped."""
    if not outcome.best_step:
        return ()
    return tuple(
        TunedConstant(
            name=each.tunable.name,
            kind=each.tunable.kind,
            size=each.numbers.numel(),
            change=each.change,
            functions=tuple(dict.fromkeys(c.function for c in each.tunable.constants)),
        )
        for each in substitutes.parameters.values()
        if each.has_gradient
    )


def without_gradient(substitutes: Substitutes, outcome: Descent) -> dict[str, str]:
    """Return the reason for each of the others, if steps were taken."""
    if not outcome.steps:
        return {}
    return {
        each.tunable.name: "no gradient reached it"
        for each in substitutes.parameters.values()
        if not each.has_gradient
    }


def notes_of(outcome: Descent, trained: Sequence[int]) -> list[str]:
    """Return remarks on the steps, and on the samples to train on."""
    notes = []
    if outcome.problem:
        notes.append(f"{outcome.problem}; the package has the best state before that")
    if not outcome.best_step:
        notes.append(
            "no state was better on the samples held out than the first: the package is as it "
            "was; more samples, or a smaller learning rate, may help"
        )
    if len(trained) < _FEW:
        notes.append(f"{len(trained)} samples to train on are few: {_FEW} or more are useful")
    return notes
