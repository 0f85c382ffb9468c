"""Shards of the points on two ranks give what the whole gives on one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import codes
from tests.torch.soft_kmeans.references import assert_near, example, soft_kmeans, some_importance

RANKS = 2


class Exchange:
    """Sums over threads that stand for ranks; each calls ``rank(i)`` for its own function."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=60)
        self.parts: list[Tensor | None] = [None] * RANKS
        self.calls = [0] * RANKS

    def rank(self, index: int) -> Callable[[Tensor], Tensor]:
        def total(tensor: Tensor) -> Tensor:
            self.calls[index] += 1
            self.parts[index] = tensor.clone()
            self.barrier.wait()
            result = torch.stack([part for part in self.parts if part is not None]).sum(0)
            self.barrier.wait()
            return tensor.copy_(result)  # in place, as torch.distributed does

        return total


def run(given: dict[str, Tensor], pull: Tensor, **options: object) -> list[Tensor]:
    given = dict(given)
    points = given.pop("points").detach().clone().requires_grad_()
    soft, centroids = soft_kmeans(points, **given, **options)  # type: ignore[arg-type]
    return [soft, centroids, torch.autograd.grad(soft, points, pull.to(soft.dtype))[0]]


@pytest.mark.parametrize("mode", ["dkm", "hard"])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("n", "first", "d", "dtype"),
    [
        (600, 250, 1, torch.float64),
        (600, 250, 2, torch.float64),
        (600, 600, 1, torch.float64),  # nothing for the second rank
        (600, 250, 1, torch.float32),
        (1 << 18, 100_000, 1, torch.float16),  # codes
    ],
)
@pytest.mark.covering(2)
def test_shards_are_as_the_whole(
    n: int, first: int, d: int, dtype: torch.dtype, implicit: bool, mode: str
) -> None:
    given = example(6, n=n, d=d, dtype=torch.float64)
    given["points"] = given["points"].to(dtype)
    given["importance"] = some_importance(given["points"].double())
    pull = torch.randn(given["points"].shape, generator=torch.manual_seed(2))
    if dtype == torch.float16:
        assert codes.values_of(given["points"][:, :first], None) is not None
    given["centroids"][0, 0] = 1e3  # which is lost, and moved to the mean
    options = {"mode": mode, "implicit": implicit, "epsilon": 1e-12, "lost_size": 1e-7}
    expected = run(given, pull, **options)
    exchange = Exchange()

    def shard(rank: int) -> list[Tensor]:
        span = slice(0, first) if rank == 0 else slice(first, n)
        part = dict(given)
        for name in ("points", "importance"):
            part[name] = given[name][:, span]
        return run(part, pull[:, span], **options, reduce=exchange.rank(rank))

    with ThreadPoolExecutor(RANKS) as pool:
        one, two = pool.map(shard, range(RANKS))

    relative = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-3}[dtype]
    assert exchange.calls[0] == exchange.calls[1] > 0
    assert torch.equal(one[1], two[1])
    assert_near(one[1], expected[1], relative=relative)
    for part in (0, 2):
        assert_near(torch.cat([one[part], two[part]], 1), expected[part], relative=relative)
