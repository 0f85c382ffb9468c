"""Copies of modules that hold more than parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn


def computed_tensors(model: nn.Module) -> dict[int, object]:
    """Copy, by id, the tensors that autograd computed and modules hold as plain attributes.

    Old-style pruning and weight_norm leave such tensors behind, and ``copy.deepcopy`` refuses them;
    it uses these copies instead when it is given them as its memo.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
