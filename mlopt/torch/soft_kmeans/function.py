"""The function that is called: arguments checked, then one operation of autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from mlopt.errors import ConfigError
from mlopt.torch.soft_kmeans.eager import outside_graphs
from mlopt.torch.soft_kmeans.gradient import Options, SoftKMeans
from mlopt.torch.soft_kmeans.implicit import check_implicit_size
from mlopt.torch.soft_kmeans.noise import draw_seeds
from mlopt.torch.soft_kmeans.passes import Mode
from mlopt.torch.soft_kmeans.problem import computation_dtype
from mlopt.torch.tensors import FLOATS


@outside_graphs
def soft_kmeans(
    points: Tensor,
    centroids: Tensor,
    temperature: Tensor | float,
    *,
    iterations: int = 3,
    mode: Mode = "dkm",
    epsilon: float = 0.0,
    importance: Tensor | None = None,
    pinned: Tensor | None = None,
    implicit: bool = False,
    lost_size: float = 0.0,
    coded: bool = False,
    chunk: int | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw points towards centroids by soft k-means, differentiably.

    Each iteration moves the centroids to the means of the points, weighted with their attention;
    the output is what each point attends to in the last iteration, made of the centroids after it.
    The formulas and their source stand in :mod:`mlopt.torch.soft_kmeans.iterations`.

    Everything is computed in float32, or in float64 for float64 points, also under autocast. No
    attention is kept for the gradient, and at no time is there more of it than for one chunk. The
    gradient is for the points alone, and is not itself differentiable.

    Parameters
    ----------
    points
        [G, N, d], float16, bfloat16, float32 or float64, any layout: ``G`` groups, each clustered
        by itself. Those of 16 bits with ``d`` = 1 are handled by distinct value where values
        repeat often.
    centroids
        [G, K, d], any floating dtype, on the points' device: where they start. Constants.
    temperature
        [G], or one number for all groups, positive, in units of squared distance. It is taken as at
        least ``2**-36`` (float64: ``2**-80``) of the largest square in the group's centroids, which
        is one-hot attention.
    iterations
        The most iterations, at least 1.
    mode
        ``"dkm"``: attention by softmax. ``"hard"``: to the nearest centroid alone, a constant for
        the gradient, which goes through the means only. ``"gsm"``: softmax with Gumbel noise, drawn
        in each iteration.
    epsilon
        Stop after an iteration that moves no centroid of any group further than this (the
        Euclidean distance, not its square). 0.0 for never.
    importance
        [G, N], not negative: how much a point counts in the means, not in the output. A constant;
        None for 1 each. A cluster whose attention adds up to ``2**-100`` (float64: ``2**-900``) or
        less is empty, so ordinary magnitudes are best.
    pinned
        bool[G, K]: centroids that stay where they are. None for none.
    implicit
        Take the gradient as that of a fixed point, independent of how many iterations led there.
    lost_size
        A cluster whose attention, weighted with importance, adds up to at most this has lost its
        points: it is moved to the mean of all points of the group, in the same iteration. 0.0 for
        never.
    coded
        Round float32 points with ``d`` = 1 to 16 bits first: half the memory is kept, and 16-bit
        codes are fast. To float16, or to bfloat16 for magnitudes that float16 has no digits for.
        The gradient passes through the rounding.
    chunk
        Points taken at a time; None for a good number. It changes rounding only (and, for ``"gsm"``
        on a GPU, the noise).
    reduce
        Sums a tensor over the ranks that each hold some of every group's points, and returns the
        sum; the centroids, temperatures and pins are the same on all. Called in the same order on
        all ranks, with tensors of equal shapes, in the call itself and in the backward pass, where
        the loss is the sum of the ranks' losses. None for one process.
    generator
        Where seeds of the noise of ``"gsm"`` come from; torch's default CPU generator for None.

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
        A shape, dtype or number is not as above; ``implicit`` with ``"gsm"``, or with so many
        centroids that its systems of equations would take more than 512 MiB.
    """
    _check_tensors(points, centroids, importance, pinned)
    _check_options(iterations, mode, epsilon, implicit, lost_size, chunk)
    if implicit:
        check_implicit_size((centroids.shape[0], centroids.shape[1], centroids.shape[2]))
    dtype, device = computation_dtype(points.dtype), points.device
    soft, moved = SoftKMeans.apply(  # type: ignore[no-untyped-call]
        points,
        centroids.detach().to(dtype),
        _temperatures(temperature, len(points), dtype, device),
        None if importance is None else importance.detach().to(dtype),
        None if pinned is None else pinned.detach(),
        Options(
            iterations=iterations,
            epsilon=epsilon,
            mode=mode,
            implicit=implicit,
            lost_size=lost_size,
            coded=coded and points.shape[2] == 1,
            chunk=chunk,
            reduce=_same if reduce is None else reduce,
            seeds=draw_seeds(iterations, generator) if mode == "gsm" else (),
        ),
    )
    return soft, moved


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _check_tensors(
    points: Tensor, centroids: Tensor, importance: Tensor | None, pinned: Tensor | None
) -> None:
    if points.dtype not in FLOATS or points.dim() != 3 or points.shape[2] == 0:
        raise ConfigError(
            f"points have to be [G, N, d] with d > 0, in float16, bfloat16, float32 or float64, "
            f"got {_described(points)}: reshape them, or cast them"
        )
    groups, n, d = points.shape
    if centroids.dim() != 3 or not centroids.is_floating_point() or 0 in centroids.shape[1:]:
        raise ConfigError(f"centroids have to be floating [G, K, d], got {_described(centroids)}")
    if (centroids.shape[0], centroids.shape[2]) != (groups, d):
        raise ConfigError(
            f"centroids have to be [{groups}, K, {d}] for points {tuple(points.shape)}, got "
            f"{tuple(centroids.shape)}"
        )
    if importance is not None and (
        importance.shape != (groups, n) or not importance.is_floating_point()
    ):
        raise ConfigError(
            f"importance has to be floating [{groups}, {n}], got {_described(importance)}"
        )
    k_count = centroids.shape[1]
    if pinned is not None and (pinned.shape != (groups, k_count) or pinned.dtype != torch.bool):
        raise ConfigError(f"pinned has to be bool [{groups}, {k_count}], got {_described(pinned)}")
    for name, tensor in (("centroids", centroids), ("importance", importance), ("pinned", pinned)):
        if tensor is not None and tensor.device != points.device:
            raise ConfigError(
                f"{name} are on {tensor.device}, the points on {points.device}: move them there"
            )


def _check_options(
    iterations: int,
    mode: str,
    epsilon: float,
    implicit: bool,
    lost_size: float,
    chunk: int | None,
) -> None:
    if iterations < 1:
        raise ConfigError(f"iterations has to be at least 1, got {iterations}")
    if mode not in get_args(Mode):
        raise ConfigError(f"mode has to be one of {get_args(Mode)}, got {mode!r}")
    for name, number in (("epsilon", epsilon), ("lost_size", lost_size)):
        if not (0.0 <= number < math.inf):
            raise ConfigError(f"{name} has to be finite and not negative, got {number}")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk has to be at least 1 or None, got {chunk}")
    if implicit and mode == "gsm":
        raise ConfigError(
            "implicit=True needs iterations that settle, which those of mode='gsm' with noise of "
            "their own do not: use mode='dkm' or implicit=False"
        )


def _temperatures(
    temperature: Tensor | float, groups: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Temperatures of all groups: [G] on the points' device."""
    given = torch.as_tensor(temperature).detach()
    if given.dim() > 1 or (given.dim() == 1 and len(given) != groups):
        raise ConfigError(
            f"temperature has to be a number or [{groups}], one a group, got shape "
            f"{tuple(given.shape)}"
        )
    # One that is on a GPU is not looked at, which would wait for the GPU in every step.
    if given.device.type == "cpu" and not bool((given > 0).all()):
        raise ConfigError(f"temperature has to be positive, got {given.tolist()}")
    return given.to(device, dtype).expand(groups)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
