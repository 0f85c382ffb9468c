"""Comparing models: measures by hand, and a palettized network against itself."""

from __future__ import annotations

import json
import math
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

import mlopt.coreml as cto
from mlopt.errors import ConfigError, InputError, ModelFormatError
from mlopt.runtime import Comparison, compare, load
from mlopt.runtime.comparison.measures import Agreement, Distance
from mlopt.runtime.comparison.outputs import compare_outputs
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.runtime.comparison.rows import LabelRow, LayerRow
from mlopt.runtime.comparison.split_samples import split_samples
from tests.runtime.networks import converted, network
from tests.runtime.programs import convert


def test_measures_by_hand():
    distance = Distance()
    distance.add(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 0.5]))
    distance.add(torch.tensor([[0.0, -4.0]]), torch.tensor([[0.0, -4.0]]))
    assert distance.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert distance.cosine == pytest.approx(25 / math.sqrt(25 * 25.25))
    assert distance.max_absolute == 0.5
    assert distance.max_relative == 0.125
    assert (distance.samples, distance.elements) == (2, 4)


def test_measures_at_their_ends():
    equal = Distance()
    equal.add(torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf]))
    assert equal.snr_db == math.inf
    assert equal.max_relative == 0.0
    zeros = Distance()
    zeros.add(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert (zeros.snr_db, zeros.cosine, zeros.max_relative) == (-math.inf, 0.0, math.inf)
    broken = Distance()
    broken.add(torch.tensor([1.0]), torch.tensor([math.nan]))
    assert math.isnan(broken.snr_db)
    assert math.isnan(broken.cosine)
    with pytest.raises(ValueError, match="shapes differ"):
        equal.add(torch.ones(2), torch.ones(3))


def test_agreement():
    agreement, scores = Agreement(), torch.arange(10.0)
    agreement.add(scores, torch.cat([scores[5:], scores[:5]]))  # none of the best five
    agreement.add(scores, scores + 1)
    swapped = scores[[0, 1, 2, 3, 5, 4, 6, 7, 8, 9]]
    agreement.add(scores, swapped)
    assert (agreement.samples, agreement.top1) == (3, 2)
    assert agreement.top5_share == pytest.approx((0 + 1 + 4 / 5) / 3)


def test_the_best_five_of_five_classes_say_nothing():
    agreement = Agreement()
    agreement.add(torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.5, 0.1, 0.4]))
    agreement.add(torch.arange(5.0), torch.arange(5.0))
    assert agreement.top1_share == 0.5
    assert agreement.top5_share is None


def test_scores_that_are_no_numbers_agree_in_nothing():
    nan = torch.full((10,), math.nan)
    agreement = Agreement()
    agreement.add(nan, nan)
    agreement.add(nan, torch.arange(10.0))
    agreement.add(torch.arange(10.0), torch.arange(10.0))
    assert (agreement.samples, agreement.not_a_number) == (3, 2)
    assert agreement.top1_share == pytest.approx(1 / 3)
    assert agreement.top5_share == pytest.approx(1 / 3)


def test_measures_of_what_is_not_finite():
    nothing = Distance()
    nothing.add(torch.full((4,), math.nan), torch.full((4,), math.nan))
    assert math.isnan(nothing.snr_db)
    assert math.isnan(nothing.cosine)
    assert (nothing.elements, nothing.left_out, nothing.mismatched) == (4, 4, 0)
    nearly = Distance()
    row = torch.full((100,), math.nan)
    row[7] = 2.0
    nearly.add(row, row)
    assert nearly.snr_db == math.inf
    assert (nearly.elements, nearly.left_out, nearly.mismatched) == (100, 99, 0)
    other = Distance()
    other.add(torch.tensor([1.0, math.inf, math.nan]), torch.tensor([1.0, -math.inf, math.nan]))
    assert math.isnan(other.max_absolute)
    assert (other.left_out, other.mismatched) == (2, 1)
    assert math.isnan(Distance().snr_db)


def palettized(name, nbits, target="iOS16"):
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=nbits, weight_threshold=0)
    )
    model = converted(name, target)
    return model, cto.palettize_weights(model, config)


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


def test_layers_show_which_weight_is_to_blame():
    model = converted("encoder", "iOS16")
    weights = list(cto.get_weights_metadata(model, weight_threshold=512))
    guilty = next(name for name in weights if "up" in name or "down" in name)
    config = cto.OptimizationConfig(
        op_name_configs={guilty: cto.OpPalettizerConfig(nbits=1, weight_threshold=0)}
    )
    result = compare(model, cto.palettize_weights(model, config), random=2, layers=True)
    rows = {row.weights[0]: row for row in result.layers if row.weights}
    bad = [name for name, row in rows.items() if row.entering.snr_db < 200]
    assert len(bad) == 1
    place = [row.weights[0] for row in result.layers].index(bad[0])
    assert all(row.so_far.snr_db == math.inf for row in result.layers[:place])
    after = [row for row in result.layers[place + 1 :] if row.so_far.snr_db < 200]
    assert after
    assert all(row.entering.snr_db == math.inf for row in after)


def test_a_classifier_agrees_with_itself():
    model, small = palettized("residual", 8)
    (row,) = compare(model, small, random=4).outputs
    assert row.agreement is not None
    assert row.agreement.samples == 4
    assert row.agreement.top1 == 4


def test_text_and_json():
    model, small = palettized("encoder", 2)
    result = compare(model, small, random=2, layers=True)
    text = str(result)
    assert text.splitlines()[0].split()[:2] == ["output", "SNR"]
    assert "SNR entering" in text
    values = json.loads(result.to_json())
    assert values["samples"] == 2
    assert values["outputs"][0]["snr_db"] == result.outputs[0].distance.snr_db
    assert len(values["layers"]) == len(result.layers)
    worst = min(result.layers, key=lambda row: row.entering.snr_db)
    first = text.split("\n\n")[1].splitlines()[2]
    assert worst.weights[0][-30:] in first


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from mlopt.runtime.comparison.picture import draw_layers, layers_figure

    model, small = palettized("encoder", 2)
    found = compare(model, small, random=1, layers=True)
    rows = found.layers
    (axes,) = layers_figure(found).axes
    bars = [bar.get_width() for bar in axes.patches]
    np.testing.assert_array_equal(bars, [row.entering.snr_db for row in rows])
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [row.so_far.snr_db for row in rows])
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        ", ".join(row.weights)[-60:] for row in rows
    ]
    assert "signal-to-noise ratio" in axes.get_xlabel()
    for ending, start in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        path = tmp_path / f"layers{ending}"
        draw_layers(found, path)
        assert path.read_bytes().startswith(start)
    with pytest.raises(ConfigError, match="layers=True"):
        draw_layers(compare(model, small, random=1), path)
    with pytest.raises(ConfigError, match=r"has the ending '.foo'; use one of .*\.png, \.svg"):
        draw_layers(found, tmp_path / "layers.foo")


def distance(a, b):
    found = Distance()
    found.add(torch.tensor(a), torch.tensor(b))
    return found


def layer(name, entering, so_far=None, mismatch=None):
    return LayerRow(name, "linear", (name,), entering, so_far or entering, mismatch)


LAYERS = (
    layer("good", distance([10.0], [10.1])),
    layer("equal", distance([1.0], [1.0])),
    layer("nan", distance([1.0], [math.nan])),
    layer("bad", distance([1.0], [1.5])),
    layer("endless", distance([0.0], [1.0])),
    layer("other", Distance(), Distance(), "shapes differ [1, 16] / [1, 24]"),
)


def test_the_picture_marks_layers_that_are_broken():
    pytest.importorskip("matplotlib")
    from mlopt.runtime.comparison.picture import layers_figure

    (axes,) = layers_figure(Comparison(1, (), LAYERS)).axes
    drawn = [bar.get_width() for bar in axes.patches]
    assert [math.isnan(width) for width in drawn] == [False, True, True, False, True, True]
    _, crosses = axes.lines
    assert list(crosses.get_ydata()) == [2, 4, 5]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "not finite, or not comparable" in legend
    sound = (*LAYERS[:2], layer("dead", distance([0.0], [0.0])))
    (axes,) = layers_figure(Comparison(1, (), sound)).axes
    assert len(axes.lines) == 1


def test_the_worst_layers_come_first():
    (table, _) = str(Comparison(2, (), LAYERS)).split("\n\n")
    lines = table.splitlines()[2:]
    order = [line.split()[1] for line in lines]
    assert order == ["nan", "other", "endless", "bad", "good", "equal"]
    assert "not finite" in lines[0]
    assert "shapes differ [1, 16] / [1, 24]" in lines[1]
    assert "-inf dB" in lines[2]


def test_random_samples_fit_the_model():
    program = load(converted("encoder", "iOS15"))
    samples = random_samples(program, 20, seed=3)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert tokens.dtype == np.int32
    assert 50 < tokens.max() < 100  # rows of the embedding
    assert set(np.unique([sample["mask"] for sample in samples])) == {0, 1}
    again = random_samples(program, 20, seed=3)
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(samples, again, strict=True))


ONE = np.ones((1, 4), np.float32)


def indexed(build, table=100, dtype=np.int32, target="iOS15"):
    """Tokens drawn for a program that looks rows of a table up at what is built of them."""
    weight = np.zeros((table, 3), np.float32)

    def program(tokens):
        return mb.gather(x=weight, indices=build(tokens), axis=0)

    given = {"tokens": np.zeros((2, 4), dtype)}
    samples = random_samples(load(convert(program, given, target=target)), 30)
    return np.concatenate([sample["tokens"].reshape(-1) for sample in samples])


def wrapped(x):
    """What coremltools writes for indices from iOS17 on."""
    return mb.select(cond=mb.greater_equal(x=x, y=0), a=x, b=mb.add(x=x, y=100))


def joined(x):
    return mb.concat(values=[x, mb.reverse(x=x, axes=[1])], axis=0)


MOVED = {
    "as it is": lambda x: mb.identity(x=x),
    "wrapped": lambda x: wrapped(x),
    "reshaped": lambda x: mb.squeeze(x=mb.expand_dims(x=mb.reshape(x=x, shape=[8]), axes=[0])),
    "transposed": lambda x: wrapped(mb.transpose(x=x, perm=[1, 0])),
    "sliced": lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[2, 4]),
    "of a size": lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=[2, 2]),
    "split": lambda x: mb.split(x=x, num_splits=2, axis=1)[1],
    "joined": lambda x: wrapped(joined(x)),
    "stacked": lambda x: mb.stack(values=[x, x], axis=0),
    "gathered": lambda x: mb.gather(x=x, indices=np.array([1, 0], np.int32), axis=1),
    "clipped": lambda x: mb.maximum(x=x, y=0),
}


@pytest.mark.parametrize("moved", MOVED)
def test_random_indices_are_rows_of_the_table(moved):
    tokens = indexed(MOVED[moved])
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert 60 < tokens.max() < 100


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_random_floats_that_index_are_whole(target):
    tokens = indexed(
        lambda x: wrapped(mb.cast(x=x, dtype="int32")), dtype=np.float32, target=target
    )
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens, np.trunc(tokens))
    assert tokens.min() >= 0
    assert 60 < tokens.max() < 100


def test_random_floats_whose_places_index_stay_floats():
    def build(x):
        _, places = mb.topk(x=x, k=2, axis=1)
        return mb.gather_along_axis(x=x, indices=places, axis=1)

    (sample,) = random_samples(load(convert(build, {"x": ONE})), 1)
    assert (sample["x"] != np.trunc(sample["x"])).any()


def test_random_indices_into_several_axes():
    def build(places):
        return mb.gather_nd(x=np.zeros((50, 9), np.float32), indices=places)

    given = {"places": np.zeros((40, 2), np.int32)}
    (sample,) = random_samples(load(convert(build, given)), 1)
    assert 4 < sample["places"].max() < 9
    (sample,) = random_samples(load(convert(build, {"places": given["places"][:, :1]})), 1)
    assert 9 < sample["places"].max() < 50


@pytest.mark.parametrize(
    ("target", "nbits"),
    [
        ("iOS15", None),
        *((target, nbits) for target in ("iOS16", "iOS17", "iOS18") for nbits in (None, 4)),
    ],
)
def test_random_tokens_of_every_target(target, nbits):
    model = converted("encoder", target) if nbits is None else palettized("encoder", 4, target)[1]
    samples = random_samples(load(model), 20, seed=3)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert 50 < tokens.max() < 100
    assert set(np.unique([sample["mask"] for sample in samples])) == {0, 1}


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (0, 0, "at least one sample"),
        (2.5, 0, "whole number, got 2.5"),
        (1, -1, "seed has to be a whole number from 0 .* got -1"),
        (1, 0.5, "seed has to be"),
        (1, 2**64, "seed has to be"),
    ],
)
def test_what_cannot_be_drawn(count, seed, message):
    with pytest.raises(InputError, match=message):
        compare(
            converted("residual", "iOS16"), converted("residual", "iOS16"), random=count, seed=seed
        )


def test_samples_of_arrays():
    program = load(converted("residual", "iOS15"))
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    for given in (images, images[:, None]):
        samples = split_samples(program, {"image": given})
        assert [sample["image"].shape for sample in samples] == [(1, 3, 32, 32)] * 5
        np.testing.assert_array_equal(samples[4]["image"][0], images[4])
    assert len(split_samples(program, {"image": images[:1]})) == 1
    with pytest.raises(InputError, match="no input 'x'"):
        split_samples(program, {"x": images})
    with pytest.raises(InputError, match="one more axis"):
        split_samples(program, {"image": images[..., :30]})


def image_program(channels):
    """An image, 6 high and 5 wide, and its pixels as an array."""
    space = ct.colorlayout.GRAYSCALE if channels == 1 else ct.colorlayout.RGB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(torch.nn.Hardtanh(-999.0, 999.0), torch.zeros(1, channels, 6, 5)),
            inputs=[ct.ImageType("image", (1, channels, 6, 5), color_layout=space)],
            outputs=[ct.TensorType("out")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )


@pytest.mark.parametrize(
    ("channels", "shape", "count"),
    [
        (3, (3, 6, 5), 1),
        (3, (1, 3, 6, 5), 1),
        (3, (4, 3, 6, 5), 4),
        (3, (3, 3, 6, 5), 3),
        (3, (4, 1, 3, 6, 5), 4),
        (1, (6, 5), 1),
        (1, (1, 6, 5), 1),
        (1, (3, 6, 5), 3),
        (1, (4, 1, 6, 5), 4),
        (1, (4, 1, 1, 6, 5), 4),
    ],
)
def test_samples_of_images(channels, shape, count):
    program = load(image_program(channels))
    pixels = np.arange(np.prod(shape)).reshape(shape) % 256
    samples = split_samples(program, {"image": pixels})
    assert len(samples) == count
    found = [program.predict(sample)["out"] for sample in samples]
    np.testing.assert_array_equal(
        np.concatenate(found), pixels.reshape(count, channels, 6, 5).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("channels", "shape"),
    [
        (3, (6, 5)),
        (3, (6, 5, 3)),
        (3, (3, 5, 6)),
        (3, (4, 6, 5)),
        (1, (4, 3, 6, 5)),
        (1, (5,)),
        (1, ()),
    ],
)
def test_arrays_that_hold_no_images(channels, shape):
    with pytest.raises(InputError, match=r"'image' has shape .* height, width\].* 5 x 6"):
        split_samples(load(image_program(channels)), {"image": np.zeros(shape)})


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


def test_what_is_left_out_is_said():
    model = convert(lambda x: mb.log(x=x, epsilon=0.0, name="y"), {"x": np.ones(100, np.float32)})
    sample = {"x": np.full(100, -1.0, np.float32)}
    sample["x"][3] = 2.0
    found = compare(model, model, sample, layers=True)
    text = str(found)
    assert "equal *" in text
    assert "* without the elements that are NaN or infinite in both models" in text
    assert "y: 99 of 100 elements are NaN or infinite in both models." in text
    assert json.loads(found.to_json())["outputs"][0]["left_out"] == 99


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
    assert "12 of 12 elements are NaN or infinite, 12 of them not the same" in str(found)


def in_a_pipeline(first, second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.utils.make_pipeline(first, second)


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


def test_random_indices_of_a_pipeline():
    tokens, table = {"tokens": np.zeros((1, 8), np.int32)}, np.zeros((100, 3), np.float32)
    first = convert(lambda tokens: mb.identity(x=tokens, name="between"), tokens)
    second = convert(
        lambda between: mb.gather(x=table, indices=wrapped(between)), {"between": tokens["tokens"]}
    )
    samples = random_samples(load(in_a_pipeline(first, second)), 10)
    assert 60 < max(sample["tokens"].max() for sample in samples) < 100


def test_pixels_are_compared_without_alpha():
    from PIL import Image

    def image(value):
        pixels = np.full((2, 2, 4), 255, np.uint8)
        pixels[..., :3] = value
        return {"image": Image.fromarray(pixels)}

    (row,) = compare_outputs(lambda _: image(10), lambda _: image(11), [{}]).outputs
    assert row.distance.elements == 12
    assert row.distance.snr_db == pytest.approx(20.0)


def two_layers(inner):
    random = np.random.default_rng(1)

    def build(x):
        first = random.normal(size=(inner, 4)).astype(np.float32)
        hidden = mb.relu(x=mb.linear(x=x, weight=first, name="first"))
        last = random.normal(size=(2, inner)).astype(np.float32)
        return mb.linear(x=hidden, weight=last, name="last")

    return convert(build, {"x": ONE})


def test_layers_of_other_shapes_are_rows_all_the_same():
    found = compare(two_layers(16), two_layers(24), random=2, layers=True)
    first, last = found.layers
    assert (first.name, first.mismatch) == ("first", "shapes differ [1, 16] / [1, 24]")
    assert last.mismatch == "weight differs [2, 16] / [2, 24]"
    assert math.isnan(first.entering.snr_db)
    assert math.isnan(first.so_far.snr_db)
    assert math.isfinite(last.so_far.snr_db)
    text = str(found)
    assert "shapes differ [1, 16] / [1, 24]" in text
    assert "weight differs [2, 16] / [2, 24]" in text
    values = json.loads(found.to_json())["layers"]
    assert [value["mismatch"] for value in values] == [first.mismatch, last.mismatch]


def test_layers_of_other_types_are_rows_all_the_same():
    weight = np.ones((4, 4), np.float32)
    first = convert(lambda x: mb.linear(x=x, weight=weight, name="y"), {"x": ONE})
    second = convert(lambda x: mb.matmul(x=x, y=weight, name="y"), {"x": ONE})
    (row,) = compare(first, second, random=1, layers=True).layers
    assert row.mismatch == "types differ linear / matmul"
    assert row.so_far.snr_db > 100


def test_samples_of_the_network_itself():
    _, inputs = network("encoder")
    model, small = palettized("encoder", 6)
    sample = {name: x.numpy() for name, x in inputs.items()}
    assert compare(model, small, [sample]).samples == 1


def stated(values, ends=None):
    found = Distance.within(ends)
    for value in values:
        found.add(torch.tensor(value), torch.tensor(value))
    return found


@pytest.mark.parametrize(
    ("values", "ends", "status"),
    [
        ([[0.0, 0.0]], None, "zero"),
        ([[0.0], [0.0]], None, "zero"),
        ([[0.0, math.nan, 0.0]], None, "zero"),
        ([[0.25, 0.25], [0.25, 0.25]], None, "constant"),
        ([[65504.0, -65504.0]], None, "saturated"),
        ([[65504.0, 65504.0]], None, "saturated"),
        ([[0.0, 1.0]], (0.0, 1.0), "saturated"),
        ([[math.nan, math.inf]], None, "not finite"),
        ([[]], None, "empty"),
        ([], None, "unmeasured"),
        ([[0.25]], None, "equal"),
        ([[0.0, 1.0]], None, "equal"),
        ([[0.0, 1.0, 0.5]], (0.0, 1.0), "equal"),
        ([[0.25, 0.25], [0.5, 0.5]], None, "equal"),
        ([[65504.0, 1.0]], None, "equal"),
    ],
)
def test_equal_is_what_says_something(values, ends, status):
    distance = stated(values, ends)
    assert distance.status == status
    if status in ("zero", "empty", "not finite", "unmeasured"):
        assert math.isnan(distance.snr_db)
        assert math.isnan(distance.cosine)


def test_what_differs_is_different_whatever_the_reference_is():
    found = distance([0.0, 0.0], [0.0, 1.0])
    assert (found.status, found.reference.state, found.snr_db) == ("different", "zero", -math.inf)


def outputs_of(*builders, samples, inputs=None):
    """Each builder's program as reference and candidate in one comparison."""
    inputs = inputs or {"x": np.ones((1, 8), np.float32)}
    return [compare(convert(build, inputs), convert(build, inputs), samples) for build in builders]


SAMPLES = [{"x": np.random.default_rng(n).normal(size=(1, 8)).astype(np.float32)} for n in range(3)]


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
    assert "y: both are 2.5 everywhere, which says nothing" in str(cases["constant"])
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


def test_layers_of_zeros_are_not_the_worst():
    layers = (layer("bad", distance([1.0], [1.5])), layer("dead", distance([0.0], [0.0])))
    lines = str(Comparison(1, (), layers)).splitlines()[2:4]
    assert [line.split()[1] for line in lines] == ["bad", "dead"]
    assert lines[1].split()[-3:] == ["zero", "in", "both"]


def test_outputs_below_a_ratio():
    x = {"x": np.ones((1, 8), np.float32)}
    first = convert(lambda x: mb.mul(x=x, y=np.float32(10.0), name="y"), x)
    second = convert(lambda x: mb.mul(x=x, y=np.float32(11.0), name="y"), x)
    found = compare(first, second, SAMPLES)  # 20 dB
    assert (found.below(19.0), found.below(21.0)) == ((), ("y",))
