"""Points of 16-bit dtypes, by their codes: at most 65,536 values, each with a mass.

Codes index tables of ``CODES`` entries, one per group: looking up all points is one gather, and
sums by code are one scatter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import attrs
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.iterations import Trajectory

CODED = (torch.float16, torch.bfloat16)
CODES = 1 << 16

_LARGEST = 65_504.0
_FINE = 2.0**-13
"""From this largest magnitude on, the worst step of float16 is no coarser than bfloat16's best."""

_INDICES = 1 << 18
"""Codes that are widened to indices at a time."""


@attrs.frozen(eq=False)
class Values:
    """The distinct values of the points of ``G`` groups.

    Attributes
    ----------
    codes
        int64[U], the codes that occur in any group, ascending by value.
    values
        [U], the values, in the dtype of the points.
    mass
        [G, U], in the dtype of the computation: number of points, or their importance, by group.
    """

    codes: Tensor
    values: Tensor
    mass: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """See ``StandIns``."""
        return self.codes, self.values, self.mass

    @property
    def points(self) -> Tensor:
        """[G, U, 1], in the dtype of the points."""
        return self.values[None, :, None].expand(len(self.mass), -1, 1)

    def stands(self, trajectory: Trajectory, rates: Tensor) -> bool:
        """See ``StandIns``: always, as nothing is rounded."""
        return True

    def sums(self, points: Tensor, terms: Tensor) -> Tensor:
        """Add up terms by value; see ``StandIns``."""
        return sums_by_code(points, terms)[:, self.codes]

    def spread(self, points: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Look up numbers by value; see ``StandIns``."""
        table = self._by_code(numbers.to(dtype))
        out = torch.empty(points.shape, dtype=dtype, device=points.device)
        for g, span, index in _indices(points):
            out[g, span, 0] = torch.take(table[g], index)
        return out

    def line(
        self,
        points: Tensor,
        *,
        slopes: Tensor,
        pull: Tensor,
        shares: Tensor,
        importance: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """See ``StandIns``."""
        slope_of, share_of = self._by_code(slopes), self._by_code(shares)
        out = torch.empty(points.shape, dtype=dtype, device=points.device)
        for g, span, index in _indices(points):
            share = torch.take(share_of[g], index)
            if importance is not None:
                share *= importance[g, span]
            out[g, span, 0] = share.addcmul_(
                torch.take(slope_of[g], index), pull[g, span, 0].float()
            )
        return out

    def _by_code(self, numbers: Tensor) -> Tensor:
        """Return numbers by value, [G, U], as a table of codes [G, CODES], with zeros elsewhere."""
        table = torch.zeros(len(numbers), CODES, dtype=numbers.dtype, device=numbers.device)
        table[:, self.codes] = numbers
        return table


def rounded(points: Tensor) -> Tensor:
    """Round to float16, or to bfloat16 where the range of float16 does not suffice."""
    largest = float(points.detach().abs().amax()) if points.numel() else 0.0
    fits = largest == 0.0 or _FINE <= largest <= _LARGEST
    return points.to(torch.float16 if fits else torch.bfloat16)


def values_of(points: Tensor, importance: Tensor | None) -> Values | None:
    """Find the values of points, and how often each occurs.

    Parameters
    ----------
    points
        float16 or bfloat16[G, N, 1].
    importance
        float32[G, N], or None for 1 each.

    Returns
    -------
    None where there are too few points per value for this to pay.
    """
    groups, n, width = points.shape
    if width != 1 or n < CODES:
        return None
    counts = torch.zeros(groups, CODES, dtype=torch.int64, device=points.device)
    for g, _, index in _indices(points):
        counts[g] += torch.bincount(index, minlength=CODES)
    ascending = _ascending(points.dtype, points.device)
    codes = ascending[(counts.sum(0) > 0)[ascending]]
    if 2 * len(codes) > n:
        return None
    values = codes.to(torch.int16).view(points.dtype)
    mass = counts.float() if importance is None else sums_by_code(points, importance)
    return Values(codes, values, mass[:, codes])


def sums_by_code(points: Tensor, terms: Tensor) -> Tensor:
    """Add up terms, any floating dtype [G, N], by the code of the point: float32[G, CODES]."""
    sums = torch.zeros(len(points), CODES, device=points.device)
    for g, span, index in _indices(points):
        sums[g].scatter_add_(0, index, terms[g, span].float())
    return sums


def _indices(points: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield runs of points of one group: group, span, codes as int64."""
    groups, n, _ = points.shape
    for g in range(groups):
        for first in range(0, n, _INDICES):
            span = slice(first, min(first + _INDICES, n))
            codes = points[g, span, 0].contiguous().view(torch.int16)
            yield g, span, codes.to(torch.int64) & (CODES - 1)


@lru_cache(maxsize=8)
def _ascending(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return all codes of a dtype in the order of their values, NaN last."""
    # an inference tensor, if it were one, could not be used elsewhere later
    with torch.inference_mode(False):
        codes = torch.arange(CODES, device=device)
        return codes.to(torch.int16).view(dtype).float().argsort(stable=True)
