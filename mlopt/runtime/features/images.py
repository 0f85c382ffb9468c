"""Features that are images."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError, ModelFormatError, RunError
from mlopt.mil.messages import FeatureTypes_pb2
from mlopt.runtime.features.lengths import Lengths, check_lengths, lengths_of
from mlopt.runtime.number_arrays import array_of_numbers

_SPACES = {
    FeatureTypes_pb2.ImageFeatureType.GRAYSCALE: "grayscale",
    FeatureTypes_pb2.ImageFeatureType.RGB: "RGB",
    FeatureTypes_pb2.ImageFeatureType.BGR: "BGR",
    FeatureTypes_pb2.ImageFeatureType.GRAYSCALE_FLOAT16: "grayscale_float16",
}


@attrs.frozen
class ImageFeature:
    """An image: its colour space, and the sizes (width, height) that it may have."""

    name: str
    space: str
    width: int
    height: int
    allowed: tuple[tuple[int, int], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    is_optional: bool = False

    @property
    def channels(self) -> int:
        """3 for colours, else 1."""
        return 3 if self.space in ("RGB", "BGR") else 1

    def tensor(self, value: Any) -> Tensor:
        """Return an image as float32[1, channels, height, width] from 0 to 255.

        value: a ``PIL.Image``; or an array of numbers from 0 to 255 in the layout of the tensor,
        with or without its first axis.
        """
        if hasattr(value, "convert") and hasattr(value, "size"):
            pixels = self._pixels(value)
        else:
            pixels = self._from_array(value)
        height, width = pixels.shape[2:]
        if not self.takes(width, height):
            raise InputError(
                f"input {self.name!r} is an image of {width} x {height} (width x height); the "
                f"model takes {self.described_sizes()}. Resize it"
            )
        return torch.from_numpy(np.ascontiguousarray(pixels))

    def takes(self, width: int, height: int) -> bool:
        """Return whether an image of a size can be the input."""
        if self.allowed:
            return (width, height) in self.allowed
        if self.ranges:
            return width in self.ranges[0] and height in self.ranges[1]
        return (width, height) == (self.width, self.height)

    def described_sizes(self) -> str:
        """Return the sizes that it takes, for a message."""
        if self.allowed:
            return "one of " + ", ".join(f"{w} x {h}" for w, h in self.allowed)
        if self.ranges:
            return f"{self.ranges[0]} x {self.ranges[1]}"
        return f"{self.width} x {self.height}"

    def default_tensor(self) -> Tensor:
        """Return a black image, for an input that is left out."""
        return torch.zeros(1, self.channels, self.height, self.width)

    def image(self, value: Tensor) -> Any:
        """Return an output, [1, channels, height, width] from 0 to 255, as a ``PIL.Image``.

        It has the mode that coremltools gives: ``"RGBA"``, opaque, for colours; ``"L"`` or ``"F"``.
        """
        shape = (1, self.channels, *value.shape[2:])
        if value.dim() != 4 or tuple(value.shape) != shape:
            raise RunError(
                f"output {self.name!r} is described as an image ({self.space}), [1, {shape[1]}, "
                f"height, width]; the program gave shape {list(value.shape)}"
            )
        image = self.picture(value.detach().float().cpu().numpy()[0])
        if image.mode == "RGB":
            image.putalpha(255)
        return image

    def picture(self, planes: np.ndarray) -> Any:
        """Return a ``PIL.Image`` in the mode ``"RGB"``, ``"L"`` or ``"F"``.

        planes: float32[channels, height, width] from 0 to 255, in the order of the space.
        """
        from PIL import Image

        if self.space == "grayscale_float16":
            return Image.fromarray(planes[0])
        pixels = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
        if self.space == "grayscale":
            return Image.fromarray(pixels[0])
        if self.space == "BGR":
            pixels = pixels[::-1]
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

    def _pixels(self, image: Any) -> np.ndarray:
        is_wide = image.mode == "F" or image.mode.startswith("I")
        if is_wide and self.space != "grayscale_float16":
            raise InputError(
                f"input {self.name!r} is an image ({self.space}) of 8 bits per channel, got a "
                f"PIL.Image of mode {image.mode!r}; scale it to 0 to 255 and convert it"
            )
        if self.space in ("RGB", "BGR"):
            pixels = np.moveaxis(np.asarray(image.convert("RGB"), np.float32), -1, 0)
            pixels = pixels[::-1] if self.space == "BGR" else pixels
        elif self.space == "grayscale_float16":
            # it becomes an image of float16 on its way into Core ML
            with np.errstate(over="ignore"):
                halves = np.asarray(image.convert("F")).astype(np.float16)
            pixels = halves.astype(np.float32)[None]
        else:
            pixels = np.asarray(image.convert("L"), np.float32)[None]
        return pixels[None]

    def _from_array(self, value: Any) -> np.ndarray:
        what = f"input {self.name!r} (a PIL.Image, or pixels from 0 to 255)"
        array = array_of_numbers(value, what)
        channels = self.channels
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.shape[:2] != (1, channels):
            raise InputError(
                f"input {self.name!r} is an image ({self.space}): give a PIL.Image, or an array "
                f"[1, {channels}, height, width] of numbers from 0 to 255; got "
                f"{type(value).__name__} of shape {list(array.shape)}"
            )
        return array.astype(np.float32)


def image_feature(name: str, message: Any, is_optional: bool, where: str) -> ImageFeature:
    """Return the feature that an ``ImageFeatureType`` message describes."""
    if message.colorSpace not in _SPACES:
        raise ModelFormatError(
            f"{where}: feature {name!r} has the unknown colour space {message.colorSpace}"
        )
    kind = message.WhichOneof("SizeFlexibility")
    allowed: tuple[tuple[int, int], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    if kind == "enumeratedSizes":
        allowed = tuple((size.width, size.height) for size in message.enumeratedSizes.sizes)
        for size in allowed:
            check_lengths(size, name, where)
    elif kind == "imageSizeRange":
        limits = message.imageSizeRange
        ranges = (lengths_of(limits.widthRange), lengths_of(limits.heightRange))
    check_lengths((message.width, message.height), name, where)
    return ImageFeature(
        name,
        _SPACES[message.colorSpace],
        message.width,
        message.height,
        allowed,
        ranges,
        is_optional,
    )
