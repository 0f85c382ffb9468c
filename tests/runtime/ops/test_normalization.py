"""Normalizations against their formulas in numpy, and against coremltools' own inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime.ops.normalization import (
    batch_norm,
    instance_norm,
    l2_norm,
    layer_norm,
    local_response_norm,
)
from tests.runtime.programs import assert_of_halves, inferred, run

RANDOM = np.random.default_rng(0)
LENGTHS = (4, 3, 5)
CLOSE = {"rtol": 2e-5, "atol": 5e-6}


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def channels(values, x):
    return values.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))


def normalized(x, axes, epsilon, gamma=None, beta=None):
    """With the moments over some axes; gamma and beta broadcast."""
    x = x.astype(np.float64)
    mean = x.mean(axis=axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    found = (x - mean) / np.sqrt(variance + epsilon)
    found = found if gamma is None else found * gamma
    return found if beta is None else found + beta


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_batch_norm(rank, target):
    x = normal(2, 6, *LENGTHS[:rank])
    mean, variance, gamma, beta = normal(6), normal(6) ** 2, normal(6), normal(6)
    given = [
        {},
        {"gamma": gamma, "beta": beta, "epsilon": np.float32(0.5)},
        {"gamma": gamma},
        {"beta": beta},
    ]

    def build(x):
        return [mb.batch_norm(x=x, mean=mean, variance=variance, **each) for each in given]

    for found, each in zip(run(build, {"x": x}, target=target), given, strict=True):
        deviation = np.sqrt(channels(variance, x) + each.get("epsilon", 1e-5))
        wanted = (x - channels(mean, x)) / deviation
        wanted = wanted * channels(each.get("gamma", np.ones(6)), x)
        wanted = wanted + channels(each.get("beta", np.zeros(6)), x)
        np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.parametrize("given", [(), ("gamma",), ("gamma", "beta"), ("beta",)])
def test_batch_norm_has_gradients_of_its_moments(given):
    x, mean = torch.randn(2, 3, 4), torch.randn(3)
    variance, others = torch.rand(3) + 0.1, {name: torch.randn(3) for name in given}
    plain = batch_norm(x, mean, variance, **others)
    mean.requires_grad_(), variance.requires_grad_()
    found = batch_norm(x, mean, variance, **others)
    torch.testing.assert_close(found, plain)
    found.sum().backward()
    slope = others.get("gamma", torch.ones(3)) / torch.sqrt(variance.detach() + 1e-5)
    torch.testing.assert_close(mean.grad, -8 * slope)
    centred = x.sum((0, 2)) - 8 * mean.detach()
    torch.testing.assert_close(
        variance.grad, -0.5 * slope * centred / (variance.detach() + 1e-5), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_instance_norm(rank, target):
    x, gamma, beta = 3 + normal(2, 6, *LENGTHS[:rank]), normal(6), normal(6)
    given = [
        {},
        {"gamma": gamma, "beta": beta, "epsilon": np.float32(0.5)},
        {"gamma": gamma},
        {"beta": beta},
    ]
    build = lambda x: [mb.instance_norm(x=x, **each) for each in given]  # noqa: E731
    axes = tuple(range(2, rank + 2))
    for found, each in zip(run(build, {"x": x}, target=target), given, strict=True):
        scaled = {n: channels(each[n], x) for n in ("gamma", "beta") if n in each}
        wanted = normalized(x, axes, each.get("epsilon", 1e-5), **scaled)
        np.testing.assert_allclose(found, wanted, **CLOSE)


def test_instance_norm_of_single_elements_is_beta():
    x, beta = normal(2, 3, 1, 1), np.array([1, 2, 3], np.float32)
    (found,) = run(lambda x: mb.instance_norm(x=x, beta=beta), {"x": x})
    np.testing.assert_allclose(found.reshape(2, 3), [[1, 2, 3], [1, 2, 3]], atol=1e-4)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_l2_norm(leading, target):
    x = normal(*leading, *LENGTHS)

    def build(x):
        return [mb.l2_norm(x=x), mb.l2_norm(x=x, epsilon=np.float32(20))]

    squares = (x.astype(np.float64) ** 2).sum((-3, -2, -1), keepdims=True)
    results = run(build, {"x": x}, target=target)
    for found, guess, epsilon in zip(results, inferred(build, {"x": x}), [1e-6, 20], strict=True):
        np.testing.assert_allclose(found, x / np.sqrt(squares + epsilon), **CLOSE)
        np.testing.assert_allclose(found, guess, **CLOSE)


def test_l2_norm_of_zeros_is_zero():
    (found,) = run(lambda x: mb.l2_norm(x=x), {"x": np.zeros((2, 1, 1, 3), np.float32)})
    np.testing.assert_array_equal(found, 0)


AXES = [(0, 1, 2, 3), (-1,), (2, 3), (-1, -2, -3), (1,), (0, 2), (3, 1), (-3, 3), (0,)]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_layer_norm(axes, target):
    x = 2 + normal(2, 6, 4, 3)
    x[1] += 9  # two numbers that are nearly alike are normalized to noise
    over = tuple(sorted(axis % 4 for axis in axes))
    gamma, beta = normal(*[x.shape[i] for i in over]), normal(*[x.shape[i] for i in over])
    given = [
        {},
        {"gamma": gamma, "beta": beta, "epsilon": np.float32(0.5)},
        {"gamma": gamma},
    ]

    def build(x):
        return [mb.layer_norm(x=x, axes=list(axes), **each) for each in given]

    results = run(build, {"x": x}, target=target)
    for found, guess, each in zip(results, inferred(build, {"x": x}), given, strict=True):
        shape = [n if axis in over else 1 for axis, n in enumerate(x.shape)]
        scaled = {n: each[n].reshape(shape) for n in ("gamma", "beta") if n in each}
        wanted = normalized(x, over, each.get("epsilon", 1e-5), **scaled)
        np.testing.assert_allclose(found, wanted, **CLOSE)
        np.testing.assert_allclose(found, guess, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 3, 2, 2, 5)])
def test_layer_norm_of_other_ranks(shape):
    x = normal(*shape)
    (found,) = run(lambda x: mb.layer_norm(x=x, axes=[-1]), {"x": x})
    np.testing.assert_allclose(found, normalized(x, -1, 1e-5), **CLOSE)


def test_layer_norm_is_over_all_axes_if_they_are_left_out():
    # coremltools cannot leave them out: its own default is no tensor
    x, gamma, beta = normal(2, 3, 4), normal(2, 3, 4), normal(2, 3, 4)
    wanted = normalized(x, None, 1e-5, gamma, beta)
    found = layer_norm(torch.from_numpy(x), None, torch.from_numpy(gamma), torch.from_numpy(beta))
    np.testing.assert_allclose(found, wanted, **CLOSE)


def responded(x, size, alpha=1e-4, beta=0.75, k=1.0):
    x, alpha = x.astype(np.float64), float(alpha)
    found = np.zeros_like(x)
    for channel in range(x.shape[1]):
        nearby = [channel - size // 2 + i for i in range(size)]
        nearby = [i for i in nearby if 0 <= i < x.shape[1]]
        sums = (x[:, nearby] ** 2).sum(1)
        found[:, channel] = x[:, channel] / (k + alpha / size * sums) ** beta
    return found


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_local_response_norm(rank, target):
    x = 10 * normal(2, 6, *LENGTHS[:rank])
    given = [
        {"size": 3},
        {"size": 2},
        {"size": 1, "alpha": np.float32(0.5)},
        {"size": 4, "alpha": np.float32(0.1), "beta": np.float32(1.5), "k": np.float32(2)},
        {"size": 15, "alpha": np.float32(0.1)},
    ]
    build = lambda x: [mb.local_response_norm(x=x, **each) for each in given]  # noqa: E731
    for found, each in zip(run(build, {"x": x}, target=target), given, strict=True):
        np.testing.assert_allclose(found, responded(x, **each), **CLOSE)


def test_local_response_norm_of_an_even_size_looks_back():
    x = np.array([1, 2, 3], np.float32).reshape(1, 3, 1)
    given = {"size": 2, "alpha": np.float32(2), "beta": np.float32(1), "k": np.float32(0)}
    (found,) = run(lambda x: mb.local_response_norm(x=x, **given), {"x": x})
    np.testing.assert_allclose(found.ravel(), [1 / 1, 2 / 5, 3 / 13], rtol=1e-6)


@pytest.mark.parametrize("parameters", ["fp16", "fp32"])
def test_half_precision(parameters):
    x = 300 * normal(2, 6, 4, 3)  # with squares that float16 does not hold
    dtype = {"fp16": np.float16, "fp32": np.float32}[parameters]
    mean, variance = normal(6).astype(dtype), (1000 * normal(6) ** 2).astype(dtype)
    gamma, beta, row = normal(6).astype(dtype), normal(6).astype(dtype), normal(3).astype(dtype)
    alpha = dtype(0.01)

    def build(x):
        half = mb.cast(x=x, dtype="fp16")
        found = [
            mb.batch_norm(x=half, mean=mean, variance=variance, gamma=gamma, beta=beta),
            mb.instance_norm(x=half, gamma=gamma, beta=beta),
            mb.l2_norm(x=half),
            mb.layer_norm(x=half, axes=[-1], gamma=row, beta=row),
            mb.layer_norm(x=half, axes=[1], gamma=gamma, beta=beta),
            mb.local_response_norm(x=half, size=3, alpha=alpha),
        ]
        return [mb.cast(x=each, dtype="fp32") for each in found]

    x16 = x.astype(np.float16).astype(np.float64)
    scale, shift = channels(gamma, x), channels(beta, x)
    batch = (x16 - channels(mean, x)) / np.sqrt(channels(variance, x) + 1e-5) * scale + shift
    expected = [
        batch,
        normalized(x16, (2, 3), 1e-5, scale, shift),
        x16 / np.sqrt((x16**2).sum((1, 2, 3), keepdims=True)),
        normalized(x16, -1, 1e-5, row.astype(np.float64), row.astype(np.float64)),
        normalized(x16, 1, 1e-5, scale, shift),
        responded(x16, 3, float(alpha)),
    ]
    results = run(build, {"x": x}, target="iOS17", computed="as_declared")
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
        assert_of_halves(found)


@pytest.mark.parametrize("function", ["batch_norm", "instance_norm", "layer_norm"])
def test_narrower_parameters_of_a_wider_input(function):
    x, values = normal(2, 6, 4), normal(6).astype(np.float16)
    moments = {"mean": values, "variance": values**2} if function == "batch_norm" else {}
    axes = {"axes": [1]} if function == "layer_norm" else {}

    def build(x):
        return getattr(mb, function)(x=x, gamma=values, beta=values, **moments, **axes)

    wide = channels(values, x)
    if function == "batch_norm":
        deviation = np.sqrt(channels(values**2, x) + float(np.float16(1e-5)))
        wanted = (x - wide) / deviation * wide + wide
    else:
        over = 1 if function == "layer_norm" else 2
        wanted = normalized(x, over, 1e-5, wide, wide)
    (found,) = run(build, {"x": x}, target="iOS17", computed="as_declared")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: batch_norm(x[0], x[0, 0], x[0, 0]), "rank of 3"),
        (lambda x: instance_norm(x[0]), "rank of 3"),
        (lambda x: l2_norm(x[0]), "rank of 3"),
        (lambda x: local_response_norm(x[0], 2), "rank of 3"),
        (lambda x: local_response_norm(x, 0), "size must be positive"),
        (lambda x: layer_norm(x, axes=(3,)), r"from -3 to 2, got \[3\]"),
        (lambda x: layer_norm(x, axes=(-4, 0)), r"from -3 to 2, got \[-4, 0\]"),
        (lambda x: layer_norm(x, axes=()), r"from -3 to 2, got \[\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 3))
