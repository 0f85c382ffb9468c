"""Interface of the four passes over the points, and the choice of its implementation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.dense import DensePasses
from mlopt.torch.soft_kmeans.nearest import NearestPasses
from mlopt.torch.soft_kmeans.options import Mode
from mlopt.torch.soft_kmeans.point_cloud import PointCloud
from mlopt.torch.soft_kmeans.threaded import ThreadedPasses


class Passes(Protocol):
    """Each method goes once through all points, and keeps no attention.

    ``a`` is the attention of the points to ``centroids`` (``c``, [G, K, d]), ``h`` the mass;
    ``moved`` (``c'``) are the centroids after the update. All are in the dtype of the computation.
    ``step`` numbers the iteration, whose noise is the same in every pass.
    """

    cloud: PointCloud

    def sums(self, centroids: Tensor, *, step: int) -> Tensor:
        """``sum_n h a_nk`` and ``sum_n h a_nk (v_n - c_k)``: [G, K, 1 + d]."""

    def soft(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """``sum_k a_nk c'_k``: [G, N, d], in the dtype of the computation."""

    def pull_soft(
        self,
        pull: Tensor | None,
        mass: Tensor | None,
        centroids: Tensor,
        moved: Tensor,
        *,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """Take a gradient with respect to ``soft`` back.

        Parameters
        ----------
        pull
            [G, N, d], any floating dtype: the gradient; None for 1 each.
        mass
            [G, N]: a factor of a point's share in the sums; None for 1.

        Returns
        -------
        [G, K, 2 d], the gradients with respect to ``c'`` and to ``c``; and [G, N, d], with respect
        to the points.
        """

    def pull_update(
        self, share: Tensor, gradient: Tensor, centroids: Tensor, moved: Tensor, *, step: int
    ) -> Tensor:
        """Take a gradient with respect to ``c'`` back through the update.

        Parameters
        ----------
        share
            [G, K, d]: the gradient over the sizes, zero for what is not updated.
        gradient
            [G, N, d], added to: with respect to the points.

        Returns
        -------
        [G, K, d], the gradient with respect to ``c``.
        """


def passes_for(cloud: PointCloud, mode: Mode, seeds: tuple[int, ...]) -> Passes:
    """Choose an implementation; ``seeds`` of noise, one per iteration, for ``"gsm"``."""
    if mode == "hard":
        return NearestPasses(cloud)
    is_on_cpu = cloud.points.device.type == "cpu"
    if mode == "dkm" and is_on_cpu and cloud.dtype == torch.float32:
        return ThreadedPasses(cloud)
    return DensePasses(cloud, seeds)
