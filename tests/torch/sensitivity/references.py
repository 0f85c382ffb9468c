"""A small model of many kinds of layers, its samples, and Fisher information by brute force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Embedding tied to the output head, a block used twice, batch norm, and a layer unused."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.block = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))
        self.norm = nn.BatchNorm1d(6)
        self.unused = nn.Linear(3, 2)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        hidden = hidden + self.block(hidden)
        hidden = self.norm(hidden + self.block(hidden))
        scores: Tensor = self.head(hidden)
        return scores


def make_model() -> Small:
    torch.manual_seed(3)
    return Small()


def make_samples(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randint(11, (5,), generator=generator),
            torch.randint(11, (5,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_fn(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    tokens, targets = sample
    return nn.functional.cross_entropy(model(tokens), targets)


def brute_force(model: nn.Module, samples: Iterable[Any], loss: Any = loss_fn) -> dict[str, Tensor]:
    """Return the mean of squared gradients by ``autograd.grad`` of each sample, in float64."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums: dict[str, Tensor] = {}
    count = 0
    for sample in samples:
        gradients = torch.autograd.grad(loss(model, sample), parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                sums[name] = sums.get(name, 0) + dense.double().square()
        count += 1
    return {name: total / count for name, total in sums.items()}
