"""Handwritten digits: cross entropy on training digits, evaluated on digits held out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from benchmarks.tasks.trial import Trial, mean_loss
from fixtures.digits import accuracy, data, load_trained

SAMPLES = 128
"""Calibration samples of one digit each."""


def cross_entropy(module: nn.Module, sample: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, labels = sample
    return functional.cross_entropy(module(images), labels)


def trial() -> Trial:
    """The network of the fixtures with its trained weights."""
    images, held_out_images, labels, held_out_labels = data()
    net, _ = load_trained()

    def draw(seed: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        return tuple((images[i : i + 1], labels[i : i + 1]) for i in chosen[:SAMPLES].tolist())

    def evaluate(module: nn.Module) -> tuple[float, float]:
        held_out = (held_out_images, held_out_labels)
        return mean_loss(module, [held_out], cross_entropy), accuracy(module, *held_out)

    return Trial(net, cross_entropy, draw, evaluate)
