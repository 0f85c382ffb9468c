"""Nearest centroids of points, and centroids without points of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from mlopt.torch.palettization.weight_points import WeightPoints
from mlopt.torch.soft_kmeans.nearest import scalar_labels
from mlopt.torch.soft_kmeans.point_cloud import computation_dtype

_DISTANCES = 1 << 20
"""Distances that are computed at a time."""


def cluster_labels(points: Tensor, centroids: Tensor) -> Tensor:
    """Label each point with its nearest centroid, int64 [G, N]; of equally near ones, any.

    points: [G, N, d]; centroids: [G, K, d]; distances are computed in float32, or in float64 for
    float64 points.
    """
    wide = computation_dtype(points.dtype)
    if points.shape[-1] == 1:
        return scalar_labels(points[..., 0].to(wide), centroids[..., 0].to(wide))
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    step = max(1, _DISTANCES // centroids.shape[1])
    for group, table in enumerate(centroids.to(wide)):
        for start in range(0, points.shape[1], step):
            part = points[group, start : start + step].to(wide)
            distances = (part[:, None] - table).square().sum(-1)
            labels[group, start : start + step] = distances.argmin(-1)
    return labels


def nearest_centroids(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the nearest centroid of each point, [G, N, d]."""
    labels = cluster_labels(points, centroids)[..., None].expand(-1, -1, points.shape[-1])
    return centroids.gather(1, labels)


def move_duplicates(
    centroids: Tensor, points: WeightPoints, pinned: Tensor, *, tolerance: float
) -> None:
    """Move centroids that coincide with an earlier one to where the error is largest, in place.

    Groups are left alone in which the share of such centroids is not above ``tolerance``, or in
    which every point has a centroid of its own already.

    centroids: [G, K, d]; points: of G groups; pinned: bool [G, K], those that stay.
    """
    ascending = centroids[..., 0].sort(1).values
    if not (ascending.diff(dim=1) == 0).any():
        return
    for table, group, fixed in zip(centroids, points.kept, pinned, strict=True):
        _, inverse = torch.unique(table, dim=0, return_inverse=True)
        seen: set[int] = set()
        repeated = []
        for index, row in enumerate(inverse.tolist()):
            if row in seen and not fixed[index]:
                repeated.append(index)
            seen.add(row)
        if not repeated or len(repeated) <= tolerance * len(table):
            continue
        for index in repeated:
            nearest = nearest_centroids(group[None], table[None])[0]
            error = (group - nearest).float().square().sum(-1)
            worst = int(error.argmax())
            if error[worst] == 0:
                break
            table[index] = group[worst].to(table.dtype)
