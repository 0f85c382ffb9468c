"""Constexpr operations of random shapes and values, against coremltools' own formulas, bit for bit.

Weights are large and small beside their tables and scales, so that every way of computing them is
taken, and values reach the ends of their types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlopt.coreml.constexpr import evaluate
from mlopt.mil.opening import open_package
from tests import foreign
from tests.foreign import constexpr, value

COUNT = 24
Generator = np.random.Generator
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}
NUMPY = {"fp16": np.float16, "fp32": np.float32}


def layout(rng: Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and a number of blocks along each axis that divides it."""
    rank = int(rng.integers(1, 5))
    blocks = tuple(int(n) for n in rng.choice([1, 1, 2, 3], rank))
    sizes = [1, 2, 5, 16] if rank > 2 else [1, 4, 32, 100]
    return tuple(int(b * n) for b, n in zip(blocks, rng.choice(sizes, rank), strict=True)), blocks


def floats(rng: Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers of every magnitude, the largest and the smallest of the type among them."""
    numbers = (rng.standard_normal(shape) * np.exp2(rng.integers(-14, 10, shape))).astype(
        NUMPY[dtype]
    )
    info = np.finfo(NUMPY[dtype])
    special = np.array([0, -0.0, info.max, info.smallest_subnormal, 1], NUMPY[dtype])
    return np.where(rng.random(shape) < 0.1, rng.choice(special, shape), numbers)


def data_of(rng: Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype in NUMPY:
        return floats(rng, shape, dtype)
    return rng.integers(*RANGES[dtype], shape)


def choose(rng: Generator, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def blockwise(rng: Generator, name: str) -> list[Any]:
    shape, blocks = layout(rng)
    source, target = choose(rng, *RANGES, "fp16", "fp32"), choose(rng, *NUMPY)
    parameters = {
        "data": value(data_of(rng, shape, source), source),
        "scale": value(floats(rng, blocks, target), target),
    }
    offset = choose(rng, None, source, target)
    if offset is not None and not (offset == "fp32" and target == "fp16"):
        parameters["offset"] = value(data_of(rng, blocks, offset), offset)
    return [constexpr("blockwise_shift_scale", {name: (target, shape)}, **parameters)]


def affine(rng: Generator, name: str) -> list[Any]:
    shape, _ = layout(rng)
    axis = int(rng.integers(-len(shape), len(shape)))
    source, target = choose(rng, "int8", "uint8"), choose(rng, *NUMPY)
    point = choose(rng, source, "fp32")
    lengths = [choose(rng, (), (shape[axis],)) for _ in range(2)]
    parameters = {
        "quantized_data": value(data_of(rng, shape, source), source),
        "scale": value(floats(rng, lengths[0], target), target),
        "zero_point": value(data_of(rng, lengths[1], point), point),
        "axis": value(axis, "int32"),
    }
    return [constexpr("affine_dequantize", {name: (target, shape)}, old=True, **parameters)]


def table(rng: Generator, shape: tuple[int, ...], groups: tuple[int, ...]) -> tuple[dict, str, Any]:
    """Parameters of a table, its type, and the shape of the weight."""
    nbits, d = choose(rng, 1, 2, 3, 4, 6, 8), choose(rng, 1, 1, 2, 3)
    dtype = choose(rng, "fp16", "fp32", "int8", "uint8")
    axis = int(rng.integers(-len(shape), len(shape)))
    parameters = {"lut": value(data_of(rng, (*groups, 1 << nbits, d), dtype), dtype)}
    if d > 1 or rng.random() < 0.3:
        parameters["vector_axis"] = value(axis, "int32")
    wide = list(shape)
    wide[axis] *= d
    return parameters, dtype, (nbits, d, tuple(wide))


def lut(rng: Generator, name: str) -> list[Any]:
    shape, groups = layout(rng)
    parameters, dtype, (nbits, _, wide) = table(rng, shape, groups)
    parameters["indices"] = value(rng.integers(0, 1 << nbits, shape), f"uint{nbits}")
    return [constexpr("lut_to_dense", {name: (dtype, wide)}, **parameters)]


def bits(rng: Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    mask = (rng.random(shape) < rng.choice([0, 0.3, 0.9, 1])).astype(np.uint8)
    return mask, int(mask.sum())


def sparse(rng: Generator, name: str) -> list[Any]:
    shape, _ = layout(rng)
    dtype = choose(rng, "fp16", "fp32", *RANGES)
    mask, count = bits(rng, shape)
    numbers = value(data_of(rng, (count,), dtype), dtype)
    parameters = {"mask": value(mask, "uint1"), "nonzero_data": numbers}
    return [constexpr("sparse_to_dense", {name: (dtype, shape)}, **parameters)]


def lut_sparse(rng: Generator, name: str) -> list[Any]:
    shape, groups = layout(rng)
    parameters, dtype, (nbits, d, wide) = table(rng, shape, groups)
    mask, count = bits(rng, shape)
    parameters["indices_mask"] = value(mask, "uint1")
    indices = rng.integers(0, 1 << nbits, count)
    parameters["indices_nonzero_data"] = value(indices, f"uint{nbits}")
    outputs = {f"{name}_mask": ("uint1", wide), f"{name}_values": (dtype, (count * d,))}
    return [
        constexpr("lut_to_sparse", outputs, **parameters),
        constexpr(
            "sparse_to_dense",
            {name: (dtype, wide)},
            mask=f"{name}_mask",
            nonzero_data=f"{name}_values",
        ),
    ]


def sparse_blockwise(rng: Generator, name: str) -> list[Any]:
    shape, blocks = layout(rng)
    source, target = choose(rng, *RANGES, "fp16"), choose(rng, *NUMPY)
    mask, count = bits(rng, shape)
    parameters = {
        "data_mask": value(mask, "uint1"),
        "nonzero_data": value(data_of(rng, (count,), source), source),
        "scale": value(floats(rng, blocks, target), target),
    }
    if rng.random() < 0.5:
        parameters["offset"] = value(data_of(rng, blocks, source), source)
    outputs = {f"{name}_mask": ("uint1", shape), f"{name}_values": (target, (count,))}
    return [
        constexpr("sparse_blockwise_shift_scale", outputs, **parameters),
        constexpr(
            "sparse_to_dense",
            {name: (target, shape)},
            mask=f"{name}_mask",
            nonzero_data=f"{name}_values",
        ),
    ]


def scaled_lut(rng: Generator, name: str) -> list[Any]:
    """A palette and a scale of its channels, which are computed together."""
    shape, groups = layout(rng)
    parameters, dtype, (nbits, _, wide) = table(rng, shape, groups)
    parameters["indices"] = value(rng.integers(0, 1 << nbits, shape), f"uint{nbits}")
    target = dtype if dtype in NUMPY else choose(rng, *NUMPY)
    channels = [1] * len(wide)
    axis = int(rng.integers(len(wide)))
    channels[axis] = wide[axis]
    scale = value(floats(rng, tuple(channels), target), target)
    return [
        constexpr("lut_to_dense", {f"{name}_lut": (dtype, wide)}, **parameters),
        constexpr("blockwise_shift_scale", {name: (target, wide)}, data=f"{name}_lut", scale=scale),
    ]


KINDS = [blockwise, affine, lut, sparse, lut_sparse, sparse_blockwise, scaled_lut]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_bit_for_bit(make: Callable[[Generator, str], list[Any]], seed, tmp_path):
    rng = np.random.default_rng([seed, KINDS.index(make)])
    ops = [op for i in range(COUNT) for op in make(rng, f"w{i}")]
    names = [f"w{i}" for i in range(COUNT)]
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, names)
    with np.errstate(all="ignore"):
        wanted = foreign.materialised_constants(source)
    (program,) = open_package(source).programs
    nodes = {o.name: node for node in program.nodes() for o in node.outputs}
    for name, theirs in wanted.items():
        node = nodes[name]
        ours = evaluate(node)[[output.name for output in node.outputs].index(name)]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        # Bit patterns, so that -0 and 0 differ.
        assert ours.tobytes() == theirs.tobytes(), name
