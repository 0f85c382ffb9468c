"""CenterNet on ResNet34 ("Objects as Points", Zhou et al. 2019, arXiv 1904.07850), 26 M weights.

The form with a plain ResNet: three 4x4 transposed convolutions bring stride 32 back to stride 4,
then three heads give the heat map of 80 classes, the sizes and the offsets.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill
from benchmarks.models.resnet import resnet34_trunk

WIDTH = 256
HEADS = {"heat": 80, "size": 2, "offset": 2}


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(WIDTH, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, outputs, 1))


class CenterNet(nn.Module):
    """Image [1, 3, h, w] to a heat map, sizes and offsets, all at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [resnet34_trunk()]
        channels = 512
        for _ in range(3):
            layers += [
                nn.ConvTranspose2d(channels, WIDTH, 4, 2, padding=1, bias=False),
                nn.BatchNorm2d(WIDTH),
                nn.ReLU(),
            ]
            channels = WIDTH
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: _head(outputs) for name, outputs in HEADS.items()})

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.features(image)
        heat, size, offset = (self.heads[name](features) for name in HEADS)
        return heat.sigmoid(), size, offset


def build(path: Path) -> None:
    """CenterNet-ResNet34 with random weights as an iOS18 fp16 package."""
    image = torch.zeros(1, 3, 512, 512)
    convert(fill(CenterNet(), seed=34), {"image": image}, path, target="iOS18")
