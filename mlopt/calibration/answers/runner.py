"""Runs of a program that keep the graph, and give the outputs that losses are computed of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mlopt.calibration.answers.losses import (
    Divergence,
    Loss,
    LossFunction,
    Outputs,
    OwnLoss,
    SquaredError,
)
from mlopt.choices import LOSSES, LossName
from mlopt.errors import ConfigError
from mlopt.requests.checked import word
from mlopt.runtime.comparison.answers import makers_of, probability_names
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Source
from mlopt.runtime.program import Program


class Runner:
    """A program that is run on one sample after the other, with new states for each.

    keeps_weights: whether plain weights stay in memory as they are computed with; values: the names
    of the outputs and intermediate values that are returned, None for all outputs of floats.

    Raises
    ------
    ConfigError
        The program computes no value of one of these names.
    """

    def __init__(
        self, program: Program, *, keeps_weights: bool, values: Collection[str] | None = None
    ) -> None:
        self.program = program
        self._values = None if values is None else frozenset(values)
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
        self._taps = dict(self._scores)
        for name in (self._values or frozenset()) - {*plan.outputs}:
            slot = plan.sources.get(name)
            if not isinstance(slot, int):
                raise ConfigError(
                    f"the program computes no value {name!r} that a loss could compare; its "
                    f"outputs are {', '.join(map(repr, plan.outputs))}, and value_names of the "
                    "loaded program lists all names"
                )
            self._taps[name] = slot

    @property
    def classes(self) -> Collection[str]:
        """The outputs of classes of a classifier, of those that are wanted."""
        return [n for n in self._scores if self._values is None or n in self._values]

    @property
    def probabilities(self) -> frozenset[str]:
        """The outputs that are probabilities."""
        return probability_names(self.program).union(self._scores)

    def loss(self, loss: LossName | LossFunction, names: Collection[str]) -> Loss:
        """Return what compares outputs of these names; ``"kl"``: those of classes, if there are.

        Raises
        ------
        ConfigError
            It is neither a function nor the name of a loss.
        """
        if callable(loss):
            return OwnLoss(loss)
        if word(loss, "loss", LOSSES) == "squared":
            return SquaredError()
        return Divergence(self.classes or names, self.probabilities)

    def outputs(
        self,
        inputs: Mapping[str, Any],
        number: int,
        substitutes: Mapping[Source, Tensor] | None = None,
    ) -> Outputs:
        """Return the outputs of floats, or the values that are wanted.

        inputs: as ``Program.converted`` gives them; number: of the sample, the seed.

        Raises
        ------
        ConfigError
            One that is wanted is not a tensor of floats, or was not computed.
        """
        return self.finish(self.begin(inputs, number, substitutes))

    def begin(
        self,
        inputs: Mapping[str, Any],
        number: int,
        substitutes: Mapping[Source, Tensor] | None = None,
    ) -> Execution:
        """Return a run before its first step, as for :meth:`outputs`."""
        execution = self.program.execution(seed=number)
        execution.kept = self._kept
        execution.substitutes = substitutes or {}
        execution.tapped = frozenset(self._taps.values())
        execution.begin(dict(inputs) | self.program.make_state().tensors)
        return execution

    def finish(self, execution: Execution, first: int = 0) -> Outputs:
        """Take all steps of a run from a number on, and return what :meth:`outputs` does."""
        results = execution.finish(first)
        named = dict(zip(self.program.plan.outputs, results, strict=True))
        named |= {name: execution.taps.get(slot) for name, slot in self._taps.items()}
        floats = {
            name: value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        if self._values is None:
            return floats
        lacking = self._values - floats.keys()
        if lacking:
            raise ConfigError(
                f"{', '.join(map(repr, sorted(lacking)))}: not computed, or no tensor of floats "
                "that a loss could compare"
            )
        return {name: floats[name] for name in floats if name in self._values}

    def converted(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs in a sample as they are computed with."""
        with torch.inference_mode(False), torch.no_grad():
            return self.program.converted(sample)
