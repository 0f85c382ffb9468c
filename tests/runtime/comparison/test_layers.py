"""At which weights errors enter."""

from __future__ import annotations

import json
import math

import numpy as np
from coremltools.converters.mil import Builder as mb

import mlopt.coreml as cto
from mlopt.runtime import compare
from tests.runtime.comparison.small_models import (
    ONE,
)
from tests.runtime.networks import converted
from tests.runtime.programs import convert


def test_layers_show_which_weight_is_to_blame():
    model = converted("encoder", "iOS16")
    weights = list(cto.get_weights_metadata(model, weight_threshold=512))
    guilty = next(name for name in weights if "up" in name or "down" in name)
    config = cto.OptimizationConfig(
        op_name_configs={guilty: cto.OpPalettizerConfig(nbits=1, weight_threshold=0)}
    )
    result = compare(model, cto.palettize_weights(model, config), random=2, layers=True)
    rows = {row.weights[0]: row for row in result.layers if row.weights}
    bad = [name for name, row in rows.items() if row.entering.snr_db < 200]
    assert len(bad) == 1
    place = [row.weights[0] for row in result.layers].index(bad[0])
    assert all(row.so_far.snr_db == math.inf for row in result.layers[:place])
    after = [row for row in result.layers[place + 1 :] if row.so_far.snr_db < 200]
    assert after
    assert all(row.entering.snr_db == math.inf for row in after)


def two_layers(inner):
    random = np.random.default_rng(1)

    def build(x):
        first = random.normal(size=(inner, 4)).astype(np.float32)
        hidden = mb.relu(x=mb.linear(x=x, weight=first, name="first"))
        last = random.normal(size=(2, inner)).astype(np.float32)
        return mb.linear(x=hidden, weight=last, name="last")

    return convert(build, {"x": ONE})


def test_layers_of_other_shapes_are_rows_all_the_same():
    found = compare(two_layers(16), two_layers(24), random=2, layers=True)
    first, last = found.layers
    assert (first.name, first.mismatch) == ("first", "shapes differ [1, 16] / [1, 24]")
    assert last.mismatch == "weight differs [2, 16] / [2, 24]"
    assert math.isnan(first.entering.snr_db)
    assert math.isnan(first.so_far.snr_db)
    assert math.isfinite(last.so_far.snr_db)
    text = str(found)
    assert "shapes differ [1, 16] / [1, 24]" in text
    assert "weight differs [2, 16] / [2, 24]" in text
    values = json.loads(found.to_json())["layers"]
    assert [value["mismatch"] for value in values] == [first.mismatch, last.mismatch]


def test_layers_of_other_types_are_rows_all_the_same():
    weight = np.ones((4, 4), np.float32)
    first = convert(lambda x: mb.linear(x=x, weight=weight, name="y"), {"x": ONE})
    second = convert(lambda x: mb.matmul(x=x, y=weight, name="y"), {"x": ONE})
    (row,) = compare(first, second, random=1, layers=True).layers
    assert row.mismatch == "types differ linear / matmul"
    assert row.so_far.snr_db > 100
