"""The points of a weight, divided over the ranks of ``torch.distributed`` and joined again.

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
    """Which of N points are those of rank ``rank`` of ``ranks``: a run of ``ceil(N / ranks)``.

    The last ones are shorter, or empty. With ``ranks`` = 1 every method gives what it gets.
    Otherwise each, and its backward pass, is called in the same order on all ranks.
    """

    rank: int
    ranks: int

    def own(self, points: Tensor) -> Tensor:
        """Copy the share [G, n, d] of points [G, N, d], differentiable as said above."""
        if self.ranks == 1:
            return points
        own: Tensor = _Divide.apply(points, self)  # type: ignore[no-untyped-call]
        return own

    def join(self, own: Tensor, count: int) -> Tensor:
        """The points [G, ``count``, d] of all ranks, differentiable as said above."""
        if self.ranks == 1:
            return own
        joined: Tensor = _Join.apply(own, count, self)  # type: ignore[no-untyped-call]
        return joined

    def cut(self, constants: Tensor) -> Tensor:
        """Copy the share [G, n, ...] of numbers [G, N, ...] that need no gradient."""
        return constants if self.ranks == 1 else constants[:, self._span(constants)].clone()

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, bit by bit the same on each; consumes ``numbers``."""
        if self.ranks > 1:
            dist.all_reduce(numbers)
        return numbers

    def generator(self) -> torch.Generator | None:
        """Where this rank's random numbers come from; None: torch's default generator.

        Ranks whose default generators are alike draw different numbers.
        """
        if self.ranks == 1:
            return None
        return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())) + self.rank)

    def _length(self, count: int) -> int:
        return -(-count // self.ranks)

    def _span(self, points: Tensor) -> slice:
        length = self._length(points.shape[1])
        return slice(self.rank * length, (self.rank + 1) * length)

    def _gathered(self, own: Tensor, count: int) -> Tensor:
        """The shares [G, n, d] of all ranks in a row: [G, count, d]."""
        groups, n, d = own.shape
        length = self._length(count)
        padded = own.new_zeros(groups, length, d)
        padded[:, :n] = own
        shares = own.new_empty(self.ranks * groups, length, d)
        _collective("all_gather_single", "all_gather_into_tensor")(shares, padded)
        by_rank = shares.view(self.ranks, groups, length, d)
        return by_rank.transpose(0, 1).reshape(groups, self.ranks * length, d)[:, :count]

    def _averaged(self, pull: Tensor) -> Tensor:
        """The share [G, n, d] of the mean over all ranks of their [G, N, d]."""
        groups, count, d = pull.shape
        length = self._length(count)
        padded = pull.new_zeros(groups, self.ranks * length, d)
        # divided first: sums may leave the range of float16
        torch.div(pull, self.ranks, out=padded[:, :count])
        by_rank = padded.view(groups, self.ranks, length, d).transpose(0, 1)
        mean = pull.new_empty(groups, length, d)
        shares = by_rank.reshape(self.ranks * groups, length, d)
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(mean, shares)
        span = self._span(pull)
        return mean[:, : max(0, min(span.stop, count) - span.start)]


WHOLE = Share(0, 1)
"""All of the points."""


def share_of_this_rank() -> Share:
    """Divide over the default process group; ``WHOLE`` where there is none, or of one rank."""
    if not dist.is_available() or not dist.is_initialized():
        return WHOLE
    return Share(dist.get_rank(), dist.get_world_size())


def _collective(name: str, before: str) -> Callable[..., Any]:
    """A function of ``torch.distributed``, or what it was called before PyTorch 2.13."""
    found: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, before)
    return found


class _Divide(torch.autograd.Function):
    """A rank's share of points; the gradients of the shares are joined."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, share: Share) -> Tensor:
        ctx.share, ctx.count = share, points.shape[1]
        return share.cut(points)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        return ctx.share._gathered(pull, ctx.count), None


class _Join(torch.autograd.Function):
    """The shares of all ranks in a row; their gradients are averaged over the ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int, share: Share) -> Tensor:
        ctx.share = share
        return share._gathered(own, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share._averaged(pull), None, None
