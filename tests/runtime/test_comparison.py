"""Comparing models: measures by hand, and a palettized network against itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mlopt.coreml as cto
from mlopt.errors import ConfigError, InputError
from mlopt.runtime import compare, load
from mlopt.runtime.measures import Agreement, Distance
from mlopt.runtime.samples import random_samples, split_samples
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
    agreement = Agreement()
    agreement.add(torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.1, 0.5, 0.4]))
    scores = torch.arange(10.0)
    agreement.add(scores, torch.cat([scores[5:], scores[:5]]))
    assert (agreement.samples, agreement.top1) == (2, 1)
    assert agreement.top5 == 1.0  # all three of the first, none of the second


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
    from mlopt.runtime.picture import draw_layers

    model, small = palettized("encoder", 2)
    path = tmp_path / "layers.svg"
    draw_layers(compare(model, small, random=1, layers=True), path)
    assert "signal-to-noise" in path.read_text() or path.stat().st_size > 5000
    with pytest.raises(ConfigError, match="layers=True"):
        draw_layers(compare(model, small, random=1), path)


def test_random_samples_fit_the_model():
    program = load(converted("encoder", "iOS15"))
    samples = random_samples(program, 20, seed=3)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert tokens.dtype == np.int32
    assert 50 < tokens.max() < 100  # rows of the embedding
    assert set(np.unique([sample["mask"] for sample in samples])) == {0, 1}
    again = random_samples(program, 20, seed=3)
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(samples, again, strict=True))


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


def test_what_cannot_be_compared():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    x = {"x": np.ones((2, 3), np.float32)}
    first, second = (convert(lambda x, n=n: mb.exp(x=x, name=n), x) for n in ("y", "z"))
    with pytest.raises(ConfigError, match="different outputs: y and z"):
        compare(first, second)
    assert isinstance(first, ct.models.MLModel)
    longer = convert(lambda x: mb.concat(values=[x, x], axis=0, name="y"), x)
    with pytest.raises(ConfigError, match="output 'y': shapes differ"):
        compare(first, longer)
    with pytest.raises(InputError, match="no samples"):
        compare(first, first, [])


def test_samples_of_the_network_itself():
    _, inputs = network("encoder")
    model, small = palettized("encoder", 6)
    sample = {name: x.numpy() for name, x in inputs.items()}
    assert compare(model, small, [sample]).samples == 1
