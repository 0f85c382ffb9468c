"""Runs of a program that keep the graph, and give the outputs that losses are computed of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mlopt.calibration.tuning.losses import Outputs
from mlopt.runtime.comparison.answers import makers_of, probability_names
from mlopt.runtime.plan import Source
from mlopt.runtime.program import Program


class Runner:
    """A program that is run on one sample after the other, with new states for each.

    keeps_weights: whether plain weights stay in memory as they are computed with.
    """

    def __init__(self, program: Program, *, keeps_weights: bool) -> None:
        self.program = program
        self._kept: dict[Any, Any] | None = {} if keeps_weights else None
        # what a classifier puts out is a dictionary of numbers, behind the graph
        self._scores: dict[str, int] = {}
        makers, plan = makers_of(program), program.plan
        for name, source in zip(plan.outputs, plan.body.outputs, strict=True):
            step = makers.get(source) if isinstance(source, int) else None
            if step is None or step.node.op_type != "classify" or source == step.results[0]:
                continue
            given = {spec.name: sources for spec, sources in step.arguments}
            (scores,) = given.get("probabilities", (None,))
            if isinstance(scores, int):
                self._scores[name] = scores

    @property
    def classes(self) -> Collection[str]:
        """The outputs of classes of a classifier."""
        return self._scores.keys()

    @property
    def probabilities(self) -> frozenset[str]:
        """The outputs that are probabilities."""
        return probability_names(self.program).union(self._scores)

    def outputs(
        self,
        inputs: Mapping[str, Any],
        number: int,
        substitutes: Mapping[Source, Tensor] | None = None,
    ) -> Outputs:
        """Return the outputs of floats.

        inputs: as ``Program.converted`` gives them; number: of the sample, the seed.
        """
        execution = self.program.execution(seed=number)
        execution.kept = self._kept
        execution.substitutes = substitutes or {}
        execution.tapped = frozenset(self._scores.values())
        results = execution.run(dict(inputs) | self.program.make_state().tensors)
        named = dict(zip(self.program.plan.outputs, results, strict=True))
        named |= {name: execution.taps[slot] for name, slot in self._scores.items()}
        return {
            name: value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }

    def converted(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs in a sample as they are computed with."""
        with torch.inference_mode(False), torch.no_grad():
            return self.program.converted(sample)
