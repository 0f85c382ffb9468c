"""MobileNetV2 1.0 (Sandler et al. 2018, arXiv 1801.04381), 3.5 M weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill

# expansion, output channels, repeats, stride of the first (table 2 of the paper)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [*_conv(inputs, width), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_conv(width, width, 3, stride, groups=width), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *_conv(width, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Sequential:
    """The classifier of 1000 classes."""
    layers = [*_conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in _STAGES:
        for index in range(repeats):
            first = stride if index == 0 else 1
            layers.append(InvertedResidual(channels, outputs, first, expansion))
            channels = outputs
    layers += [*_conv(channels, 1280), nn.ReLU6()]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, *head)


def build(path: Path) -> None:
    """MobileNetV2 with random weights as an iOS18 fp16 package."""
    image = torch.zeros(1, 3, 224, 224)
    convert(fill(mobilenet_v2(), seed=2), {"image": image}, path, target="iOS18")
