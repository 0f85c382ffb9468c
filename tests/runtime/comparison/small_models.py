"""Models and rows that comparisons are tested with."""

from __future__ import annotations

import math
import warnings

import coremltools as ct
import numpy as np
import torch

import mlopt.coreml as cto
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.rows import LayerRow
from tests.runtime.networks import converted


def palettized(name, nbits, target="iOS16"):
    config = cto.OptimizationConfig(
        global_config=cto.OpPalettizerConfig(nbits=nbits, weight_threshold=0)
    )
    model = converted(name, target)
    return model, cto.palettize_weights(model, config)


def distance(a, b):
    found = Distance()
    found.add(torch.tensor(a), torch.tensor(b))
    return found


def layer(name, entering, so_far=None, mismatch=None):
    return LayerRow(name, "linear", (name,), entering, so_far or entering, mismatch)


LAYERS = (
    layer("good", distance([10.0], [10.1])),
    layer("equal", distance([1.0], [1.0])),
    layer("nan", distance([1.0], [math.nan])),
    layer("bad", distance([1.0], [1.5])),
    layer("endless", distance([0.0], [1.0])),
    layer("other", Distance(), Distance(), "shapes differ [1, 16] / [1, 24]"),
)


ONE = np.ones((1, 4), np.float32)


def in_a_pipeline(first, second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.utils.make_pipeline(first, second)


SAMPLES = [{"x": np.random.default_rng(n).normal(size=(1, 8)).astype(np.float32)} for n in range(3)]
