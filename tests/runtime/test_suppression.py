"""Core ML's own nonMaximumSuppression model, alone and in pipelines, against a plain loop."""

import json

import numpy as np
import pytest
from coremltools.models.utils import save_spec
from coremltools.proto import Model_pb2
from typer.testing import CliRunner

import mlopt.coreml as cto
from mlopt.cli import app
from mlopt.errors import ConfigError, InputError, ModelFormatError
from mlopt.runtime import Pipeline, Program, compare, load
from mlopt.runtime.comparison.paired_boxes import Detections
from mlopt.runtime.comparison.random_samples import random_samples
from tests.runtime.detectors import DOUBLE, THRESHOLDS, detector, network, suppression

RANDOM = np.random.default_rng(3)
COUNT, CLASSES, FEATURES = 30, 3, 96
MATRIX = RANDOM.normal(size=(CLASSES + 4, FEATURES)).astype(np.float32) * 0.2
RAW = RANDOM.normal(size=(COUNT, FEATURES)).astype(np.float32)


def boxes_of(count, classes, seed):
    """Scores and boxes of which many overlap; all scores differ."""
    random = np.random.default_rng(seed)
    scores = random.permutation(count * classes).reshape(count, classes) / (count * classes)
    middles = random.choice([0.2, 0.5, 0.8], (count, 2)) + random.normal(size=(count, 2)) * 0.05
    return scores, np.hstack([middles, random.uniform(0.1, 0.3, (count, 2))])


def area_shared(a, b):
    sides = []
    for middle, size in ((0, 2), (1, 3)):
        begin = max(a[middle] - a[size] / 2, b[middle] - b[size] / 2)
        end = min(a[middle] + a[size] / 2, b[middle] + b[size] / 2)
        sides.append(max(0.0, end - begin))
    return sides[0] * sides[1]


def plainly(scores, boxes, iou, confidence, per_class):
    """The rows that are kept, one after another as the comments of the message have it."""
    left = [row for row in range(len(scores)) if not max(scores[row]) < confidence]
    left.sort(key=lambda row: -max(scores[row]))
    kept = []
    while left:
        top = left.pop(0)
        kept.append(top)
        survivors = []
        for row in left:
            shared = area_shared(boxes[top], boxes[row])
            union = boxes[top][2] * boxes[top][3] + boxes[row][2] * boxes[row][3] - shared
            same = list(scores[top]).index(max(scores[top])) == list(scores[row]).index(
                max(scores[row])
            )
            if not ((same or not per_class) and union > 0 and shared / union > iou):
                survivors.append(row)
        left = survivors
    return kept


def saved(model, folder):
    path = folder / "suppression.mlpackage"
    save_spec(model, str(path))
    return path


@pytest.mark.parametrize("per_class", [True, False, None])
@pytest.mark.parametrize("classes", [1, 4])
def test_kept_boxes_are_those_of_a_plain_loop(per_class, classes, tmp_path):
    program = load(saved(suppression(classes, per_class=per_class, dtype=DOUBLE), tmp_path))
    lengths = set()
    for seed, (iou, confidence) in enumerate([(0.45, 0.25), (0.0, 0.0), (0.7, 0.5), (1.0, 0.9)]):
        scores, boxes = boxes_of(40, classes, seed)
        given = {"scores": scores, "boxes": boxes}
        given |= dict(zip(THRESHOLDS, (iou, confidence), strict=True)) if seed else {}
        found = program.predict(given)
        rows = plainly(scores, boxes, iou, confidence, bool(per_class))
        np.testing.assert_array_equal(found["confidence"], scores[rows])
        np.testing.assert_array_equal(found["coordinates"], boxes[rows])
        assert found["confidence"].dtype == found["coordinates"].dtype == np.float64
        lengths.add(len(rows))
    assert len(lengths) > 2
    assert max(lengths) < 40


def test_a_threshold_of_one_suppresses_nothing(tmp_path):
    program = load(saved(suppression(1, iou=1.0, confidence=0.0), tmp_path))
    scores, boxes = np.full((3, 1), 0.5), np.tile([[0.5, 0.5, 0.25, 0.25]], (3, 1))
    assert program.predict({"scores": scores, "boxes": boxes})["confidence"].shape == (3, 1)
    found = program.predict({"scores": scores, "boxes": boxes, "iouThreshold": 0.99})
    assert found["coordinates"].tolist() == boxes[:1].tolist()


def test_boxes_at_a_threshold_stay(tmp_path):
    program = load(saved(suppression(1, iou=1 / 3, confidence=0.5), tmp_path))
    # the second shares a third of the union with the first, to the bit
    boxes = np.array([[1, 1, 2, 2], [2, 1, 2, 2], [9, 9, 1, 1]], np.float32)
    scores = np.array([[0.75], [0.5], [0.4999]], np.float32)
    found = program.predict({"scores": scores, "boxes": boxes})
    assert found["confidence"].tolist() == [[0.75], [0.5]]


def test_equal_scores_keep_their_order_and_nan_is_seen(tmp_path):
    program = load(saved(suppression(2, confidence=0.1), tmp_path))
    boxes = np.array([[i, 0, 0.5, 0.5] for i in range(4)], np.float32)
    scores = np.array([[0.5, 0], [0, 0.5], [np.nan, 0], [0.05, 0]], np.float32)
    found = program.predict({"scores": scores, "boxes": boxes})
    assert found["coordinates"][:, 0].tolist() == [2, 0, 1]
    assert np.isnan(found["confidence"][0, 0])


@pytest.mark.parametrize(
    ("rows", "kept", "given"),
    [(None, 5, 5), ((0, -1), 5, 5), (8, 5, 8), (2, 2, 2), ((7, 9), 5, 7), ((0, 3), 3, 3)],
)
def test_numbers_of_rows_are_as_described(rows, kept, given, tmp_path):
    program = load(saved(suppression(1, confidence=0.1, rows=rows), tmp_path))
    boxes = np.array([[i, 0, 0.5, 0.5] for i in range(6)], np.float32)
    scores = np.array([[0.9], [0.8], [0.0], [0.7], [0.6], [0.5]], np.float32)
    found = program.predict({"scores": scores, "boxes": boxes})
    assert found["confidence"].shape == (given, 1)
    assert found["coordinates"].shape == (given, 4)
    assert (found["confidence"] > 0).sum() == kept
    assert not found["coordinates"][kept:].any()


def test_without_boxes(tmp_path):
    program = load(saved(suppression(2), tmp_path))
    found = program.predict({"scores": np.zeros((0, 2)), "boxes": np.zeros((0, 4))})
    assert found["confidence"].shape == (0, 2)
    found = program.predict({"scores": np.zeros((3, 2)), "boxes": np.ones((3, 4))})
    assert found["coordinates"].shape == (0, 4)


@pytest.mark.parametrize("labels", [["cat", "dog", "bird"], [3, 1, 7], None])
def test_class_labels(labels, tmp_path):
    (stage,) = load(saved(suppression(3, labels=labels), tmp_path)).stages
    assert stage.class_labels == (None if labels is None else tuple(labels))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"iouThreshold": 1.5}, "'iouThreshold' must be a number from 0 to 1, got 1.5"),
        ({"confidenceThreshold": -1}, "must be a number at least 0, got -1"),
        ({"iouThreshold": float("nan")}, "got nan"),
        ({"scores": np.zeros((1, 6, 2))}, "must be a matrix"),
        ({"scores": np.zeros((5, 2))}, r"got shapes \[5, 2\] and \[6, 4\]"),
        ({"scores": np.zeros((6, 0))}, r"got shapes \[6, 0\]"),
        ({"boxes": np.zeros((6, 5))}, r"boxes \[n, 4\]"),
        ({"more": 1}, "no input 'more'"),
    ],
)
def test_inputs_that_do_not_fit(given, message, tmp_path):
    program = load(saved(suppression(2), tmp_path))
    with pytest.raises(InputError, match=message):
        program.predict({"scores": np.zeros((6, 2)), "boxes": np.zeros((6, 4)), **given})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.nonMaximumSuppression, "iouThreshold", 1.1), "from 0 to 1, got 1.1"),
        (
            lambda m: setattr(m.nonMaximumSuppression, "confidenceThreshold", -0.1),
            "at least 0, got -0.1",
        ),
        (
            lambda m: setattr(m.nonMaximumSuppression, "coordinatesInputFeatureName", "where"),
            "coordinatesInputFeatureName is 'where', which it does not describe",
        ),
        (lambda m: m.description.output.pop(), "coordinatesOutputFeatureName is 'coordinates'"),
        (
            lambda m: m.description.input.add(name="more").type.doubleType.SetInParent(),
            "it describes 'more'",
        ),
        (
            lambda m: setattr(
                m.description.output[0].type.multiArrayType.shapeRange.sizeRanges[0],
                "lowerBound",
                1 << 50,
            ),
            "the rows of outputs",
        ),
    ],
)
def test_models_that_core_ml_refuses(change, message, tmp_path):
    model = suppression(2)
    change(model)
    with pytest.raises(ModelFormatError, match=message):
        load(saved(model, tmp_path))


# --- in pipelines ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    stage = suppression(CLASSES, labels=["a", "b", "c"], confidence=0.6)
    return detector(folder / "d.mlpackage", network(COUNT, CLASSES, MATRIX), stage)


def of_network():
    found = 1 / (1 + np.exp(-(RAW @ MATRIX.T).astype(np.float64)))
    return found[:, :CLASSES], found[:, CLASSES:]


@pytest.mark.parametrize("given", [{}, {"iouThreshold": 0.9}, {"confidenceThreshold": 0.8}])
def test_a_detector(package, given):
    program = load(package)
    assert isinstance(program, Pipeline)
    found = program.predict({"raw": RAW, **given})
    scores, boxes = of_network()
    iou, confidence = given.get("iouThreshold", 0.45), given.get("confidenceThreshold", 0.6)
    rows = plainly(scores, boxes, iou, confidence, per_class=True)
    assert 1 < len(rows) < COUNT
    np.testing.assert_allclose(found["confidence"], scores[rows], atol=1e-5)
    np.testing.assert_allclose(found["coordinates"], boxes[rows], atol=1e-5)
    assert program.predict([{"raw": RAW}] * 2)[1].keys() == found.keys()


@pytest.mark.parametrize("described", [True, False])
def test_thresholds_may_be_left_out_however_they_are_described(described, tmp_path):
    stage = suppression(CLASSES, described=described, confidence=0.6)
    path = tmp_path / "d.mlpackage"
    detector(path, network(COUNT, CLASSES, MATRIX), stage, optional=False)
    program = load(path)
    few = program.predict({"raw": RAW, "confidenceThreshold": 0.8})["confidence"]
    many = program.predict({"raw": RAW})["confidence"]
    assert few.min(axis=0).size == many.min(axis=0).size == CLASSES
    assert (few.max(axis=1) >= 0.8).all()
    assert len(few) < len(many)


def test_random_samples_leave_thresholds_as_they_are(package):
    for sample in random_samples(load(package), 2):
        assert sample.keys() == {"raw"}


def test_a_detector_is_palettized_linted_and_inspected(package, tmp_path):
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=6, weight_threshold=0)
    )
    small = tmp_path / "small.mlpackage"
    cto.palettize(package, config, output=small)
    before, after = (
        Model_pb2.Model.FromString((p / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
        for p in (package, small)
    )
    assert before.pipeline.models[1] == after.pipeline.models[1]
    assert [op.type for op in _operations(after.pipeline.models[0])].count(
        "constexpr_lut_to_dense"
    ) == 1
    for command in (["inspect", str(small)], ["lint", str(small)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    whole = tmp_path / "whole.mlpackage"
    cto.decompress(small, output=whole)
    for a, b in zip(
        load(small).predict({"raw": RAW}).values(),
        load(whole).predict({"raw": RAW}).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def _operations(model):
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations


# --- comparing ------------------------------------------------------------------------------------


def test_detectors_with_more_or_fewer_boxes_are_compared(package, tmp_path):
    other = tmp_path / "other.mlpackage"
    stage = suppression(CLASSES, confidence=0.7)
    detector(other, network(COUNT, CLASSES, MATRIX * np.float32(1.02)), stage)
    counts = [len(load(p).predict({"raw": RAW})["confidence"]) for p in (package, other)]
    assert counts[0] != counts[1]
    found = compare(package, other, {"raw": RAW})
    (row,) = found.detections
    assert (row.names, row.reference, row.candidate) == (("confidence", "coordinates"), *counts)
    assert 0 < row.paired <= min(counts)
    assert 0.8 < row.overlap <= 1
    assert all(
        output.distance.elements == row.paired * w
        for output, w in zip(found.outputs, (CLASSES, 4), strict=True)
    )
    assert all(output.distance.snr_db > 20 for output in found.outputs)
    assert f"{row.paired} of {counts[0]} boxes of the reference are among the" in str(found)
    assert json.loads(found.to_json())["detections"][0]["paired"] == row.paired


def test_boxes_are_paired_whatever_their_order(tmp_path):
    """Two models whose scores are in opposite orders, and whose boxes are the same."""
    boxes = np.array([[i, 0, 0.5, 0.5] for i in range(4)], np.float32)
    up = np.array([[0.6, 0], [0.7, 0], [0.8, 0], [0, 0.9]], np.float32)
    down = np.array([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.6]], np.float32)
    detections = Detections((("confidence", "coordinates"),))
    order = [3, 2, 1, 0]
    padding = np.zeros((2, 2)), np.zeros((2, 4))
    wanted = {"confidence": up[order], "coordinates": boxes[order], "other": 1}
    found = {
        "confidence": np.vstack([down, padding[0]]),
        "coordinates": np.vstack([boxes + np.array([0.01, 0, 0, 0]), padding[1]]),
        "other": 2,
    }
    wanted, found = detections.paired(wanted, found)
    np.testing.assert_allclose(wanted["coordinates"], found["coordinates"], atol=0.011)
    np.testing.assert_array_equal(found["confidence"], down[order])
    assert (wanted["other"], found["other"]) == (1, 2)
    # another class is another box, and so is one far away
    moved = {"confidence": up[:, ::-1][order], "coordinates": boxes[order]}
    wanted, _ = detections.paired({"confidence": up[order], "coordinates": boxes[order]}, moved)
    assert wanted["confidence"].shape == (0, 2)
    (row,) = detections.rows()
    assert (row.reference, row.candidate, row.paired) == (8, 8, 4)


def test_equal_detectors_are_equal(package):
    found = compare(package, package, random=2)
    assert found.detections[0].paired == found.detections[0].reference > 0
    assert found.detections[0].overlap == pytest.approx(1)
    assert all(np.isposinf(row.distance.snr_db) for row in found.outputs)


# --- stages ---------------------------------------------------------------------------------------


def classifier():
    model = Model_pb2.Model(specificationVersion=1)
    model.description.input.add(name="scores").type.multiArrayType.dataType = DOUBLE
    model.description.output.add(name="label").type.stringType.SetInParent()
    model.description.predictedFeatureName = "label"
    model.glmClassifier.weights.add(value=[1.0] * CLASSES)
    model.glmClassifier.offset.append(0.0)
    model.glmClassifier.stringClassLabels.vector.extend(["no", "yes"])
    return model


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A program, a suppression, and a model that cannot be run."""
    folder = tmp_path_factory.mktemp("mixed")
    stages = network(COUNT, CLASSES, MATRIX), suppression(CLASSES), classifier()
    return detector(folder / "m.mlpackage", *stages, names=("net", "choice"))


def test_stages_that_cannot_be_run_are_named_with_those_that_can(mixed):
    message = r"stage 'model2' of type glmClassifier.* alone, with stage=.*: 'net', 'choice'"
    with pytest.raises(ModelFormatError, match=message):
        load(mixed)
    for stage in (2, "model2"):
        with pytest.raises(ModelFormatError, match="'model2' of type glmClassifier cannot be run"):
            load(mixed, stage=stage)


@pytest.mark.parametrize("stage", [0, "0", "net"])
def test_a_program_is_run_alone(mixed, stage):
    program = load(mixed, stage=stage)
    assert isinstance(program, Program)
    found = program.predict({"raw": RAW})
    for name, wanted in zip(("scores", "boxes"), of_network(), strict=True):
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)
    assert load(mixed, stage=stage, function="main").function == "main"
    choice = load(mixed, stage="choice").predict(found)
    rows = plainly(*of_network(), 0.45, 0.25, per_class=True)
    np.testing.assert_allclose(choice["confidence"], of_network()[0][rows], atol=1e-5)


@pytest.mark.parametrize("stage", [3, -1, "3", "nothing", "", True])
def test_stages_that_there_are_not(mixed, stage):
    with pytest.raises(ConfigError, match=r"no stage .*from 0 to 2.*'net', 'choice', 'model2'"):
        load(mixed, stage=stage)


def test_only_pipelines_have_stages(tmp_path):
    with pytest.raises(ConfigError, match="is not a pipeline"):
        load(network(COUNT, CLASSES, MATRIX), stage=0)
    path = detector(
        tmp_path / "t.mlpackage", network(COUNT, CLASSES, MATRIX), suppression(3), names=("a", "a")
    )
    with pytest.raises(ConfigError, match="2 stages are named 'a'"):
        load(path, stage="a")


def test_pipelines_in_pipelines(tmp_path):
    first = network(COUNT, CLASSES, MATRIX)
    inner = Model_pb2.Model(specificationVersion=7)
    inner.description.input.extend(first.get_spec().description.input)
    inner.description.output.extend(first.get_spec().description.output)
    inner.pipeline.models.append(first.get_spec())
    inner.pipeline.names.append("net")
    whole = Model_pb2.Model(specificationVersion=7)
    whole.description.input.extend(inner.description.input)
    whole.description.input.add(name="confidenceThreshold").type.doubleType.SetInParent()
    whole.description.output.extend(suppression(CLASSES).description.output)
    last = Model_pb2.Model(specificationVersion=7)
    last.description.CopyFrom(suppression(CLASSES).description)
    last.pipeline.models.append(suppression(CLASSES, confidence=0.6))
    whole.pipeline.models.extend([inner, last])
    whole.pipeline.names.extend(["inner", "last"])
    path = tmp_path / "n.mlpackage"
    save_spec(whole, str(path), weights_dir=first.weights_dir)
    found = load(path).predict({"raw": RAW})
    scores, boxes = of_network()
    rows = plainly(scores, boxes, 0.45, 0.6, per_class=True)
    np.testing.assert_allclose(found["coordinates"], boxes[rows], atol=1e-5)
    assert len(load(path).predict({"raw": RAW, "confidenceThreshold": 0.9})["confidence"]) < len(
        rows
    )
    assert isinstance(load(path, stage="inner/net"), Program)
    assert isinstance(load(path, stage="last/model0"), Pipeline)
    assert len(load(path).programs) == 1


def test_run_of_a_detector_and_of_a_stage(package, mixed):
    result = CliRunner().invoke(app, ["run", str(package)])
    assert "  confidenceThreshold: number, optional" in result.stdout
    arguments = ["--random", "--input", "confidenceThreshold=0", "--input", "iouThreshold=1"]
    result = CliRunner().invoke(app, ["run", str(package), *arguments])
    assert result.exit_code == 0, result.output
    assert f"confidence: float32[{COUNT}, {CLASSES}]" in result.stdout
    result = CliRunner().invoke(app, ["run", str(mixed), "--random"])
    assert result.exit_code != 0
    assert "--stage" in result.output
    for stage in ("net", "0"):
        result = CliRunner().invoke(app, ["run", str(mixed), "--random", "--stage", stage])
        assert result.exit_code == 0, result.output
        assert f"boxes: float32[{COUNT}, 4]" in result.stdout
