"""The tasks of ``torch_jobs`` by name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.bert import SentenceEncoder
from benchmarks.models.minilm import TOKENS, load_encoder
from benchmarks.models.minilm_weights import model_folder
from benchmarks.models.random_weights import fill
from benchmarks.tasks.task import Task

ROWS = 4  # in a sample of a perceptron


class WithUnusedLayer(nn.Module):
    """A perceptron, and a layer that no input reaches."""

    def __init__(self, used: nn.Module, unused: nn.Module) -> None:
        super().__init__()
        self.used = used
        self.unused = unused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def _perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return fill(nn.Sequential(*layers[:-1]), seed=widths[0]).eval()


def _mean_squared(module: nn.Module, sample: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.mse_loss(module(sample[0]), sample[1])


def _calibrated(module: nn.Module, inputs: int, outputs: int, samples: int) -> Task:
    """Gaussian samples and targets: the gradient is of the size of the weights' effect."""
    random = torch.Generator().manual_seed(samples)

    def gaussian(width: int) -> torch.Tensor:
        return torch.randn(ROWS, width, generator=random)

    drawn = tuple((gaussian(inputs), gaussian(outputs)) for _ in range(samples))
    return Task(module, {"x": drawn[0][0]}, drawn, _mean_squared)


def _unused() -> Task:
    module = WithUnusedLayer(_perceptron(256, 256, 256), _perceptron(256, 256)).eval()
    return _calibrated(module, 256, 256, samples=16)


def _encoder(encoder: nn.Module, tokens: int) -> Task:
    ids = torch.ones(1, tokens, dtype=torch.int32)
    return Task(encoder.eval(), {"input_ids": ids, "attention_mask": ids.clone()})


def _small_encoder() -> nn.Module:
    encoder = SentenceEncoder(vocabulary=512, positions=64, width=64, hidden=128, heads=2, layers=1)
    return fill(encoder, seed=1)


BUILDERS: dict[str, Callable[[], Task]] = {
    "minilm-float32": lambda: _encoder(load_encoder(model_folder()), TOKENS),
    "linears-1024": lambda: _calibrated(_perceptron(1024, 1024, 1024), 1024, 1024, samples=16),
    "unused-layer": _unused,
    "linear-4096x11008": lambda: _calibrated(_perceptron(11008, 4096), 11008, 4096, samples=4),
    "perceptron-1024": lambda: _calibrated(_perceptron(*[1024] * 5), 1024, 1024, samples=1),
    "warmup-encoder": lambda: _encoder(_small_encoder(), 16),
    "warmup-perceptron": lambda: _calibrated(_perceptron(64, 64, 64), 64, 64, samples=2),
}


def task(name: str) -> Task:
    """The task ``name``, built anew, with the same numbers each time."""
    return BUILDERS[name]()
