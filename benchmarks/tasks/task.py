"""What a job on a torch module starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Loss = Callable[[nn.Module, Any], torch.Tensor]
"""Of a module and a sample: a scalar with a gradient."""


@dataclass(frozen=True)
class Task:
    """``module``: float32, in evaluation mode. Its use: what ``convert`` traces, or calibration.

    ``inputs``: input name -> example. ``samples`` and ``loss`` are what sensitivities come from.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    samples: tuple[Any, ...] = ()
    loss: Loss | None = None


def matrices(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and weight of every layer of a kind that both tools palettize."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding, nn.Conv2d)):
            yield f"{name}.weight", layer.weight.detach()
