"""The gradient at a fixed point, by the implicit function theorem.

If ``F`` is an iteration and ``c = F(c, v)``, then ``dc/dv = (I - J)^-1 dF/dv`` with ``J = dF/dc``
(for soft k-means: Jaffe, Singh, Bullo, "IDKM: Memory efficient neural network quantization via
implicit, differentiable k-means", 2023, arXiv 2312.07759). A gradient ``gam`` with respect to ``c``
therefore goes back through one iteration as ``(I - J^T)^-1 gam``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.torch.soft_kmeans.dense import DensePasses
from mlopt.torch.soft_kmeans.iterations import Trajectory
from mlopt.torch.soft_kmeans.options import Reduce
from mlopt.torch.soft_kmeans.point_cloud import PointCloud

_MOST = 1 << 26
"""Maximum number of elements of the matrices of all groups together: 512 MiB."""


def check_implicit_size(shape: tuple[int, int, int]) -> None:
    """Refuse centroids [G, K, d] whose matrices would be too large, with ``ConfigError``."""
    groups, k_count, d = shape
    if groups * (k_count * d) ** 2 > _MOST:
        raise ConfigError(
            f"implicit=True solves {groups} systems of {k_count} x {d} unknowns, whose matrices "
            f"have more than the {_MOST} elements allowed: use implicit=False, fewer centroids or "
            f"fewer groups at a time"
        )


def pull_fixed_point(
    cloud: PointCloud, trajectory: Trajectory, to_moved: Tensor, to_start: Tensor, reduce: Reduce
) -> Tensor:
    """Return the gradient that goes back through the last iteration, as if it were a fixed point.

    Parameters
    ----------
    to_moved, to_start
        [G, K, d], the gradients with respect to the centroids after and before the last iteration.

    Returns
    -------
    [G, K, d]. Empty and pinned clusters are constants; a cluster at the mean of all points does not
    depend on where it was.
    """
    step = trajectory.last
    start, moved = trajectory.centroids[step], trajectory.centroids[step + 1]
    groups, k_count, d = start.shape
    jacobian = reduce(DensePasses(cloud).jacobian(start, moved, step=step))
    kept = trajectory.kept(step) | trajectory.lost(step)
    size = torch.where(kept, 1.0, trajectory.sizes[step]).double()[..., None, None, None]
    jacobian = torch.where(kept[..., None, None, None], 0.0, jacobian / size)
    matrix = -jacobian.view(groups, k_count * d, k_count * d).mT
    matrix.diagonal(dim1=1, dim2=2).add_(1.0)
    pull = (to_moved + to_start).double().view(groups, k_count * d, 1)
    solution, info = torch.linalg.solve_ex(matrix, pull)
    if bool(info.any()):
        # Two centroids on one point may leave a direction free: then the shortest solution.
        singular = (info != 0)[:, None, None]
        solution = torch.where(singular, torch.linalg.pinv(matrix) @ pull, solution)
    lam: Tensor = solution.view(groups, k_count, d).to(start.dtype)
    return lam
