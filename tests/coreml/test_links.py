"""Packages that share a weight file by links: read, told of, and never written through."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from typer.testing import CliRunner

from mlopt.cli import app
from mlopt.coreml import decompress, get_weights_metadata, lint, palettize, preview, raise_target
from mlopt.coreml.inspection import inspect_weights
from mlopt.runtime import load
from tests import judges
from tests.coreml.conftest import converted, global_config, saved

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(params=["symbolic", "hard"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A package, and the file outside of it that its weights are in."""
    weight = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float16)
    model = converted(lambda x: mb.linear(x=x, weight=weight), (1, 64), "iOS16")
    package = saved(model, tmp_path / "source.mlpackage")
    target = tmp_path / "shared.bin"
    (package / WEIGHTS).rename(target)
    link = os.symlink if request.param == "symbolic" else os.link
    link(target, package / WEIGHTS)
    return package, target


def test_every_door(shared: tuple[Path, Path], tmp_path: Path) -> None:
    package, target = shared
    before, state = target.read_bytes(), target.stat()
    out = tmp_path / "out.mlpackage"
    config = global_config(nbits=4)
    linked = (package / WEIGHTS).is_symlink()

    result = palettize(package, config, output=out)
    judges.decompressed_constants(result.path)
    assert not (out / WEIGHTS).is_symlink()
    assert len(result.report.notes) == linked
    assert result.report.notes == preview(package, config).notes
    assert all(str(target) in note for note in result.report.notes)
    assert len(lint(package).of_rule("linked-file")) == linked
    assert not lint(out).of_rule("linked-file")
    judges.load_program(raise_target(package, tmp_path / "raised.mlpackage", "iOS18"))
    plain = decompress(package, tmp_path / "plain.mlpackage")
    assert len(plain.notes) == linked
    assert judges.messages_equal_except(package, plain.path) == []
    assert len(inspect_weights(package).rows) == 2
    assert get_weights_metadata(package, weight_threshold=8)
    x: Any = {next(iter(load(package).inputs)): np.ones((1, 64), np.float32)}
    answers = [load(each).predict(x) for each in (package, plain)]
    for name, answer in answers[0].items():
        np.testing.assert_array_equal(answer, answers[1][name])

    # Onto itself, and onto a package that shares the file too.
    again = Path(shutil.copytree(package, tmp_path / "again.mlpackage", symlinks=True))
    (again / WEIGHTS).unlink()
    os.link(target, again / WEIGHTS)
    for output in (again, package):
        palettize(package, config, output=output)
        assert not os.path.samefile(output / WEIGHTS, target)
    assert target.read_bytes() == before
    after = target.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        state.st_ino,
        state.st_size,
        state.st_mtime_ns,
    )


def test_the_command_line_says_so(shared: tuple[Path, Path], tmp_path: Path) -> None:
    package, target = shared
    linked = (package / WEIGHTS).is_symlink()
    for command in (["palettize", "--nbits", "4"], ["decompress"]):
        out = tmp_path / f"{command[0]}.mlpackage"
        result = CliRunner().invoke(app, [*command, str(package), "-o", str(out)])
        assert result.exit_code == 0, result.output
        assert (str(target) in result.output.replace("\n", "")) == linked
