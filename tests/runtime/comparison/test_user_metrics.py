"""Metrics that are functions of the caller."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.errors import ConfigError, RunError
from mlopt.runtime import compare
from tests.runtime.comparison.small_models import SAMPLES
from tests.runtime.programs import convert

X = {"x": np.ones((1, 8), np.float32)}


@pytest.fixture(scope="module")
def pair():
    return [convert(lambda x, n=n: mb.mul(x=x, y=np.float32(n), name="y"), X) for n in (1.0, 1.5)]


def test_numbers_of_the_pair_and_of_each_model(pair):
    def largest(reference, candidate, samples):
        assert len(reference) == len(candidate) == len(samples) == 3
        for sample, outputs in zip(samples, reference, strict=True):
            np.testing.assert_array_equal(sample["x"], outputs["y"])
        return tuple(max(np.abs(o["y"]).max() for o in model) for model in (reference, candidate))

    def ratio(reference, candidate, samples):
        return np.mean(
            [(b["y"] / a["y"]).mean() for a, b in zip(reference, candidate, strict=True)]
        )

    found = compare(*pair, SAMPLES, metrics={"largest": largest, "ratio": ratio})
    first, second = found.metrics
    x = max(float(np.abs(sample["x"]).max()) for sample in SAMPLES)
    assert (first.name, first.reference, first.pair) == ("largest", pytest.approx(x), None)
    assert first.candidate == pytest.approx(1.5 * x)
    assert (second.name, second.pair, second.reference) == ("ratio", pytest.approx(1.5), None)
    lines = [line.split() for line in str(found).splitlines()]
    assert ["ratio", "1.5"] in lines
    assert found.as_dict()["metrics"][1]["pair"] == second.pair


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), (torch.tensor(0.25), 0.25), (True, 1.0)],
)
def test_kinds_of_numbers(pair, value, number):
    (row,) = compare(*pair, SAMPLES, metrics={"m": lambda a, b, x: value}).metrics
    assert row.pair == number


def test_numbers_that_are_not_finite(pair):
    found = compare(*pair, SAMPLES, metrics={"m": lambda a, b, x: (math.nan, math.inf)})
    (row,) = found.as_dict()["metrics"]
    assert (row["reference"], row["candidate"]) == ("nan", "inf")


@pytest.mark.parametrize("value", [None, "1", (1, 2, 3), np.ones(1), (1, "2"), 1j])
def test_what_is_not_a_number(pair, value):
    with pytest.raises(ConfigError, match=r"metric 'm' returned \w+; a number about both models"):
        compare(*pair, SAMPLES, metrics={"m": lambda a, b, x: value})


def test_a_function_that_fails(pair):
    def fails(reference, candidate, samples):
        return reference[0]["z"]

    with pytest.raises(RunError, match="metric 'edit distance' failed: KeyError: 'z'"):
        compare(*pair, SAMPLES, metrics={"edit distance": fails})


@pytest.mark.parametrize(
    ("metrics", "got"), [([max], "got list"), ({"m": 3}, "got 'm': int"), ({3: max}, "got 3: ")]
)
def test_what_is_not_a_function(pair, metrics, got):
    with pytest.raises(ConfigError, match=f"dictionary of functions by name; {got}"):
        compare(*pair, SAMPLES, metrics=metrics)
