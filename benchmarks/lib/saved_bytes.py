"""What a forward pass keeps in memory for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def saved_bytes(forward: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """Bytes of the storages that ``forward`` saves for its backward pass, each storage once.

    Those of the module's own parameters do not count, as they are there anyway. ``forward`` returns
    a scalar, whose backward pass is run, so that gradients are added to those there are.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    # held until the backward pass is over, as another might get the same address otherwise
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    result.backward()
    return sum(storage.nbytes() for storage in storages.values())
