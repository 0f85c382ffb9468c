"""Core ML's own ``nonMaximumSuppression`` model: the last part of many detectors.

Exporters of detectors put it behind the network in a pipeline. What it computes is described in the
comments of ``NonMaximumSuppression.proto`` of coremltools (``mlmodel/format``), and what Core ML
refuses in ``NonMaximumSuppressionValidator.cpp`` (``mlmodel/src/Validation``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError, ModelFormatError
from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.checks import check_names
from mlopt.runtime.features.described import Feature, PlainFeature, features_of
from mlopt.runtime.ops.suppression import not_suppressed
from mlopt.runtime.sizes import check_elements


@attrs.frozen
class _Names:
    """Names of inputs and outputs in the message; "" for a threshold that is not an input."""

    scores: str
    boxes: str
    iou_threshold: str
    score_threshold: str
    kept_scores: str
    kept_boxes: str


class Suppression:
    """The boxes of a detector of which none overlaps a better one too much.

    Inputs are scores [n, classes] and boxes [n, 4]: middle (x, y), width and height. Outputs are
    the rows that are kept of both. After the comments of the message:

    1. Boxes "that fall below the confidence threshold are discarded"; those at it stay.
    2. The others are taken "by descending order of confidence". With each one that is kept go all
       later ones "within a fixed IOU radius". At a threshold of 1 nothing is suppressed, so a box
       goes where its intersection is more than ``iouThreshold`` of the union. (The comment at
       ``iouThreshold`` itself has it the other way round, and contradicts that.)
    3. With ``perClass`` boxes only suppress those "with the same label (argmax of the confidence)".
    4. An output with a fixed number of rows, or a least one, is "padded with zeros for both"; of
       more rows than allowed the first ones are given. Either output may say so, or both.
    5. A threshold that is given as an input stands for that of the message.

    Left open there, and decided here: the confidence of a box is its greatest score, and its class
    the first that has it; boxes of equal confidence keep their order; a box whose scores are NaN is
    below nothing, and comes first, to be seen; a message that names no method means the only one,
    not by class; a threshold may be left out even where its input is not described as optional, and
    be given where the pipeline alone describes it, as some exporters write it.

    Attributes
    ----------
    inputs, outputs
        The features by name.
    class_labels
        The names or numbers of the classes, in the order of the scores; None if there are none.
    """

    def __init__(self, model: Any, where: str) -> None:
        message = model.nonMaximumSuppression
        self._names = _Names(
            message.confidenceInputFeatureName,
            message.coordinatesInputFeatureName,
            message.iouThresholdInputFeatureName,
            message.confidenceThresholdInputFeatureName,
            message.confidenceOutputFeatureName,
            message.coordinatesOutputFeatureName,
        )
        self._iou_threshold = float(message.iouThreshold)
        self._score_threshold = float(message.confidenceThreshold)
        self._per_class = bool(message.pickTop.perClass)
        self.class_labels = _class_labels(message)
        described = features_of(model.description.input, where)
        self.inputs: dict[str, Feature] = _with_thresholds(described, self.optional)
        self.outputs: dict[str, Feature] = features_of(model.description.output, where)
        self._check(where)
        self._least, self._most = _row_limits(self.outputs.values(), where)

    @property
    def optional(self) -> tuple[str, ...]:
        """The names of the thresholds that are inputs."""
        return tuple(filter(None, (self._names.iou_threshold, self._names.score_threshold)))

    @property
    def kept_scores(self) -> str:
        """The name of the output of scores."""
        return self._names.kept_scores

    @property
    def kept_boxes(self) -> str:
        """The name of the output of boxes."""
        return self._names.kept_boxes

    def predict(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows that are kept, best first: arrays by name, in the described dtypes.

        Raises
        ------
        InputError
            Inputs are missing, unknown or of wrong shapes, or a threshold is out of range.
        """
        check_names(data, self.inputs, "input")
        names = self._names
        scores = self._matrix(names.scores, data)
        boxes = self._matrix(names.boxes, data)
        if len(scores) != len(boxes) or boxes.shape[1] != 4 or not scores.shape[1]:
            raise InputError(
                f"inputs {names.scores!r} and {names.boxes!r} must be scores [n, classes] and "
                f"boxes [n, 4], got shapes {list(scores.shape)} and {list(boxes.shape)}"
            )
        iou_threshold = self._threshold(names.iou_threshold, self._iou_threshold, data, most=1.0)
        score_threshold = self._threshold(
            names.score_threshold, self._score_threshold, data, most=math.inf
        )
        rows = self._rows(scores, boxes, iou_threshold, score_threshold)
        kept = {names.kept_scores: scores[rows], names.kept_boxes: boxes[rows]}
        return {
            name: self._described(feature, kept[name]) for name, feature in self.outputs.items()
        }

    def _rows(
        self, scores: Tensor, boxes: Tensor, iou_threshold: float, score_threshold: float
    ) -> Tensor:
        """Return the numbers of the boxes that are kept, int64[kept]."""
        best, classes = scores.max(dim=1)
        order = torch.argsort(best, descending=True, stable=True)
        order = order[~(best[order] < score_threshold)]
        most = len(order) if self._most is None else min(self._most, len(order))
        ordered_classes = classes[order] if self._per_class else None
        return order[not_suppressed(boxes[order], ordered_classes, iou_threshold, most)]

    def _matrix(self, name: str, data: Mapping[str, Any]) -> Tensor:
        """Return an input as float64, where products of float32 or float16 stay in range."""
        tensor: Tensor = self.inputs[name].tensor(data[name]).double()
        if tensor.dim() != 2:
            raise InputError(
                f"input {name!r} must be a matrix with a row for each box, got shape "
                f"{list(tensor.shape)}"
            )
        return tensor

    def _threshold(self, name: str, own: float, data: Mapping[str, Any], *, most: float) -> float:
        if not name or name not in data:
            return own
        value = float(self.inputs[name].tensor(data[name]))
        if not 0 <= value <= most:
            allowed = "at least 0" if most == math.inf else f"from 0 to {most:g}"
            raise InputError(f"input {name!r} must be a number {allowed}, got {value:g}")
        return value

    def _described(self, feature: Feature, kept: Tensor) -> np.ndarray:
        assert isinstance(feature, ArrayFeature)
        lacking = self._least - len(kept)
        if lacking > 0:
            kept = torch.cat([kept, kept.new_zeros((lacking, kept.shape[1]))])
        return feature.array(kept)

    def _check(self, where: str) -> None:
        """Refuse what Core ML refuses."""
        names = self._names
        problems = []
        for what, own, features in (
            ("confidenceInputFeatureName", names.scores, self.inputs),
            ("coordinatesInputFeatureName", names.boxes, self.inputs),
            ("confidenceOutputFeatureName", names.kept_scores, self.outputs),
            ("coordinatesOutputFeatureName", names.kept_boxes, self.outputs),
        ):
            if not isinstance(features.get(own), ArrayFeature):
                problems.append(f"{what} is {own!r}, which it does not describe as an array")
        used = {*self.optional, names.scores, names.boxes, names.kept_scores, names.kept_boxes}
        for name in (*self.inputs, *self.outputs):
            if name not in used:
                problems.append(f"it describes {name!r}, which is not an input or output of it")
        if not 0 <= self._iou_threshold <= 1:
            problems.append(f"iouThreshold must be from 0 to 1, got {self._iou_threshold:g}")
        if not self._score_threshold >= 0:
            problems.append(
                f"confidenceThreshold must be at least 0, got {self._score_threshold:g}"
            )
        if problems:
            raise ModelFormatError(
                f"{where}: the nonMaximumSuppression model cannot be run:\n"
                + "\n".join(f"- {problem}" for problem in problems)
            )


def _class_labels(message: Any) -> tuple[str, ...] | tuple[int, ...] | None:
    kind = message.WhichOneof("ClassLabels")
    return None if kind is None else tuple(getattr(message, kind).vector)


def _with_thresholds(
    described: Mapping[str, Feature], thresholds: tuple[str, ...]
) -> dict[str, Feature]:
    """Return the features, including the optional thresholds."""
    features = dict(described)
    for name in thresholds:
        features[name] = PlainFeature(name, "doubleType", is_optional=True)
    return features


def _row_limits(outputs: Any, where: str) -> tuple[int, int | None]:
    """Return the least and the largest number of rows of the outputs; None for no limit."""
    least, most = 0, None
    for feature in outputs:
        if feature.ranges:
            low, high = feature.ranges[0].least, feature.ranges[0].most
        elif feature.shape and not feature.allowed:
            low = high = feature.shape[0]
        else:
            continue
        least = max(least, low)
        most = high if most is None else most if high is None else min(most, high)
    if most is not None and most < least:
        raise ModelFormatError(
            f"{where}: the outputs of the nonMaximumSuppression model are described with numbers "
            f"of rows that exclude each other: at least {least}, and at most {most}"
        )
    try:
        check_elements(least * 4)
    except ValueError as error:
        raise ModelFormatError(f"{where}: the rows of outputs: {error}") from None
    return least, most
