"""Comparisons as text and JSON."""

from __future__ import annotations

import json

import numpy as np
from coremltools.converters.mil import Builder as mb

from mlopt.runtime import Comparison, compare
from tests.runtime.comparison.small_models import (
    LAYERS,
    SAMPLES,
    distance,
    layer,
    palettized,
)
from tests.runtime.programs import convert


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


def test_the_worst_layers_come_first():
    (table, _) = str(Comparison(2, (), LAYERS)).split("\n\n")
    lines = table.splitlines()[2:]
    order = [line.split()[1] for line in lines]
    assert order == ["nan", "other", "endless", "bad", "good", "equal"]
    assert "not finite" in lines[0]
    assert "shapes differ [1, 16] / [1, 24]" in lines[1]
    assert "-inf dB" in lines[2]


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
