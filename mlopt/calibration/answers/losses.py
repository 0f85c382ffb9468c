"""Losses: how far the outputs of a compressed model are from those of the original."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.runtime.program import check_loss

Outputs: TypeAlias = "Mapping[str, Tensor]"
"""Outputs of floats by name; of a classifier, the probabilities [..., classes]."""

LossFunction: TypeAlias = "Callable[[Outputs, Outputs], Tensor]"
"""Returns a scalar tensor for the outputs of the compressed model and those of the original."""


class Loss(Protocol):
    """A loss; the original's outputs for all samples are noted before it is computed."""

    def note(self, originals: Outputs) -> None:
        """Note the outputs of the original for one sample."""

    def __call__(self, outputs: Outputs, originals: Outputs) -> Tensor:
        """Return the loss for one sample, a scalar tensor."""


class SquaredError:
    """The mean over outputs of the squared error, relative to the output's mean square."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def note(self, originals: Outputs) -> None:
        """Add to the mean squares."""
        for name, output in originals.items():
            total = float(output.double().square().sum())
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + output.numel()

    def of_each(self, outputs: Outputs, originals: Outputs) -> dict[str, Tensor]:
        """Return the relative squared error of each output."""
        errors = {}
        for name, original in originals.items():
            if original.numel():
                mean_square = self._sums[name] / self._counts[name]
                error = (outputs[name].float() - original.float()).square().mean()
                # an output that is always 0 has no size to compare with
                errors[name] = error / (mean_square or 1.0)
        return errors

    def __call__(self, outputs: Outputs, originals: Outputs) -> Tensor:
        """Return the mean of these."""
        errors = self.of_each(outputs, originals)
        return torch.stack([*errors.values()]).mean()


class Divergence:
    """The Kullback-Leibler divergence of the original's distributions over the last axis.

    In nats, the mean over positions, and over outputs. names: of the outputs that are scores;
    probabilities: those of them that are probabilities already, whose logarithms are taken.
    """

    def __init__(self, names: Collection[str], probabilities: Collection[str]) -> None:
        self._names, self._probabilities = names, probabilities

    def note(self, originals: Outputs) -> None:
        """Check that there are distributions."""
        for name in self._names:
            if originals[name].dim() == 0 or originals[name].shape[-1] < 2:
                raise ConfigError(
                    f"loss 'kl' compares distributions over the last axis, and output {name!r} has "
                    f"shape {list(originals[name].shape)}; use 'squared', or a function of your own"
                )

    def __call__(self, outputs: Outputs, originals: Outputs) -> Tensor:
        """Return the mean divergence."""
        means = []
        for name in self._names:
            p, q = (self._logarithms(name, given[name]) for given in (originals, outputs))
            means.append((p.exp() * (p - q)).sum(-1).mean())
        return torch.stack(means).mean()

    def _logarithms(self, name: str, scores: Tensor) -> Tensor:
        scores = scores.float()
        if name in self._probabilities:
            # below this, probabilities in float16 are 0
            scores = scores.clamp_min(2.0**-24).log()
        return scores.log_softmax(-1)


class OwnLoss:
    """A function of the user, whose result is checked."""

    def __init__(self, function: LossFunction) -> None:
        self._function = function

    def note(self, originals: Outputs) -> None:
        """Nothing is needed."""

    def __call__(self, outputs: Outputs, originals: Outputs) -> Tensor:
        """Return what the function returns."""
        value = self._function(outputs, originals)
        check_loss(value)
        return value.reshape(())
