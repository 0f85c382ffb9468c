"""What is trained in ``torch_dkm``: single linear layers, and a small transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.bert import SentenceEncoder
from benchmarks.models.random_weights import fill
from benchmarks.tasks.task import Task

ROWS = 4
"""In the batch of a linear layer: few, so that the layer's own work is small beside DKM's."""
BATCH, TOKENS = 8, 128
VOCABULARY, WIDTH = 8192, 512


def mean_squared(module: nn.Module, sample: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.mse_loss(module(sample[0]), sample[1])


def token_loss(module: nn.Module, sample: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Of token ids [batch, tokens] and wanted vectors [batch, width]."""
    ids, wanted = sample
    return functional.mse_loss(module(ids, torch.ones_like(ids)), wanted)


def _linear(outputs: int, inputs: int) -> Task:
    """A layer as it is inside a network: its input needs a gradient, so its weight is saved.

    In a container, as coremltools does not palettize a model that is a layer itself.
    """
    random = torch.Generator().manual_seed(inputs)
    x = torch.randn(ROWS, inputs, generator=random).requires_grad_()
    target = torch.randn(ROWS, outputs, generator=random)
    module = fill(nn.Sequential(nn.Linear(inputs, outputs)), seed=outputs)
    return Task(module, samples=((x, target),), loss=mean_squared)


def _transformer() -> Task:
    """20.0 M weights in matrices: 4.3 M in embeddings, 15.7 M in five layers."""
    torch.manual_seed(1)
    module = SentenceEncoder(VOCABULARY, TOKENS, WIDTH, hidden=4 * WIDTH, heads=8, layers=5)
    ids = torch.randint(VOCABULARY, (BATCH, TOKENS))
    wanted = functional.normalize(torch.randn(BATCH, WIDTH), dim=1)
    return Task(fill(module, seed=1), samples=((ids, wanted),), loss=token_loss)


BUILDERS: dict[str, Callable[[], Task]] = {
    "linear-1024": partial(_linear, 1024, 1024),
    "weights-1e5": partial(_linear, 250, 400),
    "weights-1e6": partial(_linear, 1000, 1000),
    "weights-1e7": partial(_linear, 2500, 4000),
    "weights-1e8": partial(_linear, 10000, 10000),
    "transformer": _transformer,
    "warmup": partial(_linear, 640, 512),
}


def task(name: str) -> Task:
    """The task ``name``, built anew, with the same numbers each time."""
    return BUILDERS[name]()
