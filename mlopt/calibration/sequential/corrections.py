"""Corrections of biases: what makes the mean of an operation's results that of the float model.

Where one elementwise operation, such as a ReLU, reads the results, the means after it are made
equal: errors where it is flat cost nothing, but would decide the mean of the results themselves.
The correction d of a channel, with means over positions weighted by w, solves::

    E[w f(y + d)] = E[w f(y_f)]

by Newton's method, which is a single step where there is no such operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.runtime.plan import Step

_STEPS = 4
_SLOPE = 0.05
"""The least mean slope of a channel that is corrected: others are hardly ever read."""

_OFFSET = 0.01
"""By what share of their error results are moved for the slope."""

_TINY = 1e-6


@attrs.frozen(eq=False)
class Results:
    """Results of an operation at some positions, [blocks, positions, rows].

    wanted: in the float model; given: in the compressed one, with the bias as it was; factors: what
    the positions count, [blocks, positions], or None for 1.
    """

    wanted: Tensor
    given: Tensor
    factors: Tensor | None


def correction(
    results: Callable[[], Iterable[Results]], function: Callable[[Tensor], Tensor] | None
) -> npt.NDArray[np.float64]:
    """Return what is to be added to a bias, float64 [blocks * rows].

    results: returns those of all samples, and is called for each pass over them; function: the
    elementwise operation that reads them, None for another.
    """
    error, square = _means(results, lambda r: (r.wanted - r.given, (r.wanted - r.given).square()))
    if function is None:
        return np.asarray(error.reshape(-1).numpy())
    limit = square.sqrt()
    offset = (_OFFSET * limit).clamp(min=_TINY)
    (aim,) = _means(results, lambda r: (function(r.wanted),))
    found = torch.zeros_like(limit)
    for _ in range(_STEPS):
        moved = found[:, None].float()
        apart = offset[:, None].float()

        def read(r: Results, moved: Tensor = moved, apart: Tensor = apart) -> tuple[Tensor, ...]:
            y = r.given + moved.to(r.given.device)
            by = apart.to(r.given.device)
            return function(y), function(y + by), function(y - by)

        mean, above, below = _means(results, read)
        slope = (above - below) / (2 * offset)
        step = torch.where(slope > _SLOPE, (aim - mean) / slope.clamp(min=_SLOPE), 0.0)
        # no further than errors reach
        found = torch.minimum(torch.maximum(found + step, -limit), limit)
    return np.asarray(found.reshape(-1).numpy())


def with_change(step: Step, result: Tensor, change: Tensor) -> Tensor:
    """Return what a step gives once its bias has changed by float32 [channels]."""
    shape = [1] * result.dim()
    shape[-1 if step.node.op_type == "linear" else 1] = -1
    moved = result.float() + change.to(result.device).reshape(shape)
    return moved.to(result.dtype)


def _means(
    results: Callable[[], Iterable[Results]], read: Callable[[Results], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Return the means of what is read of results over positions, float64 [blocks, rows]."""
    sums: list[Tensor] = []
    total: Tensor | float = 0.0
    for each in results():
        wide = Results(each.wanted.float(), each.given.float(), each.factors)
        values = read(wide)
        if each.factors is None:
            added = [value.double().sum(1).cpu() for value in values]
            total = total + each.wanted.shape[1]
        else:
            counts = each.factors[..., None].double()
            added = [(value * counts).sum(1).cpu() for value in values]
            total = total + counts.sum(1).cpu()
        sums = [a + b for a, b in zip(sums, added, strict=True)] if sums else added
    divisor = torch.as_tensor(total, dtype=torch.float64).clamp(min=torch.finfo(torch.float64).tiny)
    return [each / divisor for each in sums]
