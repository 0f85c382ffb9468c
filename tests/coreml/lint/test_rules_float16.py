"""The rules about float16: what overflows or vanishes in it, and what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import lint
from mlopt.coreml.lint import RULES
from tests import models
from tests.runtime.programs import convert

RULES_OF_FLOAT16 = [
    name for name, rule in RULES.items() if rule.check.__module__.endswith("rules_float16")
]
WIDTH = 16


def half(value):
    return np.float16(value)


def halves(build):
    """A program that casts its input to float16, does what ``build`` says, and casts back."""

    def body(x):
        return mb.cast(x=build(mb.cast(x=x, dtype="fp16")), dtype="fp32")

    return convert(body, {"x": np.ones((1, 4, WIDTH), np.float32)}, target="iOS16")


def found(model, rules=RULES_OF_FLOAT16):
    """What the rules find: for each rule and severity, the operations that it names."""
    return {
        (finding.rule, finding.severity): finding.place.operations
        for finding in lint(model, select=rules)
    }


def mean(x, name="mean"):
    return mb.reduce_mean(x=x, axes=[-1], keep_dims=True, name=name)


def mask(value, operation=mb.add, keep=0):
    """A mask in four rows, in the last of which ``keep`` numbers are left."""
    low = np.zeros((4, WIDTH), np.float16)
    with np.errstate(over="ignore"):
        low[3, keep:] = value
    return lambda x: mb.softmax(x=operation(x=x, y=low, name="masked"), axis=-1)


EPSILON = ("epsilon-lost-in-float16", "warning")
SQUARES = ("squares-in-float16", "note")
EXPONENTIALS = ("exponentials-in-float16", "warning")
BEYOND = ("beyond-float16", "note")

CASES = {
    "epsilon of an operation": (
        lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=half(1e-12), name="norm"),
        {EPSILON: ("layer_norm(norm)",)},
    ),
    "epsilon that is added": (
        lambda x: mb.rsqrt(x=mb.add(x=mb.relu(x=x), y=half(1e-12), name="plus"), epsilon=half(1)),
        {EPSILON: ("add(plus)",)},
    ),
    "epsilon of a maximum": (
        lambda x: mb.real_div(x=x, y=mb.maximum(x=x, y=half(1e-9), name="floor")),
        {EPSILON: ("maximum(floor)",)},
    ),
    "products of themselves": (
        lambda x: mean(mb.mul(x=x, y=x)),
        {SQUARES: ("reduce_mean(mean)",)},
    ),
    "powers of two": (
        lambda x: mb.reduce_sum(x=mb.pow(x=x, y=half(2)), axes=[-1], name="sum"),
        {SQUARES: ("reduce_sum(sum)",)},
    ),
    "squares that are moved": (
        lambda x: mean(mb.reshape(x=mb.square(x=x), shape=[4, WIDTH])),
        {SQUARES: ("reduce_mean(mean)",)},
    ),
    "an operation of squares": (
        lambda x: mb.reduce_sum_square(x=x, axes=[-1], name="sum"),
        {SQUARES: ("reduce_sum_square(sum)",)},
    ),
    "softplus": (
        lambda x: mb.softplus(x=x, name="soft"),
        {EXPONENTIALS: ("softplus(soft)",)},
    ),
    "a sum of exponentials": (
        lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1], name="lse"),
        {EXPONENTIALS: ("reduce_log_sum_exp(lse)",)},
    ),
    "the logarithm of a softmax": (
        lambda x: mb.log(x=mb.softmax(x=x, axis=-1), epsilon=half(1e-3), name="log"),
        {EXPONENTIALS: ("log(log)",)},
    ),
    "infinite masks": (mask(-np.inf), {BEYOND: ("add(masked)",)}),
    "masks that became infinite": (mask(-1e9), {BEYOND: ("add(masked)",)}),
    "infinity times zero": (
        mask(np.inf, mb.mul),
        {("beyond-float16", "warning"): ("mul(masked)",)},
    ),
    "masks that are cast later": (
        lambda x: mb.cast(
            x=mb.reshape(
                x=mb.add(x=mb.cast(x=x, dtype="fp32"), y=np.float32(-3.4028e38), name="masked"),
                shape=[4, WIDTH],
            ),
            dtype="fp16",
        ),
        {BEYOND: ("add(masked)",)},
    ),
    # --- what is in order
    "an epsilon that float16 has": (
        lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=half(1e-5)),
        {},
    ),
    "zero that is added to what is not guarded": (
        lambda x: mb.exp(x=mb.maximum(x=mb.add(x=x, y=half(0)), y=half(0))),
        {},
    ),
    "a product with another": (lambda x: mean(mb.mul(x=x, y=mb.exp(x=x))), {}),
    "a power of three": (lambda x: mean(mb.pow(x=x, y=half(3))), {}),
    "a norm in one operation": (
        lambda x: mb.real_div(x=x, y=mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True)),
        {},
    ),
    "a sum of something else": (lambda x: mean(mb.exp(x=x)), {}),
    "a mask that leaves a number in each row": (mask(-np.inf, keep=3), {}),
    "masks that float16 has": (mask(-1e4), {}),
    "the least number of float16": (mask(-65504), {}),
    "infinite ends": (lambda x: mb.maximum(x=x, y=half(-np.inf)), {}),
    "infinite padding": (
        lambda x: mb.max_pool(
            x=mb.pad(x=x, pad=[1, 1], mode="constant", constant_val=half(-np.inf)),
            kernel_sizes=[3],
            strides=[1],
            pad_type="valid",
        ),
        {},
    ),
    "large numbers of float32": (
        lambda x: mb.cast(
            x=mb.sigmoid(x=mb.add(x=mb.cast(x=x, dtype="fp32"), y=np.float32(-1e9))), dtype="fp16"
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_rules_find(case):
    build, expected = CASES[case]
    assert found(halves(build)) == expected


def test_float32_has_no_such_findings():
    def build(x):
        norm = mb.rsqrt(x=mean(mb.square(x=x)), epsilon=np.float32(0))
        low = np.where(np.arange(WIDTH) < 3, 0, -np.inf).astype(np.float32)
        return mb.softplus(x=mb.add(x=mb.mul(x=x, y=norm), y=low))

    model = convert(build, {"x": np.ones((1, 4, WIDTH), np.float32)}, target="iOS16")
    assert found(model) == {}


def test_operations_of_one_kind_are_one_finding():
    def build(x):
        for number in range(5):
            x = mb.real_div(x=x, y=mb.sqrt(x=mean(mb.square(x=x), f"mean_{number}")))
        return x

    (finding,) = lint(halves(build), select=["squares-*"])
    assert finding.place.operation == "reduce_mean(mean_0) and 4 more"
    assert "mlopt compare --float16 MODEL" in finding.remedy
    assert list(lint(halves(build), select=["squares-*"], ignore=["*:mean_3"])) == []


@pytest.mark.parametrize("rule", RULES_OF_FLOAT16)
def test_every_rule_points_to_the_measurement(rule):
    assert "`mlopt compare --float16 MODEL`" in RULES[rule].remedy


@pytest.mark.parametrize("kind", [kind for kind in models.KINDS if kind != "pipeline"])
def test_networks_as_converted_have_none_of_it(kind):
    target = "iOS18" if kind not in models.kinds("iOS15") else "iOS17"
    assert found(models.build(kind, target)) == {}
