"""Gradients at the outputs of the operations that read weights, for one sample.

The gradient g of a random loss of the model's outputs (:mod:`mlopt.calibration.losses`) is
propagated back. The mean of ``g g^T`` is a Gauss-Newton or Fisher matrix: what an error at a
position of an operation costs at the outputs. No labels are needed. A position counts
``s = mean g^2`` over the outputs of a block of the weight (Kim et al., *GuidedQuant*,
arXiv 2505.07004, with one group).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor

from mlopt.calibration.feeds import Feed, Feeds, places_of
from mlopt.calibration.losses import Loss, loss_of
from mlopt.errors import ConfigError, RunError
from mlopt.runtime import Program
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Step


@attrs.define(eq=False)
class Reading:
    """An input that a feed was given: the arguments and results, and what its positions count.

    factors: float32 [blocks, positions] for each part of the inputs; None: no gradient arrived.
    """

    feed: Feed
    step: Step
    arguments: Mapping[str, Any]
    results: tuple[Any, ...]
    factors: list[Tensor] | None = None

    def weigh(self, gradient: Tensor) -> None:
        """Note the gradient at the output of the step."""
        assert self.feed.reader.outputs is not None
        parts = self.feed.reader.outputs(self.arguments, gradient.detach())
        self.factors = [part.float().square().mean(-1) for part in parts]


def readings_of(
    program: Program, sample: Mapping[str, Any], number: int, feeds: Feeds, loss: Loss = "squared"
) -> Iterator[Reading]:
    """Run a sample, and yield what all feeds were given, with the factors of the positions.

    Memory holds what the operations computed for the sample, and the weights as they compute with
    them. number: of the sample, the seed of the loss.

    Raises
    ------
    ConfigError
        No gradient arrived at any weight, or one is NaN or infinite.
    """
    readings: list[Reading] = []
    last: list[Reading] = []

    def observe(
        execution: Execution, step: Step, arguments: Mapping[str, Any], results: tuple[Any, ...]
    ) -> None:
        last.clear()
        for feed in feeds.by_operation.get(id(step.node), ()):
            if feed.reader.outputs is None:
                kept = arguments, results
            else:
                kept = _computed(step, arguments), ()
            last.append(Reading(feed, step, *_detached(kept)))
        readings.extend(last)

    def followed(value: Any) -> Any:
        """Return the result of the step that was observed last, with a gradient to note."""
        noting = [reading for reading in last if reading.feed.reader.outputs is not None]
        if not noting or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        kept = value if value.requires_grad else value.detach().requires_grad_()
        for reading in noting:
            kept.register_hook(reading.weigh)  # type: ignore[no-untyped-call]
        return kept

    places = [p for p in places_of(program.plan.body) if id(p.step.node) in feeds.by_operation]
    try:
        program.backpropagate(
            sample,
            lambda outputs: loss_of(loss, outputs, number),
            {slot: followed for place in places for slot in place.step.results[:1]},
            program.make_state(),
            observer=observe,
            seed=number,
        )
    except RunError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"the gradient of the outputs cannot be computed: {error}; use statistics='hessian'"
        ) from error
    _check(readings, number)
    last.clear()
    readings.reverse()
    while readings:
        yield readings.pop()


def _check(readings: list[Reading], number: int) -> None:
    any_gradient = False
    for reading in readings:
        sums = 0.0 if reading.factors is None else float(sum(f.sum() for f in reading.factors))
        if not math.isfinite(sums):
            raise ConfigError(
                f"sample {number}: the gradient of the outputs at {reading.step.title} has NaN or "
                "infinite elements; leave the sample out, or use statistics='hessian'"
            )
        any_gradient |= sums > 0
        if not sums:
            reading.factors = None
    if not any_gradient:
        raise ConfigError(
            f"sample {number}: the outputs have no gradient at any operation that reads a weight: "
            "they are 0, or are not computed from it by differentiable operations of floats; leave "
            "the sample out, or use statistics='hessian'"
        )


def _computed(step: Step, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not weights alone: these would stay in memory."""
    given = {p.name for p, sources in step.arguments if any(isinstance(s, int) for s in sources)}
    return {name: arguments[name] for name in given}


def _detached(value: Any) -> Any:
    """Return tensors, including those in tuples and dictionaries, without their gradients."""
    if isinstance(value, Mapping):
        return {name: _detached(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_detached, value))
    return value.detach() if isinstance(value, Tensor) else value
