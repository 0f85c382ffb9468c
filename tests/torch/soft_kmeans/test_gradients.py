"""Gradients against finite differences, against autograd, and at fixed points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlopt.errors import ConfigError
from tests.torch.soft_kmeans.references import (
    assert_near,
    dense,
    example,
    soft_kmeans,
    some_importance,
    some_pins,
)

EXTRAS = ("plain", "importance", "pinned", "both")


def extras(kind: str, given: dict[str, Tensor]) -> dict[str, Any]:
    importance = some_importance(given["points"]) if kind in ("importance", "both") else None
    pinned = some_pins(given["centroids"]) if kind in ("pinned", "both") else None
    return {"importance": importance, "pinned": pinned}


def gradient(function: Any, points: Tensor, pull: Tensor, **arguments: Any) -> Tensor:
    points = points.detach().clone().requires_grad_()
    soft, _ = function(points, **arguments)
    return torch.autograd.grad(soft, points, pull)[0]


@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("mode", ["dkm", "hard", "gsm"])
@pytest.mark.covering(2)
def test_finite_differences(mode: str, d: int, iterations: int, kind: str) -> None:
    given = example(3, n=7, k=3, d=d, dtype=torch.float64)
    points = given.pop("points").requires_grad_()

    def soft(points: Tensor) -> Tensor:
        return soft_kmeans(
            points,
            **given,
            iterations=iterations,
            mode=mode,
            generator=torch.Generator().manual_seed(11),
            **extras(kind, {"points": points.detach(), **given}),
        )[0]

    assert torch.autograd.gradcheck(soft, (points,))


@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("mode", ["dkm", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.covering(2)
def test_autograd_through_the_formulas(dtype: torch.dtype, mode: str, d: int, kind: str) -> None:
    given = example(1, n=600, d=d, dtype=dtype)
    arguments = {**given, **extras(kind, given), "mode": mode}
    pull = torch.randn(given["points"].shape, dtype=dtype, generator=torch.manual_seed(2))

    exact = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    soft, centroids = soft_kmeans(**arguments)
    expected_soft, expected_centroids = dense(**exact)

    relative = 3e-6 if dtype == torch.float32 else 1e-12
    assert_near(soft, expected_soft, relative=relative)
    assert_near(centroids, expected_centroids, relative=relative)
    assert_near(
        gradient(soft_kmeans, pull=pull, **arguments),
        gradient(dense, pull=pull.double(), **exact),
        relative=5 * relative,
    )


@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.covering(2)
def test_implicit_is_the_limit_of_many_iterations(dtype: torch.dtype, d: int, kind: str) -> None:
    given = example(7, n=300, k=4, d=d, dtype=torch.float64)
    given["temperature"] /= 8
    arguments = {**given, **extras(kind, given), "iterations": 500}
    pull = torch.randn(given["points"].shape, dtype=torch.float64, generator=torch.manual_seed(2))
    expected = gradient(soft_kmeans, pull=pull, **arguments)
    _, arguments["centroids"] = soft_kmeans(**arguments)

    # one iteration from where 500 have led is as good as 500
    cast = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in {**arguments, "iterations": 1}.items()
    }
    found = gradient(soft_kmeans, pull=pull.to(dtype), **cast, implicit=True)

    assert_near(found, expected, relative=1e-9 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("mode", ["dkm", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.covering(2)
def test_a_lost_cluster_moves_to_the_mean(dtype: torch.dtype, mode: str, d: int, kind: str) -> None:
    given = example(1, n=300, d=d, dtype=dtype)
    given["centroids"][:, 3] += 1e3  # so far that nothing attends to it
    arguments = {**given, **extras(kind, given), "mode": mode, "lost_size": 1e-7}
    pull = torch.randn(given["points"].shape, dtype=dtype, generator=torch.manual_seed(2))
    exact = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    soft, centroids = soft_kmeans(**arguments)
    expected_soft, expected_centroids = dense(**exact)

    assert float(centroids[:, 3].abs().max()) < 10
    relative = 1e-5 if dtype == torch.float32 else 1e-12
    assert_near(soft, expected_soft, relative=relative)
    assert_near(centroids, expected_centroids, relative=relative)
    for iterations in (1, 3):
        arguments["iterations"] = exact["iterations"] = iterations
        assert_near(
            gradient(soft_kmeans, pull=pull, **arguments),
            gradient(dense, pull=pull.double(), **exact),
            relative=5 * relative,
        )


def test_a_cluster_that_is_lost_in_the_second_iteration() -> None:
    # the one in the middle has -2 and 1 at first, which its neighbours have then come nearer to
    points = torch.tensor([-3.1, -3.06, -2.0, 1.0, 1.06, 1.07], dtype=torch.float64)[None, :, None]
    centroids = torch.tensor([-4.1, 0.0, 2.1], dtype=torch.float64)[None, :, None]
    arguments = {
        "points": points,
        "centroids": centroids,
        "temperature": torch.ones(1, dtype=torch.float64),
        "mode": "hard",
        "lost_size": 1e-7,
    }
    _, first = soft_kmeans(**arguments, iterations=1)
    _, second = soft_kmeans(**arguments, iterations=2)
    assert float(first[0, 1]) == -0.5
    torch.testing.assert_close(second[0, 1], points.mean(1)[0])
    pull = torch.tensor([1.0, 2.0, -3.0, 4.0, 0.5, 7.0], dtype=torch.float64)[None, :, None]
    for iterations in (2, 3):
        found = gradient(soft_kmeans, pull=pull, **arguments, iterations=iterations)
        wanted = gradient(dense, pull=pull, **arguments, iterations=iterations)
        assert_near(found, wanted, relative=1e-12)


def test_pinned_clusters_and_groups_without_mass_are_not_lost() -> None:
    given = example(1, n=50, dtype=torch.float32)
    given["centroids"][:, 3] = 1e3
    pinned = torch.zeros(given["centroids"].shape[:2], dtype=torch.bool)
    pinned[:, 3] = True
    _, moved = soft_kmeans(**given, pinned=pinned, lost_size=1e-7)
    assert bool((moved[:, 3] == 1e3).all())
    importance = torch.ones(given["points"].shape[:2])
    importance[0] = 0.0
    _, moved = soft_kmeans(**given, importance=importance, lost_size=1e-7)
    assert torch.equal(moved[0], given["centroids"][0])
    assert float(moved[1, 3].abs().max()) < 10


def test_a_lost_cluster_of_values_with_codes() -> None:
    given = example(1, groups=1, n=1 << 17, k=4, dtype=torch.float32)
    given["points"] = (given["points"] * 64).round() / 64
    given["centroids"][:, 3] = 1e3
    arguments = {**given, "lost_size": 1e-7, "iterations": 1}
    pull = torch.randn(given["points"].shape, generator=torch.manual_seed(2))
    found = gradient(soft_kmeans, pull=pull, coded=True, **arguments)
    assert_near(found, gradient(soft_kmeans, pull=pull, **arguments), relative=1e-4)
    given["points"] = given["points"].half()
    _, moved = soft_kmeans(**given, lost_size=1e-7, iterations=1)
    assert_near(moved[0, 3], given["points"].float().mean(1)[0], relative=1e-4)


def test_implicit_of_a_lost_cluster_does_not_depend_on_where_it_was() -> None:
    given = example(7, n=300, k=4, dtype=torch.float64)
    given["centroids"][:, 3] = 1e3
    pull = torch.ones_like(given["points"])
    arguments = {**given, "lost_size": 1e-7, "iterations": 1, "pull": pull}
    explicit = gradient(soft_kmeans, **arguments)
    implicit = gradient(soft_kmeans, **arguments, implicit=True)
    assert torch.isfinite(implicit).all()
    assert not torch.equal(implicit, explicit)
    given["centroids"][:, 3] = 2e3
    assert torch.allclose(implicit, gradient(soft_kmeans, **arguments, implicit=True))


def test_implicit_of_hard_attention_is_explicit() -> None:
    given = example(7, dtype=torch.float32)
    pull = torch.ones_like(given["points"])

    explicit = gradient(soft_kmeans, pull=pull, **given, mode="hard")

    assert torch.equal(
        explicit, gradient(soft_kmeans, pull=pull, **given, mode="hard", implicit=True)
    )


def test_implicit_with_a_free_direction_is_finite() -> None:
    points = torch.tensor([[[-1.0], [1.0]]], dtype=torch.float64)
    # Two centroids on the mean leave it together or stay; at this temperature neither is preferred.
    centroids = torch.zeros(1, 2, 1, dtype=torch.float64)

    found = gradient(
        soft_kmeans,
        points,
        torch.ones_like(points),
        centroids=centroids,
        temperature=2.0,
        implicit=True,
    )

    assert_near(found, torch.ones_like(points), relative=1e-12)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 64, 1), {"mode": "gsm"}, "need"),
        ((2, 4096, 2), {}, "implicit=False"),
    ],
)
def test_implicit_refused(shape: tuple[int, ...], options: dict[str, str], message: str) -> None:
    points = torch.zeros(shape[0], 4, shape[2])
    with pytest.raises(ConfigError, match=message):
        soft_kmeans(points, torch.zeros(shape), 1.0, implicit=True, **options)


def test_the_gradient_has_no_gradient() -> None:
    given = example(1, dtype=torch.float64)
    points = given.pop("points").requires_grad_()
    soft, _ = soft_kmeans(points, **given)
    (first,) = torch.autograd.grad(soft.square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
