"""``mlopt inspect`` and ``mlopt decompress`` on packages that coremltools compressed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlopt.cli import app
from mlopt.mil.messages import Model
from mlopt.mil.values import string_value
from tests import foreign, models


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    """A package with weights in blocks of 4 bits."""
    path = tmp_path_factory.mktemp("cli") / "quantized.mlpackage"
    models.quietly(foreign.build("quantized uint4 per block", "iOS18").save, str(path))
    return path


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_inspect_shows_how_weights_are_stored(quantized):
    result = invoke("inspect", quantized)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[-2:] == ["stored", "as"]
    (row,) = [line for line in lines if line.startswith("conv_w_quantized")]
    assert row.endswith("quantized 4 bits, 1x2x3x3")
    assert "32x8x3x3" in row
    assert all(len(line) <= 120 for line in lines)
    rows = json.loads(invoke("inspect", quantized, "--json", "-").stdout)["rows"]
    compression = next(r for r in rows if r["name"] == "conv_w_quantized")["compression"]
    assert compression["form"] == "quantized"
    assert compression["block"] == [1, 2, 3, 3]
    # 4 bits a weight, and a float16 scale and an offset of 4 bits for 18 of them
    assert compression["bits_per_weight"] == pytest.approx(4 + 20 / 18)


def test_inspect_of_a_plain_model_has_no_such_column(digits):
    assert "stored as" not in invoke("inspect", digits).stdout


def test_names_reach_the_terminal_printable(quantized, tmp_path):
    """A name with a new line would break its row, and one with an escape colour the terminal."""
    path = Path(shutil.copytree(quantized, tmp_path / "odd.mlpackage"))
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    for op in block.operations:
        if op.outputs[0].name == "conv_w_quantized":
            op.attributes["name"].CopyFrom(string_value("odd\n\x1b[31mname"))
    file.write_bytes(spec.SerializeToString())
    result = invoke("inspect", path)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert any(line.startswith("odd\\n\\x1b[31mname") for line in result.stdout.splitlines())


def test_decompress_tells_what_it_did(quantized, tmp_path):
    result = invoke("decompress", quantized, "-o", tmp_path / "dense.mlpackage")
    assert result.exit_code == 0, result.output
    assert "4 weights decompressed: 4 quantized." in result.stdout
    assert "times larger" in result.stdout
    again = invoke("decompress", tmp_path / "dense.mlpackage", "-o", tmp_path / "again.mlpackage")
    assert "No weight was compressed" in again.stdout
    assert "as large as before" in again.stdout
