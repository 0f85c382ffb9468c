"""``mlopt run`` and ``mlopt compare``, as a shell calls them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import mlopt.coreml as cto
from mlopt.cli import app
from tests.runtime.networks import converted, expected, network


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    model = converted("residual", "iOS16")
    model.save(str(folder / "model.mlpackage"))
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=2, weight_threshold=0)
    )
    cto.palettize(folder / "model.mlpackage", config, output=folder / "small.mlpackage")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_run_with_an_array(packages, tmp_path):
    _, inputs = network("residual")
    np.save(tmp_path / "x.npy", inputs["image"].numpy())
    result = invoke(
        "run",
        packages / "model.mlpackage",
        "-i",
        f"image={tmp_path / 'x.npy'}",
        "-o",
        tmp_path / "out.npz",
    )
    assert result.exit_code == 0, result.output
    assert "float32[1, 10]" in result.stdout
    with np.load(tmp_path / "out.npz") as arrays:
        (found,) = (arrays[name] for name in arrays.files)
    np.testing.assert_allclose(found, expected("residual")[0], rtol=1e-4, atol=1e-5)


def test_run_lists_inputs_and_draws_them(packages):
    result = invoke("run", packages / "model.mlpackage")
    assert "image: float32 [1, 3, 32, 32]" in result.stdout
    first, second = (
        invoke("run", packages / "model.mlpackage", "--random", "--seed", "4").stdout for _ in "ab"
    )
    assert first == second
    assert "mean" in first


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-i", "image"], 2, "is not NAME=VALUE"),
        (["-i", "image=nowhere.npy"], 2, "nowhere.npy does not exist"),
        (["-i", "picture=3"], 2, "no input 'picture'; its input 'image' is missing"),
        (["-i", "image=1", "-i", "image=2"], 2, "given twice"),
        (["--random", "--function", "other"], 2, "no function 'other'"),
    ],
)
def test_what_run_refuses(packages, arguments, code, message):
    result = invoke("run", packages / "model.mlpackage", *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())


def test_compare(packages, tmp_path):
    result = invoke(
        "compare",
        packages / "model.mlpackage",
        packages / "small.mlpackage",
        "--random",
        "3",
        "--layers",
        "--json",
        tmp_path / "c.json",
        "--picture",
        tmp_path / "c.png",
    )
    assert result.exit_code == 0, result.output
    assert "SNR entering" in result.stdout
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["samples"] == 3
    assert values["outputs"][0]["snr_db"] < 40
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_compare_on_a_file_of_samples(packages, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", image=images)
    result = invoke(
        "compare",
        packages / "model.mlpackage",
        packages / "model.mlpackage",
        "--inputs",
        tmp_path / "x.npz",
        "--json",
        "-",
    )
    values = json.loads(result.stdout)
    assert values["samples"] == 4
    assert values["outputs"][0]["snr_db"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "x.npz", "--random", "3"], "either --inputs or --random"),
        (["--inputs", "x.npz"], "x.npz does not exist"),
        (["--backend", "coreml", "--layers"], "leave --layers and --picture out"),
        (["--backend", "coreml"], "on a Mac only"),
    ],
)
def test_what_compare_refuses(packages, arguments, message):
    result = invoke(
        "compare", packages / "model.mlpackage", packages / "small.mlpackage", *arguments
    )
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
