"""Soft k-means as the formulas stand, with attention in full and gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlopt.torch import soft_kmeans as room


def dense(
    points: Tensor,
    centroids: Tensor,
    temperature: Tensor,
    *,
    iterations: int = 3,
    mode: str = "dkm",
    importance: Tensor | None = None,
    pinned: Tensor | None = None,
    empty: float = 2.0**-100,
    lost_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    centroids = centroids.detach().to(points.dtype)
    mass = torch.ones_like(points[..., 0]) if importance is None else importance
    for _ in range(iterations):
        distance = (points[:, :, None] - centroids[:, None]).square().sum(3)
        if mode == "hard":
            nearest = distance.argmin(2)
            attention = torch.nn.functional.one_hot(nearest, centroids.shape[1]).to(points.dtype)
        else:
            attention = torch.softmax(-distance / temperature[:, None, None], 2)
        weighted = attention * mass[..., None]
        sizes = weighted.sum(1)[..., None]
        kept = sizes <= empty
        if pinned is not None:
            kept = kept | pinned[..., None]
        means = (weighted.mT @ points) / torch.where(kept, 1.0, sizes)
        if lost_size > 0.0:
            lost = sizes <= lost_size
            if pinned is not None:
                lost = lost & ~pinned[..., None]
            of_all = (mass[..., None] * points).sum(1, keepdim=True) / mass.sum(1)[:, None, None]
            means, kept = torch.where(lost, of_all, means), kept & ~lost
        centroids = torch.where(kept, centroids, means)
    return attention @ centroids, centroids.detach()


def soft_kmeans(
    points: Tensor,
    centroids: Tensor,
    temperature: Tensor | float,
    *,
    pinned: Tensor | None = None,
    epsilon: float = 0.0,
    importance: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The function of the same name, called as ``dense`` is."""
    return room.soft_kmeans(
        points,
        room.Clusters(centroids, temperature, pinned),
        room.SoftOptions(**options),
        epsilon=epsilon,
        importance=importance,
        reduce=reduce,
        generator=generator,
    )


def example(
    seed: int, *, groups: int = 2, n: int = 400, k: int = 5, d: int = 1, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Points, centroids and temperatures that leave points attending to a few centroids each."""
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(groups, n, d, generator=random, dtype=torch.float64)
    centroids = torch.randn(groups, k, d, generator=random, dtype=torch.float64)
    temperature = 0.1 + torch.rand(groups, generator=random, dtype=torch.float64) / 2
    tensors = {"points": points, "centroids": centroids, "temperature": temperature}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def some_importance(like: Tensor, seed: int = 5) -> Tensor:
    """Importance of points [G, N, d], a fifth of it zero."""
    random = torch.Generator().manual_seed(seed)
    importance = torch.rand(like.shape[:2], generator=random, dtype=torch.float64)
    return (importance - 0.2).clamp(min=0).to(like.dtype)


def some_pins(centroids: Tensor) -> Tensor:
    """Pin the second centroid of each group, and the first one of the first group."""
    pinned = torch.zeros(centroids.shape[:2], dtype=torch.bool)
    pinned[:, 1] = True
    pinned[0, 0] = True
    return pinned


def assert_near(got: Tensor, expected: Tensor, *, relative: float) -> None:
    """Compare with a tolerance relative to the largest magnitude that is expected."""
    got, expected = got.detach(), expected.detach()
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= relative * scale
