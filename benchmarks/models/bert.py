"""BERT's encoder with mean pooling, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class BertLayer(nn.Module):
    """Self-attention and a GELU perceptron, each followed by residual and layer norm."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.contracted_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, tokens, width]; ``bias``: [batch, 1, 1, tokens], added to the scores."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        query = self.query(x).reshape(shape).transpose(1, 2)
        key = self.key(x).reshape(shape).transpose(1, 2)
        value = self.value(x).reshape(shape).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        x = self.attended_norm(x + self.attended(mixed))
        return self.contracted_norm(x + self.contract(functional.gelu(self.expand(x))))


class SentenceEncoder(nn.Module):
    """Token ids and mask, [batch, tokens] each, to unit sentence vectors [batch, width]."""

    def __init__(
        self, vocabulary: int, positions: int, width: int, hidden: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, hidden, heads) for _ in range(layers))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = input_ids.shape[1]
        mask = attention_mask.to(self.norm.weight.dtype)
        x = self.words(input_ids) + self.positions.weight[:tokens] + self.segments.weight[0]
        x = self.norm(x)
        bias = (1.0 - mask)[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        pooled = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(pooled, dim=1)
