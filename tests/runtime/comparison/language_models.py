"""Small language models, and their logits computed with numpy."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil import Builder as mb

from tests.runtime.programs import convert

WORDS, WIDTH, LENGTH = 19, 5, 7

_random = np.random.default_rng(0)
TABLE = _random.normal(size=(WORDS, WIDTH)).astype(np.float32)
HEADS = tuple(_random.normal(size=(WORDS, WIDTH)).astype(np.float32) for _ in range(2))
TEXTS = [
    {"ids": _random.integers(0, WORDS, (1, LENGTH)).astype(np.int32)},
    {"ids": _random.integers(0, WORDS, (1, LENGTH)).astype(np.int32)},
]
IDS = {"ids": np.zeros((1, LENGTH), np.int32)}


def language_model(head, *, finish=lambda logits, name: mb.identity(x=logits, name=name)):
    """Tokens [1, T] to logits [1, T, V], each of its own token only, and what ``finish`` makes."""

    def build(ids):
        vectors = mb.gather(x=TABLE, indices=ids, axis=0)
        return finish(mb.linear(x=vectors, weight=head), "logits")

    return convert(build, IDS)


def masked_model(head):
    """The same, with a mask [1, T] that the vectors of the tokens are multiplied by."""

    def build(ids, mask):
        vectors = mb.gather(x=TABLE, indices=ids, axis=0)
        seen = mb.expand_dims(x=mb.cast(x=mask, dtype="fp32"), axes=[-1])
        return mb.linear(x=mb.mul(x=vectors, y=seen), weight=head, name="logits")

    return convert(build, IDS | {"mask": np.ones((1, LENGTH), np.int32)})


def logits_of(head, ids):
    """Logits [T, V] in float64."""
    return TABLE[ids[0]].astype(np.float64) @ head.astype(np.float64).T
