from pathlib import Path

import pytest
import torch
from coremltools.optimize.torch.palettization import SKMPalettizer, SKMPalettizerConfig
from torch import nn

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity import (
    Sensitivities,
    check_sensitivities,
    compute_sensitivities,
    load_sensitivities,
    save_sensitivities,
)
from tests.torch.sensitivity.references import loss_fn, make_model, make_samples


def test_round_trip_with_all_names_of_tied_parameters(tmp_path: Path) -> None:
    model = make_model()
    found = compute_sensitivities(model, make_samples(3), loss_fn)
    path = tmp_path / "sensitivities.pt"
    path.write_bytes(b"an earlier file")
    save_sensitivities(found, path)
    loaded = load_sensitivities(path)
    assert loaded.keys() == {*found.values, "head.weight"}
    for name, value in loaded.items():
        assert torch.equal(value, found.value(name))
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivities.pt"]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert check_sensitivities(loaded, parameters) == ("unused.weight", "unused.bias")


def test_a_failing_write_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: object, stream: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "sensitivities.pt"
    save_sensitivities({"a": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_sensitivities({"a": torch.zeros(2)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivities.pt"]
    assert torch.equal(load_sensitivities(path)["a"], torch.ones(2))


@pytest.fixture
def regression() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    return model, [torch.randn(8, 64) for _ in range(4)]


def squared(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_coremltools_is_ours_divided_by_the_largest(
    tmp_path: Path, regression: tuple[nn.Module, list[torch.Tensor]]
) -> None:
    model, samples = regression
    path = tmp_path / "reference.pt"
    config = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 4}})
    reference = SKMPalettizer(model, config)
    reference.compute_sensitivity(samples, squared, sensitivity_path=str(path))
    theirs = load_sensitivities(path)
    ours = compute_sensitivities(model, samples, squared).values
    assert check_sensitivities(theirs, dict(model.named_parameters())) == ()
    for name, value in ours.items():
        scaled = value / value.max()
        smallest = scaled[scaled > 0].min()  # which they give to zeros
        expected = torch.where(scaled == 0, smallest, scaled).clamp(min=1e-12)
        torch.testing.assert_close(theirs[name], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_coremltools_palettizes_with_our_file(
    tmp_path: Path, regression: tuple[nn.Module, list[torch.Tensor]]
) -> None:
    model, samples = regression
    path = tmp_path / "ours.pt"
    save_sensitivities(compute_sensitivities(model, samples, squared), path)
    config = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    palettized = SKMPalettizer(model, config).compress(sensitivity_path=str(path))
    assert len(palettized[0].weight.unique()) == 4


def test_files_that_are_no_sensitivities_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"not a file of torch")
    with pytest.raises(ConfigError, match=r"x\.pt is not a file of sensitivities"):
        load_sensitivities(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"x\.pt is not a file of sensitivities"):
        load_sensitivities(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ConfigError, match="got list"):
        load_sensitivities(path)
    torch.save({"a": 3}, path)
    with pytest.raises(ConfigError, match="got 'a' with int"):
        load_sensitivities(path)
    torch.save(nn.Linear(1, 1), path)  # code, which is not run
    with pytest.raises(ConfigError, match=r"x\.pt is not a file of sensitivities"):
        load_sensitivities(path)
    with pytest.raises(FileNotFoundError):
        load_sensitivities(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, 2), r"'w' has shape \(3, 2\), but the parameter \(2, 3\)"),
        (-torch.ones(2, 3), "'w' ranges from -1 to -1"),
        (torch.full((2, 3), float("nan")), "'w' ranges from nan"),
        (torch.full((2, 3), float("inf")), "'w' ranges from inf"),
        (torch.ones(2, 3).to_sparse(), "'w' must be a dense tensor"),
        (torch.ones(2, 3, dtype=torch.complex64), "'w' must be a dense tensor"),
    ],
)
def test_sensitivities_that_do_not_fit_are_refused(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sensitivities({"w": value}, {"w": torch.ones(2, 3)})


def test_what_is_missing_is_returned_and_what_is_more_is_not_looked_at() -> None:
    values = {"w": torch.ones(2), "other": -torch.ones(9)}
    parameters = {"w": torch.ones(2), "v": torch.ones(3)}
    assert check_sensitivities(values, parameters) == ("v",)


def test_any_name_of_a_tied_parameter_finds_its_value() -> None:
    found = Sensitivities({"a": torch.ones(1)}, 1, 1, {"c": "why"}, {"b": "a", "d": "c"})
    assert found.value("a") is found.value("b") is found.values["a"]
    assert found.value("c") is found.value("d") is None
