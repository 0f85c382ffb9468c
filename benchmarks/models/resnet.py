"""ResNet (He et al. 2015, arXiv 1512.03385): ResNet50 as classifier, ResNet34 as backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, "same" padding, then batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, width, 3, stride), nn.ReLU(), conv_norm(width, width, 3)
        )
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else conv_norm(inputs, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, strided 3x3, 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.body = nn.Sequential(
            conv_norm(inputs, width, 1),
            nn.ReLU(),
            conv_norm(width, width, 3, stride),
            nn.ReLU(),
            conv_norm(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def trunk(block: type[Basic] | type[Bottleneck], depths: tuple[int, ...]) -> nn.Sequential:
    """Everything before the pooling: stride 32, ``512 * block.expansion`` channels."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for index in range(depth):
            layers.append(block(channels, width, stride=2 if stage and index == 0 else 1))
            channels = width * block.expansion
    return nn.Sequential(*layers)


def resnet34_trunk() -> nn.Sequential:
    """ResNet34 without its head, 21.3 M weights, 512 channels out."""
    return trunk(Basic, (3, 4, 6, 3))


def resnet50() -> nn.Sequential:
    """ResNet50, 25.6 M weights."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
    return nn.Sequential(trunk(Bottleneck, (3, 4, 6, 3)), *head)


def build_resnet50(path: Path) -> None:
    """ResNet50 with random weights as an iOS18 fp16 package."""
    image = torch.zeros(1, 3, 224, 224)
    convert(fill(resnet50(), seed=50), {"image": image}, path, target="iOS18")
