"""Slices read and replaced, against numpy's own slicing and coremltools' inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.errors import RunError
from mlopt.runtime.ops import slicing
from tests.runtime.programs import TARGETS, inferred, run

WHOLE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
T, F = True, False

CASES = {
    "plain": ({"begin": [1, 1, 1], "end": [2, 3, 3]}, np.s_[1:2, 1:3, 1:3]),
    "stride": ({"begin": [0, 0, 1], "end": [2, 3, 4], "stride": [1, 2, 2]}, np.s_[:, ::2, 1::2]),
    "negative indices": ({"begin": [-2, -2, -3], "end": [-1, -1, -1]}, np.s_[:1, 1:2, 1:3]),
    "mixed signs": ({"begin": [0, -2, 1], "end": [-1, 3, -1]}, np.s_[:1, 1:, 1:3]),
    "negative strides": (
        {"begin": [-1, -1, -1], "end": [0, 1, -3], "stride": [-2, -1, -3]},
        np.s_[1:0:-2, 2:1:-1, 3:1:-3],
    ),
    "beyond the end": ({"begin": [0, 1, 2], "end": [9, 99, 2**31 - 1]}, np.s_[:, 1:, 2:]),
    "begin masked": (
        {"begin": [1, 1, 1], "end": [2, 3, 3], "begin_mask": [T, F, T]},
        np.s_[:2, 1:3, :3],
    ),
    "end masked": (
        {"begin": [1, 1, 1], "end": [0, 2, 0], "end_mask": [T, F, T]},
        np.s_[1:, 1:2, 1:],
    ),
    "both masked": (
        {"begin": [1, 1, 1], "end": [0, 0, 0], "begin_mask": [T, T, T], "end_mask": [T, T, T]},
        np.s_[:, :, :],
    ),
    "masked, negative strides": (
        {
            "begin": [0, 0, 2],
            "end": [0, 1, 0],
            "stride": [-1, -1, -1],
            "begin_mask": [T, T, F],
            "end_mask": [T, F, T],
        },
        np.s_[::-1, :1:-1, 2::-1],
    ),
    "squeezed": (
        {"begin": [1, 0, 1], "end": [0, 3, 0], "squeeze_mask": [T, F, T]},
        np.s_[1, 0:3, 1],
    ),
    "squeezed at a negative index": (
        {"begin": [0, -3, -1], "end": [2, 0, 0], "squeeze_mask": [F, T, T]},
        np.s_[:, 0, 3],
    ),
    "squeezed whatever the stride is": (
        {
            "begin": [1, 0, 0],
            "end": [0, 0, 4],
            "stride": [-1, 2, 3],
            "begin_mask": [F, T, F],
            "end_mask": [F, T, F],
            "squeeze_mask": [T, F, F],
        },
        np.s_[1, ::2, ::3],
    ),
    "squeezed where begin is masked": (
        {"begin": [1, 0, 0], "end": [2, 3, 4], "begin_mask": [T, F, F], "squeeze_mask": [T, F, F]},
        np.s_[0, :, :],
    ),
}


@pytest.mark.parametrize("target", TARGETS)
def test_slice_by_index(target):
    build = lambda x: [mb.slice_by_index(x=x, **given) for given, _ in CASES.values()]  # noqa: E731
    found = run(build, {"x": WHOLE}, target=target)
    for one, (_, slices) in zip(found, CASES.values(), strict=True):
        np.testing.assert_array_equal(one, WHOLE[slices], strict=True)


def test_slice_by_index_as_coremltools_infers_it():
    cases = [given for name, (given, _) in CASES.items() if "masked" not in name]
    build = lambda x: [mb.slice_by_index(x=x, **given) for given in cases]  # noqa: E731
    found, wanted = run(build, {"x": WHOLE}), inferred(build, {"x": WHOLE})
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("dtype", ["int32", "int16", "int8"])
def test_begin_and_end_that_the_program_computes(dtype):
    stride, squeeze = np.array([1, -1, 2], np.dtype(dtype)), [F, T, F]

    def build(x, begin, end):
        begin, end = mb.cast(x=begin, dtype=dtype), mb.cast(x=end, dtype=dtype)
        return [
            mb.slice_by_index(x=x, begin=begin, end=end),
            mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, squeeze_mask=squeeze),
            mb.slice_by_index(x=x, begin=begin, end=end, end_mask=[F, T, F]),
        ]

    inputs = {"x": WHOLE, "begin": np.int32([0, -2, 1]), "end": np.int32([-1, 2, 4])}
    target = "iOS15" if dtype == "int32" else "iOS17"
    found = run(build, inputs, target=target)
    wanted = WHOLE[:1, 1:2, 1:4], WHOLE[:1, 1, 1:4:2], WHOLE[:1, 1:, 1:4]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_all_axes_squeezed_give_a_scalar():
    def build(x):
        one = mb.slice_by_index(x=x, begin=[1, -1, 2], end=[0, 0, 0], squeeze_mask=[T, T, T])
        return mb.add(x=one, y=1.0)

    (found,) = run(build, {"x": WHOLE})
    assert found.tolist() == [23.0]


def test_every_slice_of_a_vector_is_that_of_numpy():
    x = np.arange(5)
    bounds = range(-7, 8)
    for begin, end, stride in itertools.product(bounds, bounds, (-7, -2, -1, 1, 2, 7)):
        found = slicing.slice_by_index(torch.from_numpy(x), (begin,), (end,), (stride,))
        assert found.tolist() == x[begin:end:stride].tolist(), (begin, end, stride)
        masks = ((T,), (F,)) if stride % 2 else ((F,), (T,))
        found = slicing.slice_by_index(torch.from_numpy(x), (begin,), (end,), (stride,), *masks)
        wanted = x[:end:stride] if stride % 2 else x[begin::stride]
        assert found.tolist() == wanted.tolist(), (begin, end, stride)


@pytest.mark.parametrize("target", TARGETS)
def test_slice_by_size(target):
    cases = {
        ((1, 0, 1), (1, 3, 2)): np.s_[1:, :, 1:3],
        ((0, 1, 2), (-1, -1, -1)): np.s_[:, 1:, 2:],
        ((0, 1, 1), (2, -1, 1)): np.s_[:, 1:, 1:2],
        ((-1, -3, -2), (1, 2, 1)): np.s_[1:, :2, 2:3],
    }
    build = lambda x: [mb.slice_by_size(x=x, begin=b, size=s) for b, s in cases]  # noqa: E731
    found = run(build, {"x": WHOLE}, target=target)
    for one, slices in zip(found, cases.values(), strict=True):
        np.testing.assert_array_equal(one, WHOLE[slices], strict=True)
    for one, other in zip(found, inferred(build, {"x": WHOLE}, target=target), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["int32", "int16", "int8"])
def test_slice_by_size_from_where_the_program_computes(dtype):
    def build(x, begin, size):
        begin, size = mb.cast(x=begin, dtype=dtype), mb.cast(x=size, dtype=dtype)
        const = np.array([-1, 2, 1], np.dtype(dtype))
        return [mb.slice_by_size(x=x, begin=begin, size=s) for s in (const, size)]

    inputs = {"x": WHOLE, "begin": np.int32([1, -2, 2]), "size": np.int32([0, -1, 2])}
    found = run(build, inputs, target="iOS15" if dtype == "int32" else "iOS17")
    for one, slices in zip(found, [np.s_[1:, 1:, 2:3], np.s_[1:1, 1:, 2:]], strict=True):
        np.testing.assert_array_equal(one, WHOLE[slices], strict=True)


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
def test_slice_update_changes_a_copy(target):
    updates = [-1 - np.arange(WHOLE[slices].size) for _, slices in CASES.values()]
    updates = [
        part.astype(np.float32).reshape(WHOLE[slices].shape)
        for part, (_, slices) in zip(updates, CASES.values(), strict=True)
    ]

    def build(x):
        made = [
            mb.slice_update(x=x, update=update, **given)
            for update, (given, _) in zip(updates, CASES.values(), strict=True)
        ]
        return [*made, mb.add(x=x, y=0.0)]

    *found, after = run(build, {"x": WHOLE}, target=target)
    np.testing.assert_array_equal(after, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    for one, update, (_, slices) in zip(found, updates, CASES.values(), strict=True):
        wanted = WHOLE.copy()
        wanted[slices] = update
        np.testing.assert_array_equal(one, wanted, strict=True)


def test_slice_update_where_the_program_computes():
    update = np.full((1, 2), -1, np.float32)

    def build(x, update, begin, end):
        return mb.slice_update(
            x=x, update=update, begin=begin, end=end, stride=[1, 1, -2], squeeze_mask=[F, T, F]
        )

    inputs = {"x": WHOLE, "update": update, "begin": np.int32([1, -1, 3])}
    (found,) = run(build, inputs | {"end": np.int32([2, 0, 0])}, target="iOS18")
    wanted = WHOLE.copy()
    wanted[1, 2, [1, 3]] = -1
    np.testing.assert_array_equal(found, wanted, strict=True)


@pytest.mark.parametrize("dtype", ["int32", "bool", "int8", "uint8", "int16", "uint16"])
def test_every_element_type(dtype):
    x = np.array([[0, 1, 2, 3], [4, 0, 6, 7]], np.float32)
    numbers = x.astype(np.dtype(dtype)).astype(np.int32)

    def build(x):
        typed = mb.cast(x=x, dtype=dtype)
        part = mb.slice_by_size(x=typed, begin=[0, 2], size=[2, 2])
        made = [
            mb.slice_by_index(x=typed, begin=[0, 3], end=[2, 0], stride=[1, -1]),
            part,
            mb.slice_update(x=typed, update=part, begin=[0, 0], end=[2, 2]),
        ]
        return [mb.cast(x=one, dtype="int32") for one in made]

    found = run(build, {"x": x}, target="iOS18")
    wanted = [numbers[:, 3:0:-1], numbers[:, 2:], numbers[:, [2, 3, 2, 3]]]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_in_half_precision_elements_are_only_moved():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    half = x.astype(np.float16).astype(np.float32)

    def build(x):
        typed = mb.cast(x=x, dtype="fp16")
        part = mb.slice_by_index(x=typed, begin=[2, 0], end=[0, 4], stride=[-1, 2])
        made = [
            part,
            mb.slice_by_size(x=typed, begin=[1, 1], size=[-1, 2]),
            mb.slice_update(x=typed, update=part, begin=[0, 1], end=[2, 3]),
        ]
        return [mb.cast(x=one, dtype="fp32") for one in made]

    found = run(build, {"x": x}, target="iOS18", computed="as_declared")
    updated = half.copy()
    updated[:2, 1:3] = half[2:0:-1, ::2]
    for one, other in zip(found, [half[2:0:-1, ::2], half[1:, 1:3], updated], strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slicing.slice_by_index(X, (0,), (1, 1)), r"begin .* each of 2 axes, got \[0\]"),
        (lambda: slicing.slice_by_index(X, (0, 0), (1,)), r"end .* each of 2 axes, got \[1\]"),
        (lambda: slicing.slice_by_index(X, (0, 0), (1, 1), (1, 0)), r"no zeros, got \[1, 0\]"),
        (
            lambda: slicing.slice_by_index(X, (0, 0), (1, 1), begin_mask=(T,)),
            "begin_mask must hold a value for each of 2 axes",
        ),
        (
            lambda: slicing.slice_by_index(X, (0, 3), (1, 1), squeeze_mask=(F, T)),
            "axis 1 has 3 elements: .* from -3 to 2, got 3",
        ),
        (lambda: slicing.slice_by_size(X, (0, 1), (1, 3)), "axis 1 has 3 .* 3 .* from 1 on"),
        (lambda: slicing.slice_by_size(X, (-3, 1), (1, 1)), "axis 0 has 2 .* 1 .* from -3 on"),
        (lambda: slicing.slice_by_size(X, (0, 1), (1, -2)), "axis 1 has 3 .* -2 .* from 1 on"),
        (
            lambda: slicing.slice_update(X, X, (0, 0), (1, 3)),
            r"update must be of shape \[1, 3\], got \[2, 3\]",
        ),
    ],
)
def test_arguments_that_are_not_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_computed_slice_out_of_range_is_named():
    inputs = {"x": WHOLE, "begin": np.int32([2, 0, 0])}
    with pytest.raises(RunError, match=r"slice_by_size .*axis 0 has 2 elements"):
        run(lambda x, begin: mb.slice_by_size(x=x, begin=begin, size=[1, 1, 1]), inputs)


def test_a_slice_that_begins_at_the_end():
    x = np.arange(5, dtype=np.float32)
    (found,) = run(lambda x: mb.slice_by_size(x=x, begin=[-2], size=[-1]), {"x": x})
    np.testing.assert_array_equal(found, x[-2:])
