"""Shares of a weight's points, divided over the ranks of ``torch.distributed`` and joined again.

All ranks hold the same weight. With ``p`` its points, ``s(p)`` what is computed of them in shares
and ``L_r`` the loss of rank ``r``, the gradient that every rank gets for ``p`` is that of the mean
of the losses: the gradients with respect to ``s`` are averaged where ``s`` is joined, each rank
takes its share of the average back to its share of ``p``, and these are joined. Averages and sums
over ranks of ``dL_r/dp`` stay what they are when each is replaced by the average of all, so
whatever averages or adds up gradients afterwards, as ``DistributedDataParallel`` and
``fully_shard`` do, has the same result as without shares; and so has a rank by itself where the
losses are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@attrs.frozen
class Share:
    """The share of rank ``rank`` of ``ranks`` in the points: a run of each group, or of groups.

    Runs are as equal as possible; some may be empty. With ``ranks`` = 1 every method returns its
    argument. Otherwise each, and its backward pass, is called in the same order on all ranks.
    """

    rank: int
    ranks: int
    is_of_groups: bool = False

    def of_groups(self) -> Share:
        """Return the division by groups instead of within each group."""
        return attrs.evolve(self, is_of_groups=True)

    def own(self, points: Tensor) -> Tensor:
        """Copy the share of points [G, N, d], differentiable as described above."""
        if self.ranks == 1:
            return points
        own: Tensor = _Divide.apply(points, self)  # type: ignore[no-untyped-call]
        return own

    def join(self, own: Tensor, count: int) -> Tensor:
        """Join the points of all ranks, differentiable as above; ``count``: of what was divided."""
        if self.ranks == 1:
            return own
        joined: Tensor = _Join.apply(own, count, self)  # type: ignore[no-untyped-call]
        return joined

    def cut(self, constants: Tensor) -> Tensor:
        """Copy the share of numbers [G, N, ...] that need no gradient."""
        return constants if self.ranks == 1 else self._part(constants, self.rank).clone()

    def cut_tables(self, tables: Tensor) -> Tensor:
        """Return the part for this share of tables, or of other numbers per group, [G, ...]."""
        return self.cut(tables) if self.is_of_groups else tables

    def gathered_tables(self, own: Tensor, count: int) -> Tensor:
        """Join the tables of all ``count`` groups: the inverse of :meth:`cut_tables`."""
        return self.gathered(own, count) if self.is_of_groups else own

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum over all ranks, bit for bit the same on each; consumes ``numbers``."""
        if self.ranks > 1:
            dist.all_reduce(numbers)
        return numbers

    def total_of_groups(self, numbers: Tensor) -> Tensor:
        """Turn sums over own points, [G, ...], into sums over all points; consumes them."""
        return numbers if self.is_of_groups else self.total(numbers)

    def generator(self) -> torch.Generator | None:
        """The source of this rank's random numbers; None: torch's default generator.

        Ranks whose default generators are equal draw different numbers.
        """
        if self.ranks == 1:
            return None
        return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())) + self.rank)

    def gathered(self, own: Tensor, count: int) -> Tensor:
        """Concatenate the shares of all ranks, without a gradient; keeps ``own`` as it is."""
        if self.ranks == 1:
            return own
        padded = self._padded(own, count)
        shares = own.new_empty(self.ranks, *padded.shape)
        _collective("all_gather_single", "all_gather_into_tensor")(shares.view(-1), padded.view(-1))
        parts = [self._unpadded(shares[rank], count, rank) for rank in range(self.ranks)]
        return torch.cat(parts, self._axis)

    def averaged(self, pull: Tensor) -> Tensor:
        """Return this share of the mean over all ranks of their [G, N, d]."""
        count = pull.shape[self._axis]
        # divided first: sums may leave the range of float16
        mean = pull / self.ranks
        by_rank = torch.stack(
            [self._padded(self._part(mean, rank), count) for rank in range(self.ranks)]
        )
        own = torch.empty_like(by_rank[0])
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(
            own.view(-1), by_rank.view(-1)
        )
        return self._unpadded(own, count, self.rank)

    @property
    def _axis(self) -> int:
        return 0 if self.is_of_groups else 1

    def _span(self, count: int, rank: int) -> tuple[int, int]:
        """Return the start and the length of a rank's run."""
        start = rank * count // self.ranks
        return start, (rank + 1) * count // self.ranks - start

    def _part(self, numbers: Tensor, rank: int) -> Tensor:
        return numbers.narrow(self._axis, *self._span(numbers.shape[self._axis], rank))

    def _padded(self, own: Tensor, count: int) -> Tensor:
        """Return a contiguous copy as long as the longest run of ``count``, padded with zeros."""
        shape = list(own.shape)
        shape[self._axis] = -(-count // self.ranks)
        padded = own.new_zeros(shape)
        padded.narrow(self._axis, 0, own.shape[self._axis]).copy_(own)
        return padded

    def _unpadded(self, padded: Tensor, count: int, rank: int) -> Tensor:
        return padded.narrow(self._axis, 0, self._span(count, rank)[1])


WHOLE = Share(0, 1)
"""All of the points."""


def share_of_this_rank() -> Share:
    """Divide over the default process group; ``WHOLE`` where there is none, or of one rank."""
    if not dist.is_available() or not dist.is_initialized():
        return WHOLE
    return Share(dist.get_rank(), dist.get_world_size())


def _collective(name: str, before: str) -> Callable[..., Any]:
    """Return a function of ``torch.distributed``, or that of its name before PyTorch 2.13."""
    function: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, before)
    return function


class _Divide(torch.autograd.Function):
    """A rank's share of points; the gradients of the shares are joined."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, share: Share) -> Tensor:
        ctx.share, ctx.count = share, points.shape[share._axis]
        return share.cut(points)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        return ctx.share.gathered(pull, ctx.count), None


class _Join(torch.autograd.Function):
    """The concatenated shares of all ranks; their gradients are averaged over the ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int, share: Share) -> Tensor:
        ctx.share = share
        return share.gathered(own, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share.averaged(pull), None, None
