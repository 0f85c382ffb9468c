"""The two implementations against each other, pieces of any size, and what stays in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import kernels
from mlopt.torch.soft_kmeans.dense import DensePasses
from mlopt.torch.soft_kmeans.grid import grid_of
from mlopt.torch.soft_kmeans.point_cloud import PointCloud
from mlopt.torch.soft_kmeans.threaded import ThreadedPasses
from tests.torch.soft_kmeans.references import assert_near, example, soft_kmeans, some_importance


@pytest.mark.parametrize("stands_for_many", [False, True])
@pytest.mark.parametrize("has_mass", [False, True])
@pytest.mark.parametrize(
    ("groups", "n", "k", "d", "spread"),
    [
        (1, 10_000, 40, 1, 1e-3),  # in order, a few of many centroids at a time
        (2, 700, 16, 1, 1.0),
        (3, 2000, 5, 1, 1e-2),  # several groups of a piece, each in its order
        (3, 37, 2, 1, 1e-9),  # all but hard
        (1, 1, 1, 1, 1.0),
        (2, 300, 7, 3, 0.3),
        (1, 600, 64, 2, 1e-3),
    ],
)
@pytest.mark.covering(2)
def test_kernels_agree_with_torch(
    groups: int, n: int, k: int, d: int, spread: float, has_mass: bool, stands_for_many: bool
) -> None:
    given = example(8, groups=groups, n=n, k=k, d=d, dtype=torch.float32)
    points, start = given["points"], given["centroids"]
    random = torch.manual_seed(3)
    moved = start + 0.01 * torch.randn(start.shape, generator=random)
    share = torch.randn(start.shape, generator=random)
    mass = some_importance(points) if has_mass else None
    pull = None if stands_for_many and d == 1 else torch.randn(points.shape, generator=random)
    rates = 1 / (given["temperature"] * spread)
    held = PointCloud(points, mass, rates, stands_for_many=stands_for_many)
    exact = PointCloud(
        points.double(), None if mass is None else mass.double(), rates.double(), stands_for_many
    )

    def run(passes: ThreadedPasses | DensePasses, dtype: torch.dtype) -> list[Tensor]:
        a, b, factor = start.to(dtype), moved.to(dtype), None if mass is None else mass.to(dtype)
        by_output, through_output = passes.pull_soft(pull, factor, a, b, step=0)
        through_update = torch.ones(points.shape, dtype=dtype)
        by_update = passes.pull_update(share.to(dtype), through_update, a, b, step=0)
        return [
            passes.sums(a, step=0),
            passes.soft(a, b, step=0),
            by_output,
            through_output,
            by_update,
            through_update,
        ]

    expected = run(DensePasses(exact), torch.float64)
    for passes in (ThreadedPasses(held), DensePasses(held)):
        for got, wanted in zip(run(passes, torch.float32), expected, strict=True):
            # high rates leave a point between two centroids few digits
            assert_near(got, wanted, relative={1e-3: 1e-4, 1e-9: 5e-3}.get(spread, 2e-5))


def test_exponentials() -> None:
    distance = torch.linspace(0, 130, kernels.BLOCK)
    row = distance.clone().numpy()
    kernels._exponentials(row, torch.zeros(kernels.BLOCK).numpy(), 1.0)

    expected = torch.exp(-distance.double())
    got = torch.from_numpy(row).double()
    assert float(got[0]) == 1.0
    assert bool((got[expected < 2.0**-126] == 0).all())
    normal = expected > 2.0**-124
    # an exponent of 80 has an error of 4e-6 from float32 itself
    assert float((got / expected - 1)[normal].abs().max()) < 1e-5


def bucket_orders(points: Tensor) -> Tensor:
    orders = np.empty(points.shape[:2], np.uint16)
    kernels.fill_bucket_orders(points.numpy(), orders)
    return torch.from_numpy(orders.astype(np.int64))


def test_bucket_orders() -> None:
    points = torch.randn(3, 5000, 1, generator=torch.manual_seed(0))
    points *= torch.tensor([1, 9, 0.1])[:, None, None]
    orders = bucket_orders(points)
    assert bool((orders.sort(1).values == torch.arange(5000)).all())
    width = (points.amax(1) - points.amin(1))[:, 0] / (5000 // 16 - 1)
    drops = points[..., 0].gather(1, orders).diff(dim=1).clamp(max=0)
    assert bool((drops >= -1.001 * width[:, None]).all())
    assert bucket_orders(torch.ones(1, 40, 1)).tolist() == [list(range(40))]


def test_points_that_were_ordered_get_what_is_theirs() -> None:
    values = torch.randn(2, 65_536, 1, generator=torch.manual_seed(0))
    orders = np.empty((2, 65_536), np.uint16)
    kernels.fill_bucket_orders(values.numpy(), orders)
    taken, back = np.empty((2, 65_536, 1), np.float32), torch.zeros_like(values)
    kernels.take_in_order(values.numpy(), orders, taken)
    assert np.array_equal(taken[1, :, 0], values[1, orders[1].astype(int), 0].numpy())
    kernels.put_in_order(taken, orders, back.numpy())
    assert torch.equal(back, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["dkm", "hard", "gsm"])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.covering(2)
def test_chunks_change_rounding_only(d: int, mode: str, dtype: torch.dtype) -> None:
    given = example(8, groups=3, n=50, d=d, dtype=dtype)
    points = given.pop("points").requires_grad_()
    importance = some_importance(points.detach())

    def run(chunk: int) -> list[Tensor]:
        soft, centroids = soft_kmeans(
            points,
            **given,
            mode=mode,
            importance=importance,
            memory_share=min(1.0, chunk * given["centroids"].shape[1] / (1 << 20)),
            generator=torch.Generator().manual_seed(1),
        )
        return [soft, centroids, torch.autograd.grad(soft.square().sum(), points)[0]]

    expected = run(1 << 20)
    for chunk in (1, 7, 50, 70, 100, 1000):
        for got, wanted in zip(run(chunk), expected, strict=True):
            assert_near(got, wanted, relative=2e-5 if dtype == torch.float32 else 1e-12)


def saved_bytes(points: Tensor, *arguments: Any, **options: Any) -> tuple[int, int]:
    """Bytes saved for the backward pass: in memory of the points, and in other memory."""
    own = {points.untyped_storage().data_ptr()}
    counts = [0, 0]

    def pack(tensor: Tensor) -> Tensor:
        counts[tensor.untyped_storage().data_ptr() not in own] += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        soft, _ = soft_kmeans(points, *arguments, **options)
    soft.sum().backward()
    return counts[0], counts[1]


@pytest.mark.parametrize("mode", ["dkm", "hard", "gsm"])
def test_nothing_but_the_points_is_saved(mode: str) -> None:
    points = torch.randn(1, 100_000, 1, generator=torch.manual_seed(0)).requires_grad_()
    centroids = torch.quantile(points.detach()[0], (torch.arange(16) + 0.5) / 16, dim=0)[None]
    for _ in range(100):  # until they hardly move, or no grid would serve
        centroids = soft_kmeans(points.detach(), centroids, 0.005)[1]
    points_bytes, other = saved_bytes(points, centroids, 0.005, mode=mode)
    assert points_bytes == 400_000
    grid = (
        grid_of(points.detach(), None, centroids, torch.tensor([200.0])) if mode == "dkm" else None
    )
    assert (mode == "dkm") == (grid is not None)
    of_grid = 0 if grid is None else sum(part.nbytes for part in grid.parts)
    assert of_grid <= 100_000
    # four times the centroids, three times the sizes, the rate
    assert other == 4 * (4 * 16 + 3 * 16 + 1) + of_grid


def test_codes_are_two_bytes_a_weight() -> None:
    points = torch.randn(1, 1 << 20, 1, generator=torch.manual_seed(0)).requires_grad_()
    points_bytes, other = saved_bytes(points, torch.randn(1, 16, 1), 0.1, coded=True)
    assert points_bytes == 0
    assert other < 2.6 * (1 << 20)  # with values of 20,000 codes, and their masses


def test_half_points_are_their_own_codes() -> None:
    points = torch.randn(1, 1 << 20, 1, generator=torch.manual_seed(0)).half().requires_grad_()
    points_bytes, other = saved_bytes(points, torch.randn(1, 16, 1), 0.1)
    assert points_bytes == 2 << 20
    assert other < 0.6 * (1 << 20)
