"""Activations as integers and back, against numpy and what coremltools infers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil.ops.defs import iOS17

from mlopt.runtime import load
from mlopt.runtime.ops import quantization
from tests.runtime.programs import convert, inferred, run

RANDOM = np.random.default_rng(0)
X = (5 * RANDOM.normal(size=(2, 3, 4))).astype(np.float32)
NUMPY = {"int8": np.int8, "uint8": np.uint8}
AXES = (None, 0, 1, -1)
CASES = list(itertools.product(NUMPY, AXES, (False, True)))


def factors(axis, dtype, has_zero_point, scale_dtype=np.float32):
    """Keyword arguments of both operations."""
    shape = () if axis is None else (X.shape[axis],)
    given = {"scale": np.asarray(RANDOM.uniform(0.02, 0.2, shape), scale_dtype)[()]}
    if axis is not None:
        given["axis"] = axis
    if has_zero_point:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        given["zero_point"] = np.asarray(RANDOM.integers(low, high + 1, shape), dtype)[()]
    return given


def along(value, axis):
    """A factor in a shape that broadcasts with X."""
    shape = [1, 1, 1]
    if axis is not None:
        shape[axis] = -1
    return np.asarray(value).reshape(shape)


def quantized(x, dtype, scale, axis=None, zero_point=0):
    limits = np.iinfo(dtype)
    found = np.empty(x.shape, dtype)
    steps = np.broadcast_to(along(scale, axis), x.shape)
    shifts = np.broadcast_to(along(zero_point, axis), x.shape)
    for place in np.ndindex(x.shape):
        whole = round(float(x[place] / steps[place])) + int(shifts[place])
        found[place] = min(max(whole, limits.min), limits.max)
    return found


def dequantized(data, scale, axis=None, zero_point=0):
    shifted = data.astype(np.float64) - along(zero_point, axis)
    return shifted * along(scale, axis)


def as_floats(value):
    """Integers of a program can be put out as float32."""
    return mb.cast(x=value, dtype="fp32")


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_quantize(target):
    given = [factors(axis, NUMPY[name], has_zero) for name, axis, has_zero in CASES]

    def build(x):
        return [
            as_floats(mb.quantize(input=x, output_dtype=name, **arguments))
            for (name, _, _), arguments in zip(CASES, given, strict=True)
        ]

    results = run(build, {"x": X}, target=target)
    for found, (name, _, _), arguments in zip(results, CASES, given, strict=True):
        np.testing.assert_array_equal(found, quantized(X, NUMPY[name], **arguments))


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_dequantize(target):
    given = [factors(axis, NUMPY[name], has_zero) for name, axis, has_zero in CASES]
    data = {name: RANDOM.integers(0, 128, X.shape).astype(dtype) for name, dtype in NUMPY.items()}
    data["int8"] -= 64

    def build(signed, unsigned):
        narrow = {
            "int8": mb.cast(x=signed, dtype="int8"),
            "uint8": mb.cast(x=unsigned, dtype="uint8"),
        }
        return [
            mb.dequantize(input=narrow[name], **arguments)
            for (name, _, _), arguments in zip(CASES, given, strict=True)
        ]

    inputs = {
        "signed": data["int8"].astype(np.int32),
        "unsigned": data["uint8"].astype(np.int32),
    }
    results = run(build, inputs, target=target)
    for found, (name, _, _), arguments in zip(results, CASES, given, strict=True):
        np.testing.assert_allclose(found, dequantized(data[name], **arguments), rtol=1e-6)


def test_halves_go_to_the_even_number_and_the_ends_are_kept():
    x = np.array([0.25, 0.75, 1.25, -0.25, -0.75, 1000, -1000, 0], np.float32)

    def build(x):
        return [
            as_floats(mb.quantize(input=x, scale=np.float32(0.5), output_dtype=name))
            for name in NUMPY
        ]

    signed, unsigned = run(build, {"x": x}, target="iOS17")
    np.testing.assert_array_equal(signed, [0, 2, 2, 0, -2, 127, -128, 0])
    np.testing.assert_array_equal(unsigned, [0, 2, 2, 0, 0, 255, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", NUMPY)
@pytest.mark.parametrize("axis", [None, 1])
def test_quantize_as_coremltools_infers_it(dtype, name, axis):
    x = X.astype(dtype)
    given = factors(axis, NUMPY[name], True, dtype)

    def build(x):
        return mb.quantize(input=x, output_dtype=name, **given)

    found = run(lambda x: as_floats(build(x)), {"x": x}, target="iOS17", computed="as_declared")
    np.testing.assert_array_equal(found[0], inferred(build, {"x": x}, target="iOS17")[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", NUMPY)
@pytest.mark.parametrize("axis", [None, 1])
def test_dequantize_exactly_as_coremltools_decompresses(dtype, name, axis):
    data = RANDOM.integers(0, 128, X.shape).astype(np.int32)
    given = factors(axis, NUMPY[name], True, dtype)

    def build(x):
        return mb.dequantize(input=mb.cast(x=x, dtype=name), **given)

    (found,) = run(build, {"x": data}, target="iOS17", computed="as_declared")
    wanted = iOS17.quantization_ops.optimize_utils.dequantize_by_scale_and_zp(
        data.astype(NUMPY[name]), np.asarray(given["scale"]), np.asarray(given["zero_point"]), axis
    )
    np.testing.assert_array_equal(found, wanted)


def test_quantized_and_back_is_near():
    scale = np.float32(np.abs(X).max() / 127)

    def build(x):
        narrow = mb.quantize(input=x, scale=scale, output_dtype="int8")
        return mb.dequantize(input=narrow, scale=scale)

    program = load(convert(build, {"x": X}, target="iOS17"))
    (found,) = program.predict({"x": X}).values()
    assert np.abs(found - X).max() <= scale / 2 * 1.0001
    assert np.abs(found - X).max() > 0


def test_bad_arguments():
    x, scales = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(ValueError, match="output_dtype must be int8 or uint8, got 'int4'"):
        quantization.quantize(x, torch.tensor(1.0), "int4")
    with pytest.raises(ValueError, match="axis must be one of the 2 axes"):
        quantization.dequantize(x, scales)
    with pytest.raises(ValueError, match="axis must be one of the 2 axes"):
        quantization.dequantize(x, scales, axis=2)
    with pytest.raises(ValueError, match="3 scales or zero points for 2 places on axis 0"):
        quantization.dequantize(x, scales, axis=0)
    with pytest.raises(ValueError, match="at most one axis"):
        quantization.dequantize(x, torch.ones(2, 3), axis=0)
