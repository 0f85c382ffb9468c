"""Photographs that Python packages carry, in crops: some to calibrate with, others to be asked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Photographs = Literal["calibration", "held-out"]

_FILES = {
    "calibration": (
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
    ),
    "held-out": (
        ("sklearn", "datasets/images/flower.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ),
}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def missing() -> str | None:
    """What has to be installed for the photographs; None where nothing is."""
    for files in _FILES.values():
        for package, _ in files:
            if importlib.util.find_spec(package) is None:
                return f"needs photographs of {package}: pip install scikit-image matplotlib"
    return None


def crops(which: Photographs, count: int, size: int) -> npt.NDArray[np.float32]:
    """Square crops [count, 3, size, size] of mean 0 and deviation 1, as ImageNet's are made.

    Of random place and size (a third of the shorter side, or more), half of them mirrored; the
    photographs take turns.
    """
    rng = np.random.default_rng(0)
    images = [Image.open(_path(*file)).convert("RGB") for file in _FILES[which]]
    made = []
    for index in range(count):
        image = images[index % len(images)]
        side = int(min(image.size) * rng.uniform(1 / 3, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((size, size))
        pixels = np.asarray(crop, np.float32) / 255
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        made.append(((pixels - _MEAN) / _DEVIATION).transpose(2, 0, 1))
    return np.stack(made).astype(np.float32)


def _path(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / file
