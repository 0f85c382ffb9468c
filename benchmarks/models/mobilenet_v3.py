"""MobileNetV3-small (Howard et al. 2019, arXiv 1905.02244), 2.5 M weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill

# kernel, expanded width, output channels, squeeze-and-excite, hard swish, stride (table 2)
_BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def _round_to_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least nine tenths of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _round_to_8(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class Block(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project; residual where the shapes agree."""

    def __init__(
        self, inputs: int, kernel: int, width: int, outputs: int, se: bool, hs: bool, stride: int
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hs else nn.ReLU
        expand = [*_conv(inputs, width), activation()] if width != inputs else []
        depthwise = [*_conv(width, width, kernel, stride, groups=width), activation()]
        excite = [SqueezeExcite(width)] if se else []
        self.body = nn.Sequential(*expand, *depthwise, *excite, *_conv(width, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v3_small() -> nn.Sequential:
    """The classifier of 1000 classes."""
    layers = [*_conv(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for kernel, width, outputs, se, hs, stride in _BLOCKS:
        layers.append(Block(channels, kernel, width, outputs, se, hs, stride))
        channels = outputs
    layers += [*_conv(channels, 576), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000))


def build(path: Path) -> None:
    """MobileNetV3-small with random weights as an iOS18 fp16 package."""
    image = torch.zeros(1, 3, 224, 224)
    convert(fill(mobilenet_v3_small(), seed=3), {"image": image}, path, target="iOS18")
