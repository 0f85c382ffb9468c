"""The steps: gradients of the loss on some samples, and the best state on those held out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.calibration.answers.losses import Loss, SquaredError
from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.tuning.pairing import check_outputs
from mlopt.calibration.tuning.result import HeldOut
from mlopt.calibration.tuning.store import Store
from mlopt.calibration.tuning.substitutes import Leaves, Substitutes
from mlopt.errors import ConfigError, RunError
from mlopt.statistics.guidance import decibels

_SHARE = 0.006
"""The first step, relative to the root of the relative squared error of the outputs."""
_EVALUATIONS = 8
"""How often the samples held out are run, beside before the first step."""


class _NotFiniteError(Exception):
    """A loss is NaN or infinite; the message says of which sample."""


@attrs.frozen(kw_only=True)
class Schedule:
    """How to go down: steps, their length relative to the size of a parameter, samples of each.

    learning_rate: of the first step; None: a share of the error that there is, see
    :meth:`first_rate`.
    """

    steps: int
    learning_rate: float | None
    batch: int
    seed: int

    def first_rate(self, snr_db: float) -> float:
        """Return the length of the first step, for outputs with that signal-to-noise ratio.

        Tables that are nearly right would be thrown off by steps that coarse ones need: what a step
        adds to the error has to be small beside it.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return _SHARE * 10 ** (-max(snr_db, 0.0) / 20)

    def share(self, number: int) -> float:
        """Return the length of a step, counted from 1, by that of the first: half a cosine."""
        return (1 + math.cos(math.pi * (number - 1) / self.steps)) / 2

    def is_evaluated(self, number: int) -> bool:
        """Whether the samples held out are run after a step."""
        every = max(1, math.ceil(self.steps / _EVALUATIONS))
        return number % every == 0 or number == self.steps

    def batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Yield the samples of each step: all of them in a random order, and again."""
        rng = np.random.default_rng(self.seed)
        pending: list[int] = []
        size = min(self.batch, len(numbers))
        for _ in range(self.steps):
            while len(pending) < size:
                pending += rng.permutation(numbers).tolist()
            yield pending[:size]
            del pending[:size]


@attrs.define(kw_only=True)
class Descent:
    """The outcome, whose parameters are left in their best state."""

    before: HeldOut
    after: HeldOut
    learning_rate: float
    steps: int = 0
    best_step: int = 0
    problem: str = ""


@attrs.frozen(eq=False, kw_only=True)
class Tuning:
    """What is needed to compute the loss of a sample."""

    runner: Runner
    substitutes: Substitutes
    store: Store
    loss: Loss
    squares: SquaredError

    def loss_of(self, number: int, leaves: Leaves) -> tuple[Tensor, float]:
        """Return the loss of a sample, and the relative squared error of its outputs."""
        inputs, originals = self.store.sample(number)
        outputs = self.runner.outputs(inputs, number, leaves)
        check_outputs(outputs, originals)
        with torch.no_grad():
            errors = self.squares.of_each(outputs, originals)
            error = math.fsum(float(each) for each in errors.values()) / len(errors)
        return self.loss(outputs, originals), error

    def held_out(self, numbers: Sequence[int]) -> HeldOut:
        """Run the samples held out.

        Raises
        ------
        _NotFiniteError
            The loss of one is NaN or infinite.
        """
        losses, errors = [], []
        with torch.inference_mode(False), torch.no_grad():
            leaves = self.substitutes.leaves(with_gradients=False)
            for number in numbers:
                loss, error = self.loss_of(number, leaves)
                losses.append(loss.item())
                errors.append(error)
                if not math.isfinite(losses[-1]):
                    raise _NotFiniteError(f"the loss of sample {number} is {losses[-1]}")
        return HeldOut(
            loss=math.fsum(losses) / len(losses),
            snr_db=decibels(1.0, math.fsum(errors) / len(errors)),
        )

    def step(self, batch: Sequence[int], number: int, rate: float) -> str:
        """Take a step; return why not if it cannot be taken, "" if it was."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self.substitutes.leaves(with_gradients=True)
            for sample in batch:
                loss, _ = self.loss_of(sample, leaves)
                if not math.isfinite(loss.item()):
                    return f"the loss of sample {sample} was {loss.item()}"
                if not loss.requires_grad:
                    continue
                try:
                    (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
                except RuntimeError as error:
                    raise RunError(
                        f"the gradient of the loss cannot be computed: {error}"
                    ) from error
            gradients = [*self.substitutes.gradients(leaves)]
        for parameter, gradient in gradients:
            if not bool(torch.isfinite(gradient).all()):
                return f"the gradient of {parameter.tunable.name!r} has NaN or infinite elements"
        for parameter, gradient in gradients:
            parameter.step(gradient, number, rate)
        return ""


def descend(
    tuning: Tuning,
    schedule: Schedule,
    *,
    trained: Sequence[int],
    held_out: Sequence[int],
    progress: Callable[[int, int], None],
) -> Descent:
    """Take the steps, and leave the parameters as they were best on the samples held out.

    Raises
    ------
    ConfigError
        The loss is NaN or infinite before the first step.
    """
    try:
        start = tuning.held_out(held_out)
    except _NotFiniteError as error:
        raise ConfigError(
            f"{error} before the first step: an output of the compressed model is NaN or infinite, "
            "or the loss is; leave the sample out, or mend the model"
        ) from None
    rate = schedule.first_rate(start.snr_db)
    outcome = Descent(before=start, after=start, learning_rate=rate)
    parameters = tuning.substitutes.parameters.values()
    best = [each.numbers.clone() for each in parameters]
    for number, batch in enumerate(schedule.batches(trained), start=1):
        problem = tuning.step(batch, number, rate * schedule.share(number))
        if problem:
            outcome.problem = f"step {number} was not taken: {problem}"
            break
        outcome.steps = number
        if schedule.is_evaluated(number):
            found = None
            with contextlib.suppress(_NotFiniteError):
                found = tuning.held_out(held_out)
            if found is not None and found.loss < outcome.after.loss:
                outcome.after, outcome.best_step = found, number
                best = [each.numbers.clone() for each in parameters]
        progress(number, schedule.steps)
    for each, numbers in zip(parameters, best, strict=True):
        each.numbers.copy_(numbers)
    return outcome
