"""``soft_kmeans``: checks of its arguments, then one operation of autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.torch.soft_kmeans.clusters import Clusters
from mlopt.torch.soft_kmeans.eager import outside_graphs
from mlopt.torch.soft_kmeans.gradient import SoftKMeans
from mlopt.torch.soft_kmeans.implicit import check_implicit_size
from mlopt.torch.soft_kmeans.noise import draw_seeds
from mlopt.torch.soft_kmeans.options import Call, Reduce, SoftOptions, unreduced
from mlopt.torch.soft_kmeans.point_cloud import computation_dtype
from mlopt.torch.tensors import FLOATS


@outside_graphs
def soft_kmeans(
    points: Tensor,
    clusters: Clusters,
    options: SoftOptions,
    *,
    epsilon: float = 0.0,
    importance: Tensor | None = None,
    reduce: Reduce | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw points towards centroids by soft k-means, differentiably.

    Each iteration moves the centroids to the means of the points, weighted with their attention;
    the output is what each point attends to in the last iteration, made of the centroids after it.
    The formulas and their source are in :mod:`mlopt.torch.soft_kmeans.iterations`.

    Everything is computed in float32, or in float64 for float64 points, even under autocast. No
    attention is kept for the gradient, and at no time is there more of it than for one piece of the
    points. Only the points have a gradient, which is not itself differentiable.

    Parameters
    ----------
    points
        [G, N, d], float16, bfloat16, float32 or float64, any layout: ``G`` groups, each clustered
        by itself. Those of 16 bits with ``d`` = 1 are handled by distinct value where values
        repeat often, and many float32 ones on the CPU by interpolation, where that is as exact.
    clusters
        The clusters before the call.
    options
        Settings that are the same in every call.
    epsilon
        Stop after an iteration that moves no centroid of any group further than this (the
        Euclidean distance, not its square). 0.0 for never.
    importance
        [G, N], not negative: how much a point counts in the means, not in the output. A constant;
        None for 1 each. A cluster whose attention adds up to ``2**-100`` (float64: ``2**-900``) or
        less is empty, so ordinary magnitudes are best.
    reduce
        Sums a tensor over the ranks that each hold some of every group's points, and returns the
        sum; the clusters are the same on all. Called in the same order on all ranks, with tensors
        of equal shapes, in the call itself and in the backward pass, where the loss is the sum of
        the ranks' losses. None for one process.
    generator
        Source of seeds for the noise of ``"gsm"``; None: torch's default CPU generator.

    Returns
    -------
    soft
        [G, N, d], in the dtype of the points.
    centroids
        [G, K, d], after the last iteration, in float32 or float64, without gradient. A cluster that
        nothing attends to stays where it is, unless ``lost_size`` says otherwise.

    Raises
    ------
    ConfigError
        A shape, dtype or number is not as above; ``implicit`` with so many centroids that its
        systems of equations would take more than 512 MiB.
    """
    _check_tensors(points, clusters, importance)
    options.check()
    if not (0.0 <= epsilon < math.inf):
        raise ConfigError(f"epsilon must be finite and not negative, got {epsilon}")
    centroids, pinned = clusters.centroids.detach(), clusters.pinned
    if options.implicit:
        check_implicit_size((centroids.shape[0], centroids.shape[1], centroids.shape[2]))
    dtype, device = computation_dtype(points.dtype), points.device
    has_noise = options.mode == "gsm"
    soft, moved = SoftKMeans.apply(  # type: ignore[no-untyped-call]
        points,
        centroids.to(dtype),
        _temperatures(clusters.temperature, len(points), dtype, device),
        None if importance is None else importance.detach().to(dtype),
        None if pinned is None else pinned.detach(),
        Call(
            options,
            epsilon=epsilon,
            reduce=unreduced if reduce is None else reduce,
            seeds=draw_seeds(options.iterations, generator) if has_noise else (),
        ),
    )
    return soft, moved


def _check_tensors(points: Tensor, clusters: Clusters, importance: Tensor | None) -> None:
    centroids, pinned = clusters.centroids, clusters.pinned
    if points.dtype not in FLOATS or points.dim() != 3 or points.shape[2] == 0:
        raise ConfigError(
            f"points must be [G, N, d] with d > 0, in float16, bfloat16, float32 or float64, "
            f"got {_described(points)}: reshape them, or cast them"
        )
    groups, n, d = points.shape
    if centroids.dim() != 3 or not centroids.is_floating_point() or 0 in centroids.shape[1:]:
        raise ConfigError(f"centroids must be floating [G, K, d], got {_described(centroids)}")
    if (centroids.shape[0], centroids.shape[2]) != (groups, d):
        raise ConfigError(
            f"centroids must be [{groups}, K, {d}] for points {tuple(points.shape)}, got "
            f"{tuple(centroids.shape)}"
        )
    if importance is not None and (
        importance.shape != (groups, n) or not importance.is_floating_point()
    ):
        raise ConfigError(
            f"importance must be floating [{groups}, {n}], got {_described(importance)}"
        )
    k_count = centroids.shape[1]
    if pinned is not None and (pinned.shape != (groups, k_count) or pinned.dtype != torch.bool):
        raise ConfigError(f"pinned must be bool [{groups}, {k_count}], got {_described(pinned)}")
    for name, tensor in (("centroids", centroids), ("importance", importance), ("pinned", pinned)):
        if tensor is not None and tensor.device != points.device:
            raise ConfigError(
                f"{name} are on {tensor.device}, the points on {points.device}: move them there"
            )


def _temperatures(
    temperature: Tensor | float, groups: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the temperatures of all groups: [G] on the points' device."""
    given = torch.as_tensor(temperature).detach()
    if given.dim() > 1 or (given.dim() == 1 and len(given) != groups):
        raise ConfigError(
            f"temperature must be a number or [{groups}], one per group, got shape "
            f"{tuple(given.shape)}"
        )
    # A temperature on a GPU is not checked: that would wait for the GPU in every step.
    if given.device.type == "cpu" and not bool((given > 0).all()):
        raise ConfigError(f"temperature must be positive, got {given.tolist()}")
    return given.to(device, dtype).expand(groups)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
