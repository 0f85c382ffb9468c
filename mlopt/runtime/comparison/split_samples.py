"""Samples cut from arrays that hold several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mlopt.errors import InputError
from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.described import Feature
from mlopt.runtime.features.images import ImageFeature


class Taking(Protocol):
    """What takes inputs: a program, a pipeline, or several models after each other."""

    @property
    def inputs(self) -> Mapping[str, Feature]:
        """The inputs by name."""


def split_samples(model: Taking, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Cut samples from arrays that hold all of them.

    An array has the shape of the input, for one sample; or one more axis in front; or, if the
    input's first axis has length 1, several along that, or lacks it. An image is
    [channels, height, width], and a grey one may lack the first axis.
    """
    unknown = [name for name in arrays if name not in model.inputs]
    if unknown:
        raise InputError(
            f"the model has no input {', '.join(map(repr, unknown))}; its inputs are "
            f"{', '.join(map(repr, model.inputs))}"
        )
    parts = {name: _split(model.inputs[name], array) for name, array in arrays.items()}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs hold different numbers of samples: {counts}")
    return [
        {name: part[index] for name, part in parts.items()}
        for index in range(next(iter(counts.values()), 0))
    ]


def _split(feature: Any, array: np.ndarray) -> list[Any]:
    if isinstance(feature, ArrayFeature):
        return _split_array(feature, array)
    if isinstance(feature, ImageFeature):
        return _split_images(feature, array)
    if array.ndim > 1:
        raise InputError(
            f"input {feature.name!r} is one value; give an array of rank 1 with one for each "
            f"sample, got shape {list(array.shape)}"
        )
    return [value.item() for value in np.atleast_1d(array)]


def _split_array(feature: ArrayFeature, array: np.ndarray) -> list[Any]:
    takes_any = feature.shape == () and not feature.allowed and not feature.ranges
    if takes_any or feature.takes(array.shape):
        return [array]
    if array.ndim and feature.takes(array.shape[1:]):
        return list(array)
    if array.ndim and feature.takes((1, *array.shape[1:])):
        return list(array[:, None])
    if feature.takes((1, *array.shape)):
        return [array[None]]
    raise InputError(
        f"input {feature.name!r} has shape {list(array.shape)}; one sample has "
        f"{feature.described_shapes()}, and several one more axis in front"
    )


def _split_images(feature: ImageFeature, array: np.ndarray) -> list[Any]:
    """Images of [1, channels, height, width] each."""
    channels = feature.channels
    size, front = array.shape[-2:], array.shape[:-2]
    if channels == 1 and len(front) < 2:
        front = (*front, 1)
    # one more axis in front of [1, channels, height, width]
    is_several = len(front) == 2 or (len(front) == 3 and front[1] == 1)
    fits = len(size) == 2 and feature.takes(size[1], size[0])
    if not fits or front[-1:] != (channels,) or not (len(front) == 1 or is_several):
        shape = f"[{channels}, height, width]" + " or [height, width]" * (channels == 1)
        raise InputError(
            f"input {feature.name!r} has shape {list(array.shape)}; one image ({feature.space}) "
            f"has {shape}, of {feature.described_sizes()} (width x height), and several one more "
            "axis in front"
        )
    return list(array.reshape(-1, 1, channels, *size))
