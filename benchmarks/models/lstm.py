"""A tagger of sequences: two layers of bidirectional LSTM and a linear layer, 2.4 M weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill

STEPS, FEATURES, WIDTH, TAGS = 100, 128, 256, 64


class Tagger(nn.Module):
    """[batch, STEPS, FEATURES] to scores [batch, STEPS, TAGS]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, WIDTH, num_layers=2, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * WIDTH, TAGS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(self.lstm(x)[0])


def tagger() -> nn.Module:
    """With random weights."""
    return fill(Tagger(), seed=9).eval()


def inputs() -> dict[str, torch.Tensor]:
    """A random sequence."""
    return {"x": torch.randn(1, STEPS, FEATURES, generator=torch.Generator().manual_seed(0))}


def build(path: Path) -> None:
    """An iOS18 fp16 package."""
    convert(tagger(), inputs(), path, target="iOS18")
