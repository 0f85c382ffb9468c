"""A decoder of the Llama family: rotary positions, grouped keys and values, gated perceptrons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.transformer import in_heads, joined


@dataclass(frozen=True)
class LlamaShape:
    """Sizes; ``key_heads`` is the number of heads of keys and of values."""

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    rotary_base: float
    epsilon: float


class RMSNorm(nn.Module):
    """Division by the root of the mean square, times a weight."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def rotary_tables(tokens: int, size: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [tokens, size] each, the angles of the first half repeated."""
    rates = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), rates).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """[..., tokens, size] turned by its positions; element i pairs with i + size / 2."""
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-high, low], dim=-1) * sine


class Attention(nn.Module):
    """Every token sees itself and those before it."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads, self.key_heads = shape.heads, shape.key_heads
        narrow = shape.width // shape.heads * shape.key_heads
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, narrow, bias=False)
        self.value = nn.Linear(shape.width, narrow, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        query = turned(in_heads(self.query(x), self.heads), *rotary)
        key = turned(in_heads(self.key(x), self.key_heads), *rotary)
        value = in_heads(self.value(x), self.key_heads)
        shared = self.heads // self.key_heads
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5) + mask
        return self.out(joined(scores.softmax(dim=-1) @ value))


class Layer(nn.Module):
    """Attention and a gated perceptron, each behind a norm and added to its input."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.width, shape.epsilon)
        self.attention = Attention(shape)
        self.perceptron_norm = RMSNorm(shape.width, shape.epsilon)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, mask)
        y = self.perceptron_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, vocabulary]; the head is the embedding.

    ``tokens`` is fixed, so that rotary tables and mask are constants.
    """

    def __init__(self, shape: LlamaShape, tokens: int) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.epsilon)
        cosine, sine = rotary_tables(tokens, shape.width // shape.heads, shape.rotary_base)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        later = torch.full((tokens, tokens), -1e4).triu(1)
        self.register_buffer("mask", later, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x, (self.cosine, self.sine), self.mask)
        return functional.linear(self.norm(x), self.words.weight)
