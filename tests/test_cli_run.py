"""``mlopt run`` and ``mlopt compare``, as a shell calls them."""

from __future__ import annotations

import json
import platform
import warnings
import zipfile

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import mlopt.coreml as cto
from mlopt.cli import app
from tests import models
from tests.runtime.networks import converted, expected, network
from tests.runtime.programs import convert


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


def saved(model, path):
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A program of an input of one number, and one of a row."""
    folder = tmp_path_factory.mktemp("numbers")
    given = {"x": np.ones(1, np.float32), "row": np.ones((1, 3), np.float32)}
    return saved(
        convert(lambda x, row: mb.mul(x=x, y=row, name="y"), given), folder / "n.mlpackage"
    )


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """An RGB image, 6 high and 5 wide, in and out."""
    folder = tmp_path_factory.mktemp("images")
    space = ct.colorlayout.RGB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(nn.Hardtanh(-999.0, 999.0), torch.zeros(1, 3, 6, 5)),
            inputs=[ct.ImageType("image", (1, 3, 6, 5), color_layout=space)],
            outputs=[ct.ImageType("out", color_layout=space)],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return saved(model, folder / "image.mlpackage")


def classifier(path, labels):
    """A classifier that gives its input as the scores of its classes."""
    program = mb.program(
        input_specs=[mb.TensorSpec((1, len(labels)))], opset_version=ct.target.iOS15
    )(lambda x: mb.identity(x=x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS15,
            classifier_config=ct.ClassifierConfig(labels),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return saved(model, path)


def test_images_are_saved(image_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    output = tmp_path / "out.npz"
    result = invoke("run", image_model, "-i", f"image={tmp_path / 'in.png'}", "-o", output)
    assert result.exit_code == 0, result.output
    assert f"Saved in {output}: out uint8[6, 5, 3]" in result.stdout
    with np.load(output) as arrays:
        np.testing.assert_array_equal(arrays["out"], pixels)


@pytest.mark.parametrize("labels", [["cat", "dog", "long-eared owl"], [7, -1, 2**40]])
def test_classes_are_saved(tmp_path, labels):
    model = classifier(tmp_path / "c.mlpackage", labels)
    np.save(tmp_path / "x.npy", np.array([[0.25, 0.125, 0.625]], np.float32))
    output = tmp_path / "out.npz"
    result = invoke("run", model, "-i", f"x={tmp_path / 'x.npy'}", "-o", output)
    assert result.exit_code == 0, result.output
    assert f"{labels[2]} 62.50%, {labels[0]} 25.00%, {labels[1]} 12.50%" in result.stdout
    with np.load(output) as arrays:
        assert sorted(arrays.files) == [
            "classLabel",
            "classLabel_probs.labels",
            "classLabel_probs.values",
        ]
        assert arrays["classLabel"].item() == labels[2]
        assert arrays["classLabel_probs.labels"].tolist() == labels
        assert arrays["classLabel_probs.values"].tolist() == [0.25, 0.125, 0.625]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ([3.5, -1.25, 0.0], "a 3.5, c 0, b -1.25"),
        ([0.25, 0.25, 0.25], "a 0.25, b 0.25, c 0.25"),
        ([0.5, 0.25, 0.251], "a 50.00%, c 25.10%, b 25.00%"),
        ([0.5, np.nan, 0.25], "b nan, a 0.5, c 0.25"),
    ],
)
def test_only_probabilities_are_percentages(tmp_path, row, shown):
    model = classifier(tmp_path / "c.mlpackage", ["a", "b", "c"])
    np.save(tmp_path / "x.npy", np.array([row], np.float32))
    result = invoke("run", model, "-i", f"x={tmp_path / 'x.npy'}")
    assert f"classLabel_probs: {shown}\n" in result.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [("3", "3 .. 3"), ("-2.5", "-2.5 .. -2.5"), ("nan", "nan .. nan"), ("inf", "inf .. inf")],
)
def test_run_with_a_number(numbers, tmp_path, text, shown):
    np.save(tmp_path / "row.npy", np.ones((1, 3), np.float32))
    result = invoke("run", numbers, "-i", f"x={text}", "-i", f"row={tmp_path / 'row.npy'}")
    assert result.exit_code == 0, result.output
    assert shown in result.stdout


def test_run_with_files_that_are_not_inputs(numbers, image_model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones(1))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    (tmp_path / "empty.npy").write_bytes(b"")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 60])
    (tmp_path / "text.png").write_text("no image")
    cases = [
        (numbers, f"x={tmp_path / 'x.npz'}", "give a file with one array (.npy; .npz files"),
        (
            numbers,
            "x=typo.nyp",
            "x=typo.nyp: the input is an array [1]; give a file with one array",
        ),
        (numbers, "row=3", "row=3: the input is an array [1, 3]; give a file with one array"),
        (numbers, f"x={tmp_path / 'o.npy'}", "o.npy cannot be read as arrays of numpy"),
        (numbers, f"x={tmp_path / 'empty.npy'}", "empty.npy cannot be read as arrays of numpy"),
        (image_model, "image=cat.gnp", "the input is an image of 5 x 6; give a file with an image"),
        (image_model, f"image={tmp_path / 'cut.png'}", "cut.png cannot be read as an image"),
        (image_model, f"image={tmp_path / 'text.png'}", "text.png cannot be read as an image"),
        (image_model, "image=none.png", "none.png does not exist"),
    ]
    for model, argument, message in cases:
        result = invoke("run", model, "-i", argument)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())


def test_texts_stay_texts():
    from mlopt.cli.model_inputs import named_texts, parsed_inputs
    from mlopt.runtime.features.described import PlainFeature

    features = {"s": PlainFeature("s", "stringType"), "n": PlainFeature("n", "int64Type")}
    assert parsed_inputs(named_texts(["s=1e5", "n=7"]), features) == {"s": "1e5", "n": 7}


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
        (["--random", "-o", "-"], 2, "no text for standard output; name a file"),
        (["--random", "--seed", "-1"], 2, "--seed"),
        (["--random", "--seed", str(2**64)], 2, "seed has to be a whole number from 0"),
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
        (["--picture", "-"], "no text for standard output; name a file"),
        (["--picture", "p.foo"], "it has the ending '.foo'; use one of .eps, .jpeg"),
        (["--picture", "p"], "it has no ending; use one of"),
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


class OnAMac:
    """Stands for ``MLModel``: answers as PyTorch does, and checks images as coremltools does."""

    real = ct.models.MLModel
    states: tuple[str, ...] = ()

    def __init__(self, path, function_name=None):
        self.model = self.real(path, skip_model_load=True)
        self.path, self.function = path, function_name

    def get_spec(self):
        return self.model.get_spec()

    def make_state(self):
        OnAMac.states += (self.function,)
        return "a state"

    def predict(self, data, state=None):
        from mlopt.runtime import load

        self.model._verify_pil_image_modes(data)
        program = load(self.path, self.function)
        assert (state is not None) == bool(program.plan.state_types)
        return program.predict(data, program.make_state(), seed=0)


@pytest.fixture
def mac(monkeypatch):
    """Makes this machine a Mac, once the test has converted its models."""
    monkeypatch.setattr(OnAMac, "states", ())

    def start():
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr("coremltools.models.MLModel", OnAMac)

    return start


def by_core_ml(*arguments):
    result = invoke("compare", *arguments, "--backend", "coreml", "--random", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE", "GRAYSCALE_FLOAT16"])
def test_core_ml_gets_images(mac, tmp_path, layout):
    channels = 1 if layout.startswith("GRAY") else 3
    space = getattr(ct.colorlayout, layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(nn.Flatten(), torch.zeros(1, channels, 6, 5)),
            inputs=[ct.ImageType("image", (1, channels, 6, 5), color_layout=space)],
            outputs=[ct.TensorType("out")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    path = saved(model, tmp_path / "m.mlpackage")
    mac()
    assert by_core_ml(path, path)["outputs"][0]["snr_db"] == "inf"

    from mlopt.runtime import load
    from mlopt.runtime.comparison.coreml_backend import CoreMLModel
    from mlopt.runtime.comparison.random_samples import random_samples

    (sample,) = random_samples(load(path), 1)
    (found,) = CoreMLModel(path).predict(sample).values()
    np.testing.assert_array_equal(found, sample["image"].reshape(1, -1))


def test_core_ml_gets_states(mac, packages, tmp_path):
    path = saved(models.build("stateful", "iOS18"), tmp_path / "s.mlpackage")
    several = tmp_path / "several.mlpackage"
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(path), "main", "with state")
    descriptor.add_function(str(packages / "model.mlpackage"), "main", "without")
    descriptor.default_function_name = "without"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(descriptor, str(several))
    mac()
    assert by_core_ml(path, path)["samples"] == 2
    assert OnAMac.states == (None,) * 4
    assert by_core_ml(several, several, "--function", "with state")["samples"] == 2
    assert OnAMac.states == (None,) * 4 + ("with state",) * 4
    assert by_core_ml(several, several)["samples"] == 2
    assert len(OnAMac.states) == 8


def test_core_ml_labels(mac, tmp_path):
    path = classifier(tmp_path / "c.mlpackage", [7, -1, 2**40])
    mac()
    found = by_core_ml(path, path)
    assert [row["name"] for row in found["outputs"]] == ["classLabel_probs"]
    assert found["labels"] == [{"name": "classLabel", "samples": 2, "equal": 2}]


def test_core_ml_needs_samples(mac, packages, tmp_path):
    np.savez(tmp_path / "none.npz")
    path = packages / "model.mlpackage"
    mac()
    for more in ([], ["--backend", "coreml"]):
        result = invoke("compare", path, path, "--inputs", tmp_path / "none.npz", *more)
        assert result.exit_code == 2
        assert "there are no samples" in result.output


def test_what_core_ml_raises_is_no_fault_of_mlopt(mac, packages, monkeypatch):
    def fail(self, data, state=None):
        raise Exception("the model is too large")

    monkeypatch.setattr(OnAMac, "predict", fail)
    mac()
    path = packages / "model.mlpackage"
    result = invoke("compare", path, path, "--backend", "coreml")
    assert result.exit_code == 1
    assert "the reference: Core ML failed: Exception: the model is too large" in result.output
