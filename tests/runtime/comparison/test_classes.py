"""Agreement and accuracy of classifiers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

import mlopt.coreml as cto
from mlopt.errors import ConfigError, InputError
from mlopt.runtime import compare, load
from tests.cli.small_models import classifier
from tests.runtime.programs import convert

COUNT = 60


@pytest.fixture(scope="module")
def small(digits, tmp_path_factory):
    """The digit classifier in 1 bit."""
    path = tmp_path_factory.mktemp("small") / "digits.mlpackage"
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=1, weight_threshold=0)
    )
    cto.palettize(digits, config, output=path)
    return path


@pytest.fixture(scope="module")
def images():
    data = load_digits()
    pictures = (data.images[-COUNT:, None, None] / 16).astype(np.float32)
    return [{"image": picture} for picture in pictures], data.target[-COUNT:]


def rows_of(comparison):
    return {row.name: row for row in comparison.metrics}


def test_digits_against_scikit_learn(digits, small, images):
    samples, labels = images
    found = compare(digits, small, samples, labels=labels)
    scores = [
        np.concatenate([load(path).predict(sample)["logits"] for sample in samples])
        for path in (digits, small)
    ]
    best = [model.argmax(axis=-1) for model in scores]
    rows = rows_of(found)
    assert list(rows) == ["top-1 agreement", "top-5 agreement", "accuracy"]
    accuracy = rows["accuracy"]
    assert accuracy.reference == accuracy_score(labels, best[0]) > 0.95
    assert accuracy.candidate == accuracy_score(labels, best[1])
    assert accuracy.candidate < accuracy.reference
    assert rows["top-1 agreement"].pair == accuracy_score(*best)
    sets = [np.argsort(-model, axis=-1, kind="stable")[:, :5] for model in scores]
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(*sets, strict=True)]
    assert rows["top-5 agreement"].pair == pytest.approx(np.mean(shared))
    assert {row.output for row in found.metrics} == {"logits"}
    assert {row.count for row in found.metrics} == {COUNT}
    assert f"{accuracy.candidate:.2%}" in str(found)
    values = json.loads(found.to_json())["metrics"]
    assert (values[2]["candidate"], values[2]["unit"]) == (accuracy.candidate, "share")


def test_digits_without_labels(digits, images):
    samples, _ = images
    assert compare(digits, digits, samples[:2]).metrics == ()
    found = rows_of(compare(digits, digits, samples[:3], classes="logits"))
    assert {name: row.pair for name, row in found.items()} == {
        "top-1 agreement": 1.0,
        "top-5 agreement": 1.0,
    }


@pytest.mark.parametrize("names", [["a", "b", "c"], [7, 100, -3]])
def test_labels_of_a_dictionary_of_probabilities(tmp_path, names):
    model = classifier(tmp_path / "c.mlpackage", names)
    rows = [{"x": np.eye(3, dtype=np.float32)[None, index]} for index in (0, 1, 2, 1)]
    labels = [names[0], names[1], names[1], names[1]]
    row = rows_of(compare(model, model, rows, labels=labels))["accuracy"]
    assert (row.reference, row.candidate, row.count) == (0.75, 0.75, 4)
    assert row.output == "classLabel_probs"
    with pytest.raises(InputError, match=r"label 5 is not a class .* 3 classes are .*same kind"):
        compare(model, model, rows, labels=[5, 5, 5, 5])
    with pytest.raises(ConfigError, match=r"output 'classLabel' is .*; scores of classes are"):
        compare(model, model, rows, classes="classLabel")


def rows_model(scale=1.0):
    """Scores of four rows and three classes: the input, times ``scale``."""
    return convert(
        lambda x: mb.mul(x=x, y=np.float32(scale), name="y"), {"x": np.ones((4, 3), np.float32)}
    )


FOUR = {"x": np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]}


def test_scores_of_several_rows():
    first, second = rows_model(), rows_model(-1.0)
    found = rows_of(compare(first, second, [FOUR, FOUR], classes="y", labels=[[0, 1, 2, 0]] * 2))
    assert found["top-1 agreement"].pair == 0.0
    assert found["accuracy"].reference == 0.75
    assert found["accuracy"].candidate == 2 / 8  # the first of the zeros
    assert found["accuracy"].count == 8
    assert "top-5 agreement" not in found


def test_scores_of_nan_are_wrong():
    found = compare(
        rows_model(), rows_model(math.nan), FOUR, classes="y", labels=np.array([0, 1, 2, 2])
    )
    rows = rows_of(found)
    assert (rows["accuracy"].reference, rows["accuracy"].candidate) == (1.0, 0.0)
    assert rows["top-1 agreement"].pair == 0.0
    assert "4 of 4 rows have NaN among their scores, and count as no agreement" in str(found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": "z"}, ConfigError, "classes='z': the reference has no such output; .* 'y'"),
        ({"labels": [0, 1, 2, 2]}, ConfigError, "no output is recognized as one; name one of 'y'"),
        (
            {"classes": "y", "labels": [0, 1, 2]},
            InputError,
            "3 labels for 1 samples with 4 rows of scores each in 'y'; give one label for each row",
        ),
        ({"classes": "y", "labels": [0] * 8}, InputError, "8 labels for 1 samples"),
        (
            {"classes": "y", "labels": [0, 1, 2, 3]},
            InputError,
            "label 3 is not a class of 'y', whose 3 classes are 0 to 2; give",
        ),
        ({"classes": "y", "labels": [0, 1, -1, 2]}, InputError, "label -1 is not"),
        ({"classes": "y", "labels": ["0"] * 4}, InputError, "label '0' is not"),
        ({"classes": "y", "labels": [0, 1.5, 1, 1]}, InputError, "label 1.5 is not"),
        ({"classes": "y", "labels": [None] * 4}, InputError, "labels are an array of object; give"),
        ({"classes": "y", "labels": [[0], [1, 2]]}, InputError, "labels cannot be an array"),
    ],
)
def test_what_is_refused(options, error, message):
    model = rows_model()
    with pytest.raises(error, match=message):
        compare(model, model, FOUR, **options)


def test_an_output_without_scores():
    def build(x):
        return mb.cast(x=x, dtype="int32", name="y")

    model = convert(build, {"x": np.ones((4, 3), np.float32)})
    with pytest.raises(ConfigError, match=r"'y' is an array of int32 \[4, 3\]; scores of classes"):
        compare(model, model, FOUR, classes="y")
