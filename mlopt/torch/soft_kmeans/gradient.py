"""Soft k-means as one operation of autograd, which recomputes attention instead of keeping it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlopt.torch.soft_kmeans.codes import rounded
from mlopt.torch.soft_kmeans.implicit import pull_fixed_point
from mlopt.torch.soft_kmeans.iterations import Fixed, Trajectory, iterate, pull_back
from mlopt.torch.soft_kmeans.options import Call, SoftOptions
from mlopt.torch.soft_kmeans.passes import Passes, passes_for
from mlopt.torch.soft_kmeans.point_cloud import PointCloud
from mlopt.torch.soft_kmeans.stand_ins import StandIns, restored, stand_ins_for

_LEAST_TEMPERATURE = {torch.float32: (2.0**-36, 2.0**-100), torch.float64: (2.0**-80, 2.0**-900)}


class SoftKMeans(torch.autograd.Function):
    """``soft_kmeans`` of checked arguments.

    Kept for the gradient: the points, or with ``coded`` their 16-bit codes; what stands for them in
    the iterations, if anything does; the centroids and sizes of each iteration.
    """

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        centroids: Tensor,
        temperature: Tensor,
        importance: Tensor | None,
        pinned: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Return ``soft`` and the centroids after the last iteration."""
        with torch.autocast(points.device.type, enabled=False):
            held = rounded(points) if _is_rounded(points, call.options) else points
            rates = _rates(temperature, centroids)
            chunk = call.options.chunk(centroids.shape[1])
            stand_ins = stand_ins_for(
                held.detach(), importance, centroids, rates, call.options, is_alone=call.is_alone
            )

            def iterated(stand_ins: StandIns | None) -> tuple[Passes, Trajectory]:
                cloud = _cloud_of(held, stand_ins, importance, rates, chunk)
                passes = passes_for(cloud, call.options.mode, call.seeds)
                return passes, iterate(passes, centroids, pinned, call)

            passes, trajectory = iterated(stand_ins)
            if stand_ins is not None and not stand_ins.stands(trajectory, rates):
                stand_ins = None
                passes, trajectory = iterated(None)
            last = trajectory.last
            start, moved = trajectory.centroids[last], trajectory.centroids[last + 1]
            soft = passes.soft(start, moved, step=last)
            if stand_ins is not None:
                soft = stand_ins.spread(held, soft[..., 0], points.dtype)
            ctx.call = call
            ctx.chunk = chunk
            ctx.dtype = points.dtype
            ctx.save_for_backward(
                held,
                importance,
                rates,
                trajectory.centroids,
                trajectory.sizes,
                pinned,
                *(() if stand_ins is None else stand_ins.parts),
            )
            moved = moved.clone()
            ctx.mark_non_differentiable(moved)
            ctx.set_materialize_grads(False)
            return soft.to(points.dtype), moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the points."""
        if pull is None or not ctx.needs_input_grad[0]:
            return (None,) * 6
        held, importance, rates, centroids, sizes, pinned, *parts = ctx.saved_tensors
        call: Call = ctx.call
        with torch.autocast(pull.device.type, enabled=False):
            pull = pull.detach()
            stand_ins = restored(parts, held.detach(), centroids[0], rates)
            cloud = _cloud_of(held, stand_ins, importance, rates, ctx.chunk)
            passes = passes_for(cloud, call.options.mode, call.seeds)
            trajectory = Trajectory(centroids, sizes, pinned, call.options.lost_size)
            fixed: Fixed | None = None
            if call.options.implicit and call.options.mode != "hard":

                def fixed(to_moved: Tensor, to_start: Tensor) -> Tensor:
                    return pull_fixed_point(cloud, trajectory, to_moved, to_start, call.reduce)

            if stand_ins is None:
                gradient, _ = pull_back(
                    passes,
                    trajectory,
                    pull,
                    mass=None,
                    apart=False,
                    fixed=fixed,
                    reduce=call.reduce,
                )
                return gradient.to(ctx.dtype), None, None, None, None, None
            slopes, shares = pull_back(
                passes,
                trajectory,
                None,
                mass=stand_ins.sums(held, pull[..., 0]),
                apart=True,
                fixed=fixed,
                reduce=call.reduce,
            )
            gradient = stand_ins.line(
                held,
                slopes=slopes[..., 0],
                pull=pull,
                shares=shares[..., 0],
                importance=importance,
                dtype=ctx.dtype,
            )
            return gradient, None, None, None, None, None


def _is_rounded(points: Tensor, options: SoftOptions) -> bool:
    return options.coded and points.shape[2] == 1 and points.dtype == torch.float32


def _cloud_of(
    held: Tensor,
    stand_ins: StandIns | None,
    importance: Tensor | None,
    rates: Tensor,
    chunk: int | None,
) -> PointCloud:
    """Return the points themselves, or what stands for them."""
    if stand_ins is None:
        # detached, since the threads of the passes would record a graph again
        return PointCloud(held.detach(), importance, rates, chunk=chunk)
    return PointCloud(stand_ins.points, stand_ins.mass, rates, stands_for_many=True, chunk=chunk)


def _rates(temperature: Tensor, centroids: Tensor) -> Tensor:
    """Return one over the temperatures, which are limited by the resolution of the dtype.

    Softmax is one-hot at that limit, unless two centroids are equally near; their gradients, which
    grow with the rate, must stay within the range of the dtype through all iterations.
    """
    relative, absolute = _LEAST_TEMPERATURE[centroids.dtype]
    largest = centroids.abs().amax(dim=(1, 2)).square_().mul_(relative).clamp_(min=absolute)
    return torch.maximum(temperature, largest).reciprocal_()
