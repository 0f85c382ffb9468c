"""Suppression of overlapping boxes against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime.ops import suppression
from tests.runtime.programs import assert_of_halves, run

RANDOM = np.random.default_rng(0)
BOXES = np.concatenate(
    (RANDOM.uniform(0, 100, (2, 40, 2)), RANDOM.uniform(5, 60, (2, 40, 2))), axis=2
).astype(np.float32)


def random_scores(classes):
    return RANDOM.normal(size=(2, 40, classes)).astype(np.float32)


def overlap(a, b):
    """The intersection of two boxes by their union."""
    sides = []
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        sides.append(max(0.0, high - low))
    shared = sides[0] * sides[1]
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union else 0.0


def selected(boxes, scores, iou, score, most, per_class):
    """Numbers of the boxes of one image."""
    boxes, best = boxes.astype(float), scores.max(axis=1)
    order = sorted(range(len(boxes)), key=lambda number: -best[number])
    candidates = [number for number in order if best[number] >= score] or order[:1]
    kept = []
    for number in candidates:
        rivals = [
            other
            for other in kept
            if not per_class or scores[other].argmax() == scores[number].argmax()
        ]
        if all(overlap(boxes[number], boxes[other]) <= iou for other in rivals):
            kept.append(number)
    return kept[:most]


def wanted(boxes, scores, iou, score, most, per_class):
    count = len(boxes)
    found_boxes = np.zeros((count, most, 4))
    found_scores = np.zeros((count, most, scores.shape[2]))
    indices = np.full((count, most), -1)
    numbers = np.zeros(count)
    for image in range(count):
        kept = selected(boxes[image], scores[image], iou, score, most, per_class)
        found_boxes[image, : len(kept)] = boxes[image][kept]
        found_scores[image, : len(kept)] = scores[image][kept]
        indices[image, : len(kept)] = kept
        numbers[image] = len(kept)
    return found_boxes, found_scores, indices, numbers


def check(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# beyond the best and the worst score, and between
@pytest.mark.parametrize("score", [-100.0, 0.4, 100.0])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("per_class", [False, True, None])
def test_rows(score, classes, per_class):
    scores = random_scores(classes)
    given = {} if per_class is None else {"per_class_suppression": per_class}
    cases = [(0.0, 60), (0.1, 10), (0.5, 25), (1.0, 40)]

    def build(boxes, scores):
        results = []
        for iou, most in cases:
            results += mb.non_maximum_suppression(
                boxes=boxes,
                scores=scores,
                iou_threshold=np.float32(iou),
                score_threshold=np.float32(score),
                max_boxes=most,
                **given,
            )
        return results

    found = run(build, {"boxes": BOXES, "scores": scores})
    for number, (iou, most) in enumerate(cases):
        expected = wanted(BOXES, scores, np.float32(iou), score, most, bool(per_class))
        check(found[4 * number : 4 * number + 4], expected)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("per_class", [False, True, None])
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_columns(classes, per_class, target):
    scores = random_scores(classes)
    given = {} if per_class is None else {"per_class_suppression": per_class}

    def build(boxes, scores):
        return mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=np.float32(0.2), max_boxes=30, **given
        )

    inputs = {"boxes": BOXES.transpose(0, 2, 1), "scores": scores.transpose(0, 2, 1)}
    found = run(build, inputs, target=target)
    boxes, rated, indices, _ = wanted(BOXES, scores, 0.2, -np.inf, 30, bool(per_class))
    check(found, (boxes.transpose(0, 2, 1), rated.transpose(0, 2, 1), indices))


def test_a_case_by_hand():
    # the second and the third overlap the first by 1/2 and by 1/3, the fourth is elsewhere
    boxes = torch.tensor([[[1.0, 1, 2, 2], [1.0, 0.5, 2, 1], [2.0, 1, 2, 2], [9.0, 9, 0, 0]]])
    scores = torch.tensor([[[0.9], [0.8], [0.9], [0.1]]])

    def indices(iou, score, most):
        found = suppression.non_maximum_suppression(boxes, scores, iou, score, most)
        return found[2].tolist(), found[3].tolist()

    # of equal scores the first goes first
    assert indices(0.4, 0.0, 5) == ([[0, 2, 3, -1, -1]], [3])
    assert indices(0.5, 0.0, 5) == ([[0, 2, 1, 3, -1]], [4])
    assert indices(0.3, 0.0, 5) == ([[0, 3, -1, -1, -1]], [2])
    assert indices(0.5, 0.8, 2) == ([[0, 2]], [2])
    # a score at the threshold is no score below it
    assert indices(0.5, 0.9, 5) == ([[0, 2, -1, -1, -1]], [2])
    assert indices(0.5, 7.0, 2) == ([[0, -1]], [1])


def test_no_boxes():
    found = suppression.non_maximum_suppression(
        torch.zeros(2, 0, 4), torch.zeros(2, 0, 3), 0.5, 0.0, 2
    )
    assert [list(tensor.shape) for tensor in found] == [[2, 2, 4], [2, 2, 3], [2, 2], [2]]
    assert found[2].eq(-1).all()
    assert found[3].eq(0).all()


def test_half_precision():
    boxes, scores = BOXES.round(0), random_scores(2)
    inputs = {
        "boxes": boxes.transpose(0, 2, 1).astype(np.float16),
        "scores": scores.transpose(0, 2, 1).astype(np.float16),
    }

    def build(boxes, scores):
        return mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=np.float16(0.25), max_boxes=30
        )

    found = run(build, inputs, target="iOS17", computed="as_declared")
    assert_of_halves(found[0])
    rated = scores.astype(np.float16)
    expected = wanted(boxes.astype(np.float16), rated, 0.25, -np.inf, 30, False)
    check(found, (*(array.transpose(0, 2, 1) for array in expected[:2]), expected[2]))


def test_bad_arguments():
    boxes, scores = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="boxes need 4 numbers each"):
        suppression.non_maximum_suppression(boxes[..., :3], scores, 0.5, 0.0, 2)
    with pytest.raises(ValueError, match="scores as many rows as there are boxes"):
        suppression.non_maximum_suppression(boxes, scores[:, :2], 0.5, 0.0, 2)
    with pytest.raises(ValueError, match="max_boxes must be at least 0, got -1"):
        suppression.non_maximum_suppression(boxes, scores, 0.5, 0.0, -1)
    with pytest.raises(ValueError, match="more than this machine"):
        suppression.non_maximum_suppression(boxes, scores, 0.5, 0.0, 1 << 40)
