"""The parts of transformers with pre-normalization: attention in one call, and a perceptron."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def in_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, tokens, width] to [batch, heads, tokens, width / heads]."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def joined(x: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`in_heads`."""
    batch, heads, tokens, size = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * size)


class SelfAttention(nn.Module):
    """Every token of [batch, tokens, width] sees every other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            in_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value)
        )
        return self.out(joined(functional.scaled_dot_product_attention(query, key, value)))


class Perceptron(nn.Sequential):
    """Four times the width, GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
