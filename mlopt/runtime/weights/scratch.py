"""Scratch memory in which weights are widened and looked up, step after step.

A fresh tensor for each weight costs as much in page faults as the conversion does, or more; these
are taken once in a run, for the largest weights that a step has.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

_ALIGNMENT = 64
"""Bytes, at a multiple of which each tensor begins."""


@attrs.define(eq=False)
class Scratch:
    """Tensors that are valid until :meth:`release`; a run has one of its own.

    size: the bytes that are enough for any step.
    """

    size: int
    _memory: Tensor | None = None
    _views: dict[torch.dtype, Tensor] = attrs.Factory(dict)
    _taken: int = 0

    def converted(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of a tensor in another dtype, on the CPU."""
        return self.empty(value.shape, dtype).copy_(value)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU, of any numbers."""
        if self._memory is None:
            self._memory = torch.empty(aligned(self.size), dtype=torch.uint8)
        if dtype not in self._views:
            self._views[dtype] = self._memory.view(dtype)
        first, count = self._taken // dtype.itemsize, math.prod(shape)
        self._taken = aligned(self._taken + count * dtype.itemsize)
        return self._views[dtype][first : first + count].view(shape)

    def release(self) -> None:
        """Declare all tensors that were given out unused."""
        self._taken = 0


def aligned(size: int) -> int:
    """Return bytes rounded up to where the next tensor may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
