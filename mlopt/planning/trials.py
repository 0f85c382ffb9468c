"""``Trials``: what a model loses when some of its weights are palettized, by running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.calibration.answers.losses import Loss, Outputs
from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.answers.sample_threads import SampleThreads, sample_threads
from mlopt.calibration.feeds import places_of
from mlopt.calibration.samples import errors_of_sample
from mlopt.calibration.sequential.corrections import with_change
from mlopt.calibration.sequential.sites import Site
from mlopt.coreml.biases import NewBias
from mlopt.coreml.joint import Clustered
from mlopt.errors import RunError
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Source, Step


@attrs.frozen(eq=False)
class Palettized:
    """A weight with what is stored for it: where it is read, and what has been clustered."""

    site: Site
    clustered: Clustered


class Trials:
    """Runs of a program on samples, with weights replaced one at a time or together.

    A run with one weight replaced begins at the step that reads it: all samples wait there, and
    runs fork off. Memory holds the outputs of all samples and the values that later steps read,
    and plain weights in the dtype that they are computed with.

    identity: equal for trials of the same model with the same samples and the same loss; workers:
    samples that run at a time, see ``SampleThreads``.

    Raises
    ------
    InputError, RunError
        A sample does not fit, or the model failed; the message has the sample's number.
    """

    def __init__(
        self,
        runner: Runner,
        loss: Loss,
        samples: Sequence[Mapping[str, Any]],
        *,
        identity: str,
        workers: int = 1,
    ) -> None:
        self.identity = identity
        self._runner, self._loss, self._workers = runner, loss, workers
        self._steps = runner.program.plan.body.steps
        self._inputs = []
        for number, sample in enumerate(samples):
            with errors_of_sample(number):
                self._inputs.append(runner.converted(sample))
        with self._threads() as threads:
            self._originals: list[Outputs] = threads.each(
                len(self._inputs), lambda number: runner.finish(self._begun(number))
            )
        for number, outputs in enumerate(self._originals):
            _check_finite(outputs, number)
            loss.note(outputs)

    def one_at_a_time(
        self, sites: Sequence[Site], told: Callable[[Site, Callable[[Clustered], float]], None]
    ) -> None:
        """Visit sites in the order of their steps.

        told: called with each site and what measures it; that returns the mean loss with what is
        clustered for its weight, everything else as it is.
        """
        with self._threads() as threads:
            runs = threads.each(len(self._inputs), self._begun)
            position = 0
            for site in sorted(sites, key=lambda site: site.first):
                steps = self._steps[position : site.first]
                threads.each(len(runs), partial(_advance, runs, steps))
                position = max(position, site.first)

                told(site, partial(self._alone, threads, runs, site))

    def together(self, weights: Sequence[Palettized]) -> float:
        """Return the mean loss with all of some weights replaced."""
        changes = _Changes(self._runner, weights)
        with self._threads() as threads:
            return self._mean(threads, lambda number: changes.finished(self._begun(number), 0))

    def _alone(
        self,
        threads: SampleThreads,
        runs: Sequence[Execution],
        site: Site,
        clustered: Clustered,
    ) -> float:
        """Return the mean loss with one weight replaced; runs: before the step that reads it."""
        changes = _Changes(self._runner, [Palettized(site, clustered)])
        return self._mean(threads, lambda number: changes.finished(runs[number].fork(), site.first))

    def _begun(self, number: int) -> Execution:
        return self._runner.begin(self._inputs[number], number)

    def _threads(self) -> AbstractContextManager[SampleThreads]:
        return sample_threads(len(self._inputs), self._workers, self._runner.program.device)

    def _mean(self, threads: SampleThreads, outputs: Callable[[int], Outputs]) -> float:
        losses = threads.each(
            len(self._originals),
            lambda number: float(self._loss(outputs(number), self._originals[number])),
        )
        # outputs that overflow lose more than any others
        if not all(map(math.isfinite, losses)):
            return math.inf
        # a divergence is below 0 by rounding errors alone
        return max(math.fsum(losses) / len(losses), 0.0)


def _advance(runs: Sequence[Execution], steps: Sequence[Step], number: int) -> None:
    """Take some steps of the run of a sample."""
    for step in steps:
        runs[number].advance(step)


class _Changes:
    """Weights and biases that are replaced in a run."""

    def __init__(self, runner: Runner, weights: Sequence[Palettized]) -> None:
        self._runner = runner
        self._substitutes: dict[Source, Tensor] = {}
        self._replaced: dict[int, Callable[[Any], Any]] = {}
        device = runner.program.device
        for each in weights:
            values = each.clustered.palette.values().astype(np.float32, copy=False)
            tensor = torch.from_numpy(values).to(device)
            for source in each.site.sources:
                self._substitutes[source] = tensor
            bias = each.clustered.bias
            if bias is not None:
                step = self._reader(each.site, bias)
                (slot,) = step.results
                change = torch.from_numpy(bias.change()).to(device)
                self._replaced[slot] = partial(with_change, step, change=change)

    def finished(self, run: Execution, first: int) -> Outputs:
        """Take the steps of a run from a number on."""
        run.substitutes, run.replaced = self._substitutes, self._replaced
        return self._runner.finish(run, first)

    def _reader(self, site: Site, bias: NewBias) -> Step:
        """Return the step that a bias belongs to: that of the site, or one in a block of it."""
        outer = self._runner.program.plan.body.steps[site.first]
        nested = (place.step for body in outer.blocks for place in places_of(body))
        return next(
            step
            for step in (outer, *nested)
            if step.node.name == bias.place.reader.name
            and any(source in site.sources for _, given in step.arguments for source in given)
        )


def _check_finite(outputs: Outputs, number: int) -> None:
    """Refuse outputs that nothing can be compared with.

    Raises
    ------
    RunError
        There are none, or a number in them is infinite or NaN.
    """
    if not outputs:
        raise RunError("the model has no outputs of floats, whose loss could be measured")
    for name, output in outputs.items():
        if not bool(torch.isfinite(output).all()):
            raise RunError(
                f"sample {number}: output {name!r} of the model has infinities or NaNs, and losses "
                "cannot be measured; give samples for which it has none"
            )
