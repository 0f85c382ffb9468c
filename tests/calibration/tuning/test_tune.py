"""``tune`` on whole models: what moves, what stays, what is written and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mlopt.calibration import tune
from mlopt.calibration.tuning.substitutes import Substitutes
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError, DestinationError, InputError
from mlopt.mil.opening import open_package
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from tests import foreign, models

WEIGHT_FILE = Path("Data/com.apple.CoreML/weights/weight.bin")


def palettized(source, path, **options):
    config = OptimizationConfig(OpPalettizerConfig(**{"weight_threshold": 0} | options))
    return palettize(source, config, output=path).path


@pytest.fixture(scope="module")
def digit_samples(digits):
    return random_samples(load(digits), 20, 0)


@pytest.fixture(scope="module")
def coarse(digits, tmp_path_factory):
    """The digit classifier in 1 bit."""
    return palettized(digits, tmp_path_factory.mktemp("coarse") / "coarse.mlpackage", nbits=1)


def answers(model, samples, function=None):
    program = load(model, function)
    rows = [program.run(s, program.make_state(), seed=0).outputs for s in samples]
    return {name: np.stack([np.asarray(row[name], np.float64) for row in rows]) for name in rows[0]}


def relative_error(wanted, given):
    each = [np.square(given[n] - wanted[n]).mean() / np.square(wanted[n]).mean() for n in wanted]
    return np.mean(each)


def stored(path):
    """Every constant of a package by name, as it is stored."""
    (program,) = open_package(path).programs
    return {
        (c.function, c.name): np.array(c.value())
        for c in program.constants()
        if c.dtype != "string"
    }


def changed(before, after):
    one, other = stored(before), stored(after)
    assert one.keys() == other.keys()
    return {key for key in one if not np.array_equal(one[key], other[key])}


def test_the_digits(digits, coarse, digit_samples, tmp_path):
    steps = []
    result = tune(
        coarse,
        digits,
        iter(digit_samples),
        output=tmp_path / "tuned.mlpackage",
        steps=24,
        learning_rate=0.01,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(n, 24) for n in range(1, 25)]
    assert result.is_better
    assert result.after.loss < 0.7 * result.before.loss
    assert (result.trained_samples, result.held_out_samples) == (16, 4)
    assert result.original_loss == 0
    # what the report says is so: of the file, on the samples held out
    held_out, trained = digit_samples[4::5], [s for i, s in enumerate(digit_samples) if i % 5 != 4]
    everything = answers(digits, digit_samples)
    mean_square = np.square(everything["logits"]).mean()
    for path, measured in ((coarse, result.before), (result.path, result.after)):
        wanted, given = (answers(model, held_out)["logits"] for model in (digits, path))
        error = np.square(given - wanted).mean() / mean_square
        assert measured.loss == pytest.approx(error, rel=1e-3)
        assert measured.snr_db == pytest.approx(-10 * np.log10(error), abs=0.01)
    before, after = (
        relative_error(answers(digits, trained), answers(path, trained))
        for path in (coarse, result.path)
    )
    assert after < 0.7 * before
    assert {each.kind for each in result.tuned} == {"tables", "biases"}
    assert all(0 < each.change < 0.2 for each in result.tuned)
    moved = changed(coarse, result.path)
    assert moved == {("main", each.name) for each in result.tuned}
    assert not any("indices" in name for _, name in moved)
    one, other = ((p / WEIGHT_FILE).stat().st_size for p in (coarse, result.path))
    assert one == other


def test_equal_arguments_give_equal_packages(digits, coarse, digit_samples, tmp_path):
    packages = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        output = tmp_path / f"{name}.mlpackage"
        result = tune(coarse, digits, digit_samples, output=output, steps=3, batch=4, seed=seed)
        assert result.steps == 3
        packages.append(stored(output))
    one, same, other = packages
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert not all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.short("lut kmeans 4-iOS16", "lut scaled-iOS18", "sparse, palettized, quantized-iOS18")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lut kmeans 4", "iOS16"),
        ("lut uniform 2", "iOS18"),
        ("lut grouped, axis 1", "iOS18"),
        ("lut vectors, grouped", "iOS18"),
        ("lut scaled", "iOS18"),
        ("quantized int4", "iOS18"),
        ("sparse, palettized", "iOS18"),
        ("palettized, quantized", "iOS18"),
        ("sparse, palettized, quantized", "iOS18"),
        ("quantized, palettized", "iOS18"),
    ],
)
def test_packages_of_core_ml_tools(name, target, tmp_path):
    model, original = foreign.build(name, target), foreign.source(target, "float16")
    samples = random_samples(load(original), 8, 0)
    output = tmp_path / "tuned.mlpackage"
    result = tune(model, original, samples, output=output, steps=8, held_out=0.25)
    assert result.after.loss <= result.before.loss
    assert result.is_better
    moved = {name for _, name in changed(model, output)}
    assert moved <= {each.name for each in result.tuned}
    # coremltools decompresses it to what the runtime, and so the report, computes with
    wanted = foreign.materialised_constants(output)
    found = load(output).run(samples[0], taps=wanted).taps
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key].numpy(), array.astype(np.float32))
    integers = {name for name, reason in result.left.items() if reason == "a table in int8"}
    assert bool(integers) == ("palettized" in name and "quantized" in name)


def test_a_weight_that_two_operations_read_is_tuned_once(tmp_path):
    original = models.build("transformer", "iOS16")
    path = palettized(original, tmp_path / "small.mlpackage", nbits=2, weight_threshold=5000)
    samples = random_samples(load(original), 5, 0)
    result = tune(path, original, samples, steps=4, loss="kl", what="tables", learning_rate=0.01)
    embedding = [each for each in result.tuned if "embedding" in each.name]
    assert [each.kind for each in embedding] == ["tables"]
    assert result.after.loss < result.before.loss
    assert {each.kind for each in result.tuned} == {"tables"}


def test_functions_share_what_is_tuned(tmp_path):
    original = models.build("multifunction", "iOS18")
    path = palettized(original, tmp_path / "small.mlpackage", nbits=2)
    samples = random_samples(load(original, "adapted"), 6, 0)
    output = tmp_path / "tuned.mlpackage"
    result = tune(path, original, samples, output=output, function="adapted", steps=6)
    assert result.is_better
    shared = [each for each in result.tuned if set(each.functions) == {"base", "adapted"}]
    own = [each for each in result.tuned if each.functions == ("adapted",)]
    assert {each.kind for each in shared} == {"tables", "biases"}
    assert {each.kind for each in own} == {"tables", "biases"}
    assert any("only function 'base' has it" in reason for reason in result.left.values())
    (one,), (other,) = (
        [w for w in weights_of(open_package(p))[0] if w.shape == (96, 64)] for p in (path, output)
    )
    assert set(one.functions) == set(other.functions) == {"base", "adapted"}
    assert not np.array_equal(one.value(), other.value())
    before, after = (
        relative_error(answers(original, samples, "adapted"), answers(p, samples, "adapted"))
        for p in (path, output)
    )
    assert after < before


def test_probabilities_of_a_classifier(tmp_path):
    original = models.build("classifier", "iOS16")
    path = palettized(original, tmp_path / "small.mlpackage", nbits=1)
    samples = random_samples(load(original), 10, 0)
    result = tune(path, original, samples, loss="kl", steps=10, learning_rate=0.01)
    assert result.after.loss < result.before.loss

    def divergence(model):
        rows = []
        for sample in samples[4::5]:
            p, q = (
                np.array([*next(v for v in o.values() if isinstance(v, dict)).values()])
                for o in (load(original).predict(sample), load(model).predict(sample))
            )
            rows.append((p * np.log(p / q)).sum())
        return np.mean(rows)

    assert result.before.loss == pytest.approx(divergence(path), rel=0.01)
    assert result.after.loss == pytest.approx(divergence(result.path), rel=0.01)
    assert result.model.get_spec() is not None


@pytest.mark.short("control_flow", "stateful")
@pytest.mark.parametrize("kind", ["control_flow", "recurrent", "stateful", "convolutional"])
def test_kinds_of_models(kind, tmp_path):
    original = models.build(kind, "iOS18")
    path = palettized(original, tmp_path / "small.mlpackage", nbits=2, weight_threshold=2048)
    samples = random_samples(load(original), 5, 0)
    result = tune(path, original, samples, steps=4, learning_rate=0.01)
    assert result.after.loss < result.before.loss
    assert result.tuned


def test_intermediate_values_are_compared(digits, coarse, digit_samples, tmp_path):
    (hidden,) = [
        step.node.outputs[0].name
        for step in load(digits).plan.body.steps
        if step.node.op_type == "linear" and step.outputs[0].shape == (1, 128)
    ]
    output = tmp_path / "tuned.mlpackage"
    values = [hidden, hidden]
    result = tune(coarse, digits, digit_samples, output=output, values=values, steps=8)
    assert result.after.loss < result.before.loss
    # what comes after it moves nothing
    assert {name.split("_")[0] for name in result.left} == {"head"}
    assert set(result.left.values()) == {"no gradient reached it"}
    held_out = digit_samples[4::5]

    def tapped(model, samples):
        program = load(model)
        return np.stack([program.run(s, taps=[hidden]).taps[hidden].numpy() for s in samples])

    wanted, given = (tapped(model, held_out) for model in (digits, output))
    error = np.square(given - wanted).mean() / np.square(tapped(digits, digit_samples)).mean()
    assert result.after.loss == pytest.approx(error, rel=1e-3)


def test_a_loss_of_ones_own(digits, coarse, digit_samples):
    def largest(outputs, originals):
        assert outputs.keys() == originals.keys() == {"logits"}
        return (outputs["logits"] - originals["logits"]).abs().max() + 1

    result = tune(coarse, digits, digit_samples, loss=largest, steps=8, learning_rate=0.01)
    assert result.after.loss < result.before.loss
    assert result.original_loss == 1
    with pytest.raises(ConfigError, match="loss must return a tensor of one element, got float"):
        tune(coarse, digits, digit_samples, loss=lambda a, b: 0.0)


def test_nothing_better_leaves_the_package_as_it_was(digits, digit_samples, tmp_path):
    fine = palettized(digits, tmp_path / "fine.mlpackage", nbits=8)
    output = tmp_path / "tuned.mlpackage"
    result = tune(fine, digits, digit_samples, output=output, steps=4, learning_rate=1.0)
    assert not result.is_better
    assert result.after == result.before
    assert result.tuned == ()
    assert any("the package is as it was" in note for note in result.notes)
    assert not changed(fine, output)


def test_a_loss_that_becomes_infinite_ends_it(digits, coarse, digit_samples):
    calls = []

    def spoilt(outputs, originals):
        calls.append(outputs["logits"].requires_grad)
        error = (outputs["logits"] - originals["logits"]).square().mean()
        return error / 0 if sum(calls) > 20 else error

    result = tune(coarse, digits, digit_samples, loss=spoilt, steps=16, batch=4, learning_rate=0.01)
    assert result.steps == 5
    assert result.is_better
    (note,) = [note for note in result.notes if "step 6" in note]
    assert note.startswith("step 6 was not taken: the loss of sample ")
    with pytest.raises(ConfigError, match="the loss of sample 4 is nan before the first"):
        tune(coarse, digits, digit_samples, loss=lambda a, b: a["logits"].sum() * np.nan)


def test_what_is_left_and_why(digits, tmp_path):
    """Masks and positions, and a value that is read in two ways."""
    original = models.build("transformer", "iOS16")
    path = palettized(original, tmp_path / "small.mlpackage", nbits=4, weight_threshold=2048)
    samples = random_samples(load(original), 5, 0)
    result = tune(path, original, samples, steps=1)
    reasons = {name.split(".")[0]: reason for name, reason in result.left.items()}
    assert reasons["position_to_fp16"] == "only elementwise operations read the weight"
    assert result.notes[-1].startswith("4 samples to train on are few")


def exploding(*_, **__):
    raise RuntimeError("the end")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"compressed": "digits"}, ConfigError, "the model to tune has no compressed weights"),
        ({"what": "norms"}, ConfigError, "the compressed model has none of the norms to tune"),
        ({"original": "pipeline"}, ConfigError, "this is a pipeline"),
        ({"compressed": "missing.mlpackage"}, Exception, "missing.mlpackage"),
        ({"original": "other weights"}, ConfigError, "weights are not similar"),
        ({"original": "other model"}, ConfigError, "the original has the inputs 'x'"),
        ({"samples": []}, InputError, "there are no samples"),
        ({"samples": 4}, InputError, "of 4 samples none is held out with held_out=0.2; give 5"),
        ({"samples": "nan"}, ConfigError, "sample 2: output 'logits' of the original has NaN"),
        ({"samples": [{"x": 1}]}, InputError, "sample 0: "),
        ({"samples": [3]}, InputError, "sample 0 is int"),
        ({"what": ["tables", "weights"]}, ConfigError, "what must be one of tables, scales"),
        ({"what": []}, ConfigError, "what must be some of tables, scales"),
        ({"loss": "l1"}, ConfigError, "loss must be one of squared, kl"),
        ({"values": "hidden"}, ConfigError, "the program computes no value 'hidden' that a loss"),
        ({"values": "head_bias_to_fp16"}, ConfigError, "no value 'head_bias_to_fp16' that a loss"),
        ({"values": []}, ConfigError, "values must be names of values, got"),
        ({"steps": 0}, ConfigError, "steps must be an integer of at least 1"),
        ({"learning_rate": 0}, ConfigError, "learning_rate must be more than 0"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate must be more than 0"),
        ({"held_out": 0.6}, ConfigError, "held_out must be more than 0 and at most 0.5"),
        ({"batch": True}, ConfigError, "batch must be an integer"),
        ({"function": "other"}, ConfigError, "no function 'other'"),
        ({"output": "a.txt"}, DestinationError, "must end in .mlpackage"),
    ],
    ids=str,
)
def test_what_is_refused(change, error, words, digits, coarse, digit_samples, tmp_path):
    given = {"compressed": coarse, "original": digits, "samples": digit_samples, "steps": 1}
    given |= {"output": tmp_path / "tuned.mlpackage", "what": ["tables"]} | change
    if given["compressed"] == "digits":
        given["compressed"] = digits
    if given["original"] == "other weights":
        given["original"] = with_other_weights(digits, tmp_path)
    if given["original"] == "other model":
        given["original"] = foreign.source("iOS16", "float16")
    if given["original"] == "pipeline":
        given["original"] = models.build("pipeline")
    if given["samples"] == 4:
        given["samples"] = digit_samples[:4]
    if given["samples"] == "nan":
        wrong = {"image": np.full((1, 1, 8, 8), np.nan, np.float32)}
        given["samples"] = [*digit_samples[:2], wrong]
    if given["output"] == "a.txt":
        given["output"] = tmp_path / "a.txt"
    with pytest.raises(error, match=words):
        tune(given.pop("compressed"), given.pop("original"), given.pop("samples"), **given)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"other.mlpackage"}


def with_other_weights(package, folder):
    """A copy of a package whose weights are in another order."""
    path = Path(shutil.copytree(package, folder / "other.mlpackage"))
    opened = open_package(path)
    rng = np.random.default_rng(0)
    for weight in weights_of(opened)[0]:
        (constant,) = weight.instances
        blob = opened.files.blob(*constant.storage)
        file = path / opened.files.path_of(constant.storage[0])
        with file.open("r+b") as stream:
            stream.seek(blob.data_offset)
            stream.write(rng.permutation(np.array(weight.value()).reshape(-1)).tobytes())
    return path


def test_an_error_on_the_way_leaves_an_earlier_package(
    digits, coarse, digit_samples, tmp_path, monkeypatch
):
    output = Path(shutil.copytree(coarse, tmp_path / "tuned.mlpackage"))
    monkeypatch.setattr(Substitutes, "gradients", exploding)
    with pytest.raises(RuntimeError, match="the end"):
        tune(coarse, digits, digit_samples, output=output, steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.mlpackage"]
    assert not changed(coarse, output)


def test_the_output_may_be_the_source(digits, coarse, digit_samples, tmp_path):
    path = Path(shutil.copytree(coarse, tmp_path / "model.mlpackage"))
    result = tune(path, digits, digit_samples, output=path, steps=2)
    assert result.path == path
    assert changed(coarse, path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.mlpackage"]


def test_gradients_are_computed_in_inference_mode_too(digits, coarse, digit_samples):
    with torch.inference_mode():
        result = tune(coarse, digits, digit_samples, steps=2)
    assert result.is_better
