"""``mlopt plan``."""

import json
import sys

import numpy as np
import pytest

from mlopt.coreml.inspection import package_bytes
from mlopt.planning import load_recipe
from tests.cli.commands import invoke

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
