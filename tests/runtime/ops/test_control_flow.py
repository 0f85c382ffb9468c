"""Branches and loops against the same in Python."""

from __future__ import annotations

import itertools
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt.errors import RunError
from mlopt.runtime import load
from mlopt.runtime.call import Call, OutputType
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.ops import control_flow
from tests import models
from tests.runtime.programs import assert_of_halves, convert, inferred, run

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3)).astype(np.float32)
TARGETS = ("iOS15", "iOS18")


def is_positive(value):
    return mb.greater(x=mb.reduce_sum(x=value, axes=[0, 1], keep_dims=False), y=0.0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_one_of_two_branches_runs(target, sign):
    x = sign * np.abs(X)

    def build(x):
        outer = mb.mul(x=x, y=2.0)
        return mb.cond(
            pred=is_positive(x),
            _true_fn=lambda: (mb.add(x=outer, y=x), mb.exp(x=x)),
            _false_fn=lambda: (mb.sub(x=outer, y=1.0), outer),
        )

    first, second = run(build, {"x": x}, target=target)
    np.testing.assert_allclose(first, 3 * x if sign > 0 else 2 * x - 1, rtol=1e-6)
    np.testing.assert_allclose(second, np.exp(x) if sign > 0 else 2 * x, rtol=1e-6)


def test_branches_that_give_values_from_around_them():
    def build(x):
        return mb.cond(
            pred=is_positive(x),
            _true_fn=lambda: mb.const(val=np.ones((2, 3), np.float32)),
            _false_fn=lambda: mb.identity(x=x),
        )

    np.testing.assert_array_equal(run(build, {"x": np.abs(X)})[0], np.ones((2, 3)))
    np.testing.assert_array_equal(run(build, {"x": -np.abs(X)})[0], -np.abs(X))


def test_branches_in_branches():
    def build(x):
        inner = mb.cond(
            pred=is_positive(x),
            _true_fn=lambda: mb.add(x=x, y=1.0),
            _false_fn=lambda: mb.add(x=x, y=2.0),
        )

        def deeper():
            return mb.cond(
                pred=is_positive(mb.sub(x=x, y=10.0)),
                _true_fn=lambda: mb.mul(x=inner, y=x),
                _false_fn=lambda: mb.sub(x=inner, y=x),
            )

        return mb.cond(pred=is_positive(x), _true_fn=deeper, _false_fn=lambda: mb.identity(x=inner))

    for x in (np.abs(X), -np.abs(X), np.abs(X) + 20):
        total = x.sum()
        inner = x + (1 if total > 0 else 2)
        deeper = inner * x if total > 60 else inner - x
        (found,) = run(build, {"x": x})
        np.testing.assert_allclose(found, deeper if total > 0 else inner, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loop(target, steps):
    def build(x, steps):
        factor = mb.mul(x=x, y=0.5)

        def body(count, value):
            return mb.add(x=count, y=1), mb.add(x=mb.mul(x=value, y=factor), y=x)

        return mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=steps),
            _body=body,
            loop_vars=(mb.squeeze(x=mb.mul(x=steps, y=0)), x),
        )

    count, value = run(build, {"x": X, "steps": np.array([steps], np.int32)}, target=target)
    wanted = X
    for _ in range(steps):
        wanted = wanted * (0.5 * X) + X
    np.testing.assert_array_equal(count, [steps])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_a_loop_of_one_value():
    def build(x):
        return mb.while_loop(
            _cond=lambda value: mb.less(
                x=mb.reduce_max(x=value, axes=[0, 1], keep_dims=False), y=100.0
            ),
            _body=lambda value: mb.mul(x=value, y=3.0),
            loop_vars=(x,),
        )

    (found,) = run(build, {"x": X})
    wanted = X
    while wanted.max() < 100:
        wanted = 3 * wanted
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_loops_swap_their_values():
    def build(x, y):
        def body(count, first, second):
            return mb.add(x=count, y=1), second, first

        return mb.while_loop(
            _cond=lambda count, first, second: mb.less(x=count, y=3),
            _body=body,
            loop_vars=(np.int32(0), x, y),
        )

    _, first, second = run(build, {"x": X, "y": -X})
    np.testing.assert_array_equal(first, -X)
    np.testing.assert_array_equal(second, X)


def test_loops_in_loops():
    def build(x):
        outer = mb.add(x=x, y=1.0)

        def inner_body(count, value):
            return mb.add(x=count, y=1), mb.add(x=value, y=outer)

        def body(count, value):
            _, value = mb.while_loop(
                _cond=lambda number, value: mb.less_equal(x=number, y=count),
                _body=inner_body,
                loop_vars=(np.int32(0), value),
            )
            return mb.add(x=count, y=1), mb.cond(
                pred=is_positive(value),
                _true_fn=lambda: mb.sub(x=value, y=x),
                _false_fn=lambda: mb.add(x=value, y=x),
            )

        return mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=4),
            _body=body,
            loop_vars=(np.int32(0), x),
        )

    for x in (X, -np.abs(X) - 1):
        wanted = x
        for count in range(4):
            for _ in range(count + 1):
                wanted = wanted + (x + 1)
            wanted = wanted - x if wanted.sum() > 0 else wanted + x
        count, value = run(build, {"x": x})
        np.testing.assert_array_equal(count, [4])
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


def test_a_program_runs_twice():
    program = load(models.control_flow("iOS15", "float32"))
    x = RANDOM.normal(size=(1, 64)).astype(np.float32)
    first, other = program.predict({"x": x}), program.predict({"x": -x})
    again = program.predict({"x": x})
    np.testing.assert_array_equal(first["out"], again["out"])
    assert not np.array_equal(first["out"], other["out"])


def test_script_of_pytorch():
    class Net(torch.nn.Module):
        def forward(self, x):
            total = x
            count = 0
            while bool(total.sum() < 50) and count < 20:
                total = total * 2 if bool(total.mean() > 1) else total + 1
                count += 1
            return total

    net = models.quietly(torch.jit.script, Net())
    model = models.quietly(
        ct.convert,
        net,
        inputs=[ct.TensorType(shape=X.shape, name="x")],
        outputs=[ct.TensorType(name="out")],
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    program = load(model)
    for x in (X, X + 30, -X - 5):
        np.testing.assert_allclose(
            program.predict({"x": x})["out"], net(torch.from_numpy(x)), rtol=1e-5
        )


@pytest.mark.parametrize("target", TARGETS)
def test_select(target):
    a, b = X, RANDOM.normal(size=(2, 3)).astype(np.float32)
    shapes = list(itertools.product([(2, 3), (2, 1), (1, 3), (1,)], [(2, 3), (3,), (1, 1)]))
    conditions = [np.array(RANDOM.integers(0, 2, shape), np.bool_) for shape, _ in shapes]

    def build(a, b):
        return [
            mb.select(cond=condition, a=a, b=mb.reduce_max(x=b, axes=[0]) if shape == (3,) else b)
            for condition, (_, shape) in zip(conditions, shapes, strict=True)
        ]

    results = run(build, {"a": a, "b": b}, target=target)
    for found, condition, (_, shape) in zip(results, conditions, shapes, strict=True):
        other = b.max(axis=0) if shape == (3,) else b
        np.testing.assert_array_equal(found, np.where(condition, a, other))


def test_select_of_other_types_and_scalars():
    def build(x):
        positive = mb.greater(x=x, y=0.0)
        return [
            mb.select(cond=positive, a=mb.cast(x=x, dtype="int32"), b=np.int32(-7)),
            mb.cast(x=mb.select(cond=positive, a=mb.logical_not(x=positive), b=True), dtype="fp32"),
            mb.select(cond=positive, a=1.5, b=x),
        ]

    integers, booleans, floats = run(build, {"x": 3 * X})
    np.testing.assert_array_equal(integers, np.where(X > 0, np.trunc(3 * X), -7))
    np.testing.assert_array_equal(booleans, X <= 0)
    np.testing.assert_array_equal(floats, np.where(X > 0, np.float32(1.5), 3 * X))


def test_select_keeps_away_what_is_no_number():
    def build(x):
        return mb.select(cond=mb.greater(x=x, y=0.0), a=mb.log(x=x), b=x)

    (found,) = run(build, {"x": X})
    assert np.isfinite(found).all()


def test_select_as_coremltools_infers_it():
    inputs = {
        "cond": np.array([[True], [False]]),
        "a": X,
        "b": np.array([1.0, 2.0, 3.0], np.float32),
    }

    def build(cond, a, b):
        return mb.select(cond=cond, a=a, b=b)

    def with_constant(a, b):
        return build(inputs["cond"], a, b)

    found = run(with_constant, {"a": inputs["a"], "b": inputs["b"]})
    np.testing.assert_array_equal(found[0], inferred(build, inputs)[0])


def test_half_precision():
    x = X.astype(np.float16)

    def build(x):
        _, value = mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=5),
            _body=lambda count, value: (mb.add(x=count, y=1), mb.mul(x=value, y=np.float16(1.1))),
            loop_vars=(np.int32(0), x),
        )
        return mb.select(cond=mb.greater(x=x, y=np.float16(0)), a=value, b=x)

    (found,) = run(build, {"x": x}, target="iOS17", computed="as_declared")
    assert_of_halves(found)
    wanted = np.where(x > 0, x * np.float16(1.1).astype(np.float32) ** 5, x)
    np.testing.assert_allclose(found, wanted, rtol=3e-3)


def test_failures_in_blocks_name_the_operation():
    def build(x, lengths):
        def body(count, value):
            shorter = mb.slice_by_index(x=value, begin=[1, 0], end=[0, 0], end_mask=[True, True])
            return mb.add(x=count, y=1), mb.reshape(x=shorter, shape=lengths, name="torn")

        return mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=3),
            _body=body,
            loop_vars=(np.int32(0), mb.reshape(x=x, shape=lengths)),
        )

    inputs = {"x": X, "lengths": np.array([2, 3], np.int32)}
    with pytest.raises(RunError, match="torn"):
        load(convert(build, inputs)).predict(inputs)


def call_of(*blocks):
    types = ElementTypes("float32")
    return Call("CoreML5", (OutputType("fp32", ()),), blocks, types, lambda seed: None)


def test_bad_arguments():
    with pytest.raises(ValueError, match="it needs two blocks, got 1"):
        control_flow.cond(True, call_of(lambda values: values))
    with pytest.raises(ValueError, match="it needs two blocks, got 0"):
        control_flow.while_loop((), call_of())
    wide = call_of(lambda values: (torch.ones(2, dtype=torch.bool),), lambda values: values)
    with pytest.raises(ValueError, match="the condition of a loop must be a scalar"):
        control_flow.while_loop((torch.ones(1),), wide)


def test_a_condition_larger_than_the_values():
    """coremltools declares the shape of the values, and of what follows what that gives."""

    class Steps(nn.Module):
        def forward(self, x):
            return torch.sin(torch.where(x > 0, 1.0, 0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(Steps(), torch.ones(2, 3)),
            inputs=[ct.TensorType("x", (ct.RangeDim(1, 5), 3))],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    (found,) = load(model).predict({"x": X}).values()
    np.testing.assert_allclose(found, np.sin(np.where(X > 0, 1.0, 0.5)), rtol=1e-6)
