"""Sensitivities on two ranks that torchrun starts, against those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mlopt.torch.palettization import SKMPalettizer, SKMPalettizerConfig
from mlopt.torch.sensitivity import compute_sensitivities
from tests.torch.ranks import run_once_on_ranks
from tests.torch.sensitivity.ranks_script import dropping
from tests.torch.sensitivity.references import loss_fn, make_model, make_samples

SCRIPT = Path(__file__).with_name("ranks_script.py")
COUNT = 5
KINDS = ["plain", "fsdp2", "fsdp1", "fsdp1-flat"]

pytestmark = pytest.mark.long  # processes that start torch anew


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all cases in one job; a case that hangs leaves the files of it and later ones out."""
    return run_once_on_ranks(SCRIPT, tmp_path_factory, "sensitivity", ranks=2, seconds=150)


def load(results: Path, case: str) -> list[dict[str, Any]]:
    return [torch.load(results / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_as_one_process(found: dict[str, Any], wanted: Any) -> None:
    assert found["values"].keys() == wanted.values.keys()
    for name, value in wanted.values.items():
        assert found["values"][name].dtype == torch.float32
        torch.testing.assert_close(found["values"][name], value, rtol=2e-5, atol=1e-10)
    assert found["samples"] == wanted.samples
    assert found["without_gradient"].keys() == wanted.without_gradient.keys()
    assert found["aliases"] == wanted.aliases
    assert found["is_as_before"]


@pytest.mark.parametrize(
    "case",
    ["ddp", *KINDS, *(f"{kind}-frozen" for kind in KINDS), *(f"{kind}-own" for kind in KINDS)],
)
def test_all_ranks_have_the_values_of_one_process(results: Path, case: str) -> None:
    wanted = compute_sensitivities(make_model(), make_samples(COUNT), loss_fn)
    first, second = load(results, case)
    assert_as_one_process(first, wanted)
    assert_as_one_process(second, wanted)
    for name, value in first["values"].items():
        assert torch.equal(value, second["values"][name])


def test_an_unused_part_of_a_flat_parameter_has_a_gradient_of_zeros(results: Path) -> None:
    for found in load(results, "fsdp1-flat"):
        reasons = found["without_gradient"]
        assert reasons["unused.weight"] == "its gradient is zero everywhere"


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_samples_takes_part(results: Path, kind: str) -> None:
    wanted = compute_sensitivities(make_model(), make_samples(1), loss_fn)
    for found in load(results, f"{kind}-one"):
        assert_as_one_process(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_by_name(results: Path, kind: str) -> None:
    names = ["head.weight", "block.2.bias", "unused.bias"]
    wanted = compute_sensitivities(make_model(), make_samples(COUNT), loss_fn, names=names)
    for found in load(results, f"{kind}-names"):
        assert_as_one_process(found, wanted)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp1-flat"])
def test_palettizers_leave_one_file_for_all_ranks(results: Path, kind: str) -> None:
    rules = {"global_config": {"n_bits": 2}, "calibration_nsamples": COUNT}
    wanted = SKMPalettizer(make_model(), SKMPalettizerConfig.from_dict(rules))
    expected = dict(wanted.compress(make_samples(COUNT), loss_fn).named_parameters())
    for found in load(results, f"{kind}-palettized"):
        for name, weight in expected.items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-5)
        is_sharded = kind != "ddp"
        assert ("sharded over processes" in found["message"]) == is_sharded
        assert found["message"].endswith("; FileNotFoundError")


def test_names_of_a_wrapped_model_are_understood(results: Path) -> None:
    names = ["head.weight", "block.2.bias"]
    wanted = compute_sensitivities(make_model(), make_samples(COUNT), loss_fn, names=names)
    for found in load(results, "ddp-names"):
        assert list(found["values"]) == ["module.head.weight", "block.2.bias"]
        torch.testing.assert_close(
            found["values"]["module.head.weight"], wanted.values["head.weight"], rtol=2e-5, atol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_values_on_rank_0_only(results: Path, kind: str) -> None:
    wanted = compute_sensitivities(make_model(), make_samples(COUNT), loss_fn)
    first, second = load(results, f"{kind}-rank0")
    assert_as_one_process(first, wanted)
    assert (second["values"], second["without_gradient"]) == ({}, {})
    assert second["samples"] == COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_on_one_rank_ends_all(results: Path, kind: str) -> None:
    found = load(results, f"{kind}-failing")
    source = 1 if kind == "plain" else 0
    assert found[source]["message"] == "RuntimeError: the disk is gone"
    assert found[1 - source]["message"].startswith(f"MlOptError: rank {source} failed")
    assert all(result["is_as_before"] for result in found)


def test_a_gradient_that_is_not_finite_ends_all_ranks(results: Path) -> None:
    for found in load(results, "fsdp2-bad"):
        assert found["message"].startswith("ConfigError: ")
        assert "sample 0" in found["message"]


def test_gradients_of_a_sharded_model_are_put_aside(results: Path) -> None:
    for found in load(results, "fsdp2-gradients"):
        assert found == {"message": "", "is_as_before": True}


def test_gradients_that_cannot_be_put_aside_are_refused(results: Path) -> None:
    for found in load(results, "fsdp1-gradients"):
        assert "has a gradient, which cannot be put aside" in found["message"]
        assert found["is_as_before"]


def test_ranks_drop_out_the_same(results: Path) -> None:
    first, second = load(results, "fsdp2-dropout")
    assert first["values"].keys() == second["values"].keys()
    model = dropping()
    torch.manual_seed(100)  # rank 0's
    wanted = compute_sensitivities(model, make_samples(COUNT), loss_fn)
    for name, value in wanted.values.items():
        torch.testing.assert_close(first["values"][name], value, rtol=2e-5, atol=1e-10)


def test_training_goes_on_with_averaged_gradients(results: Path) -> None:
    model = make_model()
    for sample in make_samples(2):
        loss_fn(model, sample).backward()
    for found in load(results, "ddp-training"):
        torch.testing.assert_close(
            found["gradient"], model.embedding.weight.grad / 2, rtol=1e-5, atol=1e-8
        )
