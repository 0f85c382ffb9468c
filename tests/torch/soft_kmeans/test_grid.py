"""Many points by the nodes of a grid: as exact as the points themselves in float32."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import stand_ins
from mlopt.torch.soft_kmeans.grid import Grid, grid_of
from tests.torch.soft_kmeans.references import (
    assert_near,
    dense,
    soft_kmeans,
    some_importance,
    some_pins,
)

N = 40_000


def draw(kind: str, seed: int = 0) -> Tensor:
    """float32[1, N, 1]."""
    random = np.random.default_rng(seed)
    if kind == "heavy tails":
        values = random.standard_t(3, N)
    elif kind == "two far groups":
        values = random.standard_normal(N) * 0.05 + random.choice([-1.0, 1.0], N)
    elif kind == "uniform":
        values = random.uniform(-0.3, 0.3, N)
    elif kind == "far from zero":
        values = random.standard_normal(N) * 0.1 + 5.0
    elif kind == "few values":
        values = random.integers(-20, 20, N) / 16
    else:
        values = random.standard_normal(N) * 0.02
    return torch.from_numpy(values).float().view(1, N, 1)


KINDS = ("normal", "heavy tails", "two far groups", "uniform", "far from zero", "few values")


def clusters(points: Tensor, k: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Centroids at quantiles, and temperatures that are a share of the error, as DKM starts."""
    ranks = (torch.arange(k) + 0.5) / k
    centroids = torch.stack([torch.quantile(p[:, 0], ranks) for p in points])[..., None]
    error = (points - centroids.mT).abs().amin(2).square().mean(1)
    return centroids, share * error


def made_grid(points: Tensor, centroids: Tensor, temperature: Tensor) -> Grid:
    grid = grid_of(points, None, centroids, 1.0 / temperature)
    assert grid is not None
    return grid


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def run(function, points: Tensor, pull: Tensor, *arguments: object, **more: object) -> list[Tensor]:
    points = points.detach().clone().requires_grad_()
    soft, centroids = function(points, *arguments, **more)
    (gradient,) = torch.autograd.grad(soft, points, pull.to(soft.dtype))
    return [soft.double(), centroids.double(), gradient.double()]


@pytest.mark.parametrize("extra", ["plain", "importance", "pinned", "lost"])
@pytest.mark.parametrize("k", [2, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.covering(2)
def test_a_call_is_as_exact_as_that_by_points(
    kind: str, k: int, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = draw(kind)
    centroids, temperature = clusters(points, k, share=2.0)
    made_grid(points, centroids, temperature)
    given: dict[str, object] = {}
    if extra == "importance":
        given["importance"] = some_importance(points.double())
    if extra == "pinned":
        given["pinned"] = some_pins(centroids)
    if extra == "lost":
        given["lost_size"] = 0.01 * N / k
    pull = torch.randn(points.shape, generator=torch.manual_seed(1))
    arguments = (centroids, temperature)
    given_wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    got = run(soft_kmeans, points, pull, *arguments, **given)
    expected = run(dense, points.double(), pull, *(a.double() for a in arguments), **given_wide)
    monkeypatch.setattr(stand_ins, "grid_of", lambda *_, **__: None)
    by_points = run(soft_kmeans, points, pull, *arguments, **given)
    for one, other, wanted in zip(got, by_points, expected, strict=True):
        # float32 itself is 2e-3 wrong where points are far from zero
        allowed = 1e-5 + 2.0 * relative_error(other, wanted)
        assert relative_error(one, wanted) <= allowed


def test_groups_have_grids_of_their_own() -> None:
    points = torch.cat([draw("normal"), draw("uniform") * 100.0, draw("heavy tails")])
    centroids, temperature = clusters(points, 4)
    grid = made_grid(points, centroids, temperature)
    assert len({cells.per_step for cells in grid.cells}) > 1
    pull = torch.randn(points.shape, generator=torch.manual_seed(1))
    got = run(soft_kmeans, points, pull, centroids, temperature)
    expected = run(dense, points.double(), pull, centroids.double(), temperature.double())
    for one, wanted in zip(got, expected, strict=True):
        for g in range(3):
            assert_near(one[g], wanted[g], relative=1e-5)


def test_a_cluster_without_points_near_it_moves_as_it_should() -> None:
    points = draw("two far groups")
    centroids = torch.tensor([[[-1.0], [0.3], [1.0]]])
    temperature = torch.tensor([0.05])
    made_grid(points, centroids, temperature)
    _, got = soft_kmeans(points, centroids, temperature, iterations=1)
    _, expected = dense(points.double(), centroids, temperature.double(), iterations=1)
    assert_near(got.double(), expected, relative=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_surround_their_points_and_reproduce_cubics(kind: str) -> None:
    points = draw(kind)
    centroids, temperature = clusters(points, 6, share=2.0)
    grid = made_grid(points, centroids, temperature)
    nodes = grid.points[0, :, 0].double()
    scale = points.abs().max().double()

    def cubic(x: Tensor) -> Tensor:
        x = x / scale
        return 1.0 + x - 2.0 * x**2 + 3.0 * x**3

    got = grid.spread(points, cubic(nodes)[None].float(), torch.float32)[0, :, 0].double()
    assert_near(got, cubic(points[0, :, 0].double()), relative=1e-6)
    terms = torch.randn(1, N, generator=torch.manual_seed(0))
    sums = grid.sums(points, terms)[0].double()
    wanted = (terms[0].double() * cubic(points[0, :, 0].double())).sum()
    assert float((sums * cubic(nodes)).sum() - wanted) == pytest.approx(0.0, abs=1e-4 * N**0.5)
    # the four nodes of a point: two below or at it, two above
    cells = grid.cells[0]
    place = np.floor(points[0, :, 0].numpy() * cells.per_step).astype(np.int64) - cells.first
    first = cells.node_of[place]
    values = points[0, :, 0].double().numpy()
    assert (nodes.numpy()[first + 1] <= values).all()
    assert (values < nodes.numpy()[first + 2]).all()
    assert (np.diff(nodes.numpy()[first[:, None] + np.arange(4)], 2) == 0).all()


def test_nodes_are_finer_only_between_far_centroids() -> None:
    points = draw("uniform")
    centroids = torch.tensor([[[-0.3], [-0.25], [-0.2], [0.2], [0.3]]])
    grid = made_grid(points, centroids, torch.tensor([4e-4]))
    cells = grid.cells[0]
    assert set(cells.level.tolist()) == {0, 2}
    wide = np.flatnonzero(cells.level == 0)
    edges = (cells.first + wide[[0, -1]]) / float(cells.per_step)
    np.testing.assert_allclose(edges, [-0.2, 0.2], atol=2e-4)


@pytest.mark.parametrize(
    "reason", ["few", "an outlier", "not finite", "infinite", "cold", "hot", "no steps"]
)
def test_no_grid_where_it_does_not_pay(reason: str) -> None:
    points = draw("normal")
    centroids, temperature = clusters(points, 4)
    if reason == "few":
        points = points[:, :5000]
    elif reason == "an outlier":
        points[0, 7] = 1e4
    elif reason in ("not finite", "infinite"):
        points[0, 7] = {"not finite": torch.nan, "infinite": torch.inf}[reason]
    elif reason == "cold":
        temperature = temperature * 1e-4
    elif reason == "hot":
        temperature = torch.tensor([torch.inf])
    else:
        points = points + 1e6
        centroids = centroids + 1e6
    assert grid_of(points, None, centroids, 1.0 / temperature) is None


def test_equal_points_and_equal_centroids() -> None:
    points = torch.full((1, N, 1), 0.25)
    centroids = torch.tensor([[[0.5], [0.5]]])
    grid = made_grid(points, centroids, torch.tensor([0.1]))
    assert grid.mass.shape == (1, 4)
    assert float(grid.mass.sum()) == N
    pull = torch.ones(points.shape)
    got = run(soft_kmeans, points, pull, centroids, torch.tensor([0.1]))
    expected = run(dense, points.double(), pull, centroids.double(), torch.tensor([0.1]).double())
    for one, wanted in zip(got, expected, strict=True):
        assert_near(one, wanted, relative=1e-5)


def is_kept(points: Tensor, centroids: Tensor, temperature: Tensor, **options: object) -> bool:
    """Whether a call keeps a grid for its gradient, as it does where the grid served to the end."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        soft_kmeans(points.clone().requires_grad_(), centroids, temperature, **options)
    mass = made_grid(points, centroids, temperature).mass
    return any(tensor.shape == mass.shape for tensor in saved)


@pytest.mark.parametrize(
    ("kind", "start", "temperature", "iterations"),
    [
        ("uniform", [-0.003, 0.003], 1e-4, 3),
        ("uniform", [-0.003, 0.003], 1e-3, 3),
        ("uniform", [-0.015, -0.006, 0.003, 0.015], 1e-4, 5),
        ("heavy tails", [-1.0, -0.3, 0.3, 1.0], 0.05, 5),
    ],
)
def test_centroids_that_move_apart_are_iterated_by_points(
    kind: str, start: list[float], temperature: float, iterations: int
) -> None:
    points, centroids = draw(kind), torch.tensor(start).view(1, -1, 1)
    heat = torch.tensor([temperature])
    pull = torch.randn(points.shape, generator=torch.manual_seed(1))
    assert not is_kept(points, centroids, heat, iterations=iterations)
    got = run(soft_kmeans, points, pull, centroids, heat, iterations=iterations)
    wide = (centroids.double(), heat.double())
    expected = run(dense, points.double(), pull, *wide, iterations=iterations)
    for one, wanted in zip(got, expected, strict=True):
        assert_near(one, wanted, relative=5e-5)


@pytest.mark.parametrize(
    ("place", "temperature"), [(2.5, 0.026), (2.5, 0.034), (1.9, 0.0078), (1.9, 0.0102)]
)
def test_a_cluster_with_only_faint_attention_is_iterated_by_points(
    place: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = draw("two far groups")
    centroids, heat = torch.tensor([[[-1.0], [1.0], [place]]]), torch.tensor([temperature])
    made_grid(points, centroids, heat)
    assert not is_kept(points, centroids, heat, iterations=1)
    _, got = soft_kmeans(points, centroids, heat, iterations=1)
    monkeypatch.setattr(stand_ins, "grid_of", lambda *_, **__: None)
    _, by_points = soft_kmeans(points, centroids, heat, iterations=1)
    assert torch.equal(got, by_points)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "uniform"])
def test_a_grid_serves_to_the_end_where_centroids_hardly_move(kind: str) -> None:
    points = draw(kind)
    centroids, temperature = clusters(points, 4)
    with torch.no_grad():
        for _ in range(40):
            _, centroids = soft_kmeans(points, centroids, temperature)
    assert is_kept(points, centroids, temperature)


def test_no_groups_and_numbers_that_become_zero() -> None:
    none = torch.empty(0, 10_000, 1)
    assert grid_of(none, None, torch.empty(0, 2, 1), torch.empty(0)) is None
    points = torch.full((1, N, 1), -1.4e-45)
    points[0, 0] = -1.0
    centroids = torch.tensor([[[-1.0], [0.0]]])
    grid = made_grid(points, centroids, torch.tensor([1e6]))
    assert float(grid.mass.sum()) == pytest.approx(N)
    numbers = torch.ones(1, grid.mass.shape[1])
    assert (grid.spread(points, numbers, torch.float32) == 1.0).all()


def test_sums_of_many_nodes_take_memory_that_grows_with_the_points() -> None:
    points = torch.linspace(0.0, 1.0, 1 << 20).view(1, -1, 1)
    grid = made_grid(points, torch.tensor([[[0.4], [0.6]]]), torch.tensor([2.6e-5]))
    assert grid.mass.shape[1] > 1 << 16
    terms = torch.ones(1, 1 << 20)
    tracemalloc.start()
    try:
        grid.sums(points, terms)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * grid.mass.shape[1]


@pytest.mark.parametrize("k", [2, 4])
def test_a_small_grid_is_kept_and_its_gradient_is_the_same(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.cat([draw("normal"), draw("heavy tails", 1)])
    centroids, temperature = clusters(points, k)
    monkeypatch.setattr("mlopt.torch.soft_kmeans.grid._KEPT_A_POINT", 16)
    grid = made_grid(points, centroids, temperature)
    assert grid.is_small
    again = Grid.of_parts(grid.parts)
    assert torch.equal(again.points, grid.points)
    for cells, expected in zip(again.cells, grid.cells, strict=True):
        assert all(map(np.array_equal, cells, expected))

    pull = torch.randn(points.shape, generator=torch.manual_seed(0))
    kept = run(soft_kmeans, points, pull, centroids, temperature)
    monkeypatch.setattr("mlopt.torch.soft_kmeans.grid._KEPT_A_POINT", 0)
    assert not made_grid(points, centroids, temperature).is_small
    found_again = run(soft_kmeans, points, pull, centroids, temperature)
    assert all(map(torch.equal, kept, found_again))
