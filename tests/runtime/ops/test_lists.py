"""Lists of tensors against Python's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.errors import RunError
from mlopt.runtime import load
from mlopt.runtime.call import Call, OutputType
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.ops import lists
from tests.runtime.programs import assert_of_halves, convert, run

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.normal(size=(2, 3)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_reading_writing_and_growing(target):
    def build(a, b):
        empty = mb.make_list(init_length=2, elem_shape=(2, 3))
        one = mb.list_write(ls=empty, index=0, value=a)
        longer = mb.list_write(ls=one, index=4, value=b)
        return [
            mb.list_read(ls=empty, index=0),
            mb.list_read(ls=one, index=0),
            mb.list_read(ls=one, index=1),
            mb.list_gather(ls=longer, indices=[4, 0, 3, 4]),
            mb.list_length(ls=empty),
            mb.list_length(ls=one),
            mb.list_length(ls=longer),
        ]

    zeros = np.zeros((2, 3))
    found = run(build, {"a": A, "b": B}, target=target)
    wanted = [zeros, A, zeros, np.stack([B, A, zeros, B]), [2], [2], [5]]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scattering():
    rows = RANDOM.normal(size=(3, 2, 3)).astype(np.float32)

    def build(a, rows):
        ls = mb.make_list(init_length=3, elem_shape=(2, 3))
        ls = mb.list_write(ls=ls, index=1, value=a)
        ls = mb.list_scatter(ls=ls, indices=[2, 0, 5], value=rows)
        return [mb.list_gather(ls=ls, indices=[0, 1, 2, 3, 4, 5]), mb.list_length(ls=ls)]

    everything, length = run(build, {"a": A, "rows": rows})
    zeros = np.zeros((2, 3))
    np.testing.assert_array_equal(
        everything, np.stack([rows[1], A, rows[0], zeros, zeros, rows[2]])
    )
    np.testing.assert_array_equal(length, [6])


def test_a_list_does_not_change_when_another_one_is_made_of_it():
    def build(a, b):
        first = mb.list_write(ls=mb.make_list(elem_shape=(2, 3)), index=0, value=a)
        second = mb.list_write(ls=first, index=0, value=b)
        third = mb.list_scatter(ls=first, indices=[0], value=np.ones((1, 2, 3), np.float32))
        return [mb.list_read(ls=ls, index=0) for ls in (first, second, third)]

    first, second, third = run(build, {"a": A, "b": B})
    np.testing.assert_array_equal(first, A)
    np.testing.assert_array_equal(second, B)
    np.testing.assert_array_equal(third, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("dtype", "numpy"), [("int32", np.int32), ("bool", np.bool_), ("fp16", np.float16)]
)
def test_element_types(dtype, numpy):
    def build(x):
        value = mb.cast(x=x, dtype=dtype)
        ls = mb.make_list(init_length=2, elem_shape=(4,), dtype=dtype)
        ls = mb.list_write(ls=ls, index=1, value=value)
        return mb.cast(x=mb.list_gather(ls=ls, indices=[1, 0]), dtype="fp32")

    x = np.array([-1.0, 0.0, 2.5, 7.0625], np.float32)
    for computed in ("float32", "as_declared"):
        (found,) = run(build, {"x": x}, computed=computed)
        np.testing.assert_array_equal(found, np.stack([x.astype(numpy), np.zeros(4)]))


def test_half_precision():
    x = A.astype(np.float16)

    def build(x):
        ls = mb.make_list(init_length=1, elem_shape=(2, 3), dtype="fp16")
        ls = mb.list_write(ls=ls, index=1, value=mb.mul(x=x, y=np.float16(3)))
        return mb.list_gather(ls=ls, indices=[0, 1])

    (found,) = run(build, {"x": x}, target="iOS17", computed="as_declared")
    assert_of_halves(found)
    np.testing.assert_array_equal(found, np.stack([np.zeros_like(x), x * np.float16(3)]))


def in_a_loop(steps, x):
    """A list to which a loop appends, longer each time."""

    def body(count, ls):
        factor = mb.cast(x=count, dtype="fp32")
        return mb.add(x=count, y=1), mb.list_write(ls=ls, index=count, value=mb.mul(x=x, y=factor))

    ls = mb.make_list(init_length=1, elem_shape=(2, 3))
    _, ls = mb.while_loop(
        _cond=lambda count, ls: mb.less(x=mb.cast(x=count, dtype="fp32"), y=steps),
        _body=body,
        loop_vars=(np.int32(0), ls),
    )
    length = mb.list_length(ls=ls)
    return mb.list_gather(ls=ls, indices=mb.range_1d(start=0, end=length, step=1)), length


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_list_that_grows_in_a_loop(steps):
    inputs = {"steps": np.array([steps], np.float32), "x": A}
    everything, length = run(in_a_loop, inputs)
    wanted = [factor * A for factor in range(max(1, steps))] if steps else [np.zeros((2, 3))]
    np.testing.assert_allclose(everything, np.stack(wanted), rtol=1e-6)
    np.testing.assert_array_equal(length, [max(1, steps)])


def test_a_length_and_indices_that_are_computed():
    def build(x, numbers):
        ls = mb.make_list(
            init_length=mb.reduce_sum(x=numbers, axes=[0], keep_dims=False), elem_shape=(2, 3)
        )
        index = mb.reduce_max(x=numbers, axes=[0], keep_dims=False)
        ls = mb.list_write(ls=ls, index=index, value=x)
        ls = mb.list_scatter(ls=ls, indices=numbers, value=np.ones((3, 2, 3), np.float32))
        return mb.list_length(ls=ls), mb.list_read(ls=ls, index=index)

    inputs = {"x": A, "numbers": np.array([1, 2, 5], np.int32)}
    length, read = run(build, inputs)
    np.testing.assert_array_equal(length, [8])
    np.testing.assert_array_equal(read, np.ones((2, 3)))


def test_elements_whose_length_is_not_known_before():
    def build(x):
        ls = mb.make_list(init_length=2, elem_shape=("rows", 3))
        ls = mb.list_write(ls=ls, index=1, value=x)
        return mb.list_gather(ls=ls, indices=[0, 1])

    (found,) = run(build, {"x": A})
    np.testing.assert_array_equal(found, np.stack([np.zeros_like(A), A]))


def test_reading_beyond_the_end():
    def build(a):
        ls = mb.make_list(init_length=2, elem_shape=(2, 3))
        ls = mb.list_write(ls=ls, index=0, value=a)
        return mb.list_read(ls=ls, index=2, name="beyond")

    with pytest.raises(RunError, match=r"beyond(.|\n)*index 2 is not in the list, which has 2"):
        load(convert(build, {"a": A})).predict({"a": A})


def made(length=2, shape=(3,), *, is_dynamic=True):
    call = Call("CoreML5", (OutputType("", None),), (), ElementTypes("float32"), lambda _: None)
    sizes = tuple(size if isinstance(size, str) else torch.tensor(size) for size in shape)
    return lists.make_list(call, torch.tensor(length), is_dynamic, sizes, "fp32")


def test_lists_of_fixed_length():
    fixed = made(is_dynamic=False)
    assert lists.list_length(lists.list_write(fixed, 1, torch.ones(3))).item() == 2
    with pytest.raises(ValueError, match="index 2 is not in the list, which has 2 elements"):
        lists.list_write(fixed, 2, torch.ones(3))
    with pytest.raises(ValueError, match="index 5 is not in the list"):
        lists.list_scatter(fixed, (0, 5), torch.ones(2, 3))


def test_nothing_is_gathered_for_no_indices():
    assert list(lists.list_gather(made(shape=(3, 2)), ()).shape) == [0, 3, 2]
    assert list(lists.list_read(made(shape=()), 0).shape) == []


def test_a_long_list_takes_no_memory():
    long = lists.list_write(made(1 << 30), (1 << 31) - 2, torch.ones(3))
    assert lists.list_length(long).item() == (1 << 31) - 1


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"elements of shape \[3\], got one of \[4\]"):
        lists.list_write(made(), 0, torch.ones(4))
    with pytest.raises(ValueError, match=r"elements of shape \[\?, 3\], got one of \[3\]"):
        lists.list_write(made(shape=("rows", 3)), 0, torch.ones(3))
    with pytest.raises(ValueError, match="index -1 is not in the list"):
        lists.list_write(made(), -1, torch.ones(3))
    with pytest.raises(ValueError, match="there are 2 indices for values of shape"):
        lists.list_scatter(made(), (0, 1), torch.ones(3, 3))
    with pytest.raises(ValueError, match="nothing has been written to the list"):
        lists.list_read(made(shape=("rows", 3)), 0)
    with pytest.raises(ValueError, match="init_length must be at least 0, got -1"):
        made(-1)
    with pytest.raises(TypeError, match="a list of tensors is needed, got Tensor"):
        lists.list_length(torch.ones(3))
