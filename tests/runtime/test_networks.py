"""Whole networks, converted by coremltools, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from mlopt.runtime import load
from tests.runtime.networks import NETWORKS, converted, expected, network

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18")


def predicted(name, target, precision, computed):
    _, inputs = network(name)
    program = load(converted(name, target, precision), precision=computed)
    found = program.predict({n: x.numpy() for n, x in inputs.items()})
    return [found[output] for output in program.outputs]


def assert_near(found, wanted, relative):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= relative * np.abs(b).max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.covering(1)
def test_float32_programs(name, target):
    assert_near(predicted(name, target, "float32", "float32"), expected(name), 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@pytest.mark.parametrize("computed", ["float32", "as_declared"])
@pytest.mark.covering(1)
def test_float16_programs(name, target, computed):
    # weights are rounded to 11 bits; computed as declared, everything is
    relative = 3e-3 if computed == "float32" else 2e-2
    assert_near(predicted(name, target, "float16", computed), expected(name), relative)
