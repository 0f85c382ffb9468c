"""Activation functions against their formulas in numpy, torch's modules, and coremltools."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt.runtime import load
from mlopt.runtime.ops.activations import gelu, prelu, softmax, softplus_parametric
from tests.runtime.programs import TARGETS, assert_of_halves, inferred, run

RANDOM = np.random.default_rng(0)
EDGES = np.array([-90.0, -7.0, -1.0, -0.25, 0.0, 0.25, 0.5, 1.0, 6.0, 7.0, 90.0], np.float32)
WHOLE = np.concatenate([EDGES, 3 * RANDOM.normal(size=13)]).astype(np.float32)
CHANNELS = RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32)
SLOPES = np.array([0.25, -0.5, 2.0], np.float32)
FACTORS = np.array([1.5, -1.0, 0.5], np.float32)

erf = np.vectorize(math.erf)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def clamped(x, alpha, beta):
    return np.where(x >= 0, np.minimum(beta, x), np.minimum(beta, alpha * x))


CASES: dict[str, list[tuple[dict[str, Any], Callable[..., Any]]]] = {
    "clamped_relu": [
        ({"alpha": 0.5, "beta": 0.75}, lambda x: clamped(x, 0.5, 0.75)),
        ({"alpha": -0.5, "beta": 0.75}, lambda x: clamped(x, -0.5, 0.75)),
        ({"alpha": 0.5, "beta": -0.25}, lambda x: clamped(x, 0.5, -0.25)),
    ],
    "elu": [({"alpha": 1.5}, lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0))))],
    "gelu": [
        ({}, lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
        ({"mode": "EXACT"}, lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
        (
            {"mode": "TANH_APPROXIMATION"},
            lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ({"mode": "SIGMOID_APPROXIMATION"}, lambda x: x * logistic(1.702 * x)),
    ],
    "leaky_relu": [
        ({"alpha": 0.125}, lambda x: np.where(x >= 0, x, 0.125 * x)),
        ({"alpha": -2.0}, lambda x: np.where(x >= 0, x, -2 * x)),
    ],
    "linear_activation": [({"alpha": -1.5, "beta": 0.25}, lambda x: -1.5 * x + 0.25)],
    "relu": [({}, lambda x: np.maximum(x, 0))],
    "relu6": [({}, lambda x: np.clip(x, 0, 6))],
    "scaled_tanh": [({"alpha": 1.75, "beta": -0.5}, lambda x: 1.75 * np.tanh(-0.5 * x))],
    "sigmoid": [({}, logistic)],
    "sigmoid_hard": [({"alpha": 0.5, "beta": 0.25}, lambda x: np.clip(0.5 * x + 0.25, 0, 1))],
    "silu": [({}, lambda x: x * logistic(x))],
    "softplus": [({}, softplus)],
    "softsign": [({}, lambda x: x / (1 + np.abs(x)))],
    "thresholded_relu": [
        ({"alpha": 0.25}, lambda x: np.where(x >= 0.25, x, 0)),
        ({"alpha": -1.0}, lambda x: np.where(x >= -1, x, 0)),
    ],
}
FLAT = [(name, given, formula) for name, cases in CASES.items() for given, formula in cases]


def build_all(x):
    return [getattr(mb, name)(x=x, **given) for name, given, _ in FLAT]


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (1, 2, 3, 2, 2)])
@pytest.mark.parametrize("target", TARGETS)
def test_functions_of_elements(shape, target):
    x = WHOLE.reshape(shape)
    found = run(build_all, {"x": x}, target=target)
    for result, (name, given, formula) in zip(found, FLAT, strict=True):
        wanted = formula(x.astype(np.float64))
        np.testing.assert_allclose(
            result, wanted, rtol=2e-6, atol=1e-6, err_msg=f"{name} with {given}"
        )


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_functions_of_elements_as_coremltools_infers_them(target):
    x = WHOLE[np.abs(WHOLE) < 50]
    found = run(build_all, {"x": x}, target=target)
    for result, (name, given, _) in zip(found, FLAT, strict=True):
        is_inferred_otherwise = name == "clamped_relu" and given["beta"] < 0
        if name == "silu" or is_inferred_otherwise:
            continue
        # one of coremltools' inferences writes to its input
        build = lambda x, name=name, given=given: getattr(mb, name)(x=x, **given)  # noqa: E731
        (wanted,) = inferred(build, {"x": x.copy()}, target=target)
        np.testing.assert_allclose(
            result, wanted, rtol=3e-6, atol=2e-6, err_msg=f"{name} with {given}"
        )


@pytest.mark.parametrize("target", TARGETS)
def test_a_slope_for_each_channel(target):
    (found,) = run(lambda x: mb.prelu(x=x, alpha=SLOPES), {"x": CHANNELS}, target=target)
    wanted = CHANNELS.copy()
    for channel, slope in enumerate(SLOPES):
        part = wanted[:, channel]
        part[part < 0] *= slope
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 2, 2, 2)])
def test_one_slope_in_other_ranks(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    alpha = np.full(3, 0.25, np.float32)
    (found,) = run(lambda x: mb.prelu(x=x, alpha=alpha), {"x": x})
    np.testing.assert_array_equal(found, np.where(x > 0, x, x / 4))


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 2, 2), (1, 3, 2, 1, 2)])
def test_softplus_with_parameters_for_each_channel(shape, target):
    x = (20 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)
    (found,) = run(
        lambda x: mb.softplus_parametric(x=x, alpha=SLOPES, beta=FACTORS), {"x": x}, target=target
    )
    by_channel = [
        slope * softplus(factor * part.astype(np.float64))
        for slope, factor, part in zip(SLOPES, FACTORS, np.moveaxis(x, 1, 0), strict=True)
    ]
    np.testing.assert_allclose(found, np.stack(by_channel, 1), rtol=2e-6, atol=1e-6)


def test_functions_of_channels_as_coremltools_infers_them():
    def build(x):
        return [
            mb.prelu(x=x, alpha=SLOPES),
            mb.softplus_parametric(x=x, alpha=SLOPES, beta=FACTORS),
        ]

    found, wanted = run(build, {"x": CHANNELS}), inferred(build, {"x": CHANNELS})
    for result, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_softmax(axis, target):
    given = {} if axis is None else {"axis": axis}
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    (found,) = run(lambda x: mb.softmax(x=x, **given), {"x": x}, target=target)
    along = -1 if axis is None else axis
    wanted = np.apply_along_axis(
        lambda row: [math.exp(a) / sum(map(math.exp, row)) for a in row], along, x
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_softmax_of_large_numbers():
    x = np.array([[1000.0, 1000.0, -1000.0]], np.float32)
    (found,) = run(lambda x: mb.softmax(x=x), {"x": x})
    np.testing.assert_array_equal(found, [[0.5, 0.5, 0.0]])


def test_modules_of_torch():
    modules = [
        nn.ELU(0.7),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.Hardsigmoid(),
        nn.LeakyReLU(0.2),
        nn.PReLU(3),
        nn.ReLU(),
        nn.ReLU6(),
        nn.Sigmoid(),
        nn.SiLU(),
        nn.Softmax(1),
        nn.Softplus(),
        nn.Softsign(),
    ]

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x):
            return tuple(part(x) for part in self.parts)

    model = All().eval()
    with torch.no_grad():
        model.parts[5].weight.copy_(torch.from_numpy(SLOPES))
        wanted = model(torch.from_numpy(CHANNELS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = ct.convert(
            torch.jit.trace(model, torch.from_numpy(CHANNELS)),
            inputs=[ct.TensorType("x", CHANNELS.shape)],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    program = load(converted)
    found = program.predict({"x": CHANNELS})
    for name, other, module in zip(program.outputs, wanted, modules, strict=True):
        np.testing.assert_allclose(
            found[name], other.numpy(), rtol=2e-6, atol=1e-6, err_msg=str(module)
        )


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_half_precision(target):
    x = WHOLE.astype(np.float16)
    # before iOS17 all inputs have one type
    number = np.float16 if target == "iOS16" else np.float32

    def build(x):
        return [
            getattr(mb, name)(x=x, **{n: v if n == "mode" else number(v) for n, v in given.items()})
            for name, given, _ in FLAT
        ]

    found = run(build, {"x": x}, target=target, computed="as_declared")
    for result, (name, given, formula) in zip(found, FLAT, strict=True):
        assert_of_halves(result)
        wanted = formula(x.astype(np.float64))
        np.testing.assert_allclose(
            result, wanted, rtol=2e-3, atol=1e-3, err_msg=f"{name} with {given}"
        )


def test_half_precision_with_channels_of_single_precision():
    x = CHANNELS.astype(np.float16)

    def build(x):
        return [
            mb.prelu(x=x, alpha=SLOPES),
            mb.softplus_parametric(x=x, alpha=SLOPES, beta=FACTORS),
            mb.leaky_relu(x=x, alpha=np.float32(0.1)),
            mb.softmax(x=x, axis=1),
        ]

    found = run(build, {"x": x}, target="iOS17", computed="as_declared")
    wide = x.astype(np.float64)
    along = (3, 1, 1)
    slopes, factors = SLOPES.reshape(along), FACTORS.reshape(along)
    wanted = [
        np.where(wide > 0, wide, slopes * wide),
        slopes * softplus(factors * wide),
        np.where(wide > 0, wide, 0.1 * wide),
        np.exp(wide) / np.exp(wide).sum(1, keepdims=True),
    ]
    for result, other in zip(found, wanted, strict=True):
        assert_of_halves(result)
        np.testing.assert_allclose(result, other, rtol=2e-3, atol=1e-3)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"mode must be one of EXACT, .* got 'exact'"):
        gelu(torch.zeros(2), "exact")
    with pytest.raises(ValueError, match=r"axis must be from -2 to 1 .* got 2"):
        softmax(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match=r"alpha must .* got shape \[2\]"):
        prelu(torch.zeros(1, 3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"beta must .* got shape \[1, 3\]"):
        softplus_parametric(torch.zeros(1, 3, 4), torch.zeros(3), torch.zeros(1, 3))


def test_nan_does_not_vanish_below_a_threshold():
    x = np.array([np.nan, -1, 0.5, 2], np.float32)
    (found,) = run(lambda x: mb.thresholded_relu(x=x, alpha=1.0), {"x": x})
    np.testing.assert_array_equal(found, [np.nan, 0, 0, 2])
