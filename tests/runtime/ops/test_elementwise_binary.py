"""Functions of two tensors against Python's operators, numpy, and coremltools' own inference."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from tests.runtime.programs import TARGETS, assert_of_halves, inferred, run

ARITHMETIC = {
    "add": operator.add,
    "floor_div": lambda x, y: math.floor(x / y),
    "maximum": max,
    "minimum": min,
    "mod": lambda x, y: x - y * math.floor(x / y),
    "mul": operator.mul,
    "real_div": operator.truediv,
    "sub": operator.sub,
}
COMPARISONS = {
    "equal": operator.eq,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "not_equal": operator.ne,
}
LOGIC = {
    "logical_and": lambda x, y: x and y,
    "logical_or": lambda x, y: x or y,
    "logical_xor": lambda x, y: x != y,
}
SHAPES = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((3, 1), (2, 1, 4)),
    ((1,), (1, 2, 1, 3, 2)),
]


def build_all(names, **given):
    """All functions of the same tensors in one program; truth as 1 and 0."""

    def build(**inputs):
        found = [getattr(mb, name)(**inputs, **given) for name in names]
        is_truth = [name in COMPARISONS or name in LOGIC for name in names]
        return [
            mb.cast(x=value, dtype="int32") if truth else value
            for value, truth in zip(found, is_truth, strict=True)
        ]

    return build


def by_element(function, x, y):
    """``function`` of Python numbers, element by element."""
    rows = [function(a.item(), b.item()) for a, b in np.nditer([x, y], order="C")]
    return np.reshape(rows, np.broadcast_shapes(x.shape, y.shape))


def fractions(random, shape):
    """Few values, so that some are equal; no quotient is near a whole number but 1."""
    return random.choice([-7.3, -3.1, -1.7, 0.9, 2.3, 8.9], shape).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("shape_x", "shape_y"), SHAPES)
def test_functions_of_floats(shape_x, shape_y, target):
    random = np.random.default_rng(0)
    x, y = fractions(random, shape_x), fractions(random, shape_y)
    functions = {**ARITHMETIC, **COMPARISONS}
    found = run(build_all(functions), {"x": x, "y": y}, target=target)
    for result, (name, function) in zip(found, functions.items(), strict=True):
        wanted = by_element(function, x, y)
        np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=2e-6, err_msg=name)
        assert result.dtype == (np.int32 if name in COMPARISONS else np.float32)


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18"])
@pytest.mark.parametrize(("shape_x", "shape_y"), SHAPES)
def test_functions_of_integers(shape_x, shape_y, target):
    random = np.random.default_rng(0)
    x = random.integers(-9, 10, shape_x, dtype=np.int32)
    y = random.choice(np.array([-4, -3, -1, 1, 2, 5], np.int32), shape_y)
    functions = {**ARITHMETIC, **COMPARISONS}
    found = run(build_all(functions), {"x": x, "y": y}, target=target)
    for result, (name, function) in zip(found, functions.items(), strict=True):
        wanted = np.trunc(by_element(function, x, y)).astype(np.int32)
        np.testing.assert_array_equal(result, wanted, err_msg=name)
        assert result.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_quotients_of_either_sign(dtype):
    x, y = np.array([7, -7, 7, -7, 6, -6], dtype), np.array([2, 2, -2, -2, 3, 3], dtype)
    floor, rest, real = run(build_all(["floor_div", "mod", "real_div"]), {"x": x, "y": y})
    np.testing.assert_array_equal(floor, [3, -4, -4, 3, 2, -2])
    np.testing.assert_array_equal(rest, [1, 1, -1, -1, 0, 0])
    whole, exact = [3, -3, -3, 3, 2, -2], [3.5, -3.5, -3.5, 3.5, 2, -2]
    np.testing.assert_array_equal(real, whole if dtype == np.int32 else exact)


def test_floor_division_rounds_the_exact_quotient():
    # 1 / 0.1 is 9.9999998 in float32, which rounds to 10
    x, y = np.ones(1, np.float32), np.full(1, 0.1, np.float32)
    floor, rest = run(build_all(["floor_div", "mod"]), {"x": x, "y": y})
    assert floor.tolist() == [9]
    np.testing.assert_allclose(rest, 1 - 9 * np.float64(np.float32(0.1)), rtol=1e-6)


def test_large_integers_are_exact_and_wrap_around():
    most, least = 2**31 - 1, -(2**31)
    x, y = np.array([2**24 + 1, most, least], np.int32), np.array([1, 2, -1], np.int32)
    names = ["real_div", "floor_div", "mod", "add", "sub", "mul"]
    found = run(build_all(names), {"x": x, "y": y})
    wanted = [
        [2**24 + 1, most // 2, least],
        [2**24 + 1, most // 2, least],
        [0, 1, 0],
        [2**24 + 2, least + 1, most],
        [2**24, most - 2, least + 1],
        [2**24 + 1, -2, least],
    ]
    assert [result.tolist() for result in found] == wanted


def test_integers_divided_by_zero_are_zero():
    x, y = np.array([[5], [0], [-5]], np.int32), np.array([0, 2], np.int32)
    real, floor, rest = run(build_all(["real_div", "floor_div", "mod"]), {"x": x, "y": y})
    assert real.tolist() == [[0, 2], [0, 0], [0, -2]]
    assert floor.tolist() == [[0, 2], [0, 0], [0, -3]]
    assert rest.tolist() == [[0, 1], [0, 0], [0, 1]]


def test_floats_divided_by_zero():
    x, y = np.array([1, -1, 0], np.float32), np.zeros(3, np.float32)
    real, floor, rest = run(build_all(["real_div", "floor_div", "mod"]), {"x": x, "y": y})
    np.testing.assert_array_equal(real, [np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(floor, [np.inf, -np.inf, np.nan])
    assert np.isnan(rest).all()


def test_nan_is_in_the_result():
    x, y = np.array([np.nan, 1.0], np.float32), np.array([1.0, np.nan], np.float32)
    names = ["maximum", "minimum", "equal", "not_equal", "less"]
    most, least, *truth = run(build_all(names), {"x": x, "y": y})
    assert np.isnan([most, least]).all()
    assert [value.tolist() for value in truth] == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_powers(target):
    bases = np.array([[0.5, 1.0, 2.0, 3.7]], np.float32)
    exponents = np.array([[-1.5], [0.0], [0.5], [2.0]], np.float32)
    (found,) = run(build_all(["pow"]), {"x": bases, "y": exponents}, target=target)
    np.testing.assert_allclose(found, by_element(math.pow, bases, exponents), rtol=2e-6)


def test_powers_of_negative_numbers():
    x = np.array([-2, -2, -2, 0, 0], np.float32)
    y = np.array([3, -2, 0.5, 0, -1], np.float32)
    (found,) = run(build_all(["pow"]), {"x": x, "y": y})
    np.testing.assert_array_equal(found, [-8, 0.25, np.nan, 1, np.inf])


def test_powers_of_integers():
    x = np.array([2, -3, 7, 0, 2, 1, -1, -1], np.int32)
    y = np.array([10, 3, 0, 0, -1, -5, -5, -4], np.int32)
    (found,) = run(build_all(["pow"]), {"x": x, "y": y})
    assert found.tolist() == [1024, -27, 1, 1, 0, 1, -1, 1]


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@pytest.mark.parametrize("shape_y", [(2, 1), (2, 2), (1,)])
def test_logic(shape_y, target):
    x = np.array([[0, 1], [0, 1]], np.int32)
    y = np.array([0, 1, 1, 0], np.int32)[: math.prod(shape_y)].reshape(shape_y)

    def build(x, y):
        return build_all(LOGIC)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool"))

    found = run(build, {"x": x, "y": y}, target=target)
    for result, (name, function) in zip(found, LOGIC.items(), strict=True):
        np.testing.assert_array_equal(result, by_element(function, x, y), err_msg=name)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_scalar_constants_on_either_side(dtype):
    x = np.array([[1, -2, 5]], dtype)
    names = ["add", "sub", "mul", "maximum", "floor_div", "mod", "pow"]
    left = run(build_all(names, x=dtype(3)), {"y": np.abs(x)})
    right = run(build_all(names, y=dtype(3)), {"x": x})
    wanted_left = [[4, 5, 8], [2, 1, -2], [3, 6, 15], [3, 3, 5], [3, 1, 0], [0, 1, 3], [3, 9, 243]]
    assert [result.tolist() for result in left] == [[row] for row in wanted_left]
    wanted_right = [[4, 1, 8], [-2, -5, 2], [3, -6, 15], [3, 3, 5], [0, -1, 1], [1, 1, 2]]
    assert [result.tolist() for result in right] == [[row] for row in [*wanted_right, [1, -8, 125]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_functions_as_coremltools_infers_them(dtype):
    x = np.array([[9, -8, 7], [6, -5, 0]], dtype)
    y = np.array([2, 3, 1], dtype)
    build = build_all(["pow", *ARITHMETIC, *COMPARISONS])
    found, wanted = run(build, {"x": x, "y": y}), inferred(build, {"x": x, "y": y})
    for result, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-6)


def test_half_precision_is_that_of_numpy():
    random = np.random.default_rng(0)
    x, y = (random.uniform(0.5, 4, (3, 4)).astype(np.float16) for _ in range(2))
    names = ["add", "sub", "mul", "real_div", "maximum", "minimum", "floor_div", "mod", "pow"]
    found = run(build_all(names), {"x": x, "y": y}, target="iOS16", computed="as_declared")
    same = [np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum, np.floor_divide]
    for result, function in zip(found, same, strict=False):
        assert_of_halves(result)
        np.testing.assert_array_equal(result, function(x, y), err_msg=function.__name__)
    np.testing.assert_allclose(found[-2], np.mod(x, y), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found[-1], np.power(x, y), rtol=2e-3)


@pytest.mark.parametrize(("computed", "wanted"), [("as_declared", 2048), ("float32", 2050)])
def test_half_precision_rounds_only_as_declared(computed, wanted):
    x, y = np.array([2048], np.float16), np.array([1], np.float16)

    def build(x, y):
        return mb.add(x=mb.add(x=x, y=y), y=y)

    (found,) = run(build, {"x": x, "y": y}, target="iOS16", computed=computed)
    assert found.tolist() == [wanted]
