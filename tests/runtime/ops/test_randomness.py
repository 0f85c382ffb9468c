"""Random tensors: their distributions by moments, frequencies and tests of fit, and their seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from scipy import stats

from mlopt.errors import RunError
from mlopt.runtime import load
from mlopt.runtime.call import Call, OutputType
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.ops.randomness import (
    random_bernoulli,
    random_categorical,
    random_normal,
    random_uniform,
)
from tests.runtime.programs import TARGETS, assert_of_halves, convert, run

SHAPE = np.array([50, 40, 20], np.int32)
COUNT = 50 * 40 * 20
UNUSED = np.zeros(1, np.float32)
LEAST_P = 1e-3


def draw(name, target="iOS15", **given):
    """One random tensor, of a program whose input does not matter."""
    (found,) = run(lambda unused: getattr(mb, name)(**given), {"unused": UNUSED}, target=target)
    return found


@pytest.mark.parametrize("prob", [None, 0.0, 0.125, 0.75, 1.0])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_bernoulli(prob, target):
    given = {} if prob is None else {"prob": np.float32(prob)}
    found = draw("random_bernoulli", target, shape=SHAPE, **given)
    assert found.shape == tuple(SHAPE)
    assert found.dtype == np.float32
    assert set(np.unique(found)) <= {0.0, 1.0}
    wanted = 0.5 if prob is None else prob
    assert stats.binomtest(int(found.sum()), COUNT, wanted).pvalue > LEAST_P


@pytest.mark.parametrize("given", [{}, {"mean": -3.0}, {"stddev": 0.25}, {"mean": 2, "stddev": 5}])
def test_normal(given):
    given = {name: np.float32(value) for name, value in given.items()}
    found = draw("random_normal", shape=SHAPE, **given)
    assert found.shape == tuple(SHAPE)
    mean, deviation = given.get("mean", 0), given.get("stddev", 1)
    assert abs(found.mean() - mean) < 4 * deviation / math.sqrt(COUNT)
    assert abs(found.std() / deviation - 1) < 4 / math.sqrt(2 * COUNT)
    assert stats.kstest(found.ravel(), "norm", (mean, deviation)).pvalue > LEAST_P


def test_a_normal_distribution_without_deviation_is_its_mean():
    found = draw("random_normal", shape=[2, 3], mean=1.5, stddev=0.0)
    np.testing.assert_array_equal(found, np.full((2, 3), 1.5))


@pytest.mark.parametrize("given", [{}, {"low": -2.0}, {"high": 0.25}, {"low": 3.0, "high": 7.5}])
def test_uniform(given):
    given = {name: np.float32(value) for name, value in given.items()}
    found = draw("random_uniform", shape=SHAPE, **given)
    assert found.shape == tuple(SHAPE)
    low, high = given.get("low", 0), given.get("high", 1)
    assert low <= found.min() < found.max() < high
    assert abs(found.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * COUNT)
    assert stats.kstest(found.ravel(), "uniform", (low, high - low)).pvalue > LEAST_P


def test_a_uniform_distribution_between_equal_limits():
    found = draw("random_uniform", shape=[4], low=2.5, high=2.5)
    np.testing.assert_array_equal(found, np.full(4, 2.5))


def test_the_upper_limit_is_not_reached_by_rounding():
    # between both there are 7 numbers in float32
    found = draw("random_uniform", shape=SHAPE, low=np.float32(2**24), high=np.float32(2**24 + 16))
    steps = (found - 2**24).ravel()
    assert set(np.unique(steps)) == {0, 2, 4, 6, 8, 10, 12, 14}


@pytest.mark.parametrize("mode", [None, "logits", "probs"])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_categorical(mode, target):
    wanted = np.array([[0.5, 0.25, 0.125, 0.125], [0.0, 0.1, 0.2, 0.7]], np.float32)
    # both modes take what is not normalized
    with np.errstate(divide="ignore"):
        x = 3 * wanted if mode == "probs" else np.log(wanted) + 5
    given = {} if mode is None else {"mode": mode}
    (found,) = run(
        lambda x: mb.random_categorical(x=x, size=10_000, **given), {"x": x}, target=target
    )
    assert found.shape == (2, 10_000)
    assert found.dtype == np.float32
    for drawn, probabilities in zip(found, wanted, strict=True):
        counts = [np.sum(drawn == index) for index in range(4)]
        assert sum(counts) == 10_000
        possible = [(c, p) for c, p in zip(counts, probabilities, strict=True) if p > 0]
        assert sum(c for c, _ in possible) == 10_000
        observed, expected = np.array(possible).T
        assert stats.chisquare(observed, expected / expected.sum() * 10_000).pvalue > LEAST_P


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 1, 3)])
@pytest.mark.parametrize("size", [None, 1, 5])
def test_shapes_of_categorical(shape, size):
    certain = np.zeros(shape, np.float32)
    best = np.random.default_rng(0).integers(0, 3, (*shape[:-1], 1))
    np.put_along_axis(certain, best, 1.0, axis=-1)
    given = {} if size is None else {"size": size}
    (found,) = run(lambda x: mb.random_categorical(x=x, mode="probs", **given), {"x": certain})
    np.testing.assert_array_equal(found, np.broadcast_to(best, (*shape[:-1], size or 1)))


def build_all(unused, seeds=({},)):
    logits = np.zeros((4, 1000), np.float32)
    shape = [4, 50]
    return [
        value
        for given in seeds
        for value in (
            mb.random_bernoulli(shape=shape, **given),
            mb.random_normal(shape=shape, **given),
            mb.random_uniform(shape=shape, **given),
            mb.random_categorical(x=logits, size=50, **given),
        )
    ]


def values(program, seed):
    outputs = program.predict({"unused": UNUSED}, seed=seed)
    return [outputs[name] for name in program.outputs]


def are_equal(first, second):
    return [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("target", TARGETS)
def test_an_own_seed_repeats_whatever_the_seed_of_the_run(target):
    seeds = [{"seed": 7}, {"seed": 7}, {"seed": 8}]
    model = convert(lambda unused: build_all(unused, seeds), {"unused": UNUSED}, target=target)
    program = load(model)
    first, second, third = (values(program, seed) for seed in (1, 2, None))
    assert are_equal(first, second) == [True] * 12
    assert are_equal(first, third) == [True] * 12
    assert are_equal(first[:4], first[4:8]) == [True] * 4
    assert are_equal(first[:4], first[8:]) == [False] * 4


@pytest.mark.parametrize("given", [{}, {"seed": -1}])
def test_without_an_own_seed_that_of_the_run_counts(given):
    model = convert(
        lambda unused: build_all(unused, [given, given]), {"unused": UNUSED}, target="iOS17"
    )
    program = load(model)
    first, again, other = (values(program, seed) for seed in (1, 1, 2))
    assert are_equal(first, again) == [True] * 8
    assert are_equal(first, other) == [False] * 8
    assert are_equal(first[:4], first[4:]) == [False] * 4
    assert are_equal(values(program, None), values(program, None)) == [False] * 8


def test_a_shape_of_another_value():
    def build(x):
        shape = mb.shape(x=x)
        return [mb.random_normal(shape=shape), mb.random_uniform(shape=shape)]

    for found in run(build, {"x": np.zeros((2, 3, 5), np.float32)}):
        assert found.shape == (2, 3, 5)
        assert np.unique(found).size == 30


@pytest.mark.parametrize(
    ("shape", "message"),
    [([2, 0], r"shape must hold positive lengths, got \[2, 0\]"), ([2**30] * 2, "memory")],
)
def test_shapes_that_cannot_be(shape, message):
    def build(shape):
        return [mb.reduce_sum(x=mb.random_uniform(shape=shape))]

    with pytest.raises(RunError, match=message):
        run(build, {"shape": np.array(shape, np.int32)})


def test_half_precision():
    half = np.float16

    def build(x):
        return [
            mb.random_uniform(shape=SHAPE, low=half(-1), high=half(0.5)),
            mb.random_normal(shape=SHAPE, mean=half(0.5), stddev=half(2)),
            mb.random_bernoulli(shape=SHAPE, prob=half(0.25)),
            mb.random_categorical(x=x, size=1000, mode="probs"),
        ]

    x = np.array([0.25, 0.25, 0, 0.5], half)
    uniform, normal, bernoulli, categorical = run(
        build, {"x": x}, target="iOS16", computed="as_declared"
    )
    for found in (uniform, normal, bernoulli, categorical):
        assert_of_halves(found)
    # without a limit, numbers in single precision would be rounded to 0.5
    assert uniform.min() >= -1
    assert uniform.max() < 0.5
    assert abs(uniform.mean(dtype=float) + 0.25) < 4 * 1.5 / math.sqrt(12 * COUNT)
    assert abs(normal.mean(dtype=float) - 0.5) < 4 * 2 / math.sqrt(COUNT)
    assert abs(normal.std(dtype=float) - 2) < 4 * 2 / math.sqrt(2 * COUNT)
    assert abs(bernoulli.mean(dtype=float) - 0.25) < 4 * 0.44 / math.sqrt(COUNT)
    assert set(np.unique(categorical)) == {0, 1, 3}


def test_arguments_that_do_not_fit():
    declared = (OutputType("fp32", None),)
    call = Call("CoreML5", declared, (), ElementTypes("float32"), lambda _: torch.Generator())
    with pytest.raises(ValueError, match=r"prob must be from 0 to 1, got 1\.5"):
        random_bernoulli((2,), call, prob=1.5)
    with pytest.raises(ValueError, match=r"stddev must not be negative, got -1"):
        random_normal((2,), call, stddev=-1.0)
    with pytest.raises(ValueError, match=r"got low 1\.0 and high 0\.0"):
        random_uniform((2,), call, low=1.0, high=0.0)
    with pytest.raises(ValueError, match="mode must be logits or probs, got 'odds'"):
        random_categorical(torch.ones(3), call, mode="odds")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        random_categorical(torch.ones(3), call, size=0)
    with pytest.raises(ValueError, match="an axis of probabilities, got a scalar"):
        random_categorical(torch.tensor(1.0), call)


@pytest.mark.parametrize("row", [[0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_what_is_no_distribution(row):
    x = np.array([[1.0, 1.0], row], np.float32)
    with pytest.raises(RunError, match=r"random_categorical .* must give probabilities"):
        run(lambda x: mb.random_categorical(x=x, mode="probs"), {"x": x})
