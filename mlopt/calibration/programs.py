"""Runs of Core ML models, by the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mlopt.calibration.feeds import Feeds, feeds_of
from mlopt.calibration.gradients import readings_of
from mlopt.calibration.losses import Loss
from mlopt.calibration.readers.reader import Arguments
from mlopt.calibration.runs import Observer
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
    """A function of a Core ML model, as a calibration runs it; see ``Run``."""

    def __init__(
        self,
        model: ModelSource,
        function: str | None,
        statistics: Statistics,
        device: str | torch.device,
        loss: Loss = "squared",
    ) -> None:
        self.loss = loss
        self.program = program_of(model, function, device)
        weights, nodes_of_programs = weights_of(open_package(model))
        self.feeds: Feeds = feeds_of(self.program, weights, nodes_of_programs[0], statistics)
        self.identity = str(self.program.function)
        self.is_guided = statistics == "guided"

    def inputs(self, sample: Any, number: int) -> Mapping[Any, Any]:
        """Return the sample, which has to be a dictionary."""
        return checked_sample(sample, number)

    def run(self, inputs: Mapping[Any, Any], number: int, observer: Observer) -> None:
        """Run the function, with new states."""

        def observe(
            execution: Execution, step: Step, arguments: Arguments, results: tuple[Any, ...]
        ) -> None:
            for feed in self.feeds.by_operation.get(id(step.node), ()):
                observer(feed, step.title, arguments, results, None)

        if self.is_guided:
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


def program_of(model: ModelSource, function: str | None, device: str | torch.device) -> Program:
    """Load a function of a model.

    Raises
    ------
    ConfigError
        The model is a pipeline, or has no such function.
    """
    program = load(model, function, device=device)
    if isinstance(program, Pipeline):
        raise ConfigError(
            "calibrate takes a model of one ML program, and this is a pipeline; calibrate its "
            "models one by one, each as a package of its own"
        )
    return program
