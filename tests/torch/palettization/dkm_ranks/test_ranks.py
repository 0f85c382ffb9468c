"""Weights palettized in training on ranks that torchrun starts, against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.torch.palettization.dkm_ranks import models
from tests.torch.palettization.dkm_ranks.models import OPTIONS
from tests.torch.ranks import run_once_on_ranks

SCRIPT = Path(__file__).with_name("ranks_script.py")
RAGGED = {"ragged": (7, 5), "few": (5, 1), "one": (1, 1)}

pytestmark = pytest.mark.long  # processes that start torch anew


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_once_on_ranks(SCRIPT, tmp_path_factory, "dkm-two", ranks=2, seconds=90)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = (*RAGGED, "scalars-same", "whole-groups-same", "ddp-shares")
    return run_once_on_ranks(SCRIPT, tmp_path_factory, "dkm-four", *cases, ranks=4, seconds=90)


def load(folder: Path, case: str, ranks: int = 2) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(ranks)]


def assert_equal_on_all(found: list[dict[str, Any]]) -> None:
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def assert_close(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Everything that is wanted is as wanted, but for a share of its largest magnitude."""
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        within = tolerance * float(value.abs().max()) if value.is_floating_point() else 0
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=within, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_trained_as_one_process(found: list[dict[str, Any]], **options: Any) -> None:
    assert_equal_on_all(found)
    palettizer, model = models.prepared(models.network(), n_bits=2, **options)
    models.train(model, palettizer, list(range(len(found))))
    tables = models.tables(palettizer.finalize())
    assert len(tables) == 3
    wanted = models.trained(model) | {f"table of {name}": table for name, table in tables.items()}
    assert_close(found[0], wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_shares_give_what_one_process_gives(two: Path, name: str) -> None:
    found = load(two, f"{name}-same")
    assert_equal_on_all(found)
    palettizer, model = models.prepared(models.of_option(name), **OPTIONS[name])
    wanted = models.forward_and_gradient(model, [0])
    wanted["table"] = models.tables(palettizer.finalize())["0.weight"]
    assert_close(found[0], wanted, tolerance=2e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_average_of_gradients_is_the_gradient_of_the_mean_loss(two: Path, name: str) -> None:
    found = load(two, f"{name}-own")
    _, model = models.prepared(models.of_option(name), **OPTIONS[name])
    wanted = models.forward_and_gradient(model, [0, 1])
    average = {"gradient": (found[0]["gradient"] + found[1]["gradient"]) / 2}
    assert_close(average, {"gradient": wanted["gradient"]}, tolerance=2e-5)
    if name != "partly-soft":  # where the gradient of the rest is that of each rank
        assert_equal_on_all(found)


@pytest.mark.parametrize("case", RAGGED)
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_shares_may_be_shorter_or_empty(request, ranks: int, case: str) -> None:
    found = load(request.getfixturevalue({2: "two", 4: "four"}[ranks]), case, ranks)
    assert_equal_on_all(found)
    _, model = models.prepared(models.linear(*RAGGED[case]), n_bits=1)
    assert_close(found[0], models.forward_and_gradient(model, list(range(ranks))))


@pytest.mark.long
def test_four_ranks_give_what_one_process_gives(four: Path) -> None:
    for name in ("scalars", "whole-groups"):  # of which there are fewer
        found = load(four, f"{name}-same", 4)
        assert_equal_on_all(found)
        _, model = models.prepared(models.of_option(name), **OPTIONS[name])
        assert_close(found[0], models.forward_and_gradient(model, [0]))
    assert_trained_as_one_process(load(four, "ddp-shares", 4))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("bfloat16", 1e-2), ("float16", 2e-3)]
)
def test_dtypes(two: Path, dtype: str, tolerance: float) -> None:
    found = load(two, dtype)
    assert_equal_on_all(found)
    _, model = models.prepared(models.linear(16, 24).to(getattr(torch, dtype)), n_bits=2)
    assert_close(found[0], models.forward_and_gradient(model, [0, 1]), tolerance)


def test_equal_weights_of_different_shares_have_noise_of_their_own(two: Path) -> None:
    found = load(two, "gsm")
    assert_equal_on_all(found)
    assert torch.isfinite(found[0]["gradient"]).all()
    upper, lower = found[0]["weight"].chunk(2)
    assert not torch.allclose(upper, lower, rtol=0, atol=0.1 * float(upper.abs().max()))


def test_only_the_share_is_kept_for_the_gradient(two: Path) -> None:
    for found in load(two, "kept-bytes"):
        whole = found["palett_batch_mode"]  # which changes nothing
        assert found["palett_shard"] < 0.51 * whole
        assert found["palett_dist"] < 0.51 * whole


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp1"])
@pytest.mark.parametrize("shares", ["replicas", "shares"])
def test_training_is_that_of_one_process_with_all_samples(
    two: Path, kind: str, shares: str
) -> None:
    assert_trained_as_one_process(load(two, f"{kind}-{shares}"))


def test_many_groups_are_first_clustered_by_all_ranks_together(two: Path) -> None:
    together, each = (load(two, f"clustered-{how}") for how in ("together", "each"))
    assert [int(found["groups"]) for found in together] == [1, 2]
    assert [int(found["groups"]) for found in each] == [3, 3]
    for found, wanted in zip(together, each, strict=True):
        assert torch.equal(found["weight"], wanted["weight"])
        assert torch.equal(found["centroids"], wanted["centroids"])


def test_whole_groups_need_no_sums_of_other_ranks(two: Path) -> None:
    # one says whether the weights are new; else one an iteration, one for each on the way back
    assert [int(found["count"]) for found in load(two, "exchanges-in-batch-mode")] == [1, 1]
    assert [int(found["count"]) for found in load(two, "exchanges")] == [7, 7]


def test_a_gradient_of_two_passes(two: Path) -> None:
    found = load(two, "ddp-twice")
    assert_equal_on_all(found)
    _, model = models.prepared(models.network(), n_bits=2, enforce_zero=True)
    inputs, wanted = models.joint_batch(0, [0, 1])
    ((model(inputs) - wanted).square().mean() + model(inputs).square().mean()).backward()
    assert_close(found[0], {name: p.grad for name, p in model.named_parameters()})


def test_one_rank_may_evaluate_and_report(two: Path) -> None:
    assert_equal_on_all(load(two, "one-rank"))


def test_models_that_are_sharded_already_are_refused(two: Path) -> None:
    for case in ("fsdp-first", "fsdp-finalize"):
        for found in load(two, case):
            assert "is sharded" in found["message"], case
