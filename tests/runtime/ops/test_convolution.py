"""Convolutions against sums that numpy makes, one element of the kernels at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch.nn import functional

from mlopt.runtime.ops.convolution import conv, conv_transpose
from tests.runtime.programs import assert_of_halves, run

RANDOM = np.random.default_rng(0)
LENGTHS = (9, 8, 7)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def correlated(x, weight, bias=None, *, strides, pads, dilations, groups=1):
    """What a convolution is, in float64."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    out_channels, depth, *kernel = weight.shape
    counts = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    found = np.zeros((x.shape[0], out_channels, *counts))
    per_group = out_channels // groups
    for offset in np.ndindex(*kernel):
        places = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, dilations, counts, strides, strict=True)
        )
        seen = x[(slice(None), slice(None), *places)]
        for group in range(groups):
            rows = slice(group * per_group, (group + 1) * per_group)
            columns = slice(group * depth, (group + 1) * depth)
            matrix = weight[(rows, slice(None), *offset)]
            found[:, rows] += np.einsum("nc...,oc->no...", seen[:, columns], matrix)
    return found if bias is None else found + bias.reshape(-1, *[1] * len(kernel))


def scattered(x, weight, bias=None, *, strides, crops, dilations, groups=1):
    """What a transposed convolution is, in float64; negative crops add zeros."""
    x = x.astype(np.float64)
    depth, per_group, *kernel = weight.shape
    full = [
        (n - 1) * s + (k - 1) * d + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    found = np.zeros((x.shape[0], per_group * groups, *full))
    rows = depth // groups
    for offset in np.ndindex(*kernel):
        places = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, dilations, x.shape[2:], strides, strict=True)
        )
        for group in range(groups):
            taken = slice(group * rows, (group + 1) * rows)
            given = slice(group * per_group, (group + 1) * per_group)
            matrix = weight[(taken, slice(None), *offset)]
            found[(slice(None), given, *places)] += np.einsum(
                "nc...,co->no...", x[:, taken], matrix
            )
    added = [(max(0, -begin), max(0, -end)) for begin, end in crops]
    found = np.pad(found, [(0, 0), (0, 0), *added])
    kept = tuple(
        slice(max(0, begin), n - max(0, end))
        for (begin, end), n in zip(crops, found.shape[2:], strict=True)
    )
    found = found[(slice(None), slice(None), *kept)]
    return found if bias is None else found + bias.reshape(-1, *[1] * len(kernel))


def same(lengths, kernel, strides, dilations, *, is_lower=False):
    """The amounts of "same": so many that there are ceil(length / stride) places."""
    amounts = []
    for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
        wanted = int(np.ceil(n / s))
        total = 0
        while (n + total - (k - 1) * d - 1) // s + 1 < wanted:
            total += 1
        short, long = total // 2, total - total // 2
        amounts.append((long, short) if is_lower else (short, long))
    return amounts


# kernel, strides, dilations, pad_type, pads: cut to the spatial rank
CONVOLUTIONS = [
    ((3, 2, 3), None, None, "valid", None),
    ((3, 2, 3), (2, 1, 3), None, None, None),
    ((3, 2, 3), (1, 2, 1), (2, 3, 1), "custom", [(1, 1), (2, 2), (0, 0)]),
    ((3, 2, 3), (2, 1, 2), None, "custom", [(0, 2), (3, 1), (1, 1)]),
    ((3, 3, 3), None, None, "same", None),
    ((2, 4, 2), None, (1, 1, 3), "same", None),
    ((4, 2, 5), (3, 2, 2), None, "same", None),
    ((1, 2, 1), (3, 3, 2), None, "same", None),
    ((2, 4, 2), None, (1, 1, 3), "same_lower", None),
    ((4, 2, 5), (3, 2, 2), None, "same_lower", None),
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS26"])
def test_convolution(rank, target):
    lengths = LENGTHS[:rank]
    x = normal(2, 3, *lengths)
    cases = [case for case in CONVOLUTIONS if target != "iOS15" or case[3] != "same_lower"]
    weights = [normal(4, 3, *case[0][:rank]) for case in cases]

    def build(x):
        found = []
        for (_, strides, dilations, pad_type, pads), weight in zip(cases, weights, strict=True):
            given = {
                "strides": strides and strides[:rank],
                "dilations": dilations and dilations[:rank],
                "pad_type": pad_type,
                "pad": pads and np.ravel(pads[:rank]).tolist(),
            }
            given = {name: value for name, value in given.items() if value is not None}
            found.append(mb.conv(x=x, weight=weight, **given))
        return found

    for found, case, weight in zip(
        run(build, {"x": x}, target=target), cases, weights, strict=True
    ):
        kernel, strides, dilations, pad_type, pads = case
        strides, dilations = (strides or (1,) * 3)[:rank], (dilations or (1,) * 3)[:rank]
        pads = [(0, 0)] * rank if pads is None else pads[:rank]
        if pad_type in ("same", "same_lower"):
            is_lower = pad_type == "same_lower"
            pads = same(lengths, kernel[:rank], strides, dilations, is_lower=is_lower)
        wanted = correlated(x, weight, strides=strides, pads=pads, dilations=dilations)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=str(case))


def test_odd_padding_is_at_the_end_or_at_the_beginning():
    x, ones = np.array([[[1, 2, 3, 4]]], np.float32), np.ones((1, 1, 2), np.float32)

    def build(x):
        return [
            mb.conv(x=x, weight=ones, pad_type="same"),
            mb.conv(x=x, weight=ones, pad_type="same_lower"),
            mb.conv(x=x, weight=ones, pad_type="same", strides=[3]),
        ]

    upper, lower, strided = run(build, {"x": x}, target="iOS16")
    np.testing.assert_array_equal(upper, [[[3, 5, 7, 4]]])
    np.testing.assert_array_equal(lower, [[[1, 3, 5, 7]]])
    np.testing.assert_array_equal(strided, [[[3, 4]]])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize(("groups", "channels"), [(2, 6), (4, 4), (4, 8)])
def test_groups_with_bias(rank, target, groups, channels):
    x, weight = normal(2, 4, *LENGTHS[:rank]), normal(channels, 4 // groups, *(3, 2, 2)[:rank])
    bias = normal(channels)

    def build(x):
        return mb.conv(x=x, weight=weight, bias=bias, groups=groups)

    (found,) = run(build, {"x": x}, target=target)
    wanted = correlated(
        x,
        weight,
        bias,
        strides=(1,) * rank,
        pads=[(0, 0)] * rank,
        dilations=(1,) * rank,
        groups=groups,
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_weights_and_bias_may_be_computed():
    x, weight, bias = normal(1, 3, 6, 5), normal(2, 3, 3, 3), normal(2)

    def build(x, weight, bias):
        return mb.conv(x=x, weight=weight, bias=bias), mb.conv_transpose(
            x=x, weight=mb.transpose(x=weight, perm=[1, 0, 2, 3]), bias=np.float32([1, 2])
        )

    found, transposed = run(build, {"x": x, "weight": weight, "bias": bias}, target="iOS17")
    plain = {"strides": (1, 1), "dilations": (1, 1)}
    np.testing.assert_allclose(
        found, correlated(x, weight, bias, pads=[(0, 0)] * 2, **plain), rtol=2e-5, atol=2e-5
    )
    wanted = scattered(x, weight.swapaxes(0, 1), np.array([1, 2]), crops=[(0, 0)] * 2, **plain)
    np.testing.assert_allclose(transposed, wanted, rtol=2e-5, atol=2e-5)


# kernel, strides, dilations, pad_type, pads
TRANSPOSED = [
    ((3, 2, 3), None, None, None, None),
    ((3, 2, 3), (2, 3, 1), (1, 2, 3), "valid", None),
    ((3, 2, 3), (2, 3, 1), (2, 1, 1), "custom", [(1, 1), (0, 0), (1, 1)]),
    ((4, 4, 4), (2, 2, 2), None, "custom", [(2, 1), (1, 0), (3, 2)]),
    ((4, 4, 4), (2, 2, 2), None, "custom", [(1, 3), (0, 2), (0, 1)]),
    ((4, 4, 4), (2, 2, 2), None, "custom", [(3, 0), (3, 1), (4, 0)]),
    ((3, 3, 3), None, None, "same", None),
    ((3, 2, 4), (2, 1, 2), (1, 3, 1), "same", None),
    ((5, 4, 3), (3, 3, 2), None, "same", None),
    ((2, 1, 2), (3, 3, 4), None, "same", None),
]


def same_crops(kernel, strides, dilations):
    """What leaves length * stride: half of the surplus, rounded down, at the beginning."""
    surplus = [(k - 1) * d + 1 - s for k, s, d in zip(kernel, strides, dilations, strict=True)]
    return [(max(0, n) // 2, n - max(0, n) // 2) for n in surplus]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_transposed_convolution(rank, target):
    x, bias = normal(2, 3, *(5, 4, 3)[:rank]), normal(2)
    weights = [normal(3, 2, *case[0][:rank]) for case in TRANSPOSED]

    def build(x):
        found = []
        for (_, strides, dilations, pad_type, pads), weight in zip(
            TRANSPOSED, weights, strict=True
        ):
            given = {
                "strides": strides and strides[:rank],
                "dilations": dilations and dilations[:rank],
                "pad_type": pad_type,
                "pad": pads and np.ravel(pads[:rank]).tolist(),
            }
            given = {name: value for name, value in given.items() if value is not None}
            found.append(mb.conv_transpose(x=x, weight=weight, bias=bias, **given))
        return found

    results = run(build, {"x": x}, target=target)
    for found, case, weight in zip(results, TRANSPOSED, weights, strict=True):
        kernel, strides, dilations, pad_type, pads = case
        strides, dilations = (strides or (1,) * 3)[:rank], (dilations or (1,) * 3)[:rank]
        crops = [(0, 0)] * rank if pads is None else pads[:rank]
        if pad_type == "same":
            crops = same_crops(kernel[:rank], strides, dilations)
        wanted = scattered(x, weight, bias, strides=strides, crops=crops, dilations=dilations)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=str(case))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "per_group"), [(2, 3), (4, 1), (4, 2)])
def test_transposed_groups(rank, groups, per_group):
    x, weight = normal(2, 4, *(5, 4, 3)[:rank]), normal(4, per_group, *(3, 2, 2)[:rank])
    given = {"strides": (2, 1, 2)[:rank], "groups": groups}
    (found,) = run(lambda x: mb.conv_transpose(x=x, weight=weight, **given), {"x": x})
    wanted = scattered(x, weight, crops=[(0, 0)] * rank, dilations=(1,) * rank, **given)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


# pad_type, pads, lengths of the output, crops; the full lengths are 11 and 9
SHAPED = [
    ("valid", None, (11, 9), [(0, 0), (0, 0)]),
    ("valid", None, (12, 10), [(0, -1), (0, -1)]),
    ("same", None, (10, 8), [(0, 1), (0, 1)]),
    ("same", None, (9, 6), [(1, 1), (1, 2)]),
    ("same", None, (13, 9), [(0, -2), (0, 0)]),
    ("custom", [(1, 1), (1, 0)], (9, 8), [(1, 1), (1, 0)]),
    ("custom", [(1, 1), (2, 2)], (10, 6), [(1, 0), (2, 1)]),
    ("custom", [(2, 0), (0, 0)], (9, 14), [(2, 0), (0, -5)]),
]


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_given_output_shape(target):
    x, weight, bias = normal(2, 3, 5, 4), normal(3, 2, 3, 3), normal(2)

    def build(x):
        return [
            mb.conv_transpose(
                x=x,
                weight=weight,
                bias=bias,
                strides=[2, 2],
                pad_type=pad_type,
                output_shape=(2, 2, *lengths),
                **({} if pads is None else {"pad": np.ravel(pads).tolist()}),
            )
            for pad_type, pads, lengths, _ in SHAPED
        ]

    for found, case in zip(run(build, {"x": x}, target=target), SHAPED, strict=True):
        wanted = scattered(x, weight, bias, strides=(2, 2), dilations=(1, 1), crops=case[3])
        assert found.shape[2:] == case[2]
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=str(case))


def test_transposed_in_numbers():
    x, weight = np.array([[[1, 10, 100]]], np.float32), np.array([[[1, 2, 3]]], np.float32)

    def build(x):
        return [
            mb.conv_transpose(x=x, weight=weight, strides=[2]),
            mb.conv_transpose(x=x, weight=weight, strides=[2], pad_type="same"),
            mb.conv_transpose(x=x, weight=weight, strides=[2], pad_type="custom", pad=[2, 1]),
            mb.conv_transpose(x=x, weight=weight[..., :1], strides=[2], pad_type="same"),
        ]

    valid, same, custom, sparse = run(build, {"x": x})
    np.testing.assert_array_equal(valid, [[[1, 2, 13, 20, 130, 200, 300]]])
    np.testing.assert_array_equal(same, [[[1, 2, 13, 20, 130, 200]]])
    np.testing.assert_array_equal(custom, [[[13, 20, 130, 200]]])
    np.testing.assert_array_equal(sparse, [[[1, 0, 10, 0, 100, 0]]])


@pytest.mark.parametrize(("x_type", "weight_type"), [("fp16", "fp16"), ("fp16", "fp32")])
def test_half_precision(x_type, weight_type):
    x, dtype = normal(2, 4, 8, 7), {"fp16": np.float16, "fp32": np.float32}[weight_type]
    weight, bias = (0.3 * normal(4, 2, 3, 3)).astype(dtype), normal(4).astype(dtype)

    def build(x):
        half = mb.cast(x=x, dtype=x_type)
        found = [
            mb.conv(x=half, weight=weight, bias=bias, groups=2, pad_type="same"),
            mb.conv_transpose(x=half, weight=weight, bias=bias, groups=2, strides=[2, 2]),
        ]
        return [mb.cast(x=each, dtype="fp32") for each in found]

    found, transposed = run(build, {"x": x}, target="iOS17", computed="as_declared")
    rounded = x.astype(np.float16)
    wanted = correlated(
        rounded,
        weight,
        bias,
        strides=(1, 1),
        pads=[(1, 1)] * 2,
        dilations=(1, 1),
        groups=2,
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=4e-3)
    assert_of_halves(found)
    wanted = scattered(
        rounded,
        weight,
        bias,
        strides=(2, 2),
        crops=[(0, 0)] * 2,
        dilations=(1, 1),
        groups=2,
    )
    np.testing.assert_allclose(transposed, wanted, rtol=2e-3, atol=4e-3)


def test_narrower_weights_of_a_wider_input():
    x, weight = normal(1, 2, 9), normal(3, 2, 3).astype(np.float16)
    build = lambda x: mb.conv(x=x, weight=weight)  # noqa: E731
    (found,) = run(build, {"x": x}, target="iOS17", computed="as_declared")
    wanted = correlated(x, weight, strides=(1,), pads=[(0, 0)], dilations=(1,))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_symmetric_padding_copies_nothing(monkeypatch):
    def pad(*_, **__):
        raise AssertionError("x is padded")

    monkeypatch.setattr(functional, "pad", pad)
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 2, 3, 3)
    assert conv(x, weight, pad_type="same").shape == (1, 2, 8, 8)
    assert conv(x, weight, pad_type="custom", pad=(1, 1, 2, 2)).shape == (1, 2, 8, 10)
    assert conv_transpose(x, weight, pad_type="custom", pad=(1, 1, 0, 0)).shape == (1, 2, 8, 10)
    assert conv_transpose(x, weight, pad_type="same", strides=(2, 2)).shape == (1, 2, 16, 16)
    with pytest.raises(AssertionError, match="padded"):
        conv(x, weight, pad_type="custom", pad=(1, 1, 2, 1))


X, WEIGHT = torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (conv, {"pad_type": "reflect"}, "'reflect'"),
        (conv, {"strides": (1,)}, "strides must be 2 positive numbers"),
        (conv, {"dilations": (1, 0)}, "dilations must be 2 positive numbers"),
        (conv, {"pad_type": "custom", "pad": (1, 1)}, "pad must be 4 numbers"),
        (conv, {"pad_type": "custom", "pad": (-9, 0, 0, 0)}, "do not fit"),
        (conv, {"dilations": (4, 1)}, r"\(9, 3\) do not fit into lengths \[8, 8\]"),
        (conv, {"weight": torch.zeros(2, 2, 3)}, "weight needs 4 axes"),
        (conv, {"x": torch.zeros(2, 8)}, "1 to 3 axes"),
        (conv, {"pad_type": "custom", "pad": (2**40,) * 4}, "more than this machine"),
        (conv_transpose, {"pad_type": "same_lower"}, "'same_lower'"),
        (conv_transpose, {"output_shape": (8, 8)}, "1, 2 and 2 lengths"),
        (conv_transpose, {"output_shape": (1, 3, 8, 8)}, "1, 2 and 2 lengths"),
        (conv_transpose, {"output_shape": (1, 2, 0, 8)}, "cannot be cropped"),
        (conv_transpose, {"pad_type": "custom", "pad": (5, 5, 0, 0)}, "cannot be cropped"),
        (conv_transpose, {"strides": (2**40, 1)}, "more than this machine"),
    ],
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**{"x": X, "weight": WEIGHT, **arguments})


def test_pads_need_their_type():
    assert conv(X, WEIGHT, pad=(1, 1, 1, 1)).shape == (1, 2, 6, 6)
    assert conv_transpose(X, WEIGHT, pad=(1, 1, 1, 1)).shape == (1, 2, 10, 10)


def test_a_crop_beyond_the_result_is_refused():
    with pytest.raises(ValueError, match="cannot be cropped"):
        conv_transpose(
            torch.ones(1, 2, 1),
            torch.ones(2, 1, 1),
            pad_type="custom",
            pad=(2, 2),
            output_shape=(1, 1, 1),
        )
