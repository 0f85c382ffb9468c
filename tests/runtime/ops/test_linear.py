"""Products of matrices against numpy, and against coremltools' own inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime.ops.linear import einsum, matmul
from tests.runtime.programs import assert_of_halves, inferred, run

RANDOM = np.random.default_rng(0)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def whole(*shape: int) -> np.ndarray:
    return RANDOM.integers(-9, 10, size=shape).astype(np.int32)


def check(build, inputs, expected, target):
    """Of all three: what runs here, what is expected, what coremltools infers."""
    found, guesses = run(build, inputs, target=target), inferred(build, inputs, target=target)
    for each, wanted, guess in zip(found, expected, guesses, strict=True):
        assert each.shape == wanted.shape
        np.testing.assert_allclose(each, wanted, **CLOSE)
        np.testing.assert_allclose(each, guess, **CLOSE)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("values", [normal, whole])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_linear(shape, values, target):
    x, weight, bias = values(*shape), values(4, 5), values(4)

    def build(x):
        return [mb.linear(x=x, weight=weight), mb.linear(x=x, weight=weight, bias=bias)]

    product = np.einsum("...i,oi->...o", x, weight, dtype=np.float64)
    check(build, {"x": x}, [product, product + bias], target)


MATRICES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((6, 3, 4), (2, 1, 4, 5)),
    ((1, 4), (4, 1)),
]


@pytest.mark.parametrize("shapes", MATRICES)
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_matrices(shapes, target):
    x, y = (normal(*shape) for shape in shapes)
    turned = {"turned_x": x.swapaxes(-1, -2).copy(), "turned_y": y.swapaxes(-1, -2).copy()}

    def build(x, y, turned_x, turned_y):
        return [
            mb.matmul(x=x, y=y),
            mb.matmul(x=turned_x, y=y, transpose_x=True),
            mb.matmul(x=x, y=turned_y, transpose_y=True),
            mb.matmul(x=turned_x, y=turned_y, transpose_x=True, transpose_y=True),
        ]

    wanted = np.einsum("...ij,...jk->...ik", x.astype(np.float64), y)
    check(build, {"x": x, "y": y, **turned}, [wanted] * 4, target)


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18"])
def test_matrices_of_integers(target):
    x, y = whole(2, 3, 4), whole(4, 5)
    wanted = np.einsum("bij,jk->bik", x, y)
    check(lambda x, y: [mb.matmul(x=x, y=y)], {"x": x, "y": y}, [wanted], target)


def test_a_row_on_the_left():
    x, y = normal(4), normal(4, 5)

    def build(x, y):
        return [
            mb.matmul(x=x, y=y),
            mb.matmul(x=x, y=mb.transpose(x=y, perm=[1, 0]), transpose_y=True),
        ]

    wanted = np.einsum("i,ik->k", x, y)
    for found in run(build, {"x": x, "y": y}):
        np.testing.assert_allclose(found, wanted, **CLOSE)


def test_operands_of_rank_1():
    # coremltools cannot infer the shapes of these
    x, y = whole(4), whole(2, 4, 3)
    row, matrices = torch.from_numpy(x), torch.from_numpy(y)
    expected = np.einsum("i,bik->bk", x, y)
    np.testing.assert_array_equal(matmul(row, matrices), expected)
    np.testing.assert_array_equal(matmul(row, matrices, transpose_x=True), expected)
    np.testing.assert_array_equal(matmul(matrices, row, transpose_x=True), expected)
    turned = matrices.transpose(1, 2)
    np.testing.assert_array_equal(matmul(turned, row, transpose_y=True), expected)
    assert matmul(row, row, transpose_x=True, transpose_y=True).item() == sum(x * x)


@pytest.mark.parametrize("constant", ["x", "y"])
def test_mixed_element_types(constant):
    x, y = normal(3, 4), normal(4, 5)
    narrow = (y if constant == "y" else x).astype(np.float16)

    def build(v):
        return mb.matmul(x=v, y=narrow) if constant == "y" else mb.matmul(x=narrow, y=v)

    wanted = x.astype(np.float64) @ narrow if constant == "y" else narrow.astype(np.float64) @ y
    given = {"v": x if constant == "y" else y}
    (found,) = run(build, given, target="iOS17", computed="as_declared")
    np.testing.assert_allclose(found, wanted, **CLOSE)


def test_floats_times_integers_keep_the_type_of_the_input():
    x, weight = whole(3, 4), np.array([[0.5, 0.5, 0.25, 0.25]], np.float32)
    build = lambda x: [mb.linear(x=x, weight=weight), mb.matmul(x=x, y=weight.T)]  # noqa: E731
    wanted = np.trunc(x @ weight.T.astype(np.float64))
    for found in run(build, {"x": x}, target="iOS17"):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)


RANK_4 = [((2, 3, 4, 5), (2, 5, 4, 6)), ((1, 3, 4, 5), (2, 5, 1, 6)), ((2, 3, 1, 5), (1, 5, 4, 6))]
RANK_3 = [((3, 4, 5), (5, 4, 6)), ((3, 1, 5), (5, 4, 6)), ((3, 4, 5), (5, 1, 6))]


@pytest.mark.parametrize(
    ("shapes", "equation"),
    [(shapes, "nchw,nwhu->nchu") for shapes in RANK_4]
    + [(shapes, "chw,whr->chr") for shapes in RANK_3]
    + [(RANK_4[0], "abcd,adce->abce"), (RANK_3[0], "nop,pom->nom")],
)
def test_einsum(shapes, equation):
    x, y = (normal(*shape) for shape in shapes)
    batch = np.broadcast_shapes(x.shape[:-3] + x.shape[-2:-1], y.shape[:-3] + y.shape[-2:-1])
    wanted = np.zeros((*batch[:-1], x.shape[-3], batch[-1], y.shape[-1]))
    for place in np.ndindex(wanted.shape):
        *leading, row, middle, column = place
        left = x[(*[min(i, n - 1) for i, n in zip(leading, x.shape, strict=False)], row)]
        right = y[tuple(min(i, n - 1) for i, n in zip(leading, y.shape, strict=False))]
        left = left[min(middle, left.shape[0] - 1)]
        right = right[:, min(middle, right.shape[1] - 1), column]
        wanted[place] = sum(left.astype(np.float64) * right)
    build = lambda x, y: [mb.einsum(values=(x, y), equation=equation)]  # noqa: E731
    check(build, {"x": x, "y": y}, [wanted], "iOS15")


def test_half_precision():
    x, y, weight = normal(2, 3, 8), normal(2, 8, 4), normal(4, 8)

    def build(x, y):
        x, y = mb.cast(x=x, dtype="fp16"), mb.cast(x=y, dtype="fp16")
        found = [
            mb.linear(x=x, weight=weight.astype(np.float16)),
            mb.linear(x=x, weight=weight, bias=weight[:, 0]),
            mb.matmul(x=x, y=y),
            mb.matmul(x=x, y=weight, transpose_y=True),
            mb.einsum(
                values=(mb.transpose(x=x, perm=[1, 0, 2]), mb.transpose(x=y, perm=[1, 0, 2])),
                equation="chw,whu->chu",
            ),
        ]
        return [mb.cast(x=each, dtype="fp32") for each in found]

    x16, y16, weight16 = (each.astype(np.float16).astype(np.float64) for each in (x, y, weight))
    expected = [
        x16 @ weight16.T,
        x16 @ weight.T + weight[:, 0],
        x16 @ y16,
        x16 @ weight.T,
        np.einsum("hcw,hwu->chu", x16, y16),
    ]
    results = run(build, {"x": x, "y": y}, target="iOS17", computed="as_declared")
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=4e-3)
        assert_of_halves(found)


X3, X4 = torch.zeros(3, 4, 5), torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("values", "equation", "message"),
    [
        ((X3,), "chw,whr->chr", "takes two tensors, got 1"),
        ((X3, X3), "chw,whr->crh", "with any letters, got 'chw,whr->crh'"),
        ((X3, X3), "chw,whr", "with any letters"),
        ((X3, X3), "chw, whr->chr", "with any letters"),
        ((X4, X4), "chw,whr->chr", "ranks 4 and 4"),
        ((X3, X4), "nchw,nwhu->nchu", "ranks 3 and 4"),
    ],
)
def test_bad_equations(values, equation, message):
    with pytest.raises(ValueError, match=message):
        einsum(values, equation)


def test_a_row_times_several_matrices_as_a_program():
    """coremltools declares another shape than its documentation gives."""
    x, y = normal(4), normal(10, 4, 3)
    (found,) = run(lambda x, y: mb.matmul(x=x, y=y), {"x": x, "y": y})
    np.testing.assert_allclose(found, x @ y, **CLOSE)
