"""The denoising U-Net of latent diffusion (Rombach et al. 2021, arXiv 2112.10752), a small one.

Two resolutions; group norms, SiLU, an embedding of the time, self-attention at the lower
resolution, skips, and upsampling to the nearest. No text.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill
from benchmarks.models.transformer import SelfAttention

SIZE, LATENT = 64, 4
WIDTH, DEEP = 128, 256
"""Channels at the resolution of the latent, and at half of it."""
TIME = 4 * WIDTH
_HEADS, _GROUPS = 4, 32


class ResBlock(nn.Module):
    """Two convolutions, each of what is normalized; the time is added in between."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.conv = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(TIME, outputs)
        self.next_norm, self.next_conv = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, inputs, h, w]; ``time``: [batch, TIME]."""
        h = self.conv(functional.silu(self.norm(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.next_conv(functional.silu(self.next_norm(h)))


class Attention(nn.Module):
    """Self-attention between the places of [batch, channels, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.attention = _norm(channels), SelfAttention(channels, _HEADS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(places).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """A latent [batch, LATENT, SIZE, SIZE] and the time [batch] to the noise in the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        self.first = nn.Conv2d(LATENT, WIDTH, 3, padding=1)
        self.down = ResBlock(WIDTH, WIDTH)
        self.halve = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.down_deep, self.down_attention = ResBlock(WIDTH, DEEP), Attention(DEEP)
        self.middle, self.middle_attention = ResBlock(DEEP, DEEP), Attention(DEEP)
        self.middle_next = ResBlock(DEEP, DEEP)
        self.up_deep, self.up_attention = ResBlock(2 * DEEP, DEEP), Attention(DEEP)
        self.widen = nn.Conv2d(DEEP, WIDTH, 3, padding=1)
        self.up = ResBlock(2 * WIDTH, WIDTH)
        self.last_norm, self.last = _norm(WIDTH), nn.Conv2d(WIDTH, LATENT, 3, padding=1)

    def forward(self, latent: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        embedded = self.time(_waves(time))
        wide = self.down(self.first(latent), embedded)
        deep = self.down_attention(self.down_deep(self.halve(wide), embedded))
        x = self.middle_attention(self.middle(deep, embedded))
        x = self.middle_next(x, embedded)
        x = self.up_attention(self.up_deep(torch.cat([x, deep], dim=1), embedded))
        x = self.widen(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.up(torch.cat([x, wide], dim=1), embedded)
        return self.last(functional.silu(self.last_norm(x)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels)


def _waves(time: torch.Tensor) -> torch.Tensor:
    """[batch] to [batch, WIDTH]: cosines and sines of wave lengths from 2 pi to 20000 pi."""
    half = WIDTH // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / half))
    angles = time[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def unet() -> nn.Module:
    """With random weights."""
    return fill(UNet(), seed=64).eval()


def inputs() -> dict[str, torch.Tensor]:
    """A random latent, at a time of 20 out of 1000.

    The package has the frequencies in float16, which moves the angles of large times: at 500 the
    output is 40 dB off, at 981 33 dB.
    """
    latent = torch.randn(1, LATENT, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return {"latent": latent, "time": torch.tensor([20.0])}


def build(path: Path) -> None:
    """An iOS18 fp16 package."""
    convert(unet(), inputs(), path, target="iOS18")
