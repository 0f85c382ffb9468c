"""Pairing of detectors' boxes, whose number depends on the input and on small errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from mlopt.runtime.comparison.rows import DetectionRow
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program
from mlopt.runtime.suppression import Suppression

_LEAST_OVERLAP = 0.5
"""The share of their union that two boxes must have in common to be the same, as in the PASCAL VOC
and COCO challenges (AP50)."""


@attrs.define(eq=False)
class _Counts:
    reference: int = 0
    candidate: int = 0
    paired: int = 0
    overlap: float = 0.0


class Detections:
    """The boxes of two detectors in pairs, counted over samples.

    names: of the outputs of scores [n, classes] and boxes [n, 4] (middle, width and height).
    """

    def __init__(self, names: tuple[tuple[str, str], ...]) -> None:
        self._counts = {pair: _Counts() for pair in names}

    def paired(
        self, wanted: Mapping[str, Any], candidate: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the outputs of both models; of detections only the common rows, in one order.

        Each box of the reference, best first, gets the candidate's box of the same best class that
        overlaps it most, if that is at least half of the union and not taken by another box.
        """
        wanted, candidate = dict(wanted), dict(candidate)
        for names, counts in self._counts.items():
            ours, theirs = (_boxes_of(outputs, names) for outputs in (wanted, candidate))
            pairs = _pairs(*ours, *theirs)
            counts.reference += len(ours[0])
            counts.candidate += len(theirs[0])
            counts.paired += len(pairs)
            counts.overlap += sum(overlap for _, _, overlap in pairs)
            rows, others = [row for row, _, _ in pairs], [row for _, row, _ in pairs]
            wanted |= {name: values[rows] for name, values in zip(names, ours, strict=True)}
            candidate |= {name: values[others] for name, values in zip(names, theirs, strict=True)}
        return wanted, candidate

    def rows(self) -> tuple[DetectionRow, ...]:
        """Return the numbers of boxes for each pair of outputs."""
        return tuple(
            DetectionRow(
                names,
                counts.reference,
                counts.candidate,
                counts.paired,
                counts.overlap / counts.paired if counts.paired else None,
            )
            for names, counts in self._counts.items()
        )


def detections_of(model: Program | Pipeline) -> Detections:
    """Return those of a model's outputs that a non-maximum suppression returns."""
    pairs = {
        (stage.kept_scores, stage.kept_boxes): None
        for stage in _suppressions(model)
        if {stage.kept_scores, stage.kept_boxes} <= model.outputs.keys()
    }
    return Detections(tuple(pairs))


def _suppressions(model: Any) -> Iterator[Suppression]:
    if isinstance(model, Suppression):
        yield model
    elif isinstance(model, Pipeline):
        for stage in model.stages:
            yield from _suppressions(stage)


def _boxes_of(outputs: Mapping[str, Any], names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and boxes without the padding of zero rows."""
    scores, boxes = (np.asarray(outputs[name], np.float64) for name in names)
    is_one = (scores != 0).any(axis=1) | (boxes != 0).any(axis=1)
    return scores[is_one], boxes[is_one]


def _pairs(
    scores: np.ndarray, boxes: np.ndarray, other_scores: np.ndarray, other_boxes: np.ndarray
) -> list[tuple[int, int, float]]:
    """Return (row, row of the others, overlap) of the boxes that are the same."""
    if not len(scores) or not len(other_scores):
        return []
    classes, other_classes = scores.argmax(axis=1), other_scores.argmax(axis=1)
    is_free = np.ones(len(other_scores), bool)
    pairs = []
    for row, box in enumerate(boxes):
        overlaps = np.where(
            is_free & (other_classes == classes[row]), _overlaps(box, other_boxes), 0
        )
        best = int(overlaps.argmax())
        if overlaps[best] >= _LEAST_OVERLAP:
            is_free[best] = False
            pairs.append((row, best, float(overlaps[best])))
    return pairs


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of a box with each of the others, 0 if that is empty."""
    low, high = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    sides = np.minimum(high, box[:2] + box[2:] / 2) - np.maximum(low, box[:2] - box[2:] / 2)
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = others[:, 2:].prod(axis=1) + box[2:].prod() - shared
    shares: np.ndarray = np.zeros(len(others))
    np.divide(shared, union, out=shares, where=union > 0)
    return shares
