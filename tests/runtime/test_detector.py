"""A detector and the choice among its boxes, as the pipeline that ships."""

from __future__ import annotations

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime import load
from tests.runtime.networks import network
from tests.runtime.programs import convert

MOST, OVERLAP, LEAST = 10, 0.3, 0.2


def detector(target):
    module, inputs = network("detector")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(module, tuple(inputs.values())),
            inputs=[ct.TensorType("image", (1, 3, 32, 32))],
            outputs=[ct.TensorType("boxes"), ct.TensorType("scores")],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )


def choice(target):
    def build(boxes, scores):
        if target == "iOS15":
            found = mb.non_maximum_suppression(
                boxes=boxes,
                scores=scores,
                iou_threshold=OVERLAP,
                score_threshold=LEAST,
                max_boxes=MOST,
                per_class_suppression=False,
            )
            return [mb.identity(x=x, name=n) for x, n in zip(found, "abcd", strict=True)]
        found = mb.non_maximum_suppression(
            boxes=mb.transpose(x=boxes, perm=[0, 2, 1]),
            scores=mb.transpose(x=scores, perm=[0, 2, 1]),
            iou_threshold=OVERLAP,
            max_boxes=MOST,
        )
        return [mb.identity(x=x, name=n) for x, n in zip(found, "abc", strict=True)]

    shapes = {"boxes": np.zeros((1, 64, 4), np.float32), "scores": np.zeros((1, 64, 3), np.float32)}
    return convert(build, shapes, target=target)


def kept(boxes, scores, least):
    """Numbers of the boxes to keep, best first, by comparing every pair."""
    best = scores.max(1)
    order = [i for i in np.argsort(-best, kind="stable") if best[i] >= least]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    found: list[int] = []
    for i in order:
        overlaps = []
        for j in found:
            low = np.maximum(corners[i, :2], corners[j, :2])
            high = np.minimum(corners[i, 2:], corners[j, 2:])
            common = np.prod(np.maximum(high - low, 0))
            overlaps.append(
                common / (boxes[i, 2] * boxes[i, 3] + boxes[j, 2] * boxes[j, 3] - common)
            )
        if all(overlap <= OVERLAP for overlap in overlaps):
            found.append(int(i))
    return found[:MOST]


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_a_detector_and_the_choice_among_its_boxes(target):
    module, inputs = network("detector")
    with torch.no_grad():
        boxes, scores = (t[0].numpy() for t in module(*inputs.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = ct.utils.make_pipeline(detector(target), choice(target))
    found = load(pipeline).predict({"image": inputs["image"].numpy()})
    wanted = kept(boxes, scores, LEAST if target == "iOS15" else -np.inf)
    assert 2 < len(wanted) <= MOST
    numbers = found["c"][0]
    assert numbers[: len(wanted)].tolist() == wanted
    assert (numbers[len(wanted) :] == -1).all()
    rows = found["a"][0] if target == "iOS15" else found["a"][0].T
    np.testing.assert_allclose(rows[: len(wanted)], boxes[wanted], rtol=1e-5, atol=1e-6)
