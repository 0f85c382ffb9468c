"""``mlopt tune``: what it prints and writes, and what is refused."""

import re

import numpy as np
import pytest

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from tests.cli.commands import invoke, run

IMAGES = np.random.default_rng(0).uniform(size=(20, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def coarse(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("coarse") / "coarse.mlpackage"
    config = OptimizationConfig(OpPalettizerConfig(nbits=1, weight_threshold=0))
    return palettize(digits, config, output=path).path


@pytest.fixture
def given(coarse, digits, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, image=IMAGES)
    return ("tune", coarse, "--original", digits, "--data", data, "-o", tmp_path / "out.mlpackage")


def test_a_package_is_tuned(given, tmp_path):
    result = invoke(*given, "--steps", 8, "--learning-rate", 0.01)
    assert result.exit_code == 0, result.output
    first, second, *rest = result.stdout.splitlines()
    assert first == "8 steps on 16 samples, best after 8: 4 tables, 4 biases tuned."
    pattern = r"On 4 samples held out: loss ([\d.]+), [\d.]+ dB before, loss ([\d.]+), [\d.]+ dB .*"
    before, after = map(float, re.fullmatch(pattern, second).groups())
    assert after < before
    assert rest[-1].startswith("Package: ")
    assert (tmp_path / "out.mlpackage").is_dir()


def test_options(given, digits, coarse, tmp_path):
    options = ("--what", "tables", "--loss", "kl", "--samples", 5, "--seed", 1)
    options = (*options, "--steps", 2, "--value", "logits")
    result = invoke(*given, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 steps on 4 samples, best after ")
    assert "4 tables tuned." in result.stdout
    assert "Note: 4 samples to train on are few: 16 or more are useful." in result.stdout
    result = invoke(*given, "--quiet", "--steps", 1)
    assert result.exit_code == 2
    assert "exists already" in result.output
    result = invoke(*given, "--quiet", "--steps", 1, "--overwrite")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--loss", "l1"), 2, "'l1'"),
        (("--value", "hidden"), 2, "no value 'hidden'"),
        (("--steps", "0"), 2, "--steps"),
        (("--learning-rate", "2"), 2, "learning_rate must be more than 0 and at most 1"),
        (("--samples", "3"), 2, "of 3 samples none is held out"),
        (("--function", "other"), 2, "no function 'other'"),
        (("--data", "missing.npz"), 2, "missing.npz does not exist"),
        (("--original", "missing.mlpackage"), 4, "missing.mlpackage"),
    ],
)
def test_what_is_refused(given, tmp_path, options, code, words):
    result = invoke(*given, *options)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())
    assert {path.name for path in tmp_path.iterdir()} == {"data.npz"}


@pytest.mark.long
def test_in_a_process_of_its_own(given):
    result = run(*given, "--steps", 1)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
