"""``mlopt run``."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import invoke
from tests.cli.small_models import classifier
from tests.runtime.networks import expected, network


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
        (["--random", "-o", "-"], 2, "binary data cannot go to standard output; name a file"),
        (["--random", "--seed", "-1"], 2, "--seed"),
        (["--random", "--seed", str(2**64)], 2, "seed must be an integer from 0"),
    ],
)
def test_what_run_refuses(packages, arguments, code, message):
    result = invoke("run", packages / "model.mlpackage", *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
