"""Classifiers as coremltools converts them: their label and their probabilities."""

from __future__ import annotations

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt.errors import RunError
from mlopt.runtime import load
from mlopt.runtime.ops.classification import classify
from tests.runtime.programs import TARGETS

LABELS = {"strings": ["cat", "dog", "a long-eared owl"], "integers": [30, -10, 2**40]}
ROW = np.array([[0.25, 0.125, 0.625]], np.float32)


def converted(build, labels, *, shape=(1, 3), target="iOS15", **config):
    """A classifier of what ``build`` makes of ``x``."""
    opset = getattr(ct.target, target)
    program = mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=opset)(build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=opset,
            classifier_config=ct.ClassifierConfig(labels, **config),
            skip_model_load=True,
        )


def halved(x):
    return mb.mul(x=x, y=0.5, name="probabilities")


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("target", TARGETS)
def test_label_and_probabilities(kind, target):
    labels = LABELS[kind]
    program = load(converted(halved, labels, target=target))
    for best, row in enumerate([ROW[:, [2, 0, 1]], ROW[:, [0, 2, 1]], ROW]):
        found = program.predict({"x": row})
        assert list(found) == ["classLabel", "classLabel_probs"]
        assert found["classLabel"] == labels[best]
        assert type(found["classLabel"]) is type(labels[best])
        assert found["classLabel_probs"] == dict(zip(labels, row[0] / 2, strict=True))
        assert [type(key) for key in found["classLabel_probs"]] == [type(labels[0])] * 3
        assert {type(value) for value in found["classLabel_probs"].values()} == {float}


@pytest.mark.parametrize("kind", LABELS)
def test_probabilities_that_are_not_the_last_value(kind):
    def build(x):
        first = halved(x)
        return first, mb.add(x=first, y=1.0, name="other")

    model = converted(
        build,
        LABELS[kind],
        predicted_feature_name="species",
        predicted_probabilities_output="probabilities",
    )
    found = load(model).predict({"x": ROW})
    assert sorted(found) == ["other", "species", "species_probs"]
    assert found["species"] == LABELS[kind][2]
    assert list(found["species_probs"].values()) == (ROW[0] / 2).tolist()
    np.testing.assert_allclose(found["other"], ROW / 2 + 1, rtol=1e-3)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("output", [None, "scores"])
@pytest.mark.parametrize("computed", ["float32", "as_declared"])
def test_classifiers_of_torch(kind, output, computed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)).eval()
    x = torch.randn(1, 4)
    outputs = {} if output is None else {"outputs": [ct.TensorType(output)]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of_coreml = ct.convert(
            torch.jit.trace(model, x),
            inputs=[ct.TensorType("x", x.shape)],
            classifier_config=ct.ClassifierConfig(
                LABELS[kind], predicted_probabilities_output=output
            ),
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
            **outputs,
        )
    found = load(model_of_coreml, precision=computed).predict({"x": x})
    with torch.no_grad():
        wanted = model(x)[0]
    assert found["classLabel"] == LABELS[kind][int(wanted.argmax())]
    assert list(found["classLabel_probs"]) == LABELS[kind]
    np.testing.assert_allclose(list(found["classLabel_probs"].values()), wanted, rtol=3e-3)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1, 1)])
def test_probabilities_of_any_shape(shape):
    found = load(converted(halved, LABELS["strings"], shape=shape)).predict(
        {"x": ROW.reshape(shape)}
    )
    assert found["classLabel"] == "a long-eared owl"
    assert found["classLabel_probs"] == {"cat": 0.125, "dog": 0.0625, "a long-eared owl": 0.3125}


def test_labels_of_a_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("one\ntwo words\nthree\n")
    found = load(converted(halved, str(path))).predict({"x": ROW[:, [0, 2, 1]]})
    assert found["classLabel"] == "two words"


def test_the_first_of_equal_ones_is_the_label():
    found = load(converted(halved, LABELS["strings"])).predict({"x": np.ones((1, 3), np.float32)})
    assert found["classLabel"] == "cat"


def test_one_dictionary_for_each_of_a_list():
    program = load(converted(halved, LABELS["integers"]))
    found = program.predict([{"x": ROW}, {"x": -ROW}])
    assert [each["classLabel"] for each in found] == [2**40, -10]


def test_classes_as_a_tensor():
    label, probabilities = classify(torch.tensor([[0.25, 0.75]]), torch.tensor([7, 5]))
    assert (label, probabilities) == (5, {7: 0.25, 5: 0.75})
    assert type(label) is int


def test_probabilities_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got 2 for probabilities of shape \[1, 3\]"):
        classify(torch.zeros(1, 3), ["a", "b"])
    with pytest.raises(ValueError, match=r"got 0 for probabilities of shape \[0\]"):
        classify(torch.zeros(0), [])


def test_a_label_for_each_probability_of_an_input_of_any_length():
    shape = ct.Shape((1, ct.RangeDim(1, 5, default=3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(nn.ReLU(), torch.zeros(1, 3)),
            inputs=[ct.TensorType("x", shape)],
            classifier_config=ct.ClassifierConfig(LABELS["strings"]),
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    program = load(model)
    assert program.predict({"x": ROW})["classLabel"] == "a long-eared owl"
    with pytest.raises(RunError, match=r"classify .* got 3 for probabilities of shape \[1, 4\]"):
        program.predict({"x": np.ones((1, 4), np.float32)})
