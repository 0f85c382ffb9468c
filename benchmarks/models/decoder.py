"""Decoder-only transformers with random weights, built with coremltools' MIL builder.

Built directly because tracing and converting hundreds of millions of weights through torch takes
minutes and several times the memory. The head is untied from the embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.quiet import import_coremltools
from benchmarks.models.random_weights import random_weight


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; ``weights`` counts the matrices, not biases and norms."""

    vocabulary: int
    width: int
    hidden: int
    heads: int
    layers: int
    positions: int = 1024
    tokens: int = 64

    @property
    def weights(self) -> int:
        embeddings = (2 * self.vocabulary + self.positions) * self.width
        return embeddings + self.layers * (4 * self.width**2 + 2 * self.width * self.hidden)


GPT2 = Shape(vocabulary=50257, width=768, hidden=3072, heads=12, layers=12)
"""GPT-2 with an untied head: 163 M weights, 325 MB."""
LARGE = Shape(vocabulary=32000, width=2048, hidden=8192, heads=16, layers=5)
"""385 M weights, 770 MB."""
WARMUP = Shape(vocabulary=256, width=128, hidden=256, heads=2, layers=1, positions=64, tokens=8)
"""What the warm-up calls palettize: 0.2 M weights in matrices of 8,192 to 49,152."""


class _Layers:
    """The layers that a decoder needs, as calls of the MIL builder ``mb``."""

    def __init__(self, mb: Any, seed: int) -> None:
        self.mb = mb
        self.rng = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        return random_weight(self.rng, (rows, columns), fan_in=columns).astype(np.float16)

    def vector(self, size: int, mean: float = 0.0) -> np.ndarray:
        return (mean + 0.02 * self.rng.standard_normal(size)).astype(np.float16)

    def linear(self, x: Any, inputs: int, outputs: int) -> Any:
        weight = self.matrix(outputs, inputs)
        return self.mb.linear(x=x, weight=weight, bias=self.vector(outputs))

    def norm(self, x: Any, width: int) -> Any:
        gamma, beta = self.vector(width, mean=1.0), self.vector(width)
        return self.mb.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float16(1e-5))

    def attention(self, x: Any, mask: Any, shape: Shape) -> Any:
        mb, size = self.mb, shape.width // shape.heads
        joint = self.linear(x, shape.width, 3 * shape.width)
        split = mb.reshape(x=joint, shape=[1, shape.tokens, 3 * shape.heads, size])
        turned = mb.transpose(x=split, perm=[0, 2, 1, 3])
        query, key, value = mb.split(x=turned, num_splits=3, axis=1)
        scores = mb.matmul(x=query, y=key, transpose_y=True)
        scores = mb.mul(x=scores, y=np.float16(1 / math.sqrt(size)))
        scores = mb.add(x=scores, y=mask)
        mixed = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=value)
        mixed = mb.transpose(x=mixed, perm=[0, 2, 1, 3])
        mixed = mb.reshape(x=mixed, shape=[1, shape.tokens, shape.width])
        return self.linear(mixed, shape.width, shape.width)

    def perceptron(self, x: Any, shape: Shape) -> Any:
        wide = self.mb.gelu(x=self.linear(x, shape.width, shape.hidden), mode="TANH_APPROXIMATION")
        return self.linear(wide, shape.hidden, shape.width)


def build(path: Path, shape: Shape, seed: int, target: str = "iOS18") -> None:
    """A decoder of ``shape`` as an fp16 package: ids and positions [1, tokens] to logits."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    layers = _Layers(mb, seed)
    inputs = [mb.TensorSpec(shape=(1, shape.tokens), dtype=types.int32) for _ in range(2)]

    @mb.program(input_specs=inputs, opset_version=getattr(ct.target, target))
    def program(input_ids: Any, position_ids: Any) -> Any:
        vocabulary = layers.matrix(shape.vocabulary, shape.width)
        words = mb.gather(x=vocabulary, indices=input_ids, axis=0)
        positions = layers.matrix(shape.positions, shape.width)
        x = mb.add(x=words, y=mb.gather(x=positions, indices=position_ids, axis=0))
        later = np.triu(np.ones((1, 1, shape.tokens, shape.tokens), np.float16), k=1)
        mask = mb.const(val=later * np.float16(-1e4), name="causal_mask")
        for _ in range(shape.layers):
            x = mb.add(x=x, y=layers.attention(layers.norm(x, shape.width), mask, shape))
            x = mb.add(x=x, y=layers.perceptron(layers.norm(x, shape.width), shape))
        head = layers.matrix(shape.vocabulary, shape.width)
        no_bias = np.zeros(shape.vocabulary, np.float16)
        return mb.linear(x=layers.norm(x, shape.width), weight=head, bias=no_bias, name="logits")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT16,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))


def build_gpt2(path: Path) -> None:
    """GPT-2-shaped, 325 MB."""
    build(path, GPT2, seed=163)


def build_large(path: Path) -> None:
    """A package of 0.77 GB."""
    build(path, LARGE, seed=700)


def build_warmup(path: Path) -> None:
    """The small model of the warm-up calls."""
    build(path, WARMUP, seed=1)


def build_warmup_ios16(path: Path) -> None:
    """The same for iOS16."""
    build(path, WARMUP, seed=1, target="iOS16")
