"""``mlopt compare`` with PyTorch."""

import json
import sys
import zipfile

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.runtime import compare, load
from tests.cli.commands import invoke, json_of
from tests.cli.small_models import saved
from tests.pages.reading import check, rows_of
from tests.runtime.comparison.language_models import HEADS, TEXTS, language_model
from tests.runtime.programs import convert


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
        "--report",
        tmp_path / "c.html",
    )
    assert result.exit_code == 0, result.output
    assert "SNR entering" in result.stdout
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["samples"] == 3
    assert values["outputs"][0]["snr_db"] < 40
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    root = check((tmp_path / "c.html").read_text("utf-8"))
    assert root.one("h1").text == "model.mlpackage and small.mlpackage"
    assert len(rows_of(root.one("table", id="layers-table"))) == len(values["layers"])


def test_compare_with_a_least_ratio(packages, tmp_path):
    first, small = packages / "model.mlpackage", packages / "small.mlpackage"
    good = invoke("compare", first, first, "--random", 1, "--min-snr", 100)
    assert good.exit_code == 0, good.output
    result = invoke("compare", first, small, "--random", 1, "--min-snr", 100)
    assert result.exit_code == 6
    assert "Below 100 dB, or with nothing to compare: " in result.stderr
    # black images give nothing that a candidate could differ in
    images = np.zeros((1, 3, 32, 32), np.float32)
    zeros = tmp_path / "zeros.mlpackage"
    convert(lambda x: mb.relu(x=x, name="y"), {"x": images}).save(str(zeros))
    np.savez(tmp_path / "x.npz", x=images)
    result = invoke(
        "compare", zeros, zeros, "--inputs", tmp_path / "x.npz", "--min-snr", 1, "--json", "-"
    )
    assert result.exit_code == 6
    assert json.loads(result.stdout)["outputs"][0]["status"] == "zero"


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
        (["--backend", "coreml", "--precision", "float32"], "leave --precision out"),
        (["--backend", "coreml"], "on a Mac only"),
        (["--seed", "-1"], "--seed"),
        (["--picture", "-"], "binary data cannot go to standard output; name"),
        (["--picture", "p.foo"], "it has the extension '.foo'; use one of .eps, .jpeg"),
        (["--picture", "p"], "it has no extension; use one of"),
        (["--report", "-"], "a page does not go to standard output; name an .html file"),
        (["--report", "p.txt"], "it has the extension '.txt'; use one of .html, .htm"),
        (["--labels", "y"], "it names an array of the file of --inputs; give --inputs"),
        (["--metric", "f"], "'f' does not name a function; give module:function"),
        (["--metric", "no_such_module:f"], "'no_such_module' cannot be imported"),
        (["--metric", "json:f"], "the module 'json' has no function 'f'; give"),
        (["--mask", "m"], "mask='m': the reference has no such input"),
    ],
)
def test_what_compare_refuses(packages, arguments, message, monkeypatch):
    def compare(*given, **options):
        raise AssertionError("refused too late")

    # what is wrong with options shows before models are run
    for module in ("outputs", "compare"):
        monkeypatch.setattr(f"mlopt.runtime.comparison.{module}.compare_outputs", compare)
    result = invoke(
        "compare", packages / "model.mlpackage", packages / "small.mlpackage", *arguments
    )
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_compare_says_which_model(packages):
    result = invoke("compare", packages / "model.mlpackage", packages / "none.mlpackage")
    assert result.exit_code == 4
    assert "the candidate: " in result.output


def test_compare_on_files_that_hold_no_samples(packages, tmp_path):
    np.savez(tmp_path / "objects.npz", image=np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "whole.npz", image=np.ones((1, 3, 32, 32)))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:1000])
    damaged = bytearray(whole)
    damaged[2000:2100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("image.npy", b"nothing")
    for name in ("objects", "cut", "damaged", "other"):
        path = tmp_path / f"{name}.npz"
        result = invoke(
            "compare",
            packages / "model.mlpackage",
            packages / "model.mlpackage",
            "--inputs",
            path,
        )
        assert result.exit_code == 2, result.output
        assert str(path) in result.output
        assert "fault of mlopt" not in result.output


def test_compare_on_a_file_of_images(image_model, tmp_path):
    for shape, count in (((3, 6, 5), 1), ((4, 3, 6, 5), 4)):
        np.savez(tmp_path / "x.npz", image=np.zeros(shape, np.uint8) + 7)
        result = invoke(
            "compare", image_model, image_model, "--inputs", tmp_path / "x.npz", "--json", "-"
        )
        assert json.loads(result.stdout)["samples"] == count


@pytest.fixture
def language(tmp_path):
    """Two language models and a file of texts."""
    for name, head in zip(("first", "second"), HEADS, strict=True):
        saved(language_model(head), tmp_path / f"{name}.mlpackage")
    np.savez(tmp_path / "texts.npz", ids=np.stack([text["ids"] for text in TEXTS]))
    return [tmp_path / "first.mlpackage", tmp_path / "second.mlpackage"], tmp_path / "texts.npz"


def test_compare_language_models(language):
    models, texts = language
    plain, named = (
        json_of(invoke("compare", *models, "--inputs", texts, "--json", "-", *options))["metrics"]
        for options in ((), ("--tokens", "ids", "--logits", "logits"))
    )
    assert plain == named == compare(*models, TEXTS).as_dict()["metrics"]
    assert plain[0]["name"] == "perplexity"
    shown = invoke("compare", *models, "--inputs", texts).stdout
    assert "next-token KL divergence" in shown
    result = invoke("compare", *models, "--inputs", texts, "--logits", "x", "--mask", "ids")
    assert result.exit_code == 2
    assert "logits='x': the reference has no such output" in result.output


def test_compare_with_labels(digits, tmp_path):
    images = np.random.default_rng(0).uniform(size=(3, 1, 1, 8, 8)).astype(np.float32)
    labels = [int(load(digits).predict({"image": image})["logits"].argmax()) for image in images]
    labels[0] = (labels[0] + 1) % 10
    np.savez(tmp_path / "x.npz", image=images, digit=labels)
    options = ("--inputs", tmp_path / "x.npz", "--labels", "digit", "--classes", "logits")
    rows = json_of(invoke("compare", digits, digits, *options, "--json", "-"))["metrics"]
    assert [row["name"] for row in rows] == ["top-1 agreement", "top-5 agreement", "accuracy"]
    assert (rows[2]["reference"], rows[2]["candidate"]) == (2 / 3, 2 / 3)
    result = invoke("compare", digits, digits, "--inputs", tmp_path / "x.npz", "--labels", "digits")
    assert result.exit_code == 2
    assert "has no array 'digits'; it has 'image', 'digit'" in " ".join(result.output.split())


def test_compare_with_functions(packages, tmp_path, monkeypatch):
    (tmp_path / "judges_of_compare.py").write_text(
        "def count(reference, candidate, samples):\n    return len(samples), len(candidate)\n"
        "def fails(reference, candidate, samples):\n    raise ValueError('no words')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    model = packages / "model.mlpackage"
    count, fails = ("--metric", "judges_of_compare:count"), ("--metric", "judges_of_compare:fails")
    rows = json_of(invoke("compare", model, model, "--random", 2, *count, "--json", "-"))["metrics"]
    assert [(row["name"], row["reference"], row["candidate"]) for row in rows] == [
        ("judges_of_compare:count", 2, 2)
    ]
    result = invoke("compare", model, model, "--random", 1, *count, *fails)
    assert result.exit_code == 1
    assert "metric 'judges_of_compare:fails' failed: ValueError: no words" in result.output


def test_float16_takes_no_metrics(packages):
    result = invoke("compare", packages / "model.mlpackage", "--float16", "--classes", "y")
    assert result.exit_code == 2
    assert "leave --classes out" in " ".join(result.output.split())
