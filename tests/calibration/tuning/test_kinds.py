"""Which constants can be tuned, in programs of a few operations."""

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.calibration.tuning.tunables import tunables_of
from mlopt.choices import TUNED
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.coreml.weights import weights_of
from mlopt.mil.opening import open_package
from tests.runtime.programs import convert

F32 = np.float32
X = np.ones((2, 16), F32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def found_in(build, *, what=TUNED, nbits=None, x=X):
    model = convert(build, {"x": x}, target="iOS16")
    if nbits is not None:
        rule = OpPalettizerConfig(nbits=nbits, weight_threshold=100)
        model = palettize(model, OptimizationConfig(rule)).model
    _, (nodes,) = weights_of(open_package(model))
    found, left = tunables_of(nodes, "main", what)
    return {each.name: each.kind for each in found}, left


def named(name, value):
    return mb.const(val=value, name=name)


def test_a_vector_added_to_a_product_with_a_weight_is_a_bias():
    def program(x):
        y = mb.matmul(x=x, y=named("w", normal(16, 16)))
        y = mb.add(x=y, y=named("bias", normal(1, 16)))
        scores = mb.matmul(x=y, y=y, transpose_y=True)
        y = mb.matmul(x=mb.add(x=scores, y=named("mask", normal(1, 2))), y=y)
        y = mb.add(x=named("matrix", normal(2, 16)), y=mb.matmul(x=y, y=named("v", normal(16, 16))))
        return mb.add(x=mb.relu(x=y), y=named("shift", normal(16)))

    assert found_in(program) == ({"bias": "biases"}, {})


@pytest.mark.parametrize("is_divided", [False, True])
def test_a_vector_after_a_root_mean_square_is_a_norm(is_divided):
    def program(x):
        mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
        if is_divided:
            y = mb.real_div(x=x, y=mb.sqrt(x=mean))
        else:
            y = mb.cast(x=mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=1e-6)), dtype="fp32")
        y = mb.mul(x=named("gamma", normal(16)), y=y)
        return mb.mul(x=y, y=named("gate", normal(16)))

    assert found_in(program) == ({"gamma": "norms"}, {})
    assert found_in(program, what=("tables", "biases")) == ({}, {})


def test_what_is_read_in_another_way_too_is_left():
    vector = normal(16)

    def program(x):
        bias = named("bias", vector)
        y = mb.linear(x=x, weight=named("w", normal(16, 16)), bias=bias)
        return mb.mul(x=y, y=bias)

    found, left = found_in(program)
    assert found == {}
    (reason,) = left.values()
    assert reason.startswith("mul '")
    assert reason.endswith("reads it too, as its y")


def test_tables_of_masks_and_numbers_that_are_not_finite_are_left():
    infinite = np.where(np.arange(256).reshape(16, 16) % 2, 0, -np.inf).astype(F32)

    def program(x):
        y = mb.add(x=mb.linear(x=x, weight=named("w", normal(16, 16))), y=named("p", normal(1, 16)))
        y = mb.add(x=mb.tile(x=y, reps=[8, 1]), y=named("positions", normal(16, 16)))
        return mb.linear(x=y, weight=named("odd", infinite))

    found, left = found_in(program, nbits=1)
    assert {name for name, kind in found.items() if kind == "tables"} == {"w.lut"}
    assert left["positions.lut"] == "only elementwise operations read the weight"
    assert left.get("odd.lut", "it has NaN or infinite elements").startswith("it has NaN")
