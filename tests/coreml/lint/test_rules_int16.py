"""Casts of integers to narrower ones: what is proven to fit, what may not, what does not."""

from __future__ import annotations

from functools import partial

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import lint
from tests import models
from tests.models import quietly
from tests.runtime.programs import convert

TOKENS = {"tokens": np.zeros((1, 8), np.int32)}


def table(rows):
    return np.zeros((rows, 2), np.float16)


def narrowed(build, dtype="int16"):
    """Make a program that narrows what ``build`` makes of its input, and only that, when called."""
    return partial(
        convert,
        lambda tokens: mb.cast(
            x=mb.cast(x=build(tokens), dtype=dtype, name="narrow"), dtype="fp32"
        ),
        TOKENS,
        target="iOS17",
    )


def looked_up(rows, dtype="int16", before=lambda x: x, after=lambda x: x):
    def build(tokens):
        index = after(mb.cast(x=before(tokens), dtype=dtype, name="narrow"))
        return mb.gather(x=table(rows), indices=index, axis=0, validate_indices=False)

    return partial(convert, build, TOKENS, target="iOS17")


def wrapped(length):
    def wrap(x):
        low = mb.add(x=x, y=np.int32(length))
        return mb.select(cond=mb.greater_equal(x=x, y=np.int32(0)), a=x, b=low)

    return wrap


def found(model):
    made = model() if isinstance(model, partial) else model
    return [(f.severity, f.what) for f in lint(made, select=["narrowing-cast"])]


def bounded(low, high):
    return lambda x: mb.maximum(x=mb.minimum(x=x, y=np.int32(high)), y=np.int32(low))


FITS = {
    "indices into 32,768 rows": looked_up(32768),
    "indices that are moved": looked_up(100, after=lambda x: mb.squeeze(x=x, axes=[0])),
    "uint16 of indices that were wrapped": looked_up(65536, "uint16", before=wrapped(65536)),
    "what is bounded": narrowed(bounded(-32768, 32767)),
    "what is bounded from zero on": narrowed(bounded(0, 65535), "uint16"),
    "remainders": narrowed(lambda x: mb.mod(x=x, y=np.int32(32768))),
    "comparisons": narrowed(lambda x: mb.cast(x=mb.less(x=x, y=np.int32(3)), dtype="int32")),
    "places": narrowed(lambda x: mb.reduce_argmax(x=mb.cast(x=x, dtype="fp32"), axis=1)),
    "numbers of a table": narrowed(
        lambda x: mb.gather(
            x=np.array([5, -7, 30000], np.int32), indices=x, axis=0, validate_indices=False
        )
    ),
    "sums of what is bounded": narrowed(lambda x: mb.add(x=bounded(0, 30000)(x), y=np.int32(2767))),
    "lengths": narrowed(lambda x: mb.shape(x=x)),
}


@pytest.mark.parametrize("case", FITS)
def test_what_is_proven_to_fit_is_not_told(case):
    assert found(FITS[case]) == []


UNSURE = {
    "numbers of an input": (narrowed(lambda x: x), "their range is not known"),
    "sums that may be beyond": (
        narrowed(lambda x: mb.add(x=bounded(0, 30000)(x), y=np.int32(2768))),
        "numbers from 2,768 to 32,768",
    ),
    "uint16 of what may be below zero": (
        narrowed(bounded(-1, 5), "uint16"),
        "numbers from -1 to 5",
    ),
    "uint16 of indices": (looked_up(100, "uint16"), "indices that count from the end"),
    "fewer bits": (narrowed(bounded(0, 300), "uint8"), "numbers from 0 to 300"),
}


@pytest.mark.parametrize("case", UNSURE)
def test_what_may_not_fit_is_a_note(case):
    model, what = UNSURE[case]
    ((severity, said),) = found(model)
    assert severity == "note"
    assert what in said


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (looked_up(32769), "int32 to int16 (-32,768 to 32,767): indices into 32,769 rows"),
        (looked_up(65537, "uint16", before=wrapped(65537)), "indices into 65,537 rows"),
    ],
)
def test_what_does_not_fit_is_a_warning(model, what):
    ((severity, said),) = found(model)
    assert severity == "warning"
    assert what in said


def test_floats_that_become_indices():
    def build(rows):
        def program(x):
            index = mb.cast(x=x, dtype="int16", name="narrow")
            return mb.gather(x=table(rows), indices=index, axis=0, validate_indices=False)

        return convert(program, {"x": np.zeros((1, 8), np.float32)}, target="iOS17")

    assert found(build(32768)) == []
    ((severity, said),) = found(build(32769))
    assert (severity, said[:13]) == ("warning", "fp32 to int16")


def test_indices_into_several_axes():
    def build(shape):
        def program(tokens):
            places = mb.cast(x=mb.reshape(x=tokens, shape=[4, 2]), dtype="int16")
            return mb.gather_nd(x=np.zeros(shape, np.float16), indices=places)

        return convert(program, TOKENS, target="iOS17")

    assert found(build((32768, 3))) == []
    assert found(build((3, 32768))) == []
    ((severity, said),) = found(build((3, 32769)))
    assert (severity, "32,769 rows" in said) == ("warning", True)


def test_places_along_a_long_axis():
    def build(length):
        def program(x):
            places = mb.reduce_argmax(x=x, axis=-1, output_dtype="uint16", name="best")
            return mb.cast(x=places, dtype="int32")

        return convert(program, {"x": np.zeros((1, length), np.float32)}, target="iOS17")

    assert found(build(65536)) == []
    ((severity, said),) = found(build(65537))
    assert severity == "warning"
    assert said == "places along 65,537 elements as uint16, up to 65,535"


def converted(rows, build=None):
    """What coremltools itself makes of a lookup, with all its passes."""

    def lookup(tokens):
        return mb.gather(x=np.ones((rows, 4), np.float32), indices=tokens, axis=0)

    spec = [mb.TensorSpec((1, 8), ct.converters.mil.mil.types.int32)]
    program = mb.program(input_specs=spec, opset_version=ct.target.iOS17)(build or lookup)
    return quietly(
        ct.convert, program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True
    )


def test_what_coremltools_narrows():
    short = converted(1000)
    (function,) = short.get_spec().mlProgram.functions.values()
    operations = function.block_specializations[function.opset].operations
    assert "int16" in [
        op.outputs[0].name.rsplit("_", 1)[-1] for op in operations if op.type == "cast"
    ]
    assert found(short) == []
    assert found(converted(40000)) == []  # it does not narrow these itself
    # but it narrows the numbers that are looked up: apple/coremltools #2222
    data = converted(0, lambda tokens: mb.gather(x=tokens, indices=np.array([1, 0]), axis=1))
    ((severity, said),) = found(data)
    assert (severity, "range is not known" in said) == ("note", True)


def test_a_transformer_has_none_of_it():
    assert found(models.build("transformer", "iOS17")) == []


def test_far_back_nothing_is_known():
    def build(x):
        for _ in range(200):
            x = mb.add(x=x, y=np.int32(1))
        return x

    ((severity, _),) = found(narrowed(build))
    assert severity == "note"
