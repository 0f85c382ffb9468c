"""Functions of one tensor against numpy, and against coremltools' own inference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from tests.runtime.programs import TARGETS, inferred, run

RANDOM = np.random.default_rng(0)
WHOLE = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = (np.abs(WHOLE) + 0.1).astype(np.float32)
UNIT = np.clip(WHOLE, -0.9, 0.9)

EXPECTED = {
    "abs": (np.abs, WHOLE),
    "acos": (np.arccos, UNIT),
    "asin": (np.arcsin, UNIT),
    "atan": (np.arctan, WHOLE),
    "atanh": (np.arctanh, UNIT),
    "ceil": (np.ceil, 3 * WHOLE),
    "cos": (np.cos, WHOLE),
    "cosh": (np.cosh, WHOLE),
    "erf": (np.vectorize(math.erf), WHOLE),
    "exp": (np.exp, WHOLE),
    "exp2": (np.exp2, WHOLE),
    "floor": (np.floor, 3 * WHOLE),
    "round": (np.round, np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 0.3], np.float32)),
    "sign": (np.sign, np.array([-2.0, 0.0, 3.0], np.float32)),
    "sin": (np.sin, WHOLE),
    "sinh": (np.sinh, WHOLE),
    "sqrt": (np.sqrt, POSITIVE),
    "square": (np.square, WHOLE),
    "tan": (np.tan, UNIT),
    "tanh": (np.tanh, WHOLE),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("target", TARGETS)
def test_functions(name, target):
    function, x = EXPECTED[name]
    (found,) = run(lambda x: getattr(mb, name)(x=x), {"x": x}, target=target)
    np.testing.assert_allclose(found, function(x), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_functions_as_coremltools_infers_them(name):
    _, x = EXPECTED[name]
    build = lambda x: getattr(mb, name)(x=x)  # noqa: E731
    (found,), (wanted,) = run(build, {"x": x}), inferred(build, {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "default"), [("inverse", 1e-4), ("log", 1e-45), ("rsqrt", 1e-12)])
@pytest.mark.parametrize("epsilon", [None, 0.25])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_epsilon(name, default, epsilon, target):
    given = {} if epsilon is None else {"epsilon": np.float32(epsilon)}
    (found,) = run(lambda x: getattr(mb, name)(x=x, **given), {"x": POSITIVE}, target=target)
    shifted = POSITIVE.astype(np.float64) + (default if epsilon is None else epsilon)
    wanted = {"inverse": 1 / shifted, "log": np.log(shifted), "rsqrt": 1 / np.sqrt(shifted)}[name]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_limits(target):
    clipped = run(lambda x: mb.clip(x=x, alpha=-0.5, beta=0.25), {"x": WHOLE}, target=target)[0]
    np.testing.assert_array_equal(clipped, np.clip(WHOLE, np.float32(-0.5), np.float32(0.25)))
    (found,) = run(lambda x: mb.threshold(x=x, alpha=0.125), {"x": WHOLE}, target=target)
    np.testing.assert_array_equal(found, np.maximum(WHOLE, np.float32(0.125)))


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", ["int32", "fp16", "fp32", "bool"])
def test_casts(dtype, target):
    x = np.array([-2.7, -0.5, 0.0, 0.5, 3.2], np.float32)

    def build(x):
        return mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="fp32")

    (found,) = run(build, {"x": x}, target=target, computed="as_declared")
    numpy = {"int32": np.int32, "fp16": np.float16, "fp32": np.float32, "bool": np.bool_}[dtype]
    np.testing.assert_array_equal(found, x.astype(numpy).astype(np.float32))


def test_not():
    x = np.array([0.0, 2.0], np.float32)
    (found,) = run(
        lambda x: mb.cast(x=mb.logical_not(x=mb.cast(x=x, dtype="bool")), dtype="fp32"), {"x": x}
    )
    np.testing.assert_array_equal(found, [1.0, 0.0])


def test_thresholds_of_large_integers_are_exact():
    x = np.array([2147483647, 2147483600, -3, 33554433, 0], np.int32)
    for alpha in (5, 16777217, -(2**31)):
        (found,) = run(lambda x, alpha=alpha: mb.threshold(x=x, alpha=np.int32(alpha)), {"x": x})
        np.testing.assert_array_equal(found, np.maximum(x, alpha))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_casts_to_narrow_integers_keep_the_low_bits(dtype):
    x = np.array([-1, 70000, 65535, 300, -129], np.int32)

    def build(x):
        return mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="int32")

    (found,) = run(build, {"x": x}, target="iOS17")
    np.testing.assert_array_equal(found, x.astype(dtype).astype(np.int32))
    floats = np.array([-1.5, 70000.7, 3.9], np.float32)
    (found,) = run(build, {"x": floats}, target="iOS17")
    np.testing.assert_array_equal(found, np.trunc(floats).astype(np.int64).astype(dtype))


def test_the_sign_of_nan_is_nan():
    x = np.array([np.nan, -2, 0, 3, np.inf], np.float32)
    (found,) = run(lambda x: mb.sign(x=x), {"x": x})
    np.testing.assert_array_equal(found, np.sign(x))
