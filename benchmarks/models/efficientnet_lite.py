"""EfficientNet-lite0, trained on ImageNet, 4.6 M weights: a small CNN of depthwise convolutions.

Where the network and its weights come from: ``efficientnet_weights.py``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.models.convert import convert
from benchmarks.models.efficientnet_weights import weights_file

SIZE = 224


def build(path: Path) -> None:
    """Convert in fp16 for iOS18: images [1, 3, SIZE, SIZE] of mean 0 and deviation 1 to logits."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights_file(), weights_only=True))
    convert(network, {"image": torch.zeros(1, 3, SIZE, SIZE)}, path, target="iOS18")
