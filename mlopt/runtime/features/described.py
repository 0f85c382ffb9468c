"""Features that a model describes, and conversion of their values to tensors and back.

Values are those that ``MLModel.predict`` takes and returns on a Mac (coremltools 9,
``models/model.py``): arrays for multi-arrays, ``PIL.Image`` for images, numbers and strings for the
rest, and dictionaries of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.errors import InputError, RunError
from mlopt.runtime.features.arrays import ArrayFeature, array_feature
from mlopt.runtime.features.images import ImageFeature, image_feature


@attrs.frozen
class PlainFeature:
    """A number, a string, a dictionary or a sequence: any feature but an array or an image."""

    name: str
    kind: str
    is_optional: bool = False

    def tensor(self, value: Any) -> Any:
        """Return a number as a tensor; a string as it is."""
        if self.kind == "stringType":
            return str(value)
        kinds = {"int64Type": torch.int32, "doubleType": torch.float64}
        dtype = kinds.get(self.kind, torch.float32)
        try:
            return torch.tensor(value, dtype=dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"input {self.name!r} must be a number: {error}") from error

    def default_tensor(self) -> Any:
        """Return the value for an input that is left out."""
        return self.tensor("" if self.kind == "stringType" else 0)


Feature = ArrayFeature | ImageFeature | PlainFeature


def features_of(descriptions: Any, where: str) -> dict[str, Feature]:
    """Return the features of ``FeatureDescription`` messages, by name in order."""
    return {feature.name: feature for feature in _features(descriptions, where)}


def output_value(feature: Feature | None, value: Any) -> Any:
    """Return an output of a program as ``MLModel.predict`` does."""
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


def _features(descriptions: Any, where: str) -> Iterator[Feature]:
    for description in descriptions:
        name, kind = description.name, description.type.WhichOneof("Type")
        is_optional = bool(description.type.isOptional)
        if kind == "multiArrayType":
            yield array_feature(name, description.type.multiArrayType, is_optional, where)
        elif kind == "imageType":
            yield image_feature(name, description.type.imageType, is_optional, where)
        else:
            yield PlainFeature(name, kind or "", is_optional)
