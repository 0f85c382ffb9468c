"""``mlopt raise``."""

import pytest

from mlopt.coreml import (
    deployment_target,
    raise_target,
)
from tests.cli.commands import invoke


@pytest.mark.parametrize("option", ["--target", "--minimum-deployment-target"])
def test_raise(option, model, tmp_path):
    out = tmp_path / "raised.mlpackage"
    result = invoke("raise", model, "-o", out, option, "macos15")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first == "Target: raised from iOS15 to iOS18."
    assert second.startswith("Package: ")
    assert deployment_target(out) == "iOS18"
    raise_target(model, tmp_path / "library.mlpackage", "iOS18")
    spec = "Data/com.apple.CoreML/model.mlmodel"
    assert (out / spec).read_bytes() == (tmp_path / "library.mlpackage" / spec).read_bytes()


def test_raise_to_the_target_that_it_has(model, tmp_path):
    result = invoke("raise", model, "-o", tmp_path / "same.mlpackage", "--target", "iOS15")
    assert result.exit_code == 0
    assert result.stdout.startswith("Target: iOS15, as it was.\n")
    assert (
        invoke("raise", model, "-o", model, "--target", "iOS17", "--overwrite", "-q").output == ""
    )
    assert deployment_target(model) == "iOS17"


def test_raise_refuses(model, tmp_path, digits):
    out = tmp_path / "out.mlpackage"
    newer = digits.with_name("digits-iOS18.mlpackage")
    cases = [
        (3, "cannot be lowered", (newer, "-o", out, "--target", "iOS16")),
        (2, "unknown deployment target 'iOS19'", (model, "-o", out, "--target", "iOS19")),
        (2, "--target", (model, "-o", out)),
        (2, "exists already", (model, "-o", model, "--target", "iOS18")),
        (2, "name the package to write, or the folder", (model, "--target", "iOS18")),
        (4, "missing.mlpackage", (tmp_path / "missing.mlpackage", "-o", out, "--target", "iOS18")),
    ]
    for code, message, arguments in cases:
        result = invoke("raise", *arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.output
        assert not out.exists()


@pytest.mark.parametrize("command", ["palettize", "raise", "lint"])
def test_a_target_is_given_in_the_same_way_everywhere(command):
    text = invoke(command, "--help").stdout
    assert "--target" in text
    assert "--minimum-deployment-target" in text
