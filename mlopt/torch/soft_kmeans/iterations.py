"""Iterations of soft k-means, and backpropagation through them.

The formulas are those of differentiable k-means (Cho, Alizadeh-Vahid, Adya, Rastegari, "DKM:
Differentiable k-means clustering layer for neural network compression", 2021, arXiv 2108.12659),
differentiated by hand for points of ``d`` values. With ``h_n`` the mass of a point and ``tau`` the
temperature, an iteration and the output after the last one are

    a_nk = softmax_k(-|v_n - c_k|^2 / tau)      S_k = sum_n h_n a_nk
    c'_k = sum_n h_n a_nk v_n / S_k             soft_n = sum_k a_nk c'_k

A gradient of ``x_nk`` with respect to ``a_nk`` is ``r_nk = a_nk (x_nk - sum_j a_nj x_nj)`` with
respect to the exponent, which gives ``(2/tau) sum_k r_nk c_k`` to the point and ``(2/tau) sum_n
r_nk (v_n - c_k)`` to the centroid before the update. With ``g_n`` the gradient with respect to
``soft_n`` and ``gam_k`` that with respect to ``c'_k``, the output has ``x_nk = g_n . c'_k``, and
the update ``x_nk = h_n gam_k . (v_n - c'_k) / S_k``.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.options import Call, Reduce
from mlopt.torch.soft_kmeans.passes import Passes

Fixed = Callable[[Tensor, Tensor], Tensor]
"""Turns the gradients with respect to ``c'`` and ``c`` into that with respect to a fixed point."""

_LEAST_SIZE = {torch.float32: 2.0**-100, torch.float64: 2.0**-900}
"""A cluster of at most this size is empty: its moments, which are smaller, have lost digits."""


@attrs.frozen(eq=False)
class Trajectory:
    """The centroids in ``T`` iterations.

    Attributes
    ----------
    centroids
        [T + 1, G, K, d], the start first.
    sizes
        [T, G, K], ``S`` of each iteration.
    pinned
        bool[G, K], centroids that stay where they are; None for none.
    lost_size
        Clusters of at most this size are moved to the mean of all points; 0.0: none.
    """

    centroids: Tensor
    sizes: Tensor
    pinned: Tensor | None
    lost_size: float

    @property
    def last(self) -> int:
        """The number of the last iteration."""
        return len(self.sizes) - 1

    def kept(self, step: int) -> Tensor:
        """Return which centroids an iteration left in place: bool[G, K]."""
        return _kept(self.sizes[step], self.pinned) & ~self.lost(step)

    def lost(self, step: int) -> Tensor:
        """Return which centroids an iteration moved to the mean of all points: bool[G, K]."""
        return _lost(self.sizes[step], self.pinned, self.lost_size)


def _kept(sizes: Tensor, pinned: Tensor | None) -> Tensor:
    empty = sizes <= _LEAST_SIZE[sizes.dtype]
    return empty if pinned is None else empty | pinned


def _lost(sizes: Tensor, pinned: Tensor | None, lost_size: float) -> Tensor:
    if lost_size == 0.0:
        return torch.zeros_like(sizes, dtype=torch.bool)
    # a group without any mass has no mean
    has_mass = sizes.sum(-1, keepdim=True) > _LEAST_SIZE[sizes.dtype]
    lost = (sizes <= lost_size) & has_mass
    return lost if pinned is None else lost & ~pinned


def _has_settled(moves: Tensor, epsilon: float) -> bool:
    return bool((moves.square().sum(2) <= epsilon**2).all())


def iterate(passes: Passes, start: Tensor, pinned: Tensor | None, call: Call) -> Trajectory:
    """Iterate the centroids.

    ``start``: [G, K, d] in the dtype of the computation; ``pinned``: as in ``Clusters``.
    """
    lost_size = call.options.lost_size
    centroids, sizes = [start], []
    for step in range(call.options.iterations):
        here = centroids[-1]
        sums = call.reduce(passes.sums(here, step=step))
        size = sums[..., 0]
        kept = _kept(size, pinned)[..., None]
        # moments are about the centroid: those about zero would lose digits to its distance
        move = torch.where(kept, 0.0, sums[..., 1:] / torch.where(kept, 1.0, size[..., None]))
        there = here + move
        lost = _lost(size, pinned, lost_size)
        if lost_size > 0.0 and lost.any():
            there = torch.where(lost[..., None], passes.cloud.mean(call.reduce)[:, None], there)
        centroids.append(there)
        sizes.append(size)
        if call.epsilon > 0.0 and _has_settled(there - here, call.epsilon):
            break
    return Trajectory(torch.stack(centroids), torch.stack(sizes), pinned, lost_size)


def pull_back(
    passes: Passes,
    trajectory: Trajectory,
    pull: Tensor | None,
    *,
    mass: Tensor | None,
    apart: bool,
    fixed: Fixed | None,
    reduce: Reduce,
) -> tuple[Tensor, Tensor]:
    """Take a gradient with respect to the output back to the points.

    Parameters
    ----------
    pull, mass
        As for ``Passes.pull_soft``.
    apart
        Whether to keep the two parts of the gradient apart.
    fixed
        None to go back through every iteration. Otherwise the last one is taken as a fixed point.

    Returns
    -------
    The gradient by way of the attention in the output, and that by way of the centroids: each
    [G, N, d], in the dtype of the computation. If not ``apart``, both are one tensor, their sum.
    """
    step = trajectory.last
    start, moved = trajectory.centroids[step], trajectory.centroids[step + 1]
    sums, through_attention = passes.pull_soft(pull, mass, start, moved, step=step)
    to_moved, to_start = reduce(sums).chunk(2, dim=2)
    through_centroids = torch.zeros_like(through_attention) if apart else through_attention

    # of all iterations at once: these are small tensors, whose operations cost by their number
    lost = _lost(trajectory.sizes, trajectory.pinned, trajectory.lost_size)[..., None]
    kept = _kept(trajectory.sizes, trajectory.pinned)[..., None] & ~lost
    apart_from_sums = kept | lost
    sizes = torch.where(apart_from_sums, 1.0, trajectory.sizes[..., None])
    has_lost = trajectory.lost_size > 0.0 and bool(lost.any())

    def pull_update(to_moved: Tensor, step: int) -> Tensor:
        share = torch.where(apart_from_sums[step], 0.0, to_moved / sizes[step])
        start, moved = trajectory.centroids[step], trajectory.centroids[step + 1]
        if has_lost:
            to_mean = torch.where(lost[step], to_moved, 0.0).sum(1)
            passes.cloud.pull_mean(to_mean, through_centroids, reduce)
        return passes.pull_update(share, through_centroids, start, moved, step=step)

    if fixed is not None:
        pull_update(fixed(to_moved, to_start), step)
        return through_attention, through_centroids
    for step in range(trajectory.last, -1, -1):
        to_here = pull_update(to_moved, step)
        if step == 0:
            break  # the gradient with respect to the first centroids is not needed
        # a centroid that was kept hands its gradient on as it is
        to_moved = reduce(to_here) + to_start + to_moved * kept[step]
        to_start = torch.zeros_like(to_start)
    return through_attention, through_centroids
