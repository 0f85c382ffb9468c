"""Scratch memory in which weights are widened, step after step.

A fresh tensor for each weight costs as much in page faults as the conversion does; these are taken
once in a run, for the largest weights that a step has.
"""

from __future__ import annotations

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
    _taken: int = 0

    def converted(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of a tensor in another dtype, on the CPU."""
        if self._memory is None:
            self._memory = torch.empty(self.size, dtype=torch.uint8)
        end = self._taken + value.numel() * dtype.itemsize
        converted = self._memory[self._taken : end].view(dtype).reshape(value.shape)
        self._taken = aligned(end)
        return converted.copy_(value)

    def release(self) -> None:
        """Declare all tensors that were given out unused."""
        self._taken = 0


def aligned(size: int) -> int:
    """Return bytes rounded up to where the next tensor may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
