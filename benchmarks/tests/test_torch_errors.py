"""Errors weighted by sensitivity, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.lib import torch_errors
from benchmarks.lib.clustering_error import compare
from benchmarks.lib.torch_errors import (
    LEAST_SENSITIVITY,
    errors_of_modules,
    normalized,
    sensitivities,
    stored_weights,
    weighted_error,
)
from benchmarks.tasks.task import Task


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return nn.Sequential(layer)


def total(module: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    return module(sample).sum()


def test_weighted_error_is_in_float64() -> None:
    original = np.array([[1.0, 2.0]], np.float32)
    stored = np.array([[1.5, 4.0]], np.float32)
    assert weighted_error(original, stored, np.array([[2.0, 0.5]], np.float32)) == 2.5


def test_sensitivities_are_sums_of_squares_and_not_squares_of_sums() -> None:
    module = linear([[1.0, 1.0]])
    samples = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 2.0]])]
    found = sensitivities(module, samples, total)["0.weight"]
    np.testing.assert_array_equal(found, [[2 / 8, 1.0]])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_zeros_take_the_least_sensitivity_that_is_not_zero() -> None:
    np.testing.assert_array_equal(normalized(np.array([0.0, 1.0, 4.0])), [0.25, 0.25, 1.0])
    np.testing.assert_array_equal(normalized(np.array([1.0, 1e20])), [LEAST_SENSITIVITY, 1.0])
    np.testing.assert_array_equal(normalized(np.zeros(2)), [1.0, 1.0])


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    def write(weight: list[list[float]]) -> str:
        path = tmp_path / "weights.npz"
        np.savez(path, **{"0.weight": np.array(weight, np.float32)})
        return str(path)

    return write


def test_archives_are_read_by_name(archive: Any) -> None:
    ((name, original, stored),) = stored_weights(linear([[1.0, 2.0]]), Path(archive([[1.0, 3.0]])))
    assert name == "0.weight"
    np.testing.assert_array_equal(original, [[1, 2]])
    np.testing.assert_array_equal(stored, [[1, 3]])


def test_errors_of_modules(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Task(linear([[0.0, 1.0, 4.0]]), {}, (torch.tensor([[1.0, 1.0, 2.0]]),), total)
    monkeypatch.setattr(torch_errors, "task", lambda name: given)
    arguments: dict[str, Any] = {"source": "any", "settings": {"n_bits": 1}, "sensitive": True}
    rows = errors_of_modules(outputs={"a": archive([[0.5, 0.5, 4.0]])}, **arguments)["a"]
    assert [(row["name"], row["size"]) for row in rows] == [("0.weight", 3)]
    assert rows[0]["squared_error"] == 0.5
    assert rows[0]["weighted_error"] == 0.125
    assert errors_of_modules(outputs={"a": archive([[0.0, 1.0, 4.0]])}, **arguments) == {"a": []}
    with pytest.raises(RuntimeError, match="3 values under one table of 1 bits"):
        errors_of_modules(outputs={"a": archive([[0.5, 1.0, 4.0]])}, **arguments)


def test_each_group_has_a_table_of_its_own(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Task(linear([[0.0, 1.0], [2.0, 3.0]]))
    monkeypatch.setattr(torch_errors, "task", lambda name: given)
    settings = {"n_bits": 1, "group_size": 1}
    outputs = {"a": archive([[0.0, 1.0], [2.0, 4.0]])}
    rows = errors_of_modules("any", outputs, settings, sensitive=False)["a"]
    assert "weighted_error" not in rows[0]


def test_comparison_by_another_metric() -> None:
    ours = [{"name": "w", "squared_error": 3.0, "weighted_error": 1.0}]
    theirs = [{"name": "w", "squared_error": 2.0, "weighted_error": 4.0}]
    assert compare(ours, theirs)["violations"] == 1
    assert compare(ours, theirs, metric="weighted_error")["ratio_max"] == 0.25
