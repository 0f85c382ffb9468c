"""The encoder of Whisper (Radford et al. 2022, arXiv 2212.04356) in its size "tiny", 8.2 M weights.

Log-mel spectrogram of 30 seconds to 1500 vectors.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill
from benchmarks.models.transformer import Perceptron, SelfAttention

MELS, FRAMES = 80, 3000
WIDTH, HEADS, LAYERS = 384, 6, 4


class Block(nn.Module):
    """Self-attention and a perceptron, each of the normalized input and added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(WIDTH), SelfAttention(WIDTH, HEADS)
        self.perceptron_norm, self.perceptron = nn.LayerNorm(WIDTH), Perceptron(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.perceptron(self.perceptron_norm(x))


class SpeechEncoder(nn.Module):
    """[batch, MELS, FRAMES] to [batch, FRAMES / 2, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.second = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.register_buffer("positions", sinusoids(FRAMES // 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.second(functional.gelu(self.first(mel))))
        return self.norm(self.blocks(x.transpose(1, 2) + self.positions))


def sinusoids(length: int, width: int) -> torch.Tensor:
    """[length, width]: sines, then cosines, of wave lengths from 2 pi to 20000 pi."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def speech_encoder() -> nn.Module:
    """With random weights."""
    return fill(SpeechEncoder(), seed=11).eval()


def inputs() -> dict[str, torch.Tensor]:
    """A random spectrogram."""
    return {"mel": torch.randn(1, MELS, FRAMES, generator=torch.Generator().manual_seed(0))}


def build(path: Path) -> None:
    """An iOS18 fp16 package."""
    convert(speech_encoder(), inputs(), path, target="iOS18")
