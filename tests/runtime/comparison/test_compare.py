"""Two models on the same inputs."""

from __future__ import annotations

import json
import math
import warnings

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.errors import ConfigError, InputError, ModelFormatError
from mlopt.runtime import compare, load
from mlopt.runtime.comparison.outputs import compare_outputs
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.runtime.comparison.rows import LabelRow
from tests.runtime.comparison.small_models import (
    ONE,
    SAMPLES,
    in_a_pipeline,
    palettized,
)
from tests.runtime.programs import convert


@pytest.mark.parametrize("name", ["residual", "encoder", "recurrent"])
def test_a_model_against_itself_palettized(name):
    model, small = palettized(name, 4)
    result = compare(model, small, random=3, layers=True)
    (output,) = result.outputs
    samples = random_samples(load(model), 3)
    noise = signal = 0.0
    for sample in samples:
        (a,), (b,) = (load(m).predict(sample).values() for m in (model, small))
        noise += float(((a - b) ** 2).sum(dtype=np.float64))
        signal += float((a**2).sum(dtype=np.float64))
    assert output.distance.snr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)
    assert 5 < output.distance.snr_db < 60
    assert result.layers
    assert not result.unmatched
    again = compare(model, model, random=2, layers=True)
    assert again.outputs[0].distance.snr_db == math.inf
    assert all(row.entering.snr_db == row.so_far.snr_db == math.inf for row in again.layers)


def test_a_classifier_agrees_with_itself():
    model, small = palettized("residual", 8)
    (row,) = compare(model, small, random=4).outputs
    assert row.agreement is not None
    assert row.agreement.samples == 4
    assert row.agreement.top1 == 4


def test_what_cannot_be_compared():
    x = {"x": np.ones((2, 3), np.float32)}
    first, second = (convert(lambda x, n=n: mb.exp(x=x, name=n), x) for n in ("y", "z"))
    with pytest.raises(ConfigError, match="different outputs: y and z"):
        compare(first, second)
    longer = convert(lambda x: mb.concat(values=[x, x], axis=0, name="y"), x)
    with pytest.raises(ConfigError, match="output 'y': shapes differ"):
        compare(first, longer)
    with pytest.raises(InputError, match="no samples"):
        compare(first, first, [])
    for samples, got in (
        (np.ones((2, 3)), "sample 0 is ndarray"),
        ([None], "0 is NoneType"),
        (3, "got int"),
    ):
        with pytest.raises(InputError, match=f"dictionaries of inputs by name.*{got}"):
            compare(first, first, samples)


def test_errors_say_which_model_they_are_about():
    x = {"x": np.ones((2, 3), np.float32)}
    model = convert(lambda x: mb.exp(x=x, name="y"), x)
    other = convert(lambda z: mb.exp(x=z, name="y"), {"z": x["x"]})
    with pytest.raises(ModelFormatError, match=r"the candidate: .*does not exist"):
        compare(model, "nowhere.mlpackage")
    with pytest.raises(ModelFormatError, match=r"the reference: .*does not exist"):
        compare("nowhere.mlpackage", model)
    with pytest.raises(ConfigError, match="the reference: the model has no function 'f'"):
        compare(model, model, function="f")
    with pytest.raises(InputError, match=r"the candidate: .* no input 'x'"):
        compare(model, other)
    with pytest.raises(InputError, match=r"the reference: .* no input 'q'"):
        compare(model, other, [{"q": 1}])


def test_one_sample_and_loaded_models():
    model, small = palettized("residual", 2)
    (sample,) = random_samples(load(model), 1)
    whole = compare(model, small, [sample])
    assert compare(model, small, sample) == whole
    loaded = load(model), load(small)
    assert compare(*loaded, sample) == whole
    assert compare(loaded[0], small, sample) == compare(model, loaded[1], sample) == whole
    with pytest.raises(ConfigError, match="both are loaded already"):
        compare(*loaded, sample, precision="as_declared")


def classifier(labels, *, scale=1.0, add=0.0):
    """Three or more classes, whose scores are the input times ``scale``, plus ``add``."""
    count = len(labels)
    program = mb.program(input_specs=[mb.TensorSpec((1, count))], opset_version=ct.target.iOS15)(
        lambda x: mb.add(x=mb.mul(x=x, y=np.float32(scale)), y=np.array(add, np.float32))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS15,
            classifier_config=ct.ClassifierConfig(labels),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )


ROWS = [{"x": np.eye(3, dtype=np.float32)[None, n]} for n in range(3)]


@pytest.mark.parametrize("labels", [[7, 100, -3], ["a", "b", "c"]])
def test_labels_are_not_measured(labels):
    first = classifier(labels)
    other = classifier(labels, add=[0.0, 0.0, 2.0])  # says the last class always
    found = compare(first, other, ROWS)
    assert [row.name for row in found.outputs] == ["classLabel_probs"]
    assert found.outputs[0].agreement.top1 == 1
    assert found.labels == (LabelRow("classLabel", 3, 1),)
    assert "classLabel: the same for 1 of 3 samples." in str(found)
    values = json.loads(found.to_json())
    assert values["labels"] == [{"name": "classLabel", "samples": 3, "equal": 1}]
    assert "top5" not in values["outputs"][0]
    assert "top 5" not in str(found)


def test_scores_of_nan_agree_in_nothing():
    model = classifier([1, 2, 3], scale=math.nan)
    found = compare(model, model, ROWS)
    (row,) = found.outputs
    assert math.isnan(row.distance.snr_db)
    assert row.agreement.top1 == 0
    assert found.labels[0].equal == 0
    text = str(found)
    assert "equal" not in text
    assert "100" not in text
    assert "classLabel_probs: 9 of 9 elements are NaN or infinite in both models." in text
    assert "3 of 3 samples have NaN among their scores" in text
    (output,) = json.loads(found.to_json())["outputs"]
    assert output["snr_db"] == "nan"
    assert (output["left_out"], output["elements"], output["not_a_number"]) == (9, 9, 3)


def test_classifiers_of_other_classes():
    first = classifier([f"class {n}" for n in range(15)])
    second = classifier([f"class {n}" for n in range(2)] + ["dog"] * 1)
    with pytest.raises(ConfigError, match="different classes") as found:
        compare_outputs(
            load(first).predict, lambda data: load(second).predict(ROWS[0]), [{"x": np.eye(1, 15)}]
        )
    message = str(found.value)
    assert "in the reference only: 'class 2', 'class 3'" in message
    assert "'class 11' and 3 more" in message
    assert "in the candidate only: 'dog'" in message
    with pytest.raises(ConfigError, match="in the candidate only: 1, 2, 3"):
        compare(classifier(["1", "2", "3"]), classifier([1, 2, 3]), ROWS)
    same = compare(classifier(["a", "b", "c"]), classifier(["c", "a", "b"]), ROWS)
    assert same.outputs[0].agreement.top1 == 0


def test_scores_are_what_comes_out_of_a_last_layer():
    weight = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)

    def logits(x):
        return mb.linear(x=x, weight=weight)

    def flat_probabilities(x):
        return mb.reshape(x=mb.softmax(x=mb.exp(x=x), axis=-1), shape=[4])

    def embedding(x):
        return mb.l2_norm(x=mb.reshape(x=logits(x), shape=[1, 10, 1, 1]))

    def pooled(x):
        return mb.reduce_mean(x=mb.expand_dims(x=logits(x), axes=[0]), axes=[1])

    agreements = {}
    for build in (logits, flat_probabilities, embedding, pooled):
        model = convert(build, {"x": ONE})
        (row,) = compare(model, model, random=1).outputs
        agreements[build.__name__] = row.agreement is not None
    assert agreements == {
        "logits": True,
        "flat_probabilities": True,
        "embedding": False,
        "pooled": False,
    }


def image_output(build, space="RGB"):
    channels = 1 if space.startswith("GRAY") else 3
    x = {"x": np.ones((1, channels, 2, 2), np.float32)}
    model = convert(lambda x: build(x=x, name="image"), x, target="iOS16")
    spec = model.get_spec()
    described = spec.description.output[0].type.imageType
    described.width, described.height = 2, 2
    described.colorSpace = getattr(ct.proto.FeatureTypes_pb2.ImageFeatureType, space)
    return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


@pytest.mark.parametrize("space", ["RGB", "BGR", "GRAYSCALE"])
def test_images_are_compared_before_they_are_pixels(space):
    channels = 1 if space == "GRAYSCALE" else 3
    first, second = (
        image_output(mb.identity, space),
        image_output(lambda x, name: mb.add(x=x, y=0.25, name=name), space),
    )
    x = np.random.default_rng(0).uniform(0, 9, (1, channels, 2, 2)).astype(np.float32)
    (row,) = compare(first, second, {"x": x}).outputs
    signal, noise = float((x.astype(np.float64) ** 2).sum()), x.size * 0.25**2
    assert row.distance.elements == x.size
    assert row.distance.snr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


def test_images_of_nan_are_no_zeros():
    def build(x, name):
        return mb.sqrt(x=x, name=name)

    first, second = image_output(build), image_output(mb.relu)
    found = compare(first, second, {"x": -np.ones((1, 3, 2, 2), np.float32)})
    assert math.isnan(found.outputs[0].distance.snr_db)
    assert "12 of 12 elements are NaN or infinite, 12 of them different" in str(found)


def test_images_of_pipelines_are_compared_without_alpha():
    x = {"start": np.ones((1, 3, 2, 2), np.float32)}
    models = [
        in_a_pipeline(
            convert(lambda start: mb.identity(x=start, name="x"), x, target="iOS16"),
            image_output(lambda x, name, n=number: mb.mul(x=x, y=n, name=name)),
        )
        for number in (10.0, 11.0)
    ]
    (row,) = compare(*models, x).outputs
    assert row.distance.elements == 12
    assert row.distance.snr_db == pytest.approx(20.0)


def test_pixels_are_compared_without_alpha():
    from PIL import Image

    def image(value):
        pixels = np.full((2, 2, 4), 255, np.uint8)
        pixels[..., :3] = value
        return {"image": Image.fromarray(pixels)}

    (row,) = compare_outputs(lambda _: image(10), lambda _: image(11), [{}]).outputs
    assert row.distance.elements == 12
    assert row.distance.snr_db == pytest.approx(20.0)


def outputs_of(*builders, samples, inputs=None):
    """Each builder's program as reference and candidate in one comparison."""
    inputs = inputs or {"x": np.ones((1, 8), np.float32)}
    return [compare(convert(build, inputs), convert(build, inputs), samples) for build in builders]


def test_nothing_is_never_called_equal():
    names = ("zero", "constant", "saturated", "clipped", "nothing finite", "told")
    found = outputs_of(
        lambda x: mb.mul(x=x, y=np.float32(0.0), name="y"),
        lambda x: mb.add(x=mb.mul(x=x, y=np.float32(0.0)), y=np.float32(2.5), name="y"),
        lambda x: mb.sigmoid(x=mb.mul(x=x, y=np.float32(1e9)), name="y"),
        lambda x: mb.clip(x=mb.mul(x=x, y=np.float32(1e9)), alpha=-3.0, beta=4.0, name="y"),
        lambda x: mb.log(x=mb.mul(x=x, y=np.float32(0.0)), epsilon=0.0, name="y"),
        lambda x: mb.sigmoid(x=x, name="y"),
        samples=SAMPLES,
    )
    cases = dict(zip(names, found, strict=True))
    statuses = {name: case.outputs[0].status for name, case in cases.items()}
    assert statuses == {
        "zero": "zero",
        "constant": "constant",
        "saturated": "saturated",
        "clipped": "saturated",
        "nothing finite": "not finite",
        "told": "equal",
    }
    for name, case in cases.items():
        (output,) = json.loads(case.to_json())["outputs"]
        assert output["status"] == statuses[name]
        assert output["depends_on_samples"] is (name in ("saturated", "clipped", "told"))
        is_told = name == "told"
        assert case.uninformative == (() if is_told else ("y",))
        assert case.below(-1e9) == case.uninformative
        assert ("equal" in str(case)) is is_told
        assert ("1.000000" in str(case)) is is_told
        assert ("compare --float16 MODEL" in str(case)) is not is_told
    assert "y: both are 2.5 everywhere, which tells nothing" in str(cases["constant"])
    assert "saturated: -3 or 4 everywhere" in str(cases["clipped"])


def test_a_candidate_that_has_lost_everything_is_told():
    x = {"x": np.ones((1, 8), np.float32)}
    good = convert(lambda x: mb.exp(x=x, name="y"), x)
    lost = convert(lambda x: mb.mul(x=x, y=np.float32(0.0), name="y"), x)
    (row,) = compare(good, lost, SAMPLES).outputs
    assert (row.status, row.distance.candidate.state) == ("different", "zero")
    text = str(compare(good, lost, SAMPLES))
    assert "y: the candidate is zero everywhere, the reference is not." in text
    assert "y: the reference is zero everywhere." in str(compare(lost, good, SAMPLES))


def test_what_does_not_depend_on_the_samples_is_told():
    x = {"x": np.ones((1, 8), np.float32)}
    grid = np.arange(8, dtype=np.float32)
    model = convert(lambda x: mb.add(x=mb.mul(x=x, y=np.float32(0.0)), y=grid, name="y"), x)
    (row,) = (found := compare(model, model, SAMPLES)).outputs
    assert (row.status, row.depends_on_samples) == ("equal", False)
    assert "y: the same for all samples in the reference" in str(found)
    for same in (SAMPLES[:1], [SAMPLES[0], dict(SAMPLES[0])]):
        (row,) = (found := compare(model, model, same)).outputs
        assert row.depends_on_samples is None
        assert "the same for all samples" not in str(found)
