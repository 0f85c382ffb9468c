"""Runs of Core ML models, programs and pipelines of them, by the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mlopt.calibration.feeds import Feeds, feeds_of
from mlopt.calibration.gradients import readings_of
from mlopt.calibration.joined_feeds import joined
from mlopt.calibration.losses import Loss
from mlopt.calibration.readers.reader import Arguments
from mlopt.calibration.runs import Observer
from mlopt.calibration.samples import NoSamplesError, numbered_samples
from mlopt.choices import Statistics
from mlopt.coreml.models import ModelSource
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError, InputError
from mlopt.mil.opening import open_package
from mlopt.runtime import Pipeline, Program, load
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Step

_WANTED = "samples must be dictionaries of inputs by name, as for predict"


class ProgramRun:
    """A function of a Core ML model, or a pipeline, as a calibration runs it; see ``Run``."""

    def __init__(
        self,
        model: ModelSource,
        function: str | None,
        statistics: Statistics,
        device: str | torch.device,
        loss: Loss = "squared",
    ) -> None:
        self.loss = loss
        self.program = load(model, function, device=device)
        self.is_guided = statistics == "guided"
        if self.is_guided and isinstance(self.program, Pipeline):
            raise ConfigError(
                "guided statistics are of one ML program, and this is a pipeline, through which no "
                "gradients go; use statistics='hessian'"
            )
        programs = [self.program] if isinstance(self.program, Program) else self.program.programs
        package = open_package(model)
        weights, nodes_of_programs = weights_of(package)
        feeds = [
            feeds_of(program, [w for w in weights if w.program is stored], nodes, statistics)
            for program, stored, nodes in zip(
                programs, package.programs, nodes_of_programs, strict=True
            )
        ]
        self.feeds: Feeds = feeds[0] if len(feeds) == 1 else joined(feeds)
        self.identity = " ".join(str(program.function) for program in programs)

    def inputs(self, sample: Any, number: int) -> Mapping[Any, Any]:
        """Return the sample, which has to be a dictionary."""
        return checked_sample(sample, number)

    def run(self, inputs: Mapping[Any, Any], number: int, observer: Observer) -> None:
        """Run the model, with new states."""

        def observe(
            execution: Execution, step: Step, arguments: Arguments, results: tuple[Any, ...]
        ) -> None:
            for feed in self.feeds.by_operation.get(id(step.node), ()):
                observer(feed, step.title, arguments, results, None)

        if self.is_guided and isinstance(self.program, Program):
            for reading in readings_of(self.program, inputs, number, self.feeds, self.loss):
                title, given = reading.step.title, (reading.arguments, reading.results)
                observer(reading.feed, title, *given, reading.factors)
            return
        self.program.run(inputs, self.program.make_state(), observer=observe, seed=number)

    def remarks(self) -> tuple[str, ...]:
        """Return none: programs run alike for all samples."""
        return ()


def checked_sample(sample: Any, number: int) -> Mapping[Any, Any]:
    """Return a sample, which has to be a dictionary.

    Raises
    ------
    InputError
        It is something else; the message has its number.
    """
    if not isinstance(sample, Mapping):
        raise InputError(f"{_WANTED}; sample {number} is {type(sample).__name__}")
    return sample


def checked_samples(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return all samples; there has to be one, and each has to be a dictionary.

    Raises
    ------
    InputError
        They are something else.
    """
    numbered, _ = numbered_samples(samples, None)
    chosen = [checked_sample(sample, number) for number, sample in numbered]
    if not chosen:
        raise NoSamplesError
    return chosen


def program_of(
    model: ModelSource, function: str | None, device: str | torch.device, *, job: str
) -> Program:
    """Load a function of a model; ``job``: what wants it, for errors.

    Raises
    ------
    ConfigError
        The model is a pipeline, or has no such function.
    """
    program = load(model, function, device=device)
    if isinstance(program, Pipeline):
        raise ConfigError(
            f"{job} takes models of one ML program, and this is a pipeline; give its models one "
            "by one, each as a package of its own"
        )
    return program
