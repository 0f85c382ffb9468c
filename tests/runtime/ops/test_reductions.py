"""Reductions against numpy in double precision, and against coremltools' own inference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from mlopt.runtime.ops.reductions import reduce_argmax, reduce_argmin, reduce_max, reduce_sum
from tests.runtime.programs import TARGETS, assert_of_halves, inferred, run

RANDOM = np.random.default_rng(0)
POSITIVE = RANDOM.uniform(0.25, 2, (2, 3, 4)).astype(np.float32)
SIGNED = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
INTEGERS = RANDOM.integers(-6, 7, (2, 3, 4)).astype(np.int32)

EXPECTED = {
    "reduce_l1_norm": lambda row: sum(map(abs, row)),
    "reduce_l2_norm": lambda row: math.sqrt(sum(a * a for a in row)),
    "reduce_log_sum_exp": lambda row: math.log(sum(map(math.exp, row))),
    "reduce_max": max,
    "reduce_mean": lambda row: sum(row) / len(row),
    "reduce_min": min,
    "reduce_prod": math.prod,
    "reduce_sum": sum,
    "reduce_sum_square": lambda row: sum(a * a for a in row),
}
AXES = [None, [0], [1], [-1], [0, 2], [-2, 0], [2, 1], [2, 0, 1], []]


def build_all(names, axes=(None,), **given):
    """All reductions over each of several choices of axes, in one program."""

    def build(x):
        return [
            getattr(mb, name)(x=x, **given, **({} if each is None else {"axes": as_axes(each)}))
            for each in axes
            for name in names
        ]

    return build


def as_axes(axes):
    return np.array(axes, np.int32)


def keeping(keep_dims):
    return {} if keep_dims is None else {"keep_dims": keep_dims}


def as_int32(value):
    """A number without its fraction, wrapped around."""
    return (math.trunc(value) + 2**31) % 2**32 - 2**31


def by_row(function, x, axes, keep_dims):
    """``function`` of a list for each element of the result."""
    axes = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose(*kept, *axes).reshape(math.prod(x.shape[a] for a in kept), -1)
    shape = [x.shape[a] for a in kept]
    if keep_dims:
        shape = [1 if axis in axes else x.shape[axis] for axis in range(x.ndim)]
    # models have no outputs of rank 0
    return np.reshape([function(row.tolist()) for row in rows], shape or [1])


@pytest.mark.parametrize("keep_dims", [None, False, True])
def test_reductions_of_floats(keep_dims):
    found = run(build_all(EXPECTED, AXES, **keeping(keep_dims)), {"x": SIGNED})
    cases = itertools.product(AXES, EXPECTED.items())
    for result, (axes, (name, function)) in zip(found, cases, strict=True):
        wanted = by_row(function, SIGNED, axes, keep_dims)
        assert result.shape == wanted.shape
        message = f"{name} over {axes}"
        np.testing.assert_allclose(result, wanted, rtol=2e-6, atol=1e-6, err_msg=message)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(7,), (1, 2, 3, 2, 2)])
def test_reductions_in_other_ranks_and_opsets(shape, target):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = run(build_all(EXPECTED, [[-1]], keep_dims=True), {"x": x}, target=target)
    for result, (name, function) in zip(found, EXPECTED.items(), strict=True):
        wanted = by_row(function, x, [-1], keep_dims=True)
        np.testing.assert_allclose(result, wanted, rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("keep_dims", [False, True])
def test_reductions_of_integers_cut_fractions_off(keep_dims):
    found = run(build_all(EXPECTED, AXES, keep_dims=keep_dims), {"x": INTEGERS})
    cases = itertools.product(AXES, EXPECTED.items())
    for result, (axes, (name, function)) in zip(found, cases, strict=True):
        whole = lambda row, function=function: as_int32(function(row))  # noqa: E731
        wanted = by_row(whole, INTEGERS, axes, keep_dims)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, wanted, err_msg=f"{name} over {axes}")


def test_logarithm_of_the_sum():
    whole = np.abs(INTEGERS) + 1
    build = build_all(["reduce_log_sum"], AXES)
    logarithm = lambda row: math.log(sum(row))  # noqa: E731
    for axes, of_floats, of_integers in zip(
        AXES, run(build, {"x": POSITIVE}), run(build, {"x": whole}), strict=True
    ):
        wanted = by_row(logarithm, POSITIVE, axes, keep_dims=False)
        np.testing.assert_allclose(of_floats, wanted, rtol=2e-6, atol=1e-6)
        wanted = by_row(logarithm, whole, axes, keep_dims=False)
        np.testing.assert_array_equal(of_integers, np.trunc(wanted))


@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("x", [POSITIVE, np.abs(INTEGERS) + 1], ids=["floats", "integers"])
def test_reductions_as_coremltools_infers_them(keep_dims, x):
    names = ["reduce_log_sum", *EXPECTED]
    build = build_all(names, [None, [-1], [0, 2]], keep_dims=keep_dims)
    found, wanted = run(build, {"x": x}), inferred(build, {"x": x})
    for result, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, np.atleast_1d(other), rtol=2e-6, atol=1e-6)


def test_the_mean_of_negative_integers_is_cut_off():
    x = np.array([[-7, 0], [7, 0]], np.int32)
    (found,) = run(lambda x: mb.reduce_mean(x=x, axes=[1]), {"x": x})
    assert found.tolist() == [-3, 3]


def test_large_integers_are_exact_and_wrap_around():
    x = np.array([[2**24 + 1, 2**30, 2**30, 2**30], [1, 3, 5, 7]], np.int32)
    names = ["reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_mean"]
    sums, products, most, least, means = run(build_all(names, [[1]]), {"x": x})
    assert sums.tolist() == [(2**24 + 1 + 3 * 2**30) - 2**32, 16]
    assert products.tolist() == [0, 105]
    assert (most.tolist(), least.tolist()) == ([2**30, 7], [2**24 + 1, 1])
    assert means.tolist() == [(2**24 + 1 + 3 * 2**30) // 4, 4]


def test_the_norm_of_large_integers_is_not_rounded_up():
    # the sum of squares is 5001 ** 2 - 1, whose root is 5001 in float32
    x = np.array([5000, 100], np.int32)
    (found,) = run(lambda x: mb.reduce_l2_norm(x=x), {"x": x})
    assert found.tolist() == [5000]


def test_sums_of_exponentials_do_not_overflow():
    x = np.array([[1000.0, 1000.0], [-1000.0, -1000.0], [0.0, -np.inf]], np.float32)
    (found,) = run(lambda x: mb.reduce_log_sum_exp(x=x, axes=[1]), {"x": x})
    np.testing.assert_allclose(found, [1000 + math.log(2), -1000 + math.log(2), 0], rtol=1e-6)


def index_of(choose):
    return lambda row: row.index(choose(row))


@pytest.mark.parametrize("keep_dims", [None, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_indices(keep_dims, target):
    cases = list(itertools.product([None, 0, 1, 2, -1, -3], [max, min]))

    def build(x):
        return [
            getattr(mb, f"reduce_arg{choose.__name__}")(
                x=x, **keeping(keep_dims), **({} if axis is None else {"axis": axis})
            )
            for axis, choose in cases
        ]

    for x in (SIGNED, np.random.default_rng(0).permutation(24).astype(np.int32).reshape(2, 3, 4)):
        for result, (axis, choose) in zip(run(build, {"x": x}, target=target), cases, strict=True):
            assert result.dtype == np.int32
            along = [-1 if axis is None else axis]
            wanted = by_row(index_of(choose), x, along, keep_dims)
            np.testing.assert_array_equal(result, wanted, err_msg=f"{choose} over {axis}")


@pytest.mark.parametrize("output_dtype", ["int32", "uint16", "UINT16"])
def test_dtypes_of_indices(output_dtype):
    def build(x):
        names = ("reduce_argmax", "reduce_argmin")
        found = [getattr(mb, name)(x=x, axis=0, output_dtype=output_dtype) for name in names]
        assert all(types.builtin_to_string(var.dtype) == output_dtype.lower() for var in found)
        return [mb.cast(x=var, dtype="int32") for var in found]

    most, least = run(build, {"x": np.array([[1.0, 5.0], [2.0, -1.0]], np.float32)}, target="iOS17")
    assert (most.tolist(), least.tolist()) == ([1, 0], [0, 1])


def test_the_first_of_equal_ones_is_indexed():
    x = np.array([[1, 3, 3, 1], [2, 2, 2, 2]], np.float32)
    most, least = run(build_all(["reduce_argmax", "reduce_argmin"]), {"x": x})
    assert (most.tolist(), least.tolist()) == ([1, 0], [0, 0])
    build = build_all(["reduce_argmax", "reduce_argmin"])
    assert [value.tolist() for value in inferred(build, {"x": x})] == [[1, 0], [0, 0]]


def test_nan_is_in_the_result():
    x = np.array([1.0, np.nan, 3.0], np.float32)
    found = run(build_all(["reduce_max", "reduce_min", "reduce_sum", "reduce_mean"]), {"x": x})
    assert np.isnan(found).all()


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_half_precision(target):
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4, 5)).astype(np.float16)
    names = ["reduce_log_sum", *EXPECTED]
    functions = [lambda row: math.log(sum(row)), *EXPECTED.values()]
    build = build_all(names, [[0, 2]])
    found = run(build, {"x": x}, target=target, computed="as_declared")
    for result, function, name in zip(found, functions, names, strict=True):
        assert_of_halves(result)
        wanted = by_row(function, x, [0, 2], keep_dims=False)
        np.testing.assert_allclose(result, wanted, rtol=1e-3, err_msg=name)


def test_half_precision_rounds_only_the_result():
    def build(ones, large, mixed):
        return [
            mb.reduce_sum(x=ones),
            mb.reduce_mean(x=large),
            mb.reduce_l2_norm(x=large),
            mb.reduce_prod(x=mixed),
            mb.reduce_log_sum(x=large),
        ]

    inputs = {
        "ones": np.ones(4096, np.float16),
        "large": np.array([30000, 40000], np.float16),
        "mixed": np.array([1000, 1000, 0.001], np.float16),
    }
    sums, means, norms, products, logs = run(build, inputs, target="iOS16", computed="as_declared")
    assert (sums.tolist(), means.tolist()) == ([4096], [35008])
    np.testing.assert_allclose(norms, 50000, rtol=1e-3)
    np.testing.assert_allclose(products, 1000, rtol=1e-3)
    np.testing.assert_allclose(logs, math.log(70000), rtol=1e-3)


def test_arguments_that_do_not_fit():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"an axis must be from -2 to 1 .* got \[0, 2\]"):
        reduce_sum(x, (0, 2))
    with pytest.raises(ValueError, match=r"axes must differ, got \[1, -1\]"):
        reduce_max(x, (1, -1))
    for function in (reduce_argmax, reduce_argmin):
        with pytest.raises(ValueError, match=r"an axis must be from -2 to 1 .* got \[-3\]"):
            function(x, -3)
        with pytest.raises(ValueError, match="output_dtype must be int32 or uint16, got 'int8'"):
            function(x, 0, output_dtype="int8")
