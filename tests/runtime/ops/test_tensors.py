"""Making, joining and sorting tensors against numpy, by hand, and coremltools' inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol

from mlopt.errors import RunError
from mlopt.runtime.ops import tensors
from tests.runtime.programs import TARGETS, inferred, run

RANDOM = np.random.default_rng(0)
REPRESENTATIVE = ("iOS15", "iOS17")


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def assert_all_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def given(**values):
    """Arguments without those that are None."""
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_band_part(target):
    x = random(2, 4, 6)
    cases = list(itertools.product((None, -1, 0, 2, 9), (None, -3, 0, 1, 9)))
    build = lambda x: [mb.band_part(x=x, **given(lower=m, upper=n)) for m, n in cases]  # noqa: E731

    def part(lower, upper):
        lower = 99 if lower is None or lower < 0 else lower
        upper = 99 if upper is None or upper < 0 else upper
        return np.triu(np.tril(x, upper), -lower)

    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, [part(*case) for case in cases])
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


def test_band_part_hides_what_is_no_number():
    x = np.array([[1, np.nan], [np.inf, 2]], np.float32)
    (found,) = run(lambda x: mb.band_part(x=x, lower=0, upper=0), {"x": x})
    assert found.tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("target", TARGETS)
def test_concat(target):
    x, y, z = random(2, 3, 4), random(2, 1, 4), random(2, 5, 4)

    def build(x, y, z):
        made = [mb.concat(values=[x, y, z], axis=axis) for axis in (1, -2)]
        made += [mb.concat(values=[x, x], axis=axis, interleave=False) for axis in (0, 2, -1)]
        return [*made, mb.concat(values=[y], axis=0)]

    found = run(build, {"x": x, "y": y, "z": z}, target=target)
    joined = np.concatenate([x, y, z], 1)
    doubled = [np.concatenate([x, x], axis) for axis in (0, 2, 2)]
    assert_all_equal(found, [joined, joined, *doubled, y])


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_concat_interleaves(target):
    parts = [random(2, 3, 4) for _ in range(3)]

    def build(x, y, z):
        return [mb.concat(values=[x, y, z], axis=axis, interleave=True) for axis in (0, 1, 2, -1)]

    found = run(build, dict(zip("xyz", parts, strict=True)), target=target)
    for one, axis in zip(found, (0, 1, 2, 2), strict=True):
        for first, part in enumerate(parts):
            own = np.arange(first, 3 * part.shape[axis], 3)
            np.testing.assert_array_equal(np.take(one, own, axis), part, strict=True)


def test_concat_makes_a_vector_of_scalars():
    def build(x):
        scalars = [mb.gather(x=x, indices=index, axis=0) for index in (2, 0)]
        return mb.concat(values=scalars, axis=0)

    (found,) = run(build, {"x": np.array([5, 6, 7], np.float32)})
    assert found.tolist() == [7, 5]


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_cumsum(target):
    x = random(2, 3, 4)
    cases = list(itertools.product((0, 1, 2, -1), (None, True, False), (None, True, False)))

    def build(x):
        made = [
            mb.cumsum(x=x, axis=axis, **given(exclusive=exclusive, reverse=reverse))
            for axis, exclusive, reverse in cases
        ]
        return [*made, mb.cumsum(x=x)]

    def summed(axis, exclusive, reverse):
        out = np.zeros_like(x)
        length = x.shape[axis]
        for place in range(length):
            low, high = (place, length) if reverse else (0, place + 1)
            if exclusive:
                low, high = (low + 1, high) if reverse else (low, high - 1)
            index = [slice(None)] * 3
            index[axis] = place
            out[tuple(index)] = np.take(x, np.arange(low, high), axis).sum(axis)
        return out

    found = run(build, {"x": x}, target=target)
    for one, case in zip(found, [*cases, (0, False, False)], strict=True):
        np.testing.assert_allclose(one, summed(*case), rtol=1e-6, atol=1e-6, strict=True)


def test_exclusive_cumsum_of_an_infinite_last_element():
    x = np.array([1, 2, np.inf], np.float32)
    (found,) = run(lambda x: mb.cumsum(x=x, exclusive=True), {"x": x})
    assert found.tolist() == [0, 1, 3]


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_fill(target):
    def build(shape):
        made = [mb.fill(shape=shape, value=value) for value in (2.5, np.int32(2**31 - 1))]
        made += [mb.cast(x=mb.fill(shape=shape, value=True), dtype="int32")]
        return [*made, mb.fill(shape=shape), mb.fill(shape=[4], value=np.int32(-3))]

    found = run(build, {"shape": np.int32([2, 3])}, target=target)
    wanted = [np.full((2, 3), 2.5, np.float32), np.full((2, 3), 2**31 - 1, np.int32)]
    wanted += [np.ones((2, 3), np.int32), np.zeros((2, 3), np.float32), np.full(4, -3, np.int32)]
    assert_all_equal(found, wanted)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_fill_like(target):
    def build(x, y):
        return [
            mb.fill_like(ref_tensor=x, value=0.5),
            mb.fill_like(ref_tensor=x, value=np.int32(7)),
            mb.fill_like(ref_tensor=y),
        ]

    inputs = {"x": random(2, 3), "y": np.int32([[1], [2]])}
    found = run(build, inputs, target=target)
    wanted = [np.full((2, 3), 0.5, np.float32), np.full((2, 3), 7, np.int32)]
    assert_all_equal(found, [*wanted, np.zeros((2, 1), np.float32)])


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_identity(target):
    x, y = random(2, 3), np.int32([4, 5])
    found = run(lambda x, y: [mb.identity(x=x), mb.identity(x=y)], {"x": x, "y": y}, target=target)
    assert_all_equal(found, [x, y])


@pytest.mark.parametrize("dtype", ["fp32", "int32", "bool"])
def test_non_zero(dtype):
    x = np.array([[[0, 3], [0, 0]], [[-1, 0], [0.5, 2]]], np.float32)
    x = np.trunc(x) if dtype == "int32" else x
    (found,) = run(lambda x: mb.non_zero(x=mb.cast(x=x, dtype=dtype)), {"x": x})
    wanted = [[0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert found.tolist() == (wanted[:2] + wanted[3:] if dtype == "int32" else wanted)
    assert found.dtype == np.int32
    none = run(lambda x: mb.non_zero(x=x), {"x": np.zeros((2, 3), np.float32)})[0]
    assert none.shape == (0, 2)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_one_hot(target):
    indices = np.int32([[1, 0, 3], [2, 2, 1]])
    axes = [None, -1, 2, 1, 0, -2, -3]

    def build(x):
        return [mb.one_hot(indices=x, one_hot_vector_size=4, **given(axis=axis)) for axis in axes]

    found = run(build, {"x": indices}, target=target)
    hot = (indices[..., None] == np.arange(4)).astype(np.int32)
    wanted = [np.moveaxis(hot, -1, 2 if axis is None else axis) for axis in axes]
    assert_all_equal(found, wanted)


def test_one_hot_values_and_sizes():
    def build(x, size):
        size = mb.squeeze(x=size)
        two = mb.one_hot(indices=x, one_hot_vector_size=3, on_value=True, off_value=False)
        return [
            mb.one_hot(indices=x, one_hot_vector_size=size, on_value=0.75, off_value=-0.5),
            mb.one_hot(indices=x, one_hot_vector_size=size, on_value=2, off_value=2**31 - 1),
            mb.cast(x=two, dtype="int32"),
        ]

    found = run(build, {"x": np.int32([1, 0]), "size": np.int32([2])})
    assert_all_equal(
        found,
        [
            np.array([[-0.5, 0.75], [0.75, -0.5]], np.float32),
            np.array([[2**31 - 1, 2], [2, 2**31 - 1]], np.int32),
            np.array([[0, 1, 0], [1, 0, 0]], np.int32),
        ],
    )


def test_one_hot_of_indices_out_of_range_is_nowhere():
    (found,) = run(
        lambda x: mb.one_hot(indices=x, one_hot_vector_size=2, axis=0), {"x": np.int32([2, -1, 1])}
    )
    assert found.tolist() == [[0, 0, 0], [0, 0, 1]]


PADS = [[], [1, 2], [0, 1, 2, 0], [1, 0, 0, 2, 1, 1], [0, 0, 2, 2, 3, 3], [0, 0]]


@pytest.mark.parametrize("target", REPRESENTATIVE)
@pytest.mark.parametrize(
    ("mode", "numpy_mode"),
    [(None, "constant"), ("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")],
)
def test_pad(mode, numpy_mode, target):
    x = random(2, 3, 4)
    value = {"constant_val": 2.5} if mode == "constant" else {}
    values = {"constant_values": 2.5} if mode == "constant" else {}
    pads = [pad for pad in PADS if pad]

    def build(x):
        return [mb.pad(x=x, pad=pad, **given(mode=mode), **value) for pad in pads]

    wanted = []
    for pad in pads:
        pairs = np.array([0] * (6 - len(pad)) + pad).reshape(3, 2)
        wanted.append(np.pad(x, pairs, numpy_mode, **values))
    found = run(build, {"x": x}, target=target)
    assert_all_equal(found, wanted)
    assert_all_equal(found, inferred(build, {"x": x}, target=target))


def test_pad_by_what_the_program_computes():
    x = random(1, 2, 3, 4, 2)
    pads = np.int32([0, 0, 1, 1, 2, 0, 0, 3, 1, 0])

    def build(x, pads):
        return [mb.pad(x=x, pad=pads, mode=mode) for mode in ("constant", "reflect", "replicate")]

    found = run(build, {"x": x, "pads": pads})
    modes = ("constant", "reflect", "edge")
    assert_all_equal(found, [np.pad(x, pads.reshape(5, 2), mode) for mode in modes])


def test_nothing_is_padded_by_no_pads():
    x = torch.from_numpy(random(2, 3))
    for mode in ("constant", "reflect", "replicate"):
        assert torch.equal(tensors.pad(x, (), mode), x)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_range_of_integers(target):
    cases = [(0, 5, 1), (2, 11, 3), (2, 12, 3), (5, -1, -2), (5, 0, -2), (-3, 3, 2)]

    def build(x):
        one = mb.squeeze(x=x)
        made = [mb.range_1d(start=a, end=b, step=np.int32(c)) for a, b, c in cases]
        return [*made, mb.range_1d(start=one, end=mb.mul(x=one, y=3), step=one)]

    found = run(build, {"x": np.int32([4])}, target=target)
    wanted = [np.arange(*case, dtype=np.int32) for case in cases]
    assert_all_equal(found, [*wanted, np.int32([4, 8])])


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_range_of_floats(target):
    cases = [(0, 1, 0.1), (0, 0.3, 0.1), (0.5, 3, 0.75), (2, -1, -0.3), (-1.5, 1.5, 1)]
    cases = [tuple(map(np.float32, case)) for case in cases]
    build = lambda x: [mb.range_1d(start=a, end=b, step=c) for a, b, c in cases]  # noqa: E731
    x = random(1)
    found, wanted = run(build, {"x": x}, target=target), inferred(build, {"x": x}, target=target)
    for one, other, case in zip(found, wanted, cases, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6, strict=True)
        np.testing.assert_allclose(one, case[0] + np.arange(len(one)) * case[2], atol=1e-6)
    assert [len(one) for one in found] == [10, 3, 4, 10, 3]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of coremltools' limit
@pytest.mark.parametrize("computed", ["float32", "as_declared"])
def test_range_of_half_floats_is_as_long_as_declared(computed):
    cases = [(0, 1, 0.1), (0, 0.9, 0.3), (0, 7, 0.7), (1, 0, -0.1)]
    cases = [tuple(map(np.float16, case)) for case in cases]

    def build(x):
        made = [mb.range_1d(start=a, end=b, step=c) for a, b, c in cases]
        return [mb.cast(x=one, dtype="fp32") for one in made]

    found = run(build, {"x": random(1)}, computed=computed)
    for one, (start, end, step) in zip(found, cases, strict=True):
        assert len(one) == int(np.ceil((end - start) / step))
        wanted = np.float32(start) + np.arange(len(one)) * np.float32(step)
        np.testing.assert_allclose(one, wanted, rtol=2e-3, atol=1e-6)


def test_empty_ranges():
    def build(x):
        end = mb.squeeze(x=x)
        return [mb.range_1d(start=3, end=end, step=2), mb.range_1d(start=0, end=end, step=-1)]

    for one in run(build, {"x": np.int32([3])}):
        assert one.shape == (0,)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_shape(target):
    symbol = get_new_symbol()

    def build(x, y):
        return [mb.shape(x=x), mb.shape(x=mb.cast(x=y, dtype="bool"))]

    inputs = {"x": random(2, 3, 4), "y": random(5)}
    found = run(build, inputs, target=target, shapes={"x": (symbol, 3, 4)})
    assert_all_equal(found, [np.int32([2, 3, 4]), np.int32([5])])


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_split(target):
    x = random(4, 6, 3)

    def build(x):
        return [
            *mb.split(x=x, axis=1, num_splits=3),
            *mb.split(x=x, axis=-2, split_sizes=[1, 3, 2]),
            *mb.split(x=x, axis=0, num_splits=2, split_sizes=[3, 1]),
        ]

    found = run(build, {"x": x}, target=target)
    wanted = [x[:, :2], x[:, 2:4], x[:, 4:], x[:, :1], x[:, 1:4], x[:, 4:], x[:3], x[3:]]
    assert_all_equal(found, wanted)


def test_split_into_one_part():
    x = random(2, 3)
    (found,) = run(lambda x: mb.split(x=x, axis=-1, num_splits=1), {"x": x})
    np.testing.assert_array_equal(found, x, strict=True)


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_stack(target):
    x, y = random(2, 3), random(2, 3)

    def build(x, y):
        made = [mb.stack(values=[x, y], axis=axis) for axis in (0, 1, 2, -1, -3)]
        scalars = [mb.gather(x=mb.reshape(x=x, shape=[6]), indices=i, axis=0) for i in (5, 1)]
        return [*made, mb.stack(values=scalars, axis=0), mb.stack(values=[y], axis=-1)]

    found = run(build, {"x": x, "y": y}, target=target)
    wanted = [np.array([x, y]), np.array([x, y]).swapaxes(0, 1)]
    wanted += [np.array([x, y]).transpose(1, 2, 0)] * 2 + [np.array([x, y])]
    assert_all_equal(found, [*wanted, x.ravel()[[5, 1]], y[..., None]])


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_tile(target):
    x = random(2, 3)
    cases = [(1, 1), (2, 1), (1, 3), (3, 2)]

    def build(x, reps):
        return [mb.tile(x=x, reps=case) for case in cases] + [mb.tile(x=x, reps=reps)]

    found = run(build, {"x": x, "reps": np.int32([2, 4])}, target=target)
    for one, (down, across) in zip(found, [*cases, (2, 4)], strict=True):
        np.testing.assert_array_equal(one, np.block([[x] * across] * down), strict=True)


def ordered(x, axis, ascending):
    """Indices in order, equal elements in theirs."""
    return np.argsort(x if ascending else -x.astype(np.float64), axis, kind="stable")


@pytest.mark.parametrize("target", REPRESENTATIVE)
def test_argsort_keeps_the_order_of_equal_elements(target):
    x = RANDOM.integers(-3, 3, (3, 40, 5)).astype(np.float32)
    cases = list(itertools.product((None, 0, 1, -1, -2), (None, True, False)))

    def build(x):
        return [mb.argsort(x=x, **given(axis=a, ascending=b)) for a, b in cases]

    found = run(build, {"x": x}, target=target)
    wanted = [ordered(x, -1 if a is None else a, bool(b)) for a, b in cases]
    assert_all_equal(found, [one.astype(np.int32) for one in wanted])


@pytest.mark.parametrize("target", TARGETS)
def test_topk(target):
    x = RANDOM.integers(-9, 9, (3, 20, 5)).astype(np.float32)
    cases = list(itertools.product((None, 0, 1, -1, -2), (None, 1, 3), (None, True, False)))

    def build(x):
        made = [mb.topk(x=x, **given(axis=a, k=k, ascending=b)) for a, k, b in cases]
        return list(itertools.chain(*made))

    found = run(build, {"x": x}, target=target)
    wanted = []
    for axis, k, ascending in cases:
        axis = -1 if axis is None else axis
        order = np.take(ordered(x, axis, bool(ascending)), np.arange(k or 1), axis)
        wanted += [np.take_along_axis(x, order, axis), order.astype(np.int32)]
    assert_all_equal(found, wanted)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_topk_without_indices_or_order(target):
    x = random(4, 7)

    def build(x):
        return [
            mb.topk(x=x, k=3, return_indices=False),
            mb.topk(x=x, k=3, sort=False, return_indices=False),
            *mb.topk(x=x, k=2, axis=0, sort=False, return_indices=True),
        ]

    found = run(build, {"x": x}, target=target)
    largest = np.sort(x, -1)[:, :-4:-1]
    np.testing.assert_array_equal(found[0], largest, strict=True)
    np.testing.assert_array_equal(np.sort(found[1]), np.sort(largest), strict=True)
    np.testing.assert_array_equal(np.take_along_axis(x, found[3], 0), found[2], strict=True)
    np.testing.assert_array_equal(np.sort(found[2], 0), np.sort(x, 0)[-2:], strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "fp16"])
def test_topk_of_element_types(dtype):
    x = np.array([[3, 0, 100, 7], [7, 9, 1, 7]], np.float32)

    def build(x):
        typed = mb.cast(x=x, dtype=dtype)
        values, indices = mb.topk(x=typed, k=np.int8(2), output_indices_dtype="uint16")
        return [mb.cast(x=values, dtype="fp32"), mb.cast(x=indices, dtype="int32")]

    values, indices = run(build, {"x": x}, target="iOS17")
    assert values.tolist() == [[100, 7], [9, 7]]
    assert indices.tolist() == [[2, 3], [1, 0]]


def test_topk_of_all():
    values, indices = tensors.topk(torch.tensor([[1, 3, 2]]), k=-1)
    assert values.tolist() == [[3, 2, 1]]
    assert indices.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_integers_and_booleans(dtype):
    x = np.array([[1, 0, 2], [0, 5, 1]], np.float32)
    numbers = x.astype(np.dtype(dtype)).astype(np.int32)

    def build(x):
        typed = mb.cast(x=x, dtype=dtype)
        made = [
            mb.band_part(x=typed, lower=0),
            mb.concat(values=[typed, typed], axis=0),
            mb.tile(x=typed, reps=[1, 2]),
            mb.stack(values=[typed, typed], axis=0),
            *mb.split(x=typed, axis=0, num_splits=2),
        ]
        return [mb.cast(x=one, dtype="int32") for one in made]

    found = run(build, {"x": x})
    wanted = [np.triu(numbers), np.concatenate([numbers] * 2), np.concatenate([numbers] * 2, 1)]
    assert_all_equal(found, [*wanted, np.array([numbers] * 2), numbers[:1], numbers[1:]])


def test_integers_are_summed_and_sorted_exactly():
    x = np.int32([2**24 + 1, 2**24, 2**24 + 2])

    def build(x):
        return [mb.cumsum(x=x), mb.argsort(x=x), *mb.topk(x=x, k=2)]

    found = run(build, {"x": x})
    wanted = [np.cumsum(x), [2, 0, 1], x[[2, 0]], [2, 0]]
    assert_all_equal(found, [np.int32(one) for one in wanted])


def test_in_half_precision():
    x = random(3, 5)
    half = x.astype(np.float16).astype(np.float32)

    def build(x):
        typed = mb.cast(x=x, dtype="fp16")
        values, indices = mb.topk(x=typed, k=2)
        made = [
            mb.cumsum(x=typed, axis=1),
            mb.band_part(x=typed, lower=1, upper=0),
            mb.concat(values=[typed, typed], axis=0, interleave=True),
            mb.pad(x=typed, pad=[1, 1], constant_val=np.float16(-np.inf)),
            mb.pad(x=typed, pad=[1, 2], mode="reflect"),
            mb.fill(shape=[2], value=np.float16(0.1)),
            mb.one_hot(
                indices=[1],
                one_hot_vector_size=2,
                on_value=np.float16(0.1),
                off_value=np.float16(2),
            ),
            mb.tile(x=typed, reps=[2, 1]),
            values,
        ]
        return [*(mb.cast(x=one, dtype="fp32") for one in made), mb.argsort(x=typed), indices]

    summed, *found = run(build, {"x": x}, computed="as_declared")
    np.testing.assert_allclose(summed, np.cumsum(half, 1), rtol=2e-3, atol=2e-3)
    order, tenth = ordered(half, 1, False), np.float32(np.float16(0.1))
    wanted = [
        np.tril(half) - np.tril(half, -2),
        np.repeat(half, 2, 0),
        np.pad(half, ((0, 0), (1, 1)), constant_values=-np.inf),
        np.pad(half, ((0, 0), (1, 2)), "reflect"),
        np.array([tenth, tenth]),
        np.array([[2, tenth]], np.float32),
        np.concatenate([half, half]),
        np.take_along_axis(half, order[:, :2], 1),
        order.astype(np.int32),
        order[:, :2].astype(np.int32),
    ]
    assert_all_equal(found, wanted)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tensors.band_part(X[0]), r"rank 2 at least, got \[3\]"),
        (lambda: tensors.concat((X, X[0]), 0), r"one rank, got shapes \[\[2, 3\], \[3\]\]"),
        (lambda: tensors.concat((X, X), 2), "axis must be from -2 to 1 .*, got 2"),
        (lambda: tensors.concat((X, X[:1]), 0, True), "one shape to be interleaved"),
        (lambda: tensors.cumsum(X, 2), "axis must be from -2 to 1 .*, got 2"),
        (lambda: tensors.one_hot(torch.zeros(2).int(), -1, None), "at least 0, got -1"),
        (lambda: tensors.pad(X, (1, 1, 1)), r"at most 2 axes, got \[1, 1, 1\]"),
        (lambda: tensors.pad(X, (0, 0, 0, 0, 1, 1)), "at most 2 axes, got"),
        (lambda: tensors.pad(X, (0, -1)), r"at most 2 axes, got \[0, -1\]"),
        (lambda: tensors.pad(X, (0, 1), "circular"), "replicate, got 'circular'"),
        (lambda: tensors.pad(X, (3, 0), "reflect"), "axis 1 of length 3 with 3 and 0"),
        (lambda: tensors.pad(X[:0], (1, 0, 0, 0), "replicate"), "axis 0 of length 0"),
        (lambda: tensors.split(X, 1), "num_splits or split_sizes must be given"),
        (lambda: tensors.split(X, 1, 2), "num_splits must divide 3, got 2"),
        (lambda: tensors.split(X, 1, 2, (1, 1, 1)), "number of split_sizes, 3; got 2"),
        (lambda: tensors.split(X, 1, None, (1, 1)), r"sum up to 3, got \[1, 1\]"),
        (lambda: tensors.split(X, 1, None, (4, -1)), r"sum up to 3, got \[4, -1\]"),
        (lambda: tensors.stack((X, X[:1]), 0), r"one shape, got \[\[2, 3\], \[1, 3\]\]"),
        (lambda: tensors.stack((X, X), 3), "axis must be from -3 to 2 .*, got 3"),
        (lambda: tensors.tile(X, (2,)), r"each of 2 axes, got \[2\]"),
        (lambda: tensors.tile(X, (2, 0)), r"each of 2 axes, got \[2, 0\]"),
        (lambda: tensors.topk(X, 4), "k must be from 0 to 3, or -1 for all, got 4"),
        (lambda: tensors.topk(X, -2), "k must be from 0 to 3, or -1 for all, got -2"),
        (lambda: tensors.topk(X, output_indices_dtype="int16"), "uint16, got 'int16'"),
    ],
)
def test_arguments_that_are_not_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("build", "numbers"),
    [
        (lambda n: mb.fill(shape=n), [2**20, 2**30]),
        (lambda n: mb.tile(x=np.zeros((2, 2), np.float32), reps=n), [2**20, 2**30]),
        (lambda n: mb.range_1d(start=0.0, end=3e15, step=mb.cast(x=n, dtype="fp32")), [1]),
        (
            lambda n: mb.one_hot(indices=np.zeros((99, 99), np.int32), one_hot_vector_size=n),
            [2**30],
        ),
        (lambda n: mb.pad(x=np.zeros((2, 2), np.float32), pad=n), [2**30, 0, 2**30, 0]),
    ],
)
def test_tensors_larger_than_memory_are_refused(build, numbers):
    def made(n):
        return build(mb.squeeze(x=n) if len(numbers) == 1 else n)

    with pytest.raises(RunError, match="more than this machine"):
        run(made, {"n": np.array(numbers, np.int32)}, target="iOS16")


@pytest.mark.parametrize(
    ("build", "numbers", "message"),
    [
        (lambda n: mb.fill(shape=n), [2, -1], r"lengths from 0 on, got \[2, -1\]"),
        (
            lambda n: mb.range_1d(start=0, end=3, step=mb.squeeze(x=n)),
            [0],
            "step must be a number other than 0, got 0",
        ),
    ],
)
def test_computed_numbers_that_are_not_allowed(build, numbers, message):
    with pytest.raises(RunError, match=message):
        run(build, {"n": np.array(numbers, np.int32)})


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_results_whose_rank_depends_on_the_input(target):
    shape = np.array([2, 3], np.int32)
    symbol = get_new_symbol()
    builds = {
        "fill": lambda n: mb.fill(shape=n, value=2.0),
        "reshape": lambda n: mb.reshape(x=np.arange(6, dtype=np.float32), shape=n),
        "random": lambda n: mb.random_uniform(shape=n, low=0.0, high=1.0),
    }
    found = {
        name: run(build, {"n": shape}, target=target, shapes={"n": (symbol,)})[0]
        for name, build in builds.items()
    }
    np.testing.assert_array_equal(found["fill"], np.full((2, 3), 2.0))
    np.testing.assert_array_equal(found["reshape"], np.arange(6).reshape(2, 3))
    assert found["random"].shape == (2, 3)
