"""Ranks: the processes that torchrun started, and their communication."""

from __future__ import annotations

from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor


@attrs.frozen
class Ranks:
    """The rank of this process in the default group of ``torch.distributed``.

    Every method is collective: all ranks must call it, in the same order.
    """

    rank: int
    size: int

    def largest(self, *numbers: float) -> tuple[float, ...]:
        """Return the largest of each number over the ranks, as float64 holds them."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, on its device; it may be changed in place."""
        device = _device()
        moved = tensor if tensor.is_cuda or device.type == "cpu" else tensor.to(device)
        dist.all_reduce(moved, dist.ReduceOp.SUM)
        return moved.to(tensor.device)

    def shared(self, value: Any, source: int) -> Any:
        """Return what rank ``source`` gives for ``value``; others' values are ignored."""
        box = [value if self.rank == source else None]
        dist.broadcast_object_list(box, src=source, device=_device())
        return box[0]


def current_ranks() -> Ranks | None:
    """Return the ranks of this job, one or more; None outside of ``torch.distributed``."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size())


def _device() -> torch.device:
    """Return the device on which tensors must be for the default group to exchange them."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
