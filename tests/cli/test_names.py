"""Names that hold escapes for a terminal, or are long, in everything that commands print."""

import shutil
from pathlib import Path

import pytest

from mlopt.mil.messages import Model
from tests.cli.commands import invoke
from tests.edited_models import rename

SPEC = "Data/com.apple.CoreML/model.mlmodel"
ESCAPE = "\x1b[31m"
C1 = "\x9b2J"
NAMES = {
    "hidden_weight_to_fp16": f"hidden{ESCAPE}weight",
    "conv2_weight_to_fp16": f"conv2{C1}weight",
    "linear_0_cast_fp16": f"linear{ESCAPE}0",
    "logits": f"log{ESCAPE}its",
    "image": f"im{ESCAPE}age",
}
GROUPS = ("--granularity", "per_grouped_channel", "--group-size", 16, "--nbits", 2)


def renamed(source, path, names):
    shutil.copytree(source, path)
    spec = Model.FromString((path / SPEC).read_bytes())
    function = spec.mlProgram.functions["main"]
    (block,) = function.block_specializations.values()
    rename(block, names)
    for value in (*function.inputs, *spec.description.input, *spec.description.output):
        value.name = names.get(value.name, value.name)
    (path / SPEC).write_bytes(spec.SerializeToString())
    return path


@pytest.fixture(scope="module")
def odd(digits, tmp_path_factory):
    """The digit classifier with such names, and what palettizing makes of it."""
    folder = tmp_path_factory.mktemp("names")
    source = digits.with_name("digits-iOS18.mlpackage")
    model = renamed(source, folder / "odd.mlpackage", NAMES)
    small = folder / "small.mlpackage"
    result = invoke("palettize", model, "-o", small, *GROUPS, "--weight-threshold", 100)
    assert result.exit_code == 0, result.output
    assert_printable(result, "hidden\\x1b[31mweight", "conv2\\x9b2Jweight")
    return model, small


def assert_printable(result, *texts):
    for stream in (result.stdout, result.stderr):
        assert all(c.isprintable() or c == "\n" for c in stream), stream
    for text in texts:
        assert text in result.stdout + result.stderr


def test_inspect(odd):
    assert_printable(invoke("inspect", *odd), "hidden\\x1b[31mweight", "linear\\x1b[31m0")


def test_lint(odd):
    result = invoke("lint", odd[1], "--target", "iOS17", "--ignore", f"*:nothing{ESCAPE}")
    assert result.exit_code == 6
    assert_printable(result, "hidden\\x1b[31mweight", "Silences nothing: *:nothing\\x1b[31m")


def test_errors(odd, tmp_path):
    result = invoke("palettize", odd[0], "-o", tmp_path / "x.mlpackage", "--nbits", 4, "--strict",
                    "--skip", f"nothing{ESCAPE}")  # fmt: skip
    assert result.exit_code == 2
    assert_printable(result, "nothing\\x1b[31m")
    older = renamed(Path(odd[0]).parent / "odd.mlpackage", tmp_path / f"a{ESCAPE}.mlpackage", {})
    result = invoke("raise", older, odd[0], "--output-dir", tmp_path / "o", "--target", "iOS15")
    assert result.exit_code == 3
    assert_printable(result, "a\\x1b[31m.mlpackage")


def test_outputs(odd, tmp_path):
    plain = tmp_path / f"a{ESCAPE}.mlpackage"
    assert_printable(invoke("decompress", odd[1], "-o", plain), "a\\x1b[31m.mlpackage")


def test_run(odd):
    pytest.importorskip("torch")
    assert_printable(invoke("run", odd[0]), "im\\x1b[31mage: ")
    assert_printable(invoke("run", odd[0], "--random"), "log\\x1b[31mits: ")
    for name in ("image", NAMES["image"]):
        result = invoke("run", odd[0], "--input", f"{name}=1")
        assert result.exit_code == 2
        assert_printable(result, "im\\x1b[31mage")


def test_compare(odd):
    pytest.importorskip("torch")
    result = invoke("compare", *odd, "--random", 1, "--layers")
    assert result.exit_code == 0, result.output
    assert_printable(result, "log\\x1b[31mits", "hidden\\x1b[31mweight")


def test_long_names_stay_different(digits, tmp_path):
    """That differ in the middle, where the tables leave something out."""
    long = "model_encoder_block_{}_" + "attention_output_projection_" * 4 + "weight"
    names = {
        f"{old}_weight_to_fp16": long.format(number)
        for number, old in enumerate(("conv1", "conv2", "hidden", "head"))
    }
    model = renamed(digits, tmp_path / "long.mlpackage", names)
    report = invoke("palettize", model, "--dry-run", "--nbits", 4, "--weight-threshold", 100)
    for text in (report.stdout, invoke("inspect", model, "--no-stats").stdout):
        shown = [line.split()[0] for line in text.splitlines() if line.startswith("model_en")]
        assert len(shown) == len(set(shown)) == 4
        assert all(f"_{number}_" in name for number, name in enumerate(shown))
