"""The label and the probabilities of a classifier (MIL, ``defs/*/classify.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.registry import operation

_Label = str | int


@operation("classify", in_half=True)
def classify(probabilities: Tensor, classes: Any) -> tuple[_Label, dict[_Label, float]]:
    """The label of the greatest probability, and a dictionary from labels to probabilities.

    probabilities: of any shape, with as many elements as there are classes, in their order; the
    first one of equal ones is taken. classes: strings or integers, a list or a tensor.
    """
    labels = _labels(classes)
    if not labels or len(labels) != probabilities.numel():
        raise ValueError(
            f"classes must hold a label for each probability, got {len(labels)} for "
            f"probabilities of shape {list(probabilities.shape)}"
        )
    values = probabilities.reshape(-1)
    best = int(torch.argmax(values))
    return labels[best], dict(zip(labels, values.tolist(), strict=True))


def _labels(classes: Any) -> list[_Label]:
    if isinstance(classes, Tensor):
        return [int(label) for label in classes.reshape(-1).tolist()]
    return [label if isinstance(label, str) else int(label) for label in classes]
