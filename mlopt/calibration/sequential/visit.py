"""``Visit``: the runs of both models at the step that reads a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mlopt.calibration.readers import Reader
from mlopt.calibration.sequential.corrections import Results, with_change
from mlopt.calibration.sequential.factors import Factors
from mlopt.calibration.sequential.lockstep import Lockstep, Pair
from mlopt.calibration.sequential.sites import Site
from mlopt.calibration.sequential.targets import Part
from mlopt.runtime.plan import Step
from mlopt.statistics.guidance import decibels


class Visit:
    """The step that reads a weight: first :meth:`inputs`, then :meth:`leave`, then its results.

    activation: the elementwise operation that alone reads the results, None for another.
    """

    def __init__(self, site: Site, reader: Reader, runs: Lockstep, factors: Factors) -> None:
        assert reader.inputs is not None
        assert reader.outputs is not None
        self.step: Step = runs.steps[site.first]
        self.activation: Callable[[Tensor], Tensor] | None = None
        if site.activation is not None:
            self.activation = partial(_applied, site.activation)
        self._inputs, self._outputs = reader.inputs, reader.outputs
        self._stream, self._runs = site.stream, runs
        self._slot = self.step.results[0]
        self._factors = {
            pair.number: factors[site.first, pair.number]
            for pair in runs.pairs
            if (site.first, pair.number) in factors
        }
        self._scale = _scale(self._factors.values())
        self._wanted: list[Tensor] = []

    def inputs(self) -> Iterator[tuple[int, Iterator[Part]]]:
        """Yield the number of each sample, and the inputs of both models.

        The runs of the float model take the step.
        """
        for pair in self._runs.pairs:
            before = pair.reference.inputs_of(self.step)
            self._runs.take(pair, pair.reference)
            result = pair.reference.value(self._slot)
            self._wanted.append(result)
            yield pair.number, self._parts(pair, before, result)

    def leave(self) -> None:
        """Have the runs of the compressed model take the step, too."""
        for pair in self._runs.pairs:
            self._runs.take(pair, pair.compressed)
        self._runs.position += 1

    def results(self) -> Iterator[Results]:
        """Yield the results of both models; those aimed at make up for the error of the stream."""
        for pair, wanted in zip(self._runs.pairs, self._wanted, strict=True):
            error = self._stream_error(pair, wanted)
            aim = wanted if error is None else wanted.float() + error
            given = pair.compressed.value(self._slot)
            # of operations with biases, parts of results do not depend on arguments
            parts = self._outputs({}, aim), self._outputs({}, given), self._counts(pair)
            for each in zip(*parts, strict=False):
                yield Results(*each)

    def move(self, change: Tensor) -> None:
        """Add the change of a bias, float32 [channels], to the results of the compressed model."""
        for pair in self._runs.pairs:
            result = pair.compressed.value(self._slot)
            pair.compressed.replace(self._slot, with_change(self.step, result, change))

    def ratio(self) -> float:
        """Return the signal-to-noise ratio of the results in dB, the float model's the signal."""
        power = noise = 0.0
        for pair, wanted in zip(self._runs.pairs, self._wanted, strict=True):
            power += float(wanted.double().square().sum())
            noise += float((pair.compressed.value(self._slot).double() - wanted).square().sum())
        return decibels(power, noise)

    def _parts(self, pair: Pair, before: Mapping[str, Any], result: Tensor) -> Iterator[Part]:
        """Yield the inputs of a sample; ``before``, ``result``: of the float model."""
        given = pair.compressed.inputs_of(self.step)
        error = self._stream_error(pair, result)
        errors = repeat(None) if error is None else self._outputs(given, error)
        inputs, wanted = self._inputs(given, ()), self._inputs(before, ())
        for parts in zip(inputs, wanted, errors, self._counts(pair), strict=False):
            yield Part(*parts)

    def _stream_error(self, pair: Pair, result: Tensor) -> Tensor | None:
        """Return the error of the stream that a result is added to; None where there is none."""
        if self._stream is None:
            return None
        wanted: Tensor = pair.reference.value(self._stream)
        given: Tensor = pair.compressed.value(self._stream)
        return wanted.float() - given.float() if wanted.shape == result.shape else None

    def _counts(self, pair: Pair) -> Iterable[Tensor | None]:
        """Return what the positions of a sample count, by part."""
        if pair.number not in self._factors:
            return repeat(None)
        return (part.float() * self._scale for part in self._factors[pair.number])


def _scale(factors: Iterable[list[Tensor]]) -> float:
    """Return what makes the mean of factors 1: they may be tiny."""
    means = [part.double().mean() for parts in factors for part in parts]
    mean = float(torch.stack(means).mean()) if means else 0.0
    return 1.0 / mean if mean else 1.0


def _applied(step: Step, values: Tensor) -> Tensor:
    """Return the results of an elementwise operation for values of any shape, in their dtype."""
    result: Tensor = step.operation.function(x=values, **step.fixed)
    return result
