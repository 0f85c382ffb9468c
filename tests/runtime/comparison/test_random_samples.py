"""Samples that are drawn to fit a model."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.errors import InputError
from mlopt.runtime import compare, load
from mlopt.runtime.comparison.random_samples import random_samples
from tests.runtime.comparison.small_models import (
    ONE,
    in_a_pipeline,
    palettized,
)
from tests.runtime.networks import converted
from tests.runtime.programs import convert


def test_random_samples_fit_the_model():
    program = load(converted("encoder", "iOS15"))
    samples = random_samples(program, 20, seed=3)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert tokens.dtype == np.int32
    assert 50 < tokens.max() < 100  # rows of the embedding
    assert set(np.unique([sample["mask"] for sample in samples])) == {0, 1}
    again = random_samples(program, 20, seed=3)
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(samples, again, strict=True))


def indexed(build, table=100, dtype=np.int32, target="iOS15"):
    """Tokens drawn for a program that looks rows of a table up at what is built of them."""
    weight = np.zeros((table, 3), np.float32)

    def program(tokens):
        return mb.gather(x=weight, indices=build(tokens), axis=0)

    given = {"tokens": np.zeros((2, 4), dtype)}
    samples = random_samples(load(convert(program, given, target=target)), 30)
    return np.concatenate([sample["tokens"].reshape(-1) for sample in samples])


def wrapped(x):
    """What coremltools writes for indices from iOS17 on."""
    return mb.select(cond=mb.greater_equal(x=x, y=0), a=x, b=mb.add(x=x, y=100))


def joined(x):
    return mb.concat(values=[x, mb.reverse(x=x, axes=[1])], axis=0)


MOVED = {
    "as it is": lambda x: mb.identity(x=x),
    "wrapped": lambda x: wrapped(x),
    "reshaped": lambda x: mb.squeeze(x=mb.expand_dims(x=mb.reshape(x=x, shape=[8]), axes=[0])),
    "transposed": lambda x: wrapped(mb.transpose(x=x, perm=[1, 0])),
    "sliced": lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[2, 4]),
    "of a size": lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=[2, 2]),
    "split": lambda x: mb.split(x=x, num_splits=2, axis=1)[1],
    "joined": lambda x: wrapped(joined(x)),
    "stacked": lambda x: mb.stack(values=[x, x], axis=0),
    "gathered": lambda x: mb.gather(x=x, indices=np.array([1, 0], np.int32), axis=1),
    "clipped": lambda x: mb.maximum(x=x, y=0),
}


@pytest.mark.parametrize("moved", MOVED)
def test_random_indices_are_rows_of_the_table(moved):
    tokens = indexed(MOVED[moved])
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert 60 < tokens.max() < 100


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_random_floats_that_index_are_whole(target):
    tokens = indexed(
        lambda x: wrapped(mb.cast(x=x, dtype="int32")), dtype=np.float32, target=target
    )
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens, np.trunc(tokens))
    assert tokens.min() >= 0
    assert 60 < tokens.max() < 100


def test_random_floats_whose_places_index_stay_floats():
    def build(x):
        _, places = mb.topk(x=x, k=2, axis=1)
        return mb.gather_along_axis(x=x, indices=places, axis=1)

    (sample,) = random_samples(load(convert(build, {"x": ONE})), 1)
    assert (sample["x"] != np.trunc(sample["x"])).any()


def test_random_indices_into_several_axes():
    def build(places):
        return mb.gather_nd(x=np.zeros((50, 9), np.float32), indices=places)

    given = {"places": np.zeros((40, 2), np.int32)}
    (sample,) = random_samples(load(convert(build, given)), 1)
    assert 4 < sample["places"].max() < 9
    (sample,) = random_samples(load(convert(build, {"places": given["places"][:, :1]})), 1)
    assert 9 < sample["places"].max() < 50


@pytest.mark.parametrize(
    ("target", "nbits"),
    [
        ("iOS15", None),
        *((target, nbits) for target in ("iOS16", "iOS17", "iOS18") for nbits in (None, 4)),
    ],
)
def test_random_tokens_of_every_target(target, nbits):
    model = converted("encoder", target) if nbits is None else palettized("encoder", 4, target)[1]
    samples = random_samples(load(model), 20, seed=3)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert 50 < tokens.max() < 100
    assert set(np.unique([sample["mask"] for sample in samples])) == {0, 1}


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (0, 0, "at least one sample"),
        (2.5, 0, "an integer, got 2.5"),
        (1, -1, "seed must be an integer from 0 .* got -1"),
        (1, 0.5, "seed must be"),
        (1, 2**64, "seed must be"),
    ],
)
def test_what_cannot_be_drawn(count, seed, message):
    with pytest.raises(InputError, match=message):
        compare(
            converted("residual", "iOS16"), converted("residual", "iOS16"), random=count, seed=seed
        )


def test_random_indices_of_a_pipeline():
    tokens, table = {"tokens": np.zeros((1, 8), np.int32)}, np.zeros((100, 3), np.float32)
    first = convert(lambda tokens: mb.identity(x=tokens, name="between"), tokens)
    second = convert(
        lambda between: mb.gather(x=table, indices=wrapped(between)), {"between": tokens["tokens"]}
    )
    samples = random_samples(load(in_a_pipeline(first, second)), 10)
    assert 60 < max(sample["tokens"].max() for sample in samples) < 100
