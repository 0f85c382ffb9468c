"""Pooling against windows that are walked through one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch.nn import functional

from mlopt.runtime.ops.pooling import avg_pool, l2_pool, max_pool
from tests.runtime.programs import run

RANDOM = np.random.default_rng(0)
LENGTHS = (9, 8, 7)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def amounts(case, lengths):
    """The padding before and after each axis."""
    kernel, strides, pad_type, pads, _ = case
    if pad_type in ("valid", "custom"):
        return pads or [(0, 0)] * len(lengths)
    found = []
    for n, k, s in zip(lengths, kernel, strides, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + k - n)
        short, long = total // 2, total - total // 2
        found.append((short, long) if pad_type == "same" else (long, short))
    return found


def count(n, k, s, before, after, *, is_ceil):
    """How many windows the definition says that there are."""
    if not is_ceil:
        return math.floor((n + before + after - k) / s) + 1
    found = math.ceil((n + before + after - k) / s) + 1
    return found - 1 if before + after > 0 and (found - 1) * s >= n + before else found


def pooled(x, case, kind):
    """The result for each window; kind: max, l2, included or excluded padding."""
    kernel, strides, _, _, is_ceil = case
    lengths = x.shape[2:]
    pads = amounts(case, lengths)
    counts = [
        count(n, k, s, *pad, is_ceil=is_ceil)
        for n, k, s, pad in zip(lengths, kernel, strides, pads, strict=True)
    ]
    found = np.zeros((*x.shape[:2], *counts))
    for place in np.ndindex(*counts):
        inside, padded = [], 1
        for o, n, k, s, (before, after) in zip(place, lengths, kernel, strides, pads, strict=True):
            window = [o * s - before + i for i in range(k)]
            inside.append([i for i in window if 0 <= i < n])
            padded *= sum(-before <= i < n + after for i in window)
        seen = x[(slice(None), slice(None), *np.ix_(*inside))].astype(np.float64)
        seen = seen.reshape(*x.shape[:2], -1)
        if kind == "max":
            value = seen.max(-1, initial=-np.inf)
        elif kind == "l2":
            value = np.sqrt((seen**2).sum(-1))
        else:
            number = seen.shape[-1] if kind == "excluded" else padded
            value = seen.sum(-1) / max(1, number)
        found[(slice(None), slice(None), *place)] = value
    return found


# kernel, strides, pad_type, pads, ceil_mode: cut to the spatial rank
CASES = [
    ((3, 2, 3), (1, 2, 2), "valid", None, False),
    ((2, 2, 2), (2, 2, 2), "valid", None, True),
    ((3, 3, 2), (2, 3, 2), "custom", [(1, 1), (1, 1), (1, 1)], False),
    ((3, 3, 2), (2, 3, 2), "custom", [(1, 1), (1, 1), (1, 1)], True),
    ((2, 3, 2), (3, 2, 1), "custom", [(1, 1), (0, 0), (1, 1)], True),
    ((3, 2, 2), (2, 1, 3), "custom", [(0, 1), (1, 0), (1, 2)], False),
    ((2, 3, 1), (1, 2, 1), "custom", [(3, 0), (4, 4), (0, 0)], False),
    ((2, 3, 2), (2, 2, 2), "custom", [(2, 2), (3, 3), (2, 2)], True),
    ((1, 2, 1), (5, 3, 4), "valid", None, True),
    ((3, 2, 4), (1, 1, 1), "same", None, False),
    ((4, 3, 2), (3, 2, 3), "same", None, False),
    ((2, 1, 2), (3, 3, 4), "same", None, False),
    ((4, 2, 3), (3, 1, 3), "same_lower", None, False),
]


def cases(rank, target):
    for kernel, strides, pad_type, pads, is_ceil in CASES:
        if (is_ceil and rank > 2) or (pad_type == "same_lower" and target == "iOS15"):
            continue
        yield kernel[:rank], strides[:rank], pad_type, pads and pads[:rank], is_ceil


def arguments(case):
    kernel, strides, pad_type, pads, is_ceil = case
    given = {"kernel_sizes": kernel, "strides": strides, "pad_type": pad_type}
    if pads is not None:
        given["pad"] = np.ravel(pads).tolist()
    return given | ({"ceil_mode": True} if is_ceil else {})


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS18"])
def test_averages(rank, target):
    x = normal(2, 2, *LENGTHS[:rank])
    given = list(itertools.product(cases(rank, target), ["included", "excluded"]))

    def build(x):
        return [
            mb.avg_pool(
                x=x,
                **arguments(case),
                **({"exclude_padding_from_average": True} if kind == "excluded" else {}),
            )
            for case, kind in given
        ]

    for found, (case, kind) in zip(run(build, {"x": x}, target=target), given, strict=True):
        message = f"{case} {kind}"
        np.testing.assert_allclose(found, pooled(x, case, kind), 2e-5, 2e-6, err_msg=message)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS26"])
def test_maxima(rank, target):
    x, given = normal(2, 2, *LENGTHS[:rank]) - 3, list(cases(rank, target))
    build = lambda x: [mb.max_pool(x=x, **arguments(case)) for case in given]  # noqa: E731
    for found, case in zip(run(build, {"x": x}, target=target), given, strict=True):
        np.testing.assert_array_equal(found, pooled(x, case, "max"), err_msg=str(case))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_norms(rank, target):
    x, given = normal(2, 2, *LENGTHS[:rank]), list(cases(rank, target))
    build = lambda x: [mb.l2_pool(x=x, **arguments(case)) for case in given]  # noqa: E731
    for found, case in zip(run(build, {"x": x}, target=target), given, strict=True):
        np.testing.assert_allclose(found, pooled(x, case, "l2"), 2e-5, 2e-6, err_msg=str(case))


def test_strides_are_1_if_left_out():
    x = np.array([[[3, 4, 0, 1]]], np.float32)

    def build(x):
        return [
            function(x=x, kernel_sizes=[2], pad_type="valid")
            for function in (mb.avg_pool, mb.l2_pool, mb.max_pool)
        ]

    average, norm, maximum = run(build, {"x": x})
    np.testing.assert_array_equal(average, [[[3.5, 2, 0.5]]])
    np.testing.assert_array_equal(norm, [[[5, 4, 1]]])
    np.testing.assert_array_equal(maximum, [[[4, 4, 1]]])


def test_padding_in_numbers():
    x = np.array([[[-4, -2, -6]]], np.float32)

    def build(x):
        excluded = {"exclude_padding_from_average": True}
        return [
            mb.avg_pool(x=x, kernel_sizes=[2], pad_type="same"),
            mb.avg_pool(x=x, kernel_sizes=[2], pad_type="same_lower"),
            mb.avg_pool(x=x, kernel_sizes=[2], pad_type="same", **excluded),
            mb.avg_pool(x=x, kernel_sizes=[2], pad_type="same_lower", **excluded),
            mb.max_pool(x=x, kernel_sizes=[2], pad_type="same_lower"),
            mb.max_pool(x=x, kernel_sizes=[2], pad_type="custom", pad=[3, 0]),
            mb.avg_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid", ceil_mode=True),
        ]

    expected = [
        [-3, -4, -3],
        [-2, -3, -4],
        [-3, -4, -6],
        [-4, -3, -4],
        [-4, -2, -2],
        [-np.inf, -np.inf, -4, -2, -2],
        [-3, -6],  # the window past the end has one element
    ]
    for found, wanted in zip(run(build, {"x": x}, target="iOS16"), expected, strict=True):
        np.testing.assert_array_equal(found, [[wanted]])


def test_given_pads_count_only_if_custom():
    x = normal(1, 1, 5)
    build = lambda x: mb.max_pool(x=x, kernel_sizes=[2], pad_type="valid", pad=[1, 1])  # noqa: E731
    (found,) = run(build, {"x": x})
    assert found.shape == (1, 1, 4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_half_precision(rank):
    x = 300 * normal(1, 2, *LENGTHS[:rank])  # with squares that float16 does not hold
    case = ((3, 2, 3)[:rank], (2, 1, 2)[:rank], "custom", [(0, 1), (1, 1), (1, 0)][:rank], False)
    functions = [mb.avg_pool, mb.max_pool] + ([mb.l2_pool] if rank < 3 else [])

    def build(x):
        half = mb.cast(x=x, dtype="fp16")
        found = [function(x=half, **arguments(case)) for function in functions]
        return [mb.cast(x=each, dtype="fp32") for each in found]

    results = run(build, {"x": x}, target="iOS16", computed="as_declared")
    for found, kind in zip(results, ["included", "max", "l2"], strict=False):
        wanted = pooled(x.astype(np.float16), case, kind)
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=0.2)


def test_symmetric_padding_copies_nothing(monkeypatch):
    def pad(*_, **__):
        raise AssertionError("x is padded")

    monkeypatch.setattr(functional, "pad", pad)
    given = {"kernel_sizes": (3, 3), "strides": (2, 2), "pad_type": "custom", "pad": (1,) * 4}
    for function in (avg_pool, l2_pool, max_pool):
        assert function(torch.randn(1, 2, 9, 9), **given).shape == (1, 2, 5, 5)
        with pytest.raises(AssertionError, match="padded"):
            function(torch.randn(1, 2, 9, 9), **{**given, "pad": (1, 1, 0, 1)})
    given["pad"] = (1, 1, 0, 0)
    for function in (avg_pool, max_pool):
        assert function(torch.randn(1, 2, 8, 8), ceil_mode=True, **given).shape == (1, 2, 5, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pad_type": "reflect"}, "'reflect'"),
        ({"kernel_sizes": (2, 2)}, "kernel_sizes must be 1 positive numbers"),
        ({"strides": (0,)}, "strides must be 1 positive numbers"),
        ({"pad_type": "custom", "pad": (1,)}, "pad must be 2 numbers"),
        ({"kernel_sizes": (6,)}, "does not fit"),
        ({"x": torch.zeros(2, 5)}, "1 to 3 axes"),
        ({"pad_type": "custom", "pad": (2**50, 0)}, "more than this machine"),
    ],
)
@pytest.mark.parametrize("function", [avg_pool, l2_pool, max_pool])
def test_bad_arguments(function, given, message):
    plain = {"x": torch.zeros(1, 1, 5), "kernel_sizes": (2,), "pad_type": "valid"}
    with pytest.raises(ValueError, match=message):
        function(**{**plain, **given})
