"""A trained module, the loss that its sensitivities come from, and how good a compressed one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.tasks.task import Loss


@dataclass(frozen=True)
class Trial:
    """``draw(seed)``: calibration samples for ``loss``, never of what is held out.

    ``evaluate(module)``: the mean of the loss over what is held out, and a further measure.
    """

    module: nn.Module
    loss: Loss
    draw: Callable[[int], tuple[Any, ...]]
    evaluate: Callable[[nn.Module], tuple[float, float]]


def mean_loss(module: nn.Module, samples: Sequence[Any], loss: Loss) -> float:
    """The mean over samples of the loss of ``module``, as it is in evaluation."""
    module.eval()
    with torch.no_grad():
        return sum(float(loss(module, sample)) for sample in samples) / len(samples)
