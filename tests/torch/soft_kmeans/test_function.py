"""Values, dtypes, checks, and the company that the function has to keep."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.torch import soft_kmeans as room
from mlopt.torch.soft_kmeans.dense import DensePasses
from mlopt.torch.soft_kmeans.point_cloud import PointCloud
from tests.torch.soft_kmeans.references import assert_near, example, soft_kmeans

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_points_by_hand(dtype: torch.dtype) -> None:
    points = torch.tensor([[[0.0], [1.0]]], dtype=dtype)
    # exp(-1 / tau) = 1/3, so that attention is 3/4 and 1/4
    soft, centroids = soft_kmeans(points, points, 1 / math.log(3), iterations=1)

    assert torch.allclose(centroids.flatten(), torch.tensor([1 / 4, 3 / 4], dtype=dtype))
    assert torch.allclose(soft.flatten(), torch.tensor([3 / 8, 5 / 8], dtype=dtype))


def test_hard_attention_by_hand() -> None:
    points = torch.tensor([[[0.0], [1.0], [5.0], [7.0]]], requires_grad=True)
    importance = torch.tensor([[3.0, 1.0, 1.0, 1.0]])

    soft, centroids = soft_kmeans(
        points, torch.tensor([[[6.5], [0.5]]]), 1.0, mode="hard", importance=importance
    )
    soft[0, 0, 0].backward()

    assert centroids.flatten().tolist() == [6.0, 0.25]
    assert soft.flatten().tolist() == [0.25, 0.25, 6.0, 6.0]
    assert points.grad is not None
    assert points.grad.flatten().tolist() == [0.75, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, d: int) -> None:
    given = example(1, d=d, dtype=torch.float64)
    points = given["points"].to(dtype).requires_grad_()
    expected, expected_centroids = soft_kmeans(
        points.detach().double(), given["centroids"], given["temperature"]
    )

    soft, centroids = soft_kmeans(points, given["centroids"].to(dtype), given["temperature"])
    soft.sum().backward()

    assert soft.dtype == dtype
    assert centroids.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert points.grad is not None
    assert points.grad.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 3e-6)
    assert_near(soft.double(), expected, relative=tolerance)
    assert_near(centroids.double(), expected_centroids, relative=tolerance)


@settings(max_examples=30, deadline=None)
@examples(
    seed=st.integers(0, 1000),
    exponent=st.integers(-20, 20),
    d=st.integers(1, 3),
    groups=st.integers(1, 3),
)
def test_scale_permutation_and_hull(seed: int, exponent: int, d: int, groups: int) -> None:
    given = example(seed, groups=groups, n=50, d=d, dtype=torch.float32)
    points, centroids = given["points"], given["centroids"]
    soft, moved = soft_kmeans(**given)
    factor = 2.0**exponent

    scaled, _ = soft_kmeans(points * factor, centroids * factor, given["temperature"] * factor**2)
    assert torch.equal(scaled, soft * factor)

    order = torch.randperm(points.shape[1], generator=torch.manual_seed(seed))
    permuted, _ = soft_kmeans(points[:, order], centroids, given["temperature"])
    assert_near(permuted, soft[:, order], relative=1e-5)

    for j in range(d):
        low, high = points[..., j].amin(1), points[..., j].amax(1)
        slack = 1e-5 * float(points.abs().max())
        for values in (soft, moved):
            assert bool((values[..., j] >= low[:, None] - slack).all())
            assert bool((values[..., j] <= high[:, None] + slack).all())


@pytest.mark.parametrize("mode", ["dkm", "hard"])
def test_groups_do_not_know_each_other(mode: str) -> None:
    given = example(4, groups=3, n=1000, dtype=torch.float32)
    whole, _ = soft_kmeans(**given, mode=mode)
    for g in range(3):
        alone, _ = soft_kmeans(
            **{name: tensor[g : g + 1] for name, tensor in given.items()}, mode=mode
        )
        assert torch.equal(alone[0], whole[g])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_any_layout(dtype: torch.dtype) -> None:
    given = example(4, d=2, dtype=dtype)
    points = given.pop("points")
    strided = points.mT.contiguous().mT
    assert not strided.is_contiguous()

    assert torch.equal(soft_kmeans(strided, **given)[0], soft_kmeans(points, **given)[0])


def test_epsilon_is_a_distance() -> None:
    given = example(4, dtype=torch.float64)
    tracks = [soft_kmeans(**given, iterations=t)[1] for t in range(1, 30)]
    moves = [float((b - a).square().sum(2).sqrt().max()) for a, b in pairwise(tracks)]
    stop = next(t for t, move in enumerate(moves) if move < 0.01)
    epsilon = moves[stop] * 1.001

    _, stopped = soft_kmeans(**given, iterations=30, epsilon=epsilon)

    assert torch.equal(stopped, tracks[stop + 1])


def test_pinned_centroids_stay() -> None:
    given = example(4, dtype=torch.float32)
    pinned = torch.zeros(2, 5, dtype=torch.bool)
    pinned[0, 2] = True

    _, centroids = soft_kmeans(**given, pinned=pinned)

    stays = (centroids == given["centroids"]).all(2)
    assert torch.equal(stays, pinned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_follows_the_generator(dtype: torch.dtype) -> None:
    given = example(4, dtype=dtype)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return soft_kmeans(**given, mode="gsm")[0]

    first, again, other = run(1), run(1), run(2)
    own = soft_kmeans(**given, mode="gsm", generator=torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, again)
    assert torch.equal(first, own)
    assert not torch.equal(first, other)


def test_noise_chooses_as_often_as_softmax_says() -> None:
    # 20,000 points in one place, pinned centroids: tiny temperatures would be hard without noise
    points = torch.zeros(1, 20_000, 1)
    centroids = torch.tensor([[[0.0], [1.0], [math.sqrt(2)]]])
    odds = torch.exp(-centroids.flatten().square())
    pinned = torch.ones(1, 3, dtype=torch.bool)

    passes = DensePasses(PointCloud(points, None, torch.ones(1)), seeds=(5,))
    ((_, _, _, attention),) = passes._attended(centroids, 0)
    chosen = torch.bincount(attention[0].argmax(1), minlength=3) / 20_000
    assert torch.allclose(chosen, odds / odds.sum(), atol=0.015)
    soft, _ = soft_kmeans(points, centroids, 1.0, mode="gsm", pinned=pinned)
    assert float(soft.std()) > 0.1


def test_no_graph_without_gradients() -> None:
    given = example(4, dtype=torch.float32)
    assert not soft_kmeans(**given)[0].requires_grad
    given["points"].requires_grad_()
    with torch.no_grad():
        assert not soft_kmeans(**given)[0].requires_grad
    with torch.inference_mode():
        assert not soft_kmeans(**given)[0].requires_grad
    soft, centroids = soft_kmeans(**given)
    assert soft.requires_grad
    assert not centroids.requires_grad


def test_twice_in_one_graph() -> None:
    given = example(4, dtype=torch.float64)
    points = given.pop("points").requires_grad_()

    def once(points: Tensor) -> Tensor:
        return soft_kmeans(points, **given)[0]

    assert torch.autograd.gradcheck(
        lambda points: once(once(points[:, :6])) + once(points[:, :6]), (points[:, :8],)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    given = example(4, d=2, dtype=dtype)
    points = given.pop("points").requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        soft, _ = soft_kmeans(points, **given, mode="gsm", generator=torch.manual_seed(3))
        return soft, torch.autograd.grad(soft.sum(), points)[0]

    soft, gradient = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        soft_cast, gradient_cast = run()
    assert torch.equal(soft, soft_cast)
    assert torch.equal(gradient, gradient_cast)


OPTIONS = room.SoftOptions()


class Layer(nn.Module):
    """A weight that is clustered in every step, from where the step before left the centroids."""

    centroids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8, generator=torch.manual_seed(0)))
        self.register_buffer("centroids", torch.linspace(-1, 1, 4).view(1, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        clusters = room.Clusters(self.centroids, 0.1)
        soft, self.centroids = room.soft_kmeans(self.weight.view(1, -1, 1), clusters, OPTIONS)
        return x @ soft.view(16, 8)


def step(layer: nn.Module) -> Tensor:
    layer.zero_grad()
    layer(torch.ones(2, 16)).square().sum().backward()
    (gradient,) = (parameter.grad for parameter in layer.parameters())
    assert gradient is not None
    return gradient.clone()


def test_modules_can_be_copied_and_trained() -> None:
    layer = Layer()
    step(layer)
    twin = copy.deepcopy(layer)
    assert torch.equal(step(layer), step(twin))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_a_caller_can_be_compiled() -> None:
    expected = step(Layer())
    compiled = torch.compile(Layer(), backend="eager")
    assert torch.equal(step(compiled), expected)


def test_the_result_is_the_same_every_time_and_for_any_threads() -> None:
    given = example(4, n=300_000, dtype=torch.float32)
    points = given.pop("points").requires_grad_()
    threads = torch.get_num_threads()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        soft, centroids = soft_kmeans(points, **given)
        return soft, centroids, torch.autograd.grad(soft.sum(), points)[0]

    try:
        torch.set_num_threads(1)
        single = run()
        torch.set_num_threads(2)
        for got in (run(), run()):
            assert all(map(torch.equal, got, single))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["dkm", "hard"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cuda_is_as_the_cpu(dtype: torch.dtype, mode: str) -> None:
    given = example(4, n=100_000, dtype=torch.float32)
    given["points"] = given["points"].to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        there = {name: tensor.to(device) for name, tensor in given.items()}
        there["points"].requires_grad_()
        soft, centroids = soft_kmeans(**there, mode=mode)
        (gradient,) = torch.autograd.grad(soft.float().square().sum(), there["points"])
        results.append([t.detach().float().cpu() for t in (soft, centroids, gradient)])
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected, relative=2e-3 if dtype == torch.float16 else 2e-5)


POINTS, CENTROIDS = torch.zeros(2, 6, 1), torch.zeros(2, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": torch.zeros(6, 1)}, r"\[G, N, d\]"),
        ({"points": torch.zeros(2, 6, 1, dtype=torch.int32)}, "float16"),
        ({"points": torch.zeros(2, 6, 0)}, "d > 0"),
        ({"centroids": torch.zeros(2, 3)}, r"\[G, K, d\]"),
        ({"centroids": torch.zeros(2, 0, 1)}, r"\[G, K, d\]"),
        ({"centroids": torch.zeros(1, 3, 1)}, r"\[2, K, 1\]"),
        ({"centroids": torch.zeros(2, 3, 2)}, r"\[2, K, 1\]"),
        ({"centroids": torch.zeros(2, 3, 1, device="meta")}, "move them"),
        ({"temperature": 0.0}, "positive"),
        ({"temperature": torch.tensor([1.0, math.nan])}, "positive"),
        ({"temperature": torch.ones(3)}, "one per group"),
        ({"importance": torch.ones(2, 5)}, r"\[2, 6\]"),
        ({"importance": torch.ones(2, 6, dtype=torch.int64)}, "floating"),
        ({"pinned": torch.zeros(2, 3)}, "bool"),
        ({"pinned": torch.zeros(3, dtype=torch.bool)}, r"\[2, 3\]"),
        ({"iterations": 0}, "at least 1"),
        ({"mode": "soft"}, "dkm"),
        ({"epsilon": -1.0}, "not negative"),
        ({"epsilon": math.nan}, "finite"),
        ({"memory_share": 0.0}, "above 0"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"points": POINTS, "centroids": CENTROIDS, "temperature": 1.0}
    with pytest.raises(ConfigError, match=message):
        soft_kmeans(**{**given, **arguments})
