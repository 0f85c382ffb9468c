"""What results are added to, read off programs."""

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.calibration.sequential.streams import Streams
from mlopt.runtime import load
from tests.runtime.programs import convert

W = np.eye(4, dtype=np.float32)
SAMPLE = {"x": np.ones((2, 4), np.float32)}
BIAS = np.arange(4, dtype=np.float32)


def linear(x):
    return mb.linear(x=x, weight=W, name="layer")


def plain(x):
    return mb.add(x=x, y=linear(mb.relu(x=x)))


def the_other_way_round(x):
    return mb.add(x=linear(mb.relu(x=x)), y=x)


def with_a_constant_between(x):
    return mb.add(x=mb.add(x=linear(mb.relu(x=x)), y=BIAS), y=x)


def nothing_added(x):
    return mb.relu(x=linear(x))


def read_twice(x):
    y = linear(mb.relu(x=x))
    return mb.mul(x=mb.add(x=x, y=y), y=y)


def computed_after(x):
    y = linear(mb.relu(x=x))
    return mb.add(x=y, y=mb.tanh(x=x))


def added_to_itself(x):
    y = linear(mb.relu(x=x))
    return mb.add(x=y, y=y)


def an_output(x):
    y = linear(mb.relu(x=x))
    return mb.add(x=x, y=y), y


@pytest.mark.parametrize(
    ("program", "has_stream"),
    [
        (plain, True),
        (the_other_way_round, True),
        (with_a_constant_between, True),
        (nothing_added, False),
        (read_twice, False),
        (computed_after, False),
        (added_to_itself, False),
        (an_output, False),
    ],
)
def test_the_tensor_that_a_result_is_added_to(program, has_stream):
    plan = load(convert(program, SAMPLE)).plan
    streams = Streams(plan.body, tuple(plan.inputs.values()))
    (layer,) = (step for step in plan.body.steps if step.node.op_type == "linear")
    assert streams.added_to(layer) == (plan.inputs["x"] if has_stream else None)
