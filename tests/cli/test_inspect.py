"""``mlopt inspect``."""

import json
import shutil
from pathlib import Path

import pytest

from mlopt.mil.messages import Model
from mlopt.mil.values import string_value
from tests.cli.commands import invoke, json_of
from tests.pages.reading import check, rows_of


def test_inspect_lists_every_weight(model):
    result = invoke("inspect", model)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "weight",
        "read",
        "by",
        "shape",
        "dtype",
        "bytes",
        "distinct",
        "zeros",
    ]
    (hidden,) = [line.split() for line in lines if line.startswith("hidden_weight")]
    assert hidden[1:4] == ["linear(linear_0_cast_fp16)", "128x1024", "float16"]
    assert lines[-1] == "8 weights, 302.6 kB. Target: iOS15."


def test_inspect_prints_json_and_nothing_else(model):
    inventory = json_of(invoke("inspect", model, "--json", "-"))
    assert inventory["target"] == "iOS15"
    assert inventory["totals"]["weights"] == len(inventory["rows"]) == 8
    assert inventory["totals"]["bytes"] == sum(row["nbytes"] for row in inventory["rows"])
    row = inventory["rows"][0]
    assert row["name"] == "conv1_weight_to_fp16"
    assert row["consumers"] == ["conv(op_16_cast_fp16)"]
    assert (row["shape"], row["dtype"], row["nbytes"]) == ([32, 1, 3, 3], "float16", 576)


def test_inspect_writes_json_beside_the_table(model, tmp_path):
    result = invoke("inspect", model, "--json", tmp_path / "rows.json")
    assert "conv1_weight_to_fp16" in result.stdout
    assert len(json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]) == 8


def test_inspect_filters_and_sorts(model):
    options = ("--filter", "linear", "--filter", "conv2*", "--min-size", 100, "--sort", "size")
    inventory = json_of(invoke("inspect", model, *options, "--json", "-"))
    names = [row["name"].removesuffix("_to_fp16") for row in inventory["rows"]]
    assert names == ["hidden_weight", "conv2_weight", "head_weight", "hidden_bias"]
    assert invoke("inspect", model, *options).stdout.splitlines()[-1] == (
        "4 of 8 weights, 301.8 kB of 302.6 kB. Target: iOS15."
    )


def test_inspect_without_statistics(model):
    result = invoke("inspect", model, "--no-stats")
    assert "distinct" not in result.stdout
    rows = json_of(invoke("inspect", model, "--no-stats", "--json", "-"))["rows"]
    assert {(row["distinct"], row["sparsity"]) for row in rows} == {(None, None)}
    refused = invoke("inspect", model, "--no-stats", "--sort", "distinct")
    assert refused.exit_code == 2
    assert "--no-stats" in refused.stderr


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


def test_inspect_writes_a_page(model, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "weights.html"
    result = invoke("inspect", model, "--filter", "linear", "--sort", "bytes", "--report", page)
    assert result.exit_code == 0, result.output
    root = check(page.read_text("utf-8"))
    assert root.one("h1").text == "digits.mlpackage"
    assert rows_of(root.one("table"))[0][0] == "hidden_weight_to_fp16"


@pytest.mark.parametrize(
    ("report", "models", "message"),
    [
        ("weights.txt", 1, "it has the extension '.txt'; use one of .html, .htm"),
        ("-", 1, "a page does not go to standard output; name an .html file"),
        ("none/weights.html", 1, "does not exist; create it first"),
        ("weights.html", 2, "a page is about one model, got 2; call mlopt for each"),
    ],
)
def test_pages_that_inspect_refuses(model, report, models, message, monkeypatch):
    def inspect(*given, **options):
        raise AssertionError("refused too late")

    monkeypatch.setattr("mlopt.coreml.inspection.inspect_weights", inspect)
    result = invoke("inspect", *[model] * models, "--report", report)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
