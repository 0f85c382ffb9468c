"""Packed elements, narrower than a byte: a stream of bits, the low ones first."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor
from torch.nn import functional


@attrs.frozen(eq=False, repr=False)
class Packed:
    """A tensor of integers of 1, 2, 3, 4 or 6 bits in its stream.

    data: uint8[ceil(elements * bits / 8)]; shape: of the tensor.
    """

    data: Tensor
    bits: int
    shape: tuple[int, ...]
    is_signed: bool = attrs.field(default=False, kw_only=True)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def unpacked(self) -> Tensor:
        """Return the elements as int8 or uint8 of the shape."""
        return unpacked(self.data, self.bits, self.shape, is_signed=self.is_signed)

    def __repr__(self) -> str:
        return f"{'int' if self.is_signed else 'uint'}{self.bits}{list(self.shape)}"


Indices = Tensor | Packed
"""Indices, a byte or more for each or still in their stream."""


def unpacked(data: Tensor, bits: int, shape: tuple[int, ...], *, is_signed: bool) -> Tensor:
    """Return elements narrower than a byte from their stream, least significant bits first.

    data: uint8[ceil(elements * bits / 8)]; int8 or uint8 of ``shape`` come back.
    """
    count = math.prod(shape)
    words, width = data, 8
    if 8 % bits:
        # elements of 3 and 6 bits straddle bytes, but not three of them
        words, width = words_of_24_bits(data), 24
    shifts = torch.arange(0, width, bits, dtype=words.dtype, device=data.device)
    elements = ((words[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count].to(torch.uint8)
    if is_signed:
        limit = 1 << (bits - 1)
        elements = ((elements ^ limit).to(torch.int16) - limit).to(torch.int8)
    return elements.reshape(shape)


def words_of_24_bits(data: Tensor) -> Tensor:
    """Three bytes of a stream in each int32; what the last word lacks is 0."""
    whole = functional.pad(data, (0, -len(data) % 3)).reshape(-1, 3).int()
    return whole[:, 0] | whole[:, 1] << 8 | whole[:, 2] << 16
