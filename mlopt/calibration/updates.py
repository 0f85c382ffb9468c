"""Updates: what one input of one run adds to moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
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
    squares and of the inputs themselves; count: of positions; sensitivity: float64 [blocks], the
    sum of the factors that positions were weighted by, None if by 1.
    """

    second: Tensor | None
    firsts: Tensor
    count: int
    sensitivity: Tensor | None = None


def update_of(
    reader: Reader,
    moments: Moments,
    arguments: Mapping[str, Any],
    results: tuple[Any, ...],
    factors: Sequence[Tensor] | None = None,
) -> Update:
    """Return the sums of the inputs that a step was given.

    factors: what positions count, float32 [blocks, positions] for each part of the inputs; None: 1.
    """
    sensitivity = None
    if factors is not None:
        sensitivity = sum_of(factors).cpu()
    if reader.counts is not None:
        weights = None if factors is None else torch.cat(tuple(factors), dim=1).double()
        counts, count = reader.counts(arguments, weights)
        counts = counts.double()
        return Update(None, torch.stack((counts, counts)).cpu(), count, sensitivity)
    assert reader.inputs is not None
    parts = reader.inputs(arguments, results)
    weighted = zip(parts, repeat(None) if factors is None else factors, strict=factors is not None)
    second, firsts, count = _summed(weighted, moments)
    return Update(second, firsts, count, sensitivity)


def sum_of(factors: Sequence[Tensor]) -> Tensor:
    """Return the sum of factors [blocks, positions] over all positions, float64 [blocks]."""
    sums = [factor.double().sum(1) for factor in factors]
    return torch.stack(sums).sum(0)


def _summed(
    parts: Iterable[tuple[Tensor, Tensor | None]], moments: Moments
) -> tuple[Tensor | None, Tensor, int]:
    shape = (2, moments.blocks, moments.columns)
    firsts, second, count = torch.zeros(shape, dtype=torch.float64), None, 0
    for part, factor in parts:
        part, factor = part.float(), None if factor is None else factor[..., None]
        count += part.shape[1]
        firsts[1] += (part if factor is None else part * factor).sum(1).double().cpu()
        if factor is not None:
            # the product of these with themselves is symmetric
            part = part * factor.sqrt()
        if not moments.has_second:
            firsts[0] += part.square().sum(1).double().cpu()
            continue
        turned = part.transpose(1, 2)
        second = torch.bmm(turned, part) if second is None else second.baddbmm_(turned, part)
    if second is not None:
        second = second.cpu()
        firsts[0] = second.diagonal(dim1=1, dim2=2)
    return second, firsts, count
