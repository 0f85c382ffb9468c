"""Pipelines of an ML program and Core ML's own nonMaximumSuppression model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.models.utils import save_spec
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from tests.runtime.programs import convert

FLOAT32 = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
DOUBLE = FeatureTypes_pb2.ArrayFeatureType.DOUBLE
THRESHOLDS = ("iouThreshold", "confidenceThreshold")


def suppression(
    classes: int,
    *,
    per_class: bool | None = True,
    iou: float = 0.45,
    confidence: float = 0.25,
    labels: list[str] | list[int] | None = None,
    thresholds: bool = True,
    rows: Any = (0, -1),
    dtype: int = FLOAT32,
    described: bool = True,
) -> Any:
    """A model of ``scores`` and ``boxes`` to ``confidence`` and ``coordinates``.

    per_class: None for no method at all; rows: the range of the number of rows of outputs, one
    number for a fixed one, None to say nothing; described: whether the thresholds are.
    """
    model = Model_pb2.Model(specificationVersion=7)
    widths = {"scores": classes, "boxes": 4, "confidence": classes, "coordinates": 4}
    for number, (name, width) in enumerate(widths.items()):
        side = model.description.input if number < 2 else model.description.output
        array = side.add(name=name).type.multiArrayType
        array.dataType = dtype
        if number >= 2 and isinstance(rows, tuple):
            array.shapeRange.sizeRanges.add(lowerBound=rows[0], upperBound=rows[1])
            array.shapeRange.sizeRanges.add(lowerBound=width, upperBound=width)
        elif number >= 2 and rows is not None:
            array.shape.extend([rows, width])
    if thresholds and described:
        for name in THRESHOLDS:
            feature = model.description.input.add(name=name)
            feature.type.doubleType.SetInParent()
            feature.type.isOptional = True
    message = model.nonMaximumSuppression
    message.confidenceInputFeatureName, message.coordinatesInputFeatureName = "scores", "boxes"
    message.confidenceOutputFeatureName = "confidence"
    message.coordinatesOutputFeatureName = "coordinates"
    message.iouThreshold, message.confidenceThreshold = iou, confidence
    if thresholds:
        message.iouThresholdInputFeatureName, message.confidenceThresholdInputFeatureName = (
            THRESHOLDS
        )
    if per_class is not None:
        message.pickTop.perClass = per_class
    if labels and isinstance(labels[0], str):
        message.stringClassLabels.vector.extend(labels)
    elif labels:
        message.int64ClassLabels.vector.extend(labels)
    return model


def network(count: int, classes: int, matrix: np.ndarray) -> Any:
    """A program of ``raw`` [count, features] to ``scores`` and ``boxes``, all from 0 to 1."""

    def build(raw: Any) -> Any:
        found = mb.sigmoid(x=mb.linear(x=raw, weight=matrix, name="head"))
        scores = mb.slice_by_size(x=found, begin=[0, 0], size=[count, classes], name="scores")
        boxes = mb.slice_by_size(x=found, begin=[0, classes], size=[count, 4], name="boxes")
        return scores, boxes

    given = {"raw": np.zeros((count, matrix.shape[1]), np.float32)}
    return convert(build, given, target="iOS16")


def detector(path: Path, *stages: Any, optional: bool = True, names: tuple[str, ...] = ()) -> Path:
    """A package of a pipeline: an ``MLModel`` first, then messages of models.

    Its outputs are those of the last one; ``optional``: whether thresholds are described so.
    """
    first, *others = stages
    spec = first.get_spec()
    whole = Model_pb2.Model(specificationVersion=spec.specificationVersion)
    whole.description.input.extend(spec.description.input)
    for name in THRESHOLDS:
        feature = whole.description.input.add(name=name)
        feature.type.doubleType.SetInParent()
        feature.type.isOptional = optional
    whole.description.output.extend((others or [spec])[-1].description.output)
    whole.pipeline.models.extend([spec, *others])
    whole.pipeline.names.extend(names)
    save_spec(whole, str(path), weights_dir=first.weights_dir)
    return path
