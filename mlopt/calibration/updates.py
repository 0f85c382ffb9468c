"""Updates: what one input of one run adds to moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.calibration.feeds import Moments
from mlopt.calibration.readers import Reader


@attrs.frozen(eq=False)
class Update:
    """Sums over the positions of an input.

    second: float32 [blocks, columns, columns] or None; firsts: float64 [2, blocks, columns], of
    squares and of the inputs themselves; count: of positions.
    """

    second: Tensor | None
    firsts: Tensor
    count: int


def update_of(
    reader: Reader, moments: Moments, arguments: Mapping[str, Any], results: tuple[Any, ...]
) -> Update:
    """Return the sums of the inputs that a step was given."""
    if reader.counts is not None:
        counts, count = reader.counts(arguments)
        counts = counts.double()
        return Update(None, torch.stack((counts, counts)).cpu(), count)
    assert reader.inputs is not None
    return _summed(reader.inputs(arguments, results), moments)


def _summed(parts: Iterable[Tensor], moments: Moments) -> Update:
    shape = (2, moments.blocks, moments.columns)
    firsts, second, count = torch.zeros(shape, dtype=torch.float64), None, 0
    for part in parts:
        part = part.float()
        count += part.shape[1]
        firsts[1] += part.sum(1).double().cpu()
        if not moments.has_second:
            firsts[0] += part.square().sum(1).double().cpu()
            continue
        turned = part.transpose(1, 2)
        second = torch.bmm(turned, part) if second is None else second.baddbmm_(turned, part)
    if second is not None:
        second = second.cpu()
        firsts[0] = second.diagonal(dim1=1, dim2=2)
    return Update(second, firsts, count)
