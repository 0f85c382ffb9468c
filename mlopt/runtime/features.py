"""The inputs and outputs that a model describes, and their values as tensors and back.

What ``MLModel.predict`` takes and gives on a Mac (coremltools 9, ``models/model.py``): arrays for
multi-arrays, ``PIL.Image`` for images, numbers and strings for the rest, and dictionaries of
probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError, ModelFormatError, RunError
from mlopt.mil.messages import FeatureTypes_pb2
from mlopt.runtime.sizes import check_elements

_ARRAYS = {
    FeatureTypes_pb2.ArrayFeatureType.FLOAT16: np.float16,
    FeatureTypes_pb2.ArrayFeatureType.FLOAT32: np.float32,
    FeatureTypes_pb2.ArrayFeatureType.DOUBLE: np.float64,
    FeatureTypes_pb2.ArrayFeatureType.INT32: np.int32,
    FeatureTypes_pb2.ArrayFeatureType.INT8: np.int8,
}
_SPACES = {
    FeatureTypes_pb2.ImageFeatureType.GRAYSCALE: "grayscale",
    FeatureTypes_pb2.ImageFeatureType.RGB: "RGB",
    FeatureTypes_pb2.ImageFeatureType.BGR: "BGR",
    FeatureTypes_pb2.ImageFeatureType.GRAYSCALE_FLOAT16: "grayscale_float16",
}


@attrs.frozen
class Lengths:
    """The lengths that an axis may have: from ``least`` to ``most``, None for no end."""

    least: int
    most: int | None

    def __contains__(self, length: int) -> bool:
        return self.least <= length and (self.most is None or length <= self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.least)
        return f"{self.least}..{'' if self.most is None else self.most}"


@attrs.frozen
class ArrayFeature:
    """A multi-array.

    shape: the default one, () where none is said; allowed: enumerated shapes, empty for no
    enumeration; ranges: lengths of each axis, empty for none; default: what every element has where
    the input is left out, None for no default.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...]
    allowed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    default: float | None = None
    is_optional: bool = False

    def tensor(self, value: Any) -> Tensor:
        """An input as a tensor of the declared dtype; InputError where it does not fit."""
        try:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError) as error:
            raise InputError(f"input {self.name!r} cannot be an array: {error}") from error
        if array.dtype.kind not in "biuf":
            raise InputError(
                f"input {self.name!r} has to be an array of numbers, got dtype {array.dtype}"
            )
        if self.shape == () and not self.allowed and not self.ranges:
            return self._converted(array)  # any shape
        if not self.takes(array.shape):
            raise InputError(
                f"input {self.name!r} has shape {list(array.shape)}; the model takes "
                f"{self.described_shapes()}"
            )
        return self._converted(array)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of a shape can be the input."""
        if self.allowed:
            return shape in self.allowed
        if self.ranges:
            fits = len(shape) == len(self.ranges)
            return fits and all(n in r for n, r in zip(shape, self.ranges, strict=True))
        return shape == self.shape

    def described_shapes(self) -> str:
        """The shapes that it takes, for a message."""
        if self.allowed:
            return "one of " + ", ".join(str(list(shape)) for shape in self.allowed)
        if self.ranges:
            return "[" + ", ".join(map(str, self.ranges)) + "]"
        return str(list(self.shape))

    def default_tensor(self) -> Tensor:
        """What stands for an input that is left out: an array of the default."""
        filled = np.full(self.shape, 0.0 if self.default is None else self.default, self.dtype)
        return torch.from_numpy(filled)

    def array(self, value: Any) -> np.ndarray:
        """An output as ``MLModel.predict`` gives it: an array of the declared dtype.

        Values of float16 come in float32: coremltools' binding widens them
        (``convertArrayValueToPython`` in ``coremlpython/CoreMLPythonUtils.mm``).
        """
        # what float16 cannot hold is infinite in Core ML too; NaN is no integer, whichever comes
        with np.errstate(over="ignore", invalid="ignore"):
            array: np.ndarray = value.detach().cpu().numpy().astype(self.dtype)
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        # Core ML has no arrays of rank 0
        return array.reshape(1) if array.shape == () else array

    def _converted(self, array: np.ndarray) -> Tensor:
        if np.dtype(self.dtype).kind in "iu":
            self._check_whole(array)
        with np.errstate(over="ignore"):
            converted = array.astype(self.dtype)
        return torch.from_numpy(np.ascontiguousarray(converted))

    def _check_whole(self, array: np.ndarray) -> None:
        """Refuse numbers that the declared integers do not have."""
        dtype = np.dtype(self.dtype)
        limits = np.iinfo(dtype)
        problem = ""
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            problem = "with NaN or infinity"
        elif array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            problem = "with fractions"
        elif array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            problem = f"from {array.min()} to {array.max()}"
        if problem:
            raise InputError(
                f"input {self.name!r} has to hold whole numbers ({dtype}, {limits.min} to "
                f"{limits.max}), got {array.dtype} {problem}"
            )


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

    def tensor(self, value: Any) -> Tensor:
        """An image as float32[1, channels, height, width] from 0 to 255.

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
        """Whether an image of a size can be the input."""
        if self.allowed:
            return (width, height) in self.allowed
        if self.ranges:
            return width in self.ranges[0] and height in self.ranges[1]
        return (width, height) == (self.width, self.height)

    def described_sizes(self) -> str:
        """The sizes that it takes, for a message."""
        if self.allowed:
            return "one of " + ", ".join(f"{w} x {h}" for w, h in self.allowed)
        if self.ranges:
            return f"{self.ranges[0]} x {self.ranges[1]}"
        return f"{self.width} x {self.height}"

    def default_tensor(self) -> Tensor:
        """A black image, for an input that is left out."""
        channels = 3 if self.space in ("RGB", "BGR") else 1
        return torch.zeros(1, channels, self.height, self.width)

    def image(self, value: Tensor) -> Any:
        """An output, [1, channels, height, width] from 0 to 255, as a ``PIL.Image``.

        In the mode that coremltools gives: ``"RGBA"``, opaque, for colours; ``"L"`` or ``"F"``.
        """
        from PIL import Image

        shape = (1, 3 if self.space in ("RGB", "BGR") else 1, *value.shape[2:])
        if value.dim() != 4 or tuple(value.shape) != shape:
            raise RunError(
                f"output {self.name!r} is described as an image ({self.space}), [1, {shape[1]}, "
                f"height, width]; the program gave shape {list(value.shape)}"
            )
        array = value.detach().float().cpu().numpy()[0]
        if self.space == "grayscale_float16":
            return Image.fromarray(array[0].astype(np.float32), "F")
        pixels = np.clip(np.rint(array), 0, 255).astype(np.uint8)
        if self.space == "grayscale":
            return Image.fromarray(pixels[0], "L")
        if self.space == "BGR":
            pixels = pixels[::-1]
        opaque = np.full_like(pixels[:1], 255)
        colours = np.moveaxis(np.concatenate([pixels, opaque]), 0, -1)
        return Image.fromarray(np.ascontiguousarray(colours), "RGBA")

    def _pixels(self, image: Any) -> np.ndarray:
        is_wide = image.mode == "F" or image.mode.startswith("I")
        if is_wide and self.space != "grayscale_float16":
            raise InputError(
                f"input {self.name!r} is an image ({self.space}) of 8 bits a channel, got a "
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
        try:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError) as error:
            raise InputError(f"input {self.name!r} cannot be an array: {error}") from error
        channels = 3 if self.space in ("RGB", "BGR") else 1
        if array.dtype.kind in "biuf" and array.ndim == 3:
            array = array[None]
        if array.dtype.kind not in "biuf" or array.ndim != 4 or array.shape[:2] != (1, channels):
            raise InputError(
                f"input {self.name!r} is an image ({self.space}): give a PIL.Image, or an array "
                f"[1, {channels}, height, width] of numbers from 0 to 255; got "
                f"{type(value).__name__} of shape {list(array.shape)}"
            )
        return array.astype(np.float32)


@attrs.frozen
class PlainFeature:
    """A number, a string, a dictionary or a sequence: whatever is no array and no image."""

    name: str
    kind: str
    is_optional: bool = False

    def tensor(self, value: Any) -> Any:
        """A number as a tensor; a string as it is."""
        if self.kind == "stringType":
            return str(value)
        dtype = torch.int32 if self.kind == "int64Type" else torch.float32
        try:
            return torch.tensor(value, dtype=dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"input {self.name!r} has to be a number: {error}") from error

    def default_tensor(self) -> Any:
        """What stands for an input that is left out."""
        return self.tensor("" if self.kind == "stringType" else 0)


Feature = ArrayFeature | ImageFeature | PlainFeature


def features_of(descriptions: Any, where: str) -> dict[str, Feature]:
    """The features of ``FeatureDescription`` messages, by name in their order."""
    return {feature.name: feature for feature in _features(descriptions, where)}


def output_value(feature: Feature | None, value: Any) -> Any:
    """An output of a program as ``MLModel.predict`` gives it."""
    if isinstance(feature, ImageFeature) and isinstance(value, Tensor):
        return feature.image(value)
    if isinstance(feature, ArrayFeature) and isinstance(value, Tensor):
        return feature.array(value)
    if isinstance(value, Tensor):
        array = value.detach().cpu().numpy()
        if not (isinstance(feature, PlainFeature) and feature.kind in ("int64Type", "doubleType")):
            return array
        if array.size != 1:
            raise RunError(
                f"output {feature.name!r} is described as a number; the program gave shape "
                f"{list(array.shape)}"
            )
        return array.item()
    return value


def check_names(given: Mapping[str, Any], features: Mapping[str, Feature], what: str) -> None:
    """Refuse inputs that the model does not describe, and say which it lacks."""
    unknown = [name for name in given if name not in features]
    needed = [n for n, f in features.items() if n not in given and not f.is_optional]
    if unknown or needed:
        lines = [f"it has no {what} {name!r}" for name in unknown]
        lines += [f"its {what} {name!r} is missing" for name in needed]
        raise InputError(
            f"the model does not fit what it was given: {'; '.join(lines)}. Its {what}s are "
            f"{', '.join(map(repr, features)) or 'none'}"
        )


def _features(descriptions: Any, where: str) -> Iterator[Feature]:
    for description in descriptions:
        name, kind = description.name, description.type.WhichOneof("Type")
        is_optional = bool(description.type.isOptional)
        if kind == "multiArrayType":
            yield _array(name, description.type.multiArrayType, is_optional, where)
        elif kind == "imageType":
            yield _image(name, description.type.imageType, is_optional, where)
        else:
            yield PlainFeature(name, kind or "", is_optional)


def _array(name: str, message: Any, is_optional: bool, where: str) -> ArrayFeature:
    if message.dataType not in _ARRAYS:
        raise ModelFormatError(
            f"{where}: feature {name!r} has the unknown data type {message.dataType}"
        )
    kind = message.WhichOneof("ShapeFlexibility")
    allowed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    if kind == "enumeratedShapes":
        allowed = tuple(tuple(s.shape) for s in message.enumeratedShapes.shapes)
    elif kind == "shapeRange":
        ranges = tuple(map(_lengths, message.shapeRange.sizeRanges))
    default = message.WhichOneof("defaultOptionalValue")
    for shape in (tuple(message.shape), *allowed):
        _check_lengths(shape, name, where)
    return ArrayFeature(
        name,
        _ARRAYS[message.dataType],
        tuple(message.shape),
        allowed,
        ranges,
        None if default is None else float(getattr(message, default)),
        is_optional,
    )


def _image(name: str, message: Any, is_optional: bool, where: str) -> ImageFeature:
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
            _check_lengths(size, name, where)
    elif kind == "imageSizeRange":
        limits = message.imageSizeRange
        ranges = (_lengths(limits.widthRange), _lengths(limits.heightRange))
    _check_lengths((message.width, message.height), name, where)
    return ImageFeature(
        name,
        _SPACES[message.colorSpace],
        message.width,
        message.height,
        allowed,
        ranges,
        is_optional,
    )


def _check_lengths(shape: tuple[int, ...], name: str, where: str) -> None:
    try:
        if min(shape, default=0) < 0:
            raise ValueError("lengths are not negative")
        check_elements(math.prod(shape))
    except ValueError as error:
        raise ModelFormatError(
            f"{where}: feature {name!r} is described with shape {list(shape)}: {error}; the model "
            "is damaged"
        ) from None


def _lengths(limits: Any) -> Lengths:
    most = int(limits.upperBound)
    return Lengths(int(limits.lowerBound), None if most < 0 else most)
