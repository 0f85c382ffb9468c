"""Copying modules that hold more than parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn


def computed_tensors(model: nn.Module) -> dict[int, object]:
    """Copies, by id, of the tensors that modules hold as plain attributes and autograd computed.

    Old-style pruning and weight_norm leave such ones behind, and ``copy.deepcopy`` refuses them;
    it takes these in their places when it is given them as its memo.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
