"""The inventory of a model against numpy's own counting."""

import json

import numpy as np
import pytest

from mlopt.choices import SORT_KEYS
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, decompress, palettize
from mlopt.coreml.inspection import inspect_weights, package_bytes
from mlopt.coreml.weights import Weight, weights_of
from mlopt.errors import ConfigError, ModelFormatError
from mlopt.mil.opening import open_package


def test_statistics_are_numpys(package_of):
    package = package_of("convolutional")
    weights, _ = weights_of(open_package(package))
    inventory = inspect_weights(package)
    assert len(inventory.rows) == len(weights) == inventory.weights_in_all
    for row, weight in zip(inventory.rows, weights, strict=True):
        value = weight.value().astype(np.float64)
        assert (row.name, row.shape, row.nbytes) == (weight.name, weight.shape, weight.nbytes)
        assert row.distinct == len(np.unique(value))
        assert row.sparsity == np.mean(np.abs(value) <= 1e-12)


def test_a_compressed_weight_is_one_row(digits, tmp_path):
    newer = digits.with_name("digits-iOS18.mlpackage")
    configuration = OptimizationConfig(OpPalettizerConfig(nbits=2))
    result = palettize(newer, configuration, output=tmp_path / "out")
    inventory = inspect_weights(result.path)
    plain = inspect_weights(newer)
    assert [row.name for row in inventory.rows] == [row.name for row in plain.rows]
    dense = inspect_weights(decompress(result.path, tmp_path / "dense.mlpackage").path)
    for row, other in zip(inventory.rows, dense.rows, strict=True):
        assert (row.shape, row.dtype, row.consumers) == (other.shape, other.dtype, other.consumers)
        assert (row.distinct, row.sparsity) == (other.distinct, other.sparsity)
    compressed = {row.name: row for row in inventory.rows if row.compression is not None}
    assert {row.name for row in result.report.palettized} == set(compressed)
    for row in result.report.palettized:
        found = compressed[row.name]
        assert found.nbytes == row.bytes_after == found.compression.nbytes
        assert found.compression.nbits == 2
        assert found.compression.bits_per_weight == pytest.approx(row.bits_per_weight)
        assert found.distinct <= 4
    assert inventory.nbytes == inventory.bytes_in_all
    assert json.loads(inventory.to_json())["rows"][0]["compression"] is None


def test_patterns_name_weights_operations_and_types(digits):
    def names(*patterns, **options):
        return [row.name for row in inspect_weights(digits, patterns=patterns, **options).rows]

    assert names("conv1_bias_to_fp16") == ["conv1_bias_to_fp16"]
    assert names("linear_1_cast_fp16") == ["head_weight_to_fp16", "head_bias_to_fp16"]
    assert names("conv", min_size=1000) == ["conv2_weight_to_fp16"]
    assert names("nothing*") == []
    assert len(names()) == 8


@pytest.mark.parametrize("key", SORT_KEYS)
def test_rows_are_sorted(digits, key):
    inventory = inspect_weights(digits)
    column = {"bytes": "nbytes"}.get(key, key)
    ordered = inventory.sorted_by(key)
    assert sorted(row.name for row in ordered.rows) == sorted(row.name for row in inventory.rows)
    if key != "order":
        values = [getattr(row, column) for row in ordered.rows]
        assert values == sorted(values, reverse=key != "name")


def test_what_was_not_computed_is_no_order(digits):
    inventory = inspect_weights(digits, statistics=False)
    with pytest.raises(ConfigError, match="statistics"):
        inventory.sorted_by("distinct")
    with pytest.raises(ConfigError, match="sort key"):
        inventory.sorted_by("colour")


def test_every_weight_is_given_back(digits, monkeypatch):
    released = []
    monkeypatch.setattr(Weight, "release", lambda weight: released.append(weight.name))
    calls = []
    rows = inspect_weights(digits, progress=lambda *call: calls.append(call)).rows
    assert sorted(released) == sorted(row.name for row in rows)
    assert [name for _, _, name in calls] == [row.name for row in rows]
    assert calls[-1][0] == calls[-1][1] == sum(row.size for row in rows)
    released.clear()
    inspect_weights(digits, statistics=False)
    assert released == []


@pytest.mark.parametrize("kind", ["multifunction", "pipeline", "stateful", "control_flow"])
def test_models_of_every_kind_have_an_inventory(package_of, kind):
    inventory = inspect_weights(package_of(kind, "iOS18"))
    assert inventory.target == "iOS18"
    assert inventory.rows
    assert json.loads(inventory.to_json())["totals"]["bytes"] == inventory.nbytes
    if kind == "multifunction":
        assert any(len(row.functions) > 1 for row in inventory.rows)


def test_a_package_counts_all_its_files(tmp_path):
    (tmp_path / "Data" / "weights").mkdir(parents=True)
    (tmp_path / "Manifest.json").write_bytes(b"12345")
    (tmp_path / "Data" / "weights" / "weight.bin").write_bytes(bytes(1000))
    assert package_bytes(tmp_path) == 1005


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelFormatError):
        inspect_weights(tmp_path)
