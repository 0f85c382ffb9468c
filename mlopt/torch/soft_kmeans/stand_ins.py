"""Stand-ins for many scalar points: the distinct values of 16-bit ones, or the nodes of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.codes import CODED, Values, values_of
from mlopt.torch.soft_kmeans.grid import Grid, grid_of
from mlopt.torch.soft_kmeans.iterations import Trajectory
from mlopt.torch.soft_kmeans.options import SoftOptions


class StandIns(Protocol):
    """Points ``[G, U, 1]`` with a mass, nearly ascending, clustered in place of ``[G, N, 1]``."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What is kept for the gradient: see :func:`restored`."""

    @property
    def points(self) -> Tensor:
        """[G, U, 1]."""

    @property
    def mass(self) -> Tensor:
        """[G, U], how many points each stands for, or their importance."""

    def stands(self, trajectory: Trajectory, rates: Tensor) -> bool:
        """Whether iterations with these changed no more than rounding does.

        rates: as for :func:`stand_ins_for`. Otherwise the points themselves must be iterated.
        """

    def sums(self, points: Tensor, terms: Tensor) -> Tensor:
        """Give terms of points, any floating dtype [G, N], to their stand-ins: float32[G, U]."""

    def spread(self, points: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Give numbers of the stand-ins, [G, U], to the points: [G, N, 1] in ``dtype``."""

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
        """Evaluate ``slope pull + share importance``: [G, N, 1] in ``dtype``.

        slopes, shares: of the stand-ins, float32[G, U]; pull: [G, N, 1], any floating dtype;
        importance: float32[G, N], None for 1.
        """


def stand_ins_for(
    points: Tensor,
    importance: Tensor | None,
    centroids: Tensor,
    rates: Tensor,
    options: SoftOptions,
    *,
    is_alone: bool,
) -> StandIns | None:
    """Return stand-ins where that pays, else None.

    points: [G, N, d]; importance: [G, N] or None; centroids: [G, K, d], of the first iteration;
    rates: [G], one over the temperatures; is_alone: whether no other rank has points of the groups.
    """
    if points.dtype in CODED:
        return values_of(points, importance) if options.mode != "gsm" else None
    # nodes need smooth attention; that of a fixed point has products of it, which are less smooth
    is_smooth = options.mode == "dkm" and not options.implicit
    is_handled = points.device.type == "cpu" and points.dtype == torch.float32
    # a grid takes memory of its own, however little may be used; and ranks would have to agree on
    # whether they iterate once more
    may_be_used = is_alone and options.memory_share == 1.0
    if is_smooth and is_handled and may_be_used and points.shape[2] == 1:
        return grid_of(points, importance, centroids, rates)
    return None


def restored(
    parts: Sequence[Tensor], points: Tensor, centroids: Tensor, rates: Tensor
) -> StandIns | None:
    """Return the stand-ins of :func:`stand_ins_for` again, from their ``parts``; None for none."""
    if not parts:
        return None
    if points.dtype in CODED:
        codes, values, mass = parts
        return Values(codes, values, mass)
    if len(parts) > 1:
        return Grid.of_parts(parts)
    return grid_of(points, None, centroids, rates, mass=parts[0])
