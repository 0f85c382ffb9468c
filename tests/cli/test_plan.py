"""``mlopt plan``."""

import json
import sys

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.cli.inputs_together import inputs_together
from mlopt.coreml.inspection import package_bytes
from mlopt.planning import load_recipe
from tests.cli.commands import invoke
from tests.cli.small_models import saved
from tests.runtime.programs import convert

QUICK = ("--costs", "predicted", "--samples", "2", "--weight-threshold", "256")


def test_all_that_can_be_written(model, tmp_path):
    image = np.random.default_rng(0).uniform(size=(2, 1, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", image=image)
    recipe, out, page = tmp_path / "r.json", tmp_path / "out.mlpackage", tmp_path / "page.html"
    count = f'"{sys.executable}" -c "print(7)" {{}}'
    options = ("--ratio", "3", "--data", tmp_path / "images.npz", "--cache", tmp_path / "cache")
    result = invoke(
        *("plan", model, "-o", recipe, "--package", out, "--report", page, "--metric", count),
        *(*options, *QUICK),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    found = load_recipe(recipe)
    assert json.loads(recipe.read_text())["metric"] == found.metric == 7
    assert found.samples == 2
    assert not found.are_random
    assert package_bytes(out) == found.nbytes <= found.nbytes_before / 3
    assert f"({found.nbytes} bytes)" in result.stdout
    html = page.read_text()
    assert "mlopt plan" in html
    assert "--recipe" in html
    assert any((tmp_path / "cache").iterdir())
    again = invoke("plan", model, "-o", recipe, *options, *QUICK)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_a_quality_with_random_inputs(model, tmp_path):
    result = invoke("plan", model, "-o", tmp_path / "r.yaml", "--snr", "12", *QUICK)
    assert result.exit_code == 0, result.output
    found = load_recipe(tmp_path / "r.yaml")
    assert found.expected <= 10**-1.2
    assert found.are_random
    assert "2 random inputs" in result.stdout


def test_several_share_a_budget(model, newer, tmp_path):
    image = np.random.default_rng(0).uniform(size=(2, 1, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", image=image)
    both = sum(map(package_bytes, (model, newer)))
    options = ("--ratio", "3", "--data", tmp_path / "images.npz", *QUICK)
    folder = tmp_path / "new" / "plans"
    result = invoke("plan", model, newer, "--output-dir", folder, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {
        "digits.recipe.yaml",
        "digits-iOS18.recipe.yaml",
    }
    recipes = [load_recipe(folder / f"{path.stem}.recipe.yaml") for path in (model, newer)]
    assert not any(recipe.are_random for recipe in recipes)
    total = sum(recipe.nbytes for recipe in recipes)
    assert 0 < total <= both / 3
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == [str(model), str(newer)]
    assert f" ({total} bytes), " in next(line for line in lines if line.startswith("Together: "))
    out = tmp_path / "small"
    given = [each for path in sorted(folder.iterdir())[::-1] for each in ("--recipe", path)]
    assert invoke("palettize", model, newer, "--output-dir", out, *given).exit_code == 0
    assert sum(map(package_bytes, out.iterdir())) == total


def test_the_inputs_of_several_models(numbers, tmp_path):
    given = {"y": np.ones((1, 3), np.float32), "z": np.ones(1, np.float32)}
    program = convert(lambda y, z: mb.mul(x=y, y=z, name="end"), given)
    found = inputs_together([numbers, saved(program, tmp_path / "second.mlpackage")]).inputs
    needed = {name: not feature.is_optional for name, feature in found.items()}
    assert needed == {"x": True, "row": True, "y": False, "z": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "r.yaml"), "it names one file, got 2 models"),
        ((), "name the file to write, or the folder for several with --output-dir"),
        (("--calibration", __file__), "one for each model, in their order; got 1 for 2 models"),
        (("--metric", "x {}"), "'--metric': it is about one model, got 2"),
        (("--package", "out"), "'--package': it is about one model, got 2"),
        (("--report", "page.html"), "'--report': it is about one model, got 2"),
        (("--function", "main"), "'--function': it is about one model, got 2"),
        (("--output-dir", "out", "--keep", "none*"), "pinned forms of no weight"),
    ],
)
def test_what_is_about_one_model(model, newer, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = invoke("plan", model, newer, "--bits", "3", *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --budget, --bits, --ratio, --snr, --divergence, --at-least; got none"),
        (("--bits", "2", "--snr", "3"), "got --bits, --snr"),
        (("--at-least", "1"), "it is what a --metric says"),
        (("--metric", "x {}", "--snr", "3"), "--at-least, or give a size"),
        (("--metric", "x", "--bits", "3"), "where the package's path goes"),
        (("--bits", "3", "--report", "page.pdf"), ".html"),
        (("--bits", "3", "--devices", "toaster"), "neural-engine"),
        (("--budget", "3 bananas"), "12MB"),
    ],
)
def test_what_cannot_be_asked_for(model, tmp_path, options, message):
    result = invoke("plan", model, "-o", tmp_path / "r.yaml", *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "r.yaml").exists()
