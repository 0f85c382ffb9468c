"""Empty clusters, extreme temperatures, points of no importance: no NaN, and the right limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.torch.soft_kmeans.references import assert_near, dense, example, soft_kmeans

DTYPES = (torch.float16, torch.float32, torch.float64)
MODES = ("dkm", "hard", "gsm")


def run(points: Tensor, *arguments: object, **options: object) -> list[Tensor]:
    points = points.detach().clone().requires_grad_()
    soft, centroids = soft_kmeans(points, *arguments, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(soft.square().sum(), points)
    results = [soft.detach(), centroids, gradient]
    assert all(bool(result.isfinite().all()) for result in results)
    return results


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.covering(2)
def test_an_empty_cluster_stays(d: int, dtype: torch.dtype, implicit: bool) -> None:
    points = torch.linspace(-1, 1, 50 * d, dtype=dtype).view(1, 50, d)
    centroids = torch.tensor([-0.5, 0.5, 900.0])[None, :, None].repeat(1, 1, d)

    _, moved, gradient = run(points, centroids, 0.3, implicit=implicit)
    _, expected, without = run(points, centroids[:, :2], 0.3, implicit=implicit)

    assert torch.equal(moved[0, 2], centroids[0, 2].to(moved.dtype))
    assert torch.allclose(moved[:, :2], expected)
    assert torch.allclose(gradient, without)


def test_a_cluster_that_empties_hands_its_gradient_on() -> None:
    # The last point counts for nothing, and attends to the centroid in the middle. Of the others
    # exp(-60) does at first, and exp(-80) when the outer centroids have reached them.
    points = torch.tensor([[[-1.0], [1.0], [0.05]]])
    centroids = torch.tensor([[[-0.5], [0.0], [0.5]]])
    importance = torch.tensor([[1.0, 1.0, 0.0]])
    temperature = torch.tensor([1 / 80])
    pull = torch.tensor([[[0.0], [0.0], [1.0]]])
    exact = points.double().requires_grad_()
    expected, _ = dense(
        exact, centroids, temperature.double(), importance=importance.double(), empty=2.0**-100
    )

    points.requires_grad_()
    soft, _ = soft_kmeans(points, centroids, temperature, importance=importance)

    assert_near(soft, expected, relative=1e-6)
    (wanted,) = torch.autograd.grad(expected, exact, pull.double())
    (gradient,) = torch.autograd.grad(soft, points, pull)
    assert float(wanted.abs().max()) > 1.0
    assert_near(gradient, wanted, relative=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_importance_at_all(dtype: torch.dtype) -> None:
    given = example(2, dtype=torch.float32)
    points = given.pop("points").to(dtype)
    _, moved, _ = run(points, **given, importance=torch.zeros(points.shape[:2]))
    assert torch.equal(moved, given["centroids"].to(moved.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20])
def test_tiny_temperatures_are_hard(temperature: float, d: int, dtype: torch.dtype) -> None:
    given = example(2, d=d, dtype=torch.float32)
    points, centroids = given["points"].to(dtype), given["centroids"]
    for soft, hard in zip(
        run(points, centroids, temperature),
        run(points, centroids, 1.0, mode="hard"),
        strict=True,
    ):
        assert_near(soft, hard, relative=2e-3 if dtype == torch.float16 else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e10, 1e38, float("inf")])
def test_huge_temperatures_collapse(temperature: float, dtype: torch.dtype) -> None:
    given = example(2, dtype=torch.float32)
    points = given["points"].to(dtype)
    soft, centroids, _ = run(points, given["centroids"], temperature)
    means = points.double().mean(1, keepdim=True)
    for values in (soft, centroids):
        assert float((values - means).abs().max()) < (1e-4 if dtype == torch.float16 else 1e-6)


@pytest.mark.parametrize(
    ("mode", "implicit"),
    [("dkm", False), ("dkm", True), ("hard", False), ("hard", True), ("gsm", False)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-45, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize(
    ("points", "centroids"),
    [
        ([0.0] * 9, [0.0, 0.0, 0.0]),
        ([1.0] * 9, [1.0, 1.0, 1.0]),
        ([0.5, -0.5, 0.0], [-1.0, 1.0, 0.0]),  # ties
        ([0.0, 0.0], [-1.0, 1.0, 3.0]),
        ([1e-4], [3e4]),
        ([-6e4, 6e4, 1.0], [-6e4, 6e4, 6e4]),
        ([1e-7, 2e-7], [0.0, 1e-7, 3e-7]),
    ],
)
@pytest.mark.covering(2)
def test_never_nan(
    points: list[float],
    centroids: list[float],
    temperature: float,
    dtype: torch.dtype,
    implicit: bool,
    mode: str,
) -> None:
    held = torch.tensor(points, dtype=dtype)[None, :, None].requires_grad_()
    soft, moved = soft_kmeans(
        held, torch.tensor(centroids)[None, :, None], temperature, mode=mode, implicit=implicit
    )
    soft.sum().backward()
    assert held.grad is not None
    for result in (soft, moved, held.grad):
        assert not bool(result.isnan().any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("groups", "n"), [(0, 5), (2, 0)])
@pytest.mark.covering(1)
def test_no_points(groups: int, n: int, mode: str, dtype: torch.dtype) -> None:
    points = torch.zeros(groups, n, 1, dtype=dtype).requires_grad_()
    centroids = torch.ones(groups, 3, 1)
    soft, moved = soft_kmeans(points, centroids, 1.0, mode=mode)
    soft.sum().backward()
    assert soft.shape == points.shape
    assert torch.equal(moved, centroids.to(moved.dtype))
