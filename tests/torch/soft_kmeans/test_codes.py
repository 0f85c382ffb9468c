"""Points by their 16-bit codes give what the points themselves do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import codes
from tests.torch.soft_kmeans.references import (
    assert_near,
    example,
    soft_kmeans,
    some_importance,
    some_pins,
)

HALVES = (torch.float16, torch.bfloat16)


def run(points: Tensor, pull: Tensor, **arguments: object) -> list[Tensor]:
    points = points.detach().clone().requires_grad_()
    soft, centroids = soft_kmeans(points, **arguments)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(soft, points, pull.to(soft.dtype))
    return [soft.double(), centroids.double(), gradient.double()]


@pytest.mark.parametrize("extra", ["plain", "importance", "pinned", "implicit"])
@pytest.mark.parametrize("mode", ["dkm", "hard"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.covering(2)
def test_coded_is_as_uncoded(dtype: torch.dtype, mode: str, extra: str) -> None:
    given = example(9, groups=2, n=1 << 17, k=6, dtype=torch.float64)
    points = given.pop("points").to(dtype)
    assert codes.values_of(points, None) is not None
    arguments: dict[str, object] = {**given, "mode": mode}
    if extra == "importance":
        arguments["importance"] = some_importance(points.double())
    if extra == "pinned":
        arguments["pinned"] = some_pins(given["centroids"])
    if extra == "implicit":
        arguments["implicit"] = True
    pull = torch.randn(points.shape, generator=torch.manual_seed(1)).to(dtype)

    expected = run(points.double(), pull, **arguments)

    half = torch.finfo(dtype).eps
    for got, wanted in zip(run(points, pull, **arguments), expected, strict=True):
        assert_near(got, wanted, relative=half)
    # float32 that holds what 16 bits can, rounded to them: no error but that of float32
    if dtype == torch.float16:
        for got, wanted in zip(
            run(points.float(), pull, **arguments, coded=True), expected, strict=True
        ):
            assert_near(got, wanted, relative=1e-4 if extra == "implicit" else 1e-5)


def test_one_point_of_a_code_pulls_as_if_alone() -> None:
    # Equal points with different gradients and importances, by finite differences in float64.
    random = torch.manual_seed(0)
    values = torch.randn(1, 5, 1, dtype=torch.float64, generator=random).half()
    points = values.repeat(1, 20_000, 1)
    importance = torch.rand(points.shape[:2], generator=random)
    pull = torch.zeros(points.shape)
    pull[0, :40] = torch.randn(40, 1, generator=random)
    given = {"centroids": torch.tensor([[[-1.0], [1.0]]]), "temperature": 0.5}
    assert codes.values_of(points, None) is not None

    coded = run(points.float(), pull, **given, importance=importance, coded=True)
    plain = run(points.double(), pull, **given, importance=importance)

    for got, wanted in zip(coded, plain, strict=True):
        assert_near(got, wanted, relative=1e-5)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        (1.0, torch.float16),
        (60_000.0, torch.float16),
        (70_000.0, torch.bfloat16),
        (2.0**-13, torch.float16),
        (2.0**-14, torch.bfloat16),
        (0.0, torch.float16),
    ],
)
def test_which_sixteen_bits(largest: float, dtype: torch.dtype) -> None:
    assert codes.rounded(torch.tensor([[[largest], [-largest / 3]]])).dtype == dtype


def test_rounded_points_are_what_is_clustered() -> None:
    points = torch.randn(1, 1 << 16, 1, generator=torch.manual_seed(0))
    given = {"centroids": torch.tensor([[[-1.0], [0.0], [1.0]]]), "temperature": 0.3}
    pull = torch.ones_like(points)
    coded = run(points, pull, **given, coded=True)
    rounded = run(points.half().float(), pull, **given)
    for got, wanted in zip(coded, rounded, strict=True):
        assert_near(got, wanted, relative=1e-5)
    # also where there are too few points for codes to be worth their while
    coded = run(points[:, :100], pull[:, :100], **given, coded=True)
    rounded = run(points[:, :100].half().float(), pull[:, :100], **given)
    assert all(map(torch.equal, coded, rounded))


def test_values_ascend_with_their_masses() -> None:
    points = torch.tensor([-2.0, 0.0, -0.0, 3.0]).half().repeat(2, 1 << 15)[..., None]
    points[1, 0] = 7.0
    importance = torch.full(points.shape[:2], 0.5)

    counted = codes.values_of(points, None)
    weighed = codes.values_of(points, importance)

    assert counted is not None
    assert weighed is not None
    assert counted.values.tolist() == [-2.0, 0.0, 0.0, 3.0, 7.0]
    quarter = 1 << 15
    assert counted.mass.tolist() == [
        [quarter, quarter, quarter, quarter, 0],
        [quarter - 1, quarter, quarter, quarter, 1],
    ]
    assert torch.equal(weighed.mass, counted.mass / 2)


def test_few_points_have_no_values() -> None:
    many_values = torch.randn(1, 1 << 16, 1, generator=torch.manual_seed(0))
    assert codes.values_of(many_values[:, :-1].half(), None) is None
    assert (
        codes.values_of(torch.arange(1 << 16).to(torch.int16).view(1, -1, 1).view(HALVES[0]), None)
        is None
    )
    assert codes.values_of(torch.zeros(1, 1 << 16, 2).half(), None) is None
