"""The best of overlapping boxes (MIL, ``defs/*/tensor_operation.py``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlopt.runtime.registry import operation
from mlopt.runtime.sizes import check_elements


@operation("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The boxes with the best scores of which none overlaps a better one too much.

    boxes [images, n, 4]: middle (x, y), width and height; scores [images, n, classes], of which the
    best counts. A box is dropped if its intersection with a better one is more than
    ``iou_threshold`` of their union; with ``per_class_suppression`` only where both have the same
    best class. Boxes of equal scores keep their order. Boxes below ``score_threshold`` are left
    out, but if all are, the best one is taken, as in the tests of coremltools that run on devices.

    Returns boxes, scores, numbers of boxes, and their count per image, best first and padded to
    ``max_boxes`` with zeros (-1 for numbers).
    """
    chosen = _selected(
        boxes, scores, iou_threshold, score_threshold, max_boxes, per_class_suppression
    )
    counts = (chosen >= 0).sum(1)
    return _taken(boxes, chosen), _taken(scores, chosen), chosen, counts


@operation("non_maximum_suppression", since="CoreML7")
def non_maximum_suppression_of_columns(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes with the best scores of which none overlaps a better one too much.

    boxes [images, 4, n]: middle (x, y), width and height; scores [images, classes, n], of which the
    best counts. A box is dropped if its intersection with a better one is more than
    ``iou_threshold`` of their union; with ``per_class_suppression`` only where both have the same
    best class. Boxes of equal scores keep their order.

    Returns boxes, scores and numbers of boxes, best first and padded to ``max_boxes`` with zeros
    (-1 for numbers).
    """
    rows, of_rows = boxes.transpose(1, 2), scores.transpose(1, 2)
    chosen = _selected(rows, of_rows, iou_threshold, -math.inf, max_boxes, per_class_suppression)
    return _taken(rows, chosen).transpose(1, 2), _taken(of_rows, chosen).transpose(1, 2), chosen


def _selected(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class: bool,
) -> Tensor:
    """The numbers of the boxes that are selected: int64[images, max_boxes], -1 for none."""
    if boxes.dim() != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2]:
        raise ValueError(
            "boxes need 4 numbers each, and scores as many rows as there are boxes; got shapes "
            f"{list(boxes.shape)} and {list(scores.shape)}"
        )
    if max_boxes < 0:
        raise ValueError(f"max_boxes must be at least 0, got {max_boxes}")
    check_elements(boxes.shape[0] * max_boxes * max(4, scores.shape[2]))
    chosen = torch.full((boxes.shape[0], max_boxes), -1, dtype=torch.int64, device=boxes.device)
    for number, (of_image, rated) in enumerate(zip(boxes.float(), scores.float(), strict=True)):
        best, classes = rated.max(dim=1)
        order = torch.argsort(best, descending=True, stable=True)
        order = order[: max(1, int((best >= score_threshold).sum()))]
        kept = not_suppressed(
            of_image[order], classes[order] if per_class else None, iou_threshold, max_boxes
        )
        chosen[number, : len(kept)] = order[kept]
    return chosen


def not_suppressed(boxes: Tensor, classes: Tensor | None, threshold: float, most: int) -> Tensor:
    """Return the boxes that do not overlap a better one too much.

    boxes: [n, 4], middle (x, y), width and height, best first; classes: [n], of which boxes only
    suppress their own, None for no difference; threshold: what part of the union the intersection
    may be. A pair without area suppresses nothing.

    Returns int64[kept], positions, of which there are ``most`` at most.
    """
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    areas = boxes[:, 2] * boxes[:, 3]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for position in range(len(boxes)):
        if len(kept) == most:
            break
        if not alive[position]:
            continue
        kept.append(position)
        sides = torch.minimum(high, high[position]) - torch.maximum(low, low[position])
        shared = sides.clamp(min=0).prod(dim=1)
        overlaps = shared / (areas + areas[position] - shared) > threshold
        if classes is not None:
            overlaps &= classes == classes[position]
        alive &= ~overlaps
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _taken(rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows of each image by their numbers, zeros for -1: [images, numbers, columns]."""
    if rows.shape[1] == 0:
        return rows.new_zeros((*numbers.shape, rows.shape[2]))
    places = numbers.clamp(min=0)[..., None].expand(-1, -1, rows.shape[2])
    return torch.where(numbers[..., None] >= 0, rows.gather(1, places), 0)
