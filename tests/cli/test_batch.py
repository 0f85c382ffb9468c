"""Several packages in one call."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlopt.cli import app, batch
from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    palettize,
    preview,
)
from mlopt.coreml.inspection import package_bytes
from tests.cli.commands import invoke

NBITS = ("--nbits", 4)


@pytest.fixture
def chunks(tmp_path, digits):
    """Two chunks, one of them for iOS18, and a damaged one between them."""
    folder = tmp_path / "chunks"
    first = shutil.copytree(digits, folder / "chunk1.mlpackage")
    damaged = shutil.copytree(digits, folder / "chunk2.mlpackage")
    (spec,) = Path(damaged).rglob("model.mlmodel")
    spec.write_bytes(b"\xff" * 100)
    newer = digits.with_name("digits-iOS18.mlpackage")
    third = shutil.copytree(newer, folder / "chunk3.mlpackage")
    return [Path(first), Path(damaged), Path(third)]


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else None


def test_palettize_several(chunks, tmp_path):
    out = tmp_path / "new" / "small"
    good = [chunks[0], chunks[2]]
    result = invoke(
        "palettize", *good, "--output-dir", out, *NBITS, "--report", tmp_path / "r.json"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert names(out) == {"chunk1.mlpackage", "chunk3.mlpackage"}
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("== ")] == [f"== {path}" for path in good]
    before = sum(map(package_bytes, good))
    after = sum(map(package_bytes, out.iterdir()))
    assert lines[-1].startswith("2 of 2 done: ")
    assert f"{before / after:.2f} times smaller." in lines[-1]
    assert lines[-3].startswith(f"{good[0]}  ")
    assert lines[-3].endswith(f"smaller: {out / 'chunk1.mlpackage'}")
    # each is what a call of its own gives
    alone = palettize(good[0], config(), output=tmp_path / "alone.mlpackage")
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (out / "chunk1.mlpackage" / weights).read_bytes() == (alone.path / weights).read_bytes()
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["exit_code"] == 0
    assert [row["model"] for row in report["models"]] == [str(path) for path in good]
    assert report["models"][0]["rows"] == json.loads(alone.report.to_json())["rows"]
    assert report["models"][1]["output"] == str(out / "chunk3.mlpackage")


def config():
    return OptimizationConfig(OpPalettizerConfig(nbits=4))


@pytest.mark.parametrize(
    "command",
    [("palettize", *NBITS), ("decompress",), ("raise", "--target", "iOS18")],
    ids=lambda command: command[0],
)
def test_a_failure_does_not_keep_others_from_being_done(command, chunks, tmp_path):
    out = tmp_path / "out"
    name, *options = command
    result = invoke(name, *chunks, "--output-dir", out, *options)
    assert result.exit_code == 4
    assert names(out) == {"chunk1.mlpackage", "chunk3.mlpackage"}
    assert result.stderr.startswith(f"{chunks[1]}: Error: ")
    *_, first, second, third, last = result.stdout.splitlines()
    assert second.startswith(f"{chunks[1]}  failed: ")
    assert first.startswith(f"{chunks[0]}  ")
    assert third.startswith(f"{chunks[2]}  ")
    assert last.startswith("2 of 3 done, 1 failed: ")


def test_failures_are_in_the_json(chunks, tmp_path):
    result = invoke("palettize", *chunks, "--dry-run", "--nbits", 3, "--report", "-")
    report = json.loads(result.stdout)
    # the target of the first cannot express three bits, the second is damaged
    assert [row["exit_code"] for row in report["models"]] == [3, 4, 0]
    assert "needs iOS18" in report["models"][0]["error"]
    assert "rows" in report["models"][2]
    assert report["exit_code"] == result.exit_code == 3


def test_inspect_and_lint_several(chunks):
    good = [chunks[0], chunks[2]]
    inventories = json.loads(invoke("inspect", *good, "--json", "-").stdout)["models"]
    assert [row["target"] for row in inventories] == ["iOS15", "iOS18"]
    text = invoke("inspect", *good, "--no-stats").stdout
    assert text.count("hidden_weight_to_fp16") == 2
    assert text.splitlines()[-1] == "2 of 2 done."

    findings = json.loads(invoke("lint", *good, "--target", "iOS15", "--format", "json").stdout)
    assert [row["exit_code"] for row in findings["models"]] == [0, 6]
    assert findings["exit_code"] == 6
    result = invoke("lint", *good, "--target", "iOS15")
    assert result.exit_code == 6
    assert result.stdout.splitlines()[-1] == "2 of 2 done."
    # a failure is worse than a finding
    assert invoke("lint", *chunks, "--target", "iOS15").exit_code == 4


def test_nothing_palettized_is_told_of_all_only(chunks):
    good = [chunks[0], chunks[2]]
    options = ("--dry-run", *NBITS)
    result = invoke("palettize", *good, *options, "--weight-threshold", 10**6)
    assert result.exit_code == 5
    assert result.stderr.startswith("Nothing was palettized")
    shutil.rmtree(chunks[1])
    some = [r for r in (preview(path, config()) for path in good) if r.palettized]
    assert len(some) == 2
    assert invoke("palettize", *good, *options).exit_code == 0


def test_names_that_collide(chunks, tmp_path):
    other = Path(shutil.copytree(chunks[0], tmp_path / "other" / "Chunk1.mlpackage"))
    out = tmp_path / "out"
    for second in (other, chunks[0], chunks[0].parent / "." / "chunk1.mlpackage"):
        result = invoke("palettize", chunks[0], chunks[2], second, "--output-dir", out, *NBITS)
        assert result.exit_code == 2
        assert "would both be written to" in result.stderr
        assert not out.exists()


def test_an_output_that_exists_keeps_all_from_being_done(chunks, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(chunks[0], out / "chunk3.mlpackage")
    good = [chunks[0], chunks[2]]
    result = invoke("palettize", *good, "--output-dir", out, *NBITS)
    assert result.exit_code == 2
    assert "chunk3.mlpackage exists already" in result.stderr
    assert "--output-dir" in result.stderr
    assert names(out) == {"chunk3.mlpackage"}
    assert invoke("palettize", *good, "--output-dir", out, *NBITS, "--overwrite").exit_code == 0
    assert names(out) == {"chunk1.mlpackage", "chunk3.mlpackage"}


def test_destinations_that_contradict(chunks, tmp_path):
    out, one = tmp_path / "out", tmp_path / "one.mlpackage"
    cases = [
        ("got 2 models; give a folder", (chunks[0], chunks[2], "-o", one)),
        ("give either --output or --output-dir", (chunks[0], "-o", one, "--output-dir", out)),
        ("name the package to write, or the folder", (chunks[0], chunks[2])),
        ("it is not a folder", (chunks[0], "--output-dir", chunks[0] / "Manifest.json")),
    ]
    for message, arguments in cases:
        result = invoke("decompress", *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert not one.exists()
    assert not out.exists()


def test_a_folder_in_which_nothing_came_about_does_not_stay(chunks, tmp_path):
    out = tmp_path / "new" / "out"
    assert invoke("decompress", chunks[1], "--output-dir", out).exit_code == 4
    assert names(tmp_path) == {"chunks"}
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    assert invoke("decompress", chunks[1], "--output-dir", earlier).exit_code == 4
    assert names(earlier) == set()


def test_one_model_may_have_a_folder_too(model, tmp_path):
    result = invoke("palettize", model, "--output-dir", tmp_path / "out", *NBITS)
    assert result.exit_code == 0
    assert not result.stdout.startswith("== ")
    assert names(tmp_path / "out") == {"digits.mlpackage"}


def test_an_interrupt_ends_all_and_says_what_was_done(chunks, tmp_path, monkeypatch):
    done = []

    def decompress(model, output, progress):
        if done:
            raise KeyboardInterrupt
        done.append(model)
        shutil.copytree(model, output)
        return module.DecompressionResult(output, ())

    # the package has a function of the module's name
    module = importlib.import_module("mlopt.coreml.decompress")
    monkeypatch.setattr(module, "decompress", decompress)
    arguments = ["decompress", *map(str, chunks), "--output-dir", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert result.stderr == "1 of 3 were finished before.\nInterrupted.\n"
    assert names(tmp_path / "out") == {"chunk1.mlpackage"}


def test_a_name_for_what_has_none(tmp_path, monkeypatch):
    (tmp_path / "here.mlpackage").mkdir()
    monkeypatch.chdir(tmp_path / "here.mlpackage")
    assert batch._names([Path(), Path("../plain")]) == ["here.mlpackage", "plain.mlpackage"]
