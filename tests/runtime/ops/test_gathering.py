"""Gathering and scattering against loops over indices, numpy, and coremltools' inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.errors import RunError
from mlopt.runtime.ops import gathering
from tests.runtime.programs import TARGETS, inferred, run

RANDOM = np.random.default_rng(0)
REPRESENTATIVE = ("iOS15", "iOS17")
MODES = ("add", "sub", "mul", "div", "max", "min", "update")


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def random_indices(length, *shape, least=None):
    return RANDOM.integers(-length if least is None else least, length, shape).astype(np.int32)


def gathered(x, indices, axis, batch_dims=0):
    """The definition, one slice at a time."""
    axis %= x.ndim
    shape = x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1 :]
    out = np.empty(shape, x.dtype)
    for place in np.ndindex(indices.shape):
        batch, own = place[:batch_dims], place[batch_dims:]
        middle = (slice(None),) * (axis - batch_dims)
        out[batch + middle + own] = x[(*batch, *middle, indices[place])]
    return out


def gathered_nd(x, indices, batch_dims=0):
    out = np.empty(indices.shape[:-1] + x.shape[batch_dims + indices.shape[-1] :], x.dtype)
    for place in np.ndindex(indices.shape[:-1]):
        out[place] = x[place[:batch_dims] + tuple(indices[place])]
    return out


def combined(old, update, mode):
    if mode == "div":
        ratio = old / update
        return np.trunc(ratio) if old.dtype.kind == "i" else ratio
    functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    functions |= {"max": np.maximum, "min": np.minimum, "update": lambda _, new: new}
    return functions[mode](old, update)


def scattered(data, indices, updates, mode, axis=0):
    out, before = data.copy(), (slice(None),) * (axis % data.ndim)
    for place in np.ndindex(indices.shape):
        target = (*before, indices[place])
        out[target] = combined(out[target], updates[before + place], mode)
    return out


def scattered_along(data, indices, updates, mode, axis=0):
    out = data.copy()
    for place in np.ndindex(indices.shape):
        target = list(place)
        target[axis] = indices[place]
        out[tuple(target)] = combined(out[tuple(target)], updates[place], mode)
    return out


def scattered_nd(data, indices, updates, mode):
    out = data.copy()
    for place in np.ndindex(indices.shape[:-1]):
        target = tuple(indices[place])
        out[target] = combined(out[target], updates[place], mode)
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_gather(target):
    x = random(3, 4, 5)
    cases = [
        (axis, random_indices(x.shape[axis], *shape))
        for axis, shape in itertools.product((0, 1, 2, -1, -3), ((), (1,), (6,), (2, 3)))
    ]

    def build(x):
        made = [mb.gather(x=x, indices=indices, axis=axis) for axis, indices in cases]
        return [*made, mb.gather(x=x, indices=[2, 0])]

    found = run(build, {"x": x}, target=target)
    wanted = [np.take(x, indices, axis) for axis, indices in cases] + [x[[2, 0]]]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    for one, other in zip(found, inferred(build, {"x": x}, target=target), strict=True):
        np.testing.assert_array_equal(one, other)


def test_gather_a_scalar_of_a_vector():
    (found,) = run(lambda x: mb.add(x=mb.gather(x=x, indices=-1), y=1.0), {"x": random(3) * 0 + 2})
    assert found.tolist() == [3.0]


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_gather_with_batches(target):
    x = random(2, 3, 4, 5)
    cases = [
        (1, 1, (2,)),
        (1, 1, (2, 6)),
        (2, 1, (2, 2, 2)),
        (-1, 1, (2, 3)),
        (2, 2, (2, 3)),
        (3, 2, (2, 3, 1)),
        (-1, 3, (2, 3, 4)),
        (3, 3, (2, 3, 4, 2)),
    ]
    cases = [(axis, count, random_indices(x.shape[axis], *shape)) for axis, count, shape in cases]

    def build(x):
        return [
            mb.gather(x=x, indices=indices, axis=axis, batch_dims=count)
            for axis, count, indices in cases
        ]

    found = run(build, {"x": x}, target=target)
    for one, (axis, count, indices) in zip(found, cases, strict=True):
        np.testing.assert_array_equal(one, gathered(x, indices, axis, count), strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_gather_along_axis(target):
    x = random(3, 4, 5)
    cases = [(axis, count) for axis in (0, 1, 2, -1, -2) for count in (1, 4, 7)]
    shapes = [
        [count if i == axis % 3 else n for i, n in enumerate(x.shape)] for axis, count in cases
    ]
    indices = [
        random_indices(x.shape[axis], *shape)
        for (axis, _), shape in zip(cases, shapes, strict=True)
    ]

    def build(x):
        made = [
            mb.gather_along_axis(x=x, indices=index, axis=axis)
            for index, (axis, _) in zip(indices, cases, strict=True)
        ]
        return [*made, mb.gather_along_axis(x=x, indices=indices[0])]

    *found, last = run(build, {"x": x}, target=target)
    for one, index, (axis, _) in zip(found, indices, cases, strict=True):
        np.testing.assert_array_equal(one, np.take_along_axis(x, index, axis), strict=True)
    np.testing.assert_array_equal(last, np.take_along_axis(x, indices[0], 0), strict=True)


def nd_indices(lengths, *shape):
    return np.stack([random_indices(length, *shape) for length in lengths], -1)


@pytest.mark.parametrize("target", TARGETS)
def test_gather_nd(target):
    x = random(3, 4, 5)
    cases = [nd_indices(x.shape[:depth], *shape) for depth in (1, 2, 3) for shape in ((6,), (2, 3))]
    cases.append(nd_indices(x.shape[:2]))
    build = lambda x: [mb.gather_nd(x=x, indices=indices) for indices in cases]  # noqa: E731
    found = run(build, {"x": x}, target=target)
    for one, indices in zip(found, cases, strict=True):
        np.testing.assert_array_equal(one, gathered_nd(x, indices), strict=True)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_gather_nd_with_batches(target):
    x = random(2, 3, 4, 5)
    cases = [
        (1, nd_indices(x.shape[1:2], 2)),
        (1, nd_indices(x.shape[1:3], 2, 6)),
        (1, nd_indices(x.shape[1:], 2, 3, 2)),
        (2, nd_indices(x.shape[2:3], 2, 3)),
        (2, nd_indices(x.shape[2:], 2, 3, 7)),
    ]

    def build(x):
        return [mb.gather_nd(x=x, indices=indices, batch_dims=n) for n, indices in cases]

    found = run(build, {"x": x}, target=target)
    for one, (count, indices) in zip(found, cases, strict=True):
        np.testing.assert_array_equal(one, gathered_nd(x, indices, count), strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
def test_narrow_indices_and_elements(dtype):
    x = np.arange(400, dtype=np.float32).reshape(200, 2) % 100
    indices = np.array([[5, 0], [120, 1], [3, 1]], np.int32)
    if dtype != "int8":
        indices[0, 0] = 199

    def build(x, indices):
        typed, index = mb.cast(x=x, dtype=dtype), mb.cast(x=indices, dtype=dtype)
        made = [
            mb.gather(x=typed, indices=index),
            mb.gather_nd(x=typed, indices=index),
            mb.gather_along_axis(x=typed, indices=index),
        ]
        return [mb.cast(x=one, dtype="int32") for one in made]

    found = run(build, {"x": x, "indices": indices}, target="iOS17")
    whole = x.astype(np.int32)
    wanted = [whole[indices], whole[tuple(indices.T)], np.take_along_axis(whole, indices, 0)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def assert_scattered(operation, reference, data, cases, target):
    """``cases``: updates, indices, and the axis if there is one; each is tried in all modes."""
    every = [(mode, *case) for mode in MODES for case in cases]

    def build(data):
        made = []
        for mode, updates, indices, axis in every:
            given = {} if axis is None else {"axis": axis}
            made.append(operation(data=data, indices=indices, updates=updates, mode=mode, **given))
        return [*made, mb.add(x=data, y=0.0)]

    *found, after = run(build, {"data": data}, target=target)
    np.testing.assert_array_equal(after, data)
    for one, (mode, updates, indices, axis) in zip(found, every, strict=True):
        given = {} if axis is None else {"axis": axis}
        wanted = reference(data, indices, updates, mode, **given)
        what = f"{mode} {axis} {indices.shape}"
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6, err_msg=what, strict=True)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_scatter_with_repeated_indices(target):
    data = random(3, 4, 5)
    cases = []
    for axis, shape in ((0, (7,)), (1, (9,)), (-1, (8,)), (0, (2, 3)), (-2, (3, 2))):
        indices, places = random_indices(data.shape[axis], *shape), axis % 3
        updates = random(*data.shape[:places], *shape, *data.shape[places + 1 :])
        cases.append((updates, indices, axis))
    assert_scattered(mb.scatter, scattered, data, cases, target)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_scatter_along_axis_with_repeated_indices(target):
    data = random(3, 4, 5)
    shapes = {0: (7, 4, 5), 1: (3, 2, 5), -1: (3, 4, 9), -3: (1, 4, 5)}
    cases = [
        (random(*shape), random_indices(data.shape[axis], *shape), axis)
        for axis, shape in shapes.items()
    ]
    assert_scattered(mb.scatter_along_axis, scattered_along, data, cases, target)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_scatter_nd_with_repeated_indices(target):
    data = random(3, 4, 5)
    cases = []
    for depth, shape in itertools.product((1, 2, 3), ((9,), (2, 3))):
        indices = nd_indices(data.shape[:depth], *shape)
        cases.append((random(*shape, *data.shape[depth:]), indices, None))
    assert_scattered(mb.scatter_nd, scattered_nd, data, cases, target)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_scatter_adds_along_the_first_axis_unless_told_otherwise(target):
    data = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

    def build(data):
        return [
            mb.scatter(data=data, indices=[1, 1], updates=np.ones((2, 3), np.float32)),
            mb.scatter_along_axis(
                data=data, indices=[[1, 0, 1]], updates=np.array([[10, 20, 30]], np.float32)
            ),
            mb.scatter_nd(
                data=data, indices=[[0, 2], [1, 0]], updates=np.array([7, 8], np.float32)
            ),
        ]

    found = run(build, {"data": data}, target=target)
    assert found[0].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert found[1].tolist() == [[1, 22, 3], [14, 5, 36]]
    assert found[2].tolist() == [[1, 2, 10], [12, 5, 6]]


def test_scattered_integers():
    data = np.array([[7, -7, 3], [40, -41, 5]], np.int32)
    indices, updates = np.int32([1, 0, 1]), np.array([[2, 2, -3], [-2, 3, 1], [-4, 4, 2]], np.int32)

    def build(data, updates):
        return [mb.scatter(data=data, indices=indices, updates=updates, mode=m) for m in MODES]

    found = run(build, {"data": data, "updates": updates})
    for one, mode in zip(found, MODES, strict=True):
        wanted = scattered(data, indices, updates, mode)
        np.testing.assert_array_equal(one, wanted, mode, strict=True)


def test_the_last_of_many_updates_replaces():
    count = 100_000
    indices = torch.from_numpy(random_indices(10, count, least=0))
    updates = torch.arange(count, dtype=torch.int32)
    found = gathering.scatter(torch.zeros(10, dtype=torch.int32), indices, updates, mode="update")
    for index in range(10):
        assert found[index] == int(torch.nonzero(indices == index).max())


def test_scatter_along_axis_as_coremltools_infers_it():
    data, indices = random(3, 4), np.int32([[2, 1, -1, 0], [0, 0, 1, 2]])

    def build(data, indices, updates):
        return mb.scatter_along_axis(data=data, indices=indices, updates=updates, mode="update")

    inputs = {"data": data, "indices": indices, "updates": random(2, 4)}
    np.testing.assert_array_equal(run(build, inputs)[0], inferred(build, inputs)[0], strict=True)


def test_nothing_is_scattered_by_no_indices():
    data, none = torch.ones(3, 2), torch.zeros(0, dtype=torch.int32)
    for mode in MODES:
        found = gathering.scatter(data, none, torch.zeros(0, 2), mode=mode)
        assert found.tolist() == data.tolist()
        assert gathering.gather(data, none).shape == (0, 2)


INDEXED = {
    "gather": (lambda i, **given: mb.gather(x=i[0], indices=i[1], **given), [0, -1]),
    "gather_along_axis": (
        lambda i, **given: mb.gather_along_axis(x=i[0], indices=i[1], **given),
        [[0, -1, 1]],
    ),
    "gather_nd": (lambda i, **given: mb.gather_nd(x=i[0], indices=i[1], **given), [[0, -1]]),
    "scatter": (
        lambda i, **given: mb.scatter(
            data=i[0], indices=i[1], updates=np.ones((2, 3), np.float32), **given
        ),
        [0, -1],
    ),
    "scatter_along_axis": (
        lambda i, **given: mb.scatter_along_axis(
            data=i[0], indices=i[1], updates=np.ones((1, 3), np.float32), **given
        ),
        [[0, -1, 1]],
    ),
    "scatter_nd": (
        lambda i, **given: mb.scatter_nd(
            data=i[0], indices=i[1], updates=np.ones(1, np.float32), **given
        ),
        [[0, -1]],
    ),
}


@pytest.mark.parametrize("name", INDEXED)
def test_validated_indices_are_not_negative(name):
    make, indices = INDEXED[name]
    inputs = {"x": random(2, 3), "indices": np.array(indices, np.int32)}
    build = lambda x, indices: make((x, indices), validate_indices=True)  # noqa: E731
    with pytest.raises(RunError, match=rf"{name} .*indices must be from 0 to [12], got some"):
        run(build, inputs, target="iOS17")


@pytest.mark.parametrize("name", INDEXED)
def test_negative_indices_count_from_the_end_unless_they_are_validated(name):
    make, negative = INDEXED[name]
    positive = np.where(np.int32(negative) < 0, 2 if name.endswith("nd") else 1, np.int32(negative))
    inputs = {"x": random(2, 3), "negative": np.int32(negative), "positive": positive}

    def build(x, negative, positive):
        return [make((x, negative)), make((x, positive), validate_indices=True)]

    found = run(build, inputs, target="iOS17")
    np.testing.assert_array_equal(*found, strict=True)


@pytest.mark.parametrize("name", INDEXED)
@pytest.mark.parametrize("index", [3, -4])
def test_indices_out_of_range_are_named(name, index):
    make, indices = INDEXED[name]
    inputs = {"x": random(2, 3), "indices": np.where(np.int32(indices) < 0, np.int32(index), 0)}
    with pytest.raises(RunError, match=rf"{name} .*indices must be from -[23] to [12], got some"):
        run(lambda x, indices: make((x, indices)), inputs)


def test_in_half_precision():
    x, updates = random(4, 3), random(6, 3)
    indices = np.int32([1, 3, 1, 0, 3, 3])

    def build(x, updates):
        typed, new = mb.cast(x=x, dtype="fp16"), mb.cast(x=updates, dtype="fp16")
        made = [mb.gather(x=typed, indices=[3, -1, 0], axis=0)]
        made += [mb.gather_nd(x=typed, indices=[[3, 1], [0, -1]])]
        made += [mb.scatter(data=typed, indices=indices, updates=new, mode=mode) for mode in MODES]
        return [mb.cast(x=one, dtype="fp32") for one in made]

    found = run(build, {"x": x, "updates": updates}, computed="as_declared")
    half, new = (array.astype(np.float16).astype(np.float32) for array in (x, updates))
    np.testing.assert_array_equal(found[0], half[[3, 3, 0]])
    np.testing.assert_array_equal(found[1], half[[3, 0], [1, 2]])
    for one, mode in zip(found[2:], MODES, strict=True):
        wanted = scattered(half, indices, new, mode)
        tolerance = 0 if mode in ("max", "min", "update") else 2e-3
        np.testing.assert_allclose(one, wanted, rtol=tolerance, atol=tolerance)


X = torch.zeros(2, 3, 4)
ONE = torch.zeros(2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gathering.gather(X, ONE, axis=3), "axis must be from -3 to 2 .*, got 3"),
        (lambda: gathering.gather(X, ONE, axis=0, batch_dims=1), "at least batch_dims, 1; got 0"),
        (lambda: gathering.gather(X, ONE, axis=2, batch_dims=2), "batch_dims .* 0 to 1, got 2"),
        (lambda: gathering.gather(X, ONE[:1], axis=1, batch_dims=1), "first 1 axes in common"),
        (lambda: gathering.gather_nd(X, ONE, batch_dims=1), "batch_dims .* from 0 to 0, got 1"),
        (lambda: gathering.gather_nd(X, torch.zeros(1, 4).int()), "4 numbers, .* 3 axes"),
        (
            lambda: gathering.gather_along_axis(X, torch.zeros(2, 2, 4).int()),
            r"shape of x, \[2, 3, 4\], but for axis 0; got \[2, 2, 4\]",
        ),
        (lambda: gathering.scatter(X, ONE, X[:1]), r"shape \[2, 3, 4\], got \[1, 3, 4\]"),
        (lambda: gathering.scatter(X, ONE, X, mode="mean"), "min or update, got 'mean'"),
        (
            lambda: gathering.scatter_along_axis(X, torch.zeros(1, 3, 4).int(), X),
            r"updates must be of shape \[1, 3, 4\], got \[2, 3, 4\]",
        ),
        (
            lambda: gathering.scatter_along_axis(X, torch.zeros(1, 1, 4).int(), X[:1, :1]),
            "shape of data",
        ),
        (
            lambda: gathering.scatter_nd(X, torch.zeros(5, 2).int(), X),
            r"updates must be of shape \[5, 4\], got \[2, 3, 4\]",
        ),
    ],
)
def test_arguments_that_are_not_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_scatter_reach_data_and_updates(mode):
    data = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    updates = torch.tensor([[2.0, -1.0], [5.0, 3.5]], dtype=torch.float64, requires_grad=True)

    def function(data, updates):
        return gathering.scatter(data, torch.tensor([1, 1]), updates, mode=mode)

    assert torch.autograd.gradcheck(function, (data, updates))


def test_integers_divided_by_zero_are_zero_when_scattered():
    least = -(2**31)
    data, updates = np.array([4, 5, least], np.int32), np.array([0, 2, -1], np.int32)
    indices = np.arange(3, dtype=np.int32)
    (found,) = run(
        lambda data, indices, updates: mb.scatter(
            data=data, indices=indices, updates=updates, mode="div"
        ),
        {"data": data, "indices": indices, "updates": updates},
    )
    assert found.tolist() == [0, 2, least]
