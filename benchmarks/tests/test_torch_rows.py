"""The rows and tasks of the torch jobs, and what counts as a failure of them."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import pytest
import torch

from benchmarks.lib import measured_row
from benchmarks.lib.child import ChildError
from benchmarks.lib.job_table import print_jobs
from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.rows import BY_NAME
from benchmarks.lib.torch_rows import TORCH_ROWS
from benchmarks.tasks.job_tasks import BUILDERS, task
from benchmarks.tasks.task import matrices


def test_every_row_has_its_tasks() -> None:
    for row in TORCH_ROWS:
        assert {row.model, row.warmup_model} <= set(BUILDERS)


def test_tasks_are_the_same_each_time() -> None:
    first, second = task("warmup-perceptron"), task("warmup-perceptron")
    for (_, mine), (_, other) in zip(matrices(first.module), matrices(second.module), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(first.samples[1][0], second.samples[1][0])


def test_no_gradient_reaches_the_unused_layer() -> None:
    given = task("unused-layer")
    assert given.loss is not None
    given.loss(given.module, given.samples[0]).backward()
    missing = {name for name, each in given.module.named_parameters() if each.grad is None}
    assert missing == {"unused.0.weight", "unused.0.bias"}


def options(**given: Any) -> argparse.Namespace:
    defaults = {
        "skip_reference": False,
        "only_reference": False,
        "with_reference": False,
        "skip_memory": False,
        "json": None,
        "repeats": 1,
    }
    return argparse.Namespace(**{**defaults, **given})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the child processes answer, by the name of the function; an exception is raised."""
    given: dict[str, Any] = {}

    def call(target: str, **arguments: Any) -> Any:
        answer = given[target.partition(":")[2]]
        if isinstance(answer, Exception):
            raise answer
        return copy.deepcopy({key: answer[key] for key in arguments.get("variants", answer)})

    monkeypatch.setattr(measured_row.child, "call", call)  # type: ignore[attr-defined]
    return given


def measured(name: str, **given: Any) -> list[dict[str, Any]]:
    return measured_row.measure_rows(
        [BY_NAME[name]], options(**given), "test", lambda row, source, lines: None
    )


def peak(value: float) -> dict[str, float]:
    return {"peak_above_imports_bytes": value}


def test_an_error_that_coremltools_is_known_to_raise_is_no_failure(
    answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"error": "...\nAttributeError: 'NoneType' object has no attribute 'cpu'"}
    answers["time_row"] = {REFERENCE: known, PROJECT: {"wall_s": [1.0]}}
    answers["peak_of"] = peak(1e6)
    results = measured("sensitive4-unused-layer")
    assert print_jobs("test", results, (), lambda line: ()) == 0
    assert "failed" in capsys.readouterr().out

    answers["time_row"] = {REFERENCE: {"error": "MemoryError"}, PROJECT: {"wall_s": [1.0]}}
    assert print_jobs("test", measured("sensitive4-unused-layer"), (), lambda line: ()) == 1
    answers["time_row"] = {REFERENCE: {"wall_s": [1.0]}, PROJECT: known}
    assert print_jobs("test", measured("sensitive4-unused-layer"), (), lambda line: ()) == 1


@pytest.mark.parametrize(("bytes_", "status"), [(1.5e9, 0), (1.5e9 + 1, 1)])
def test_a_peak_above_the_limit_is_a_failure(
    answers: dict[str, Any], bytes_: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["time_row"] = {PROJECT: {"wall_s": [1.0]}}
    answers["peak_of"] = peak(bytes_)
    results = measured("sensitive4-linear-4096x11008")
    assert set(results[0]["variants"]) == {PROJECT}
    assert print_jobs("test", results, (), lambda line: ()) == status
    assert ("the limit is 1,500.0 MB" in capsys.readouterr().err) == bool(status)


def test_coremltools_runs_only_when_asked_for_where_it_takes_too_long(
    answers: dict[str, Any],
) -> None:
    answers["time_row"] = {REFERENCE: {"wall_s": [1.0]}, PROJECT: {"wall_s": [1.0]}}
    answers["peak_of"] = peak(1e6)
    (row,) = measured("sensitive4-linear-4096x11008", with_reference=True)
    assert set(row["variants"]) == {REFERENCE, PROJECT}
    (row,) = measured("sensitive4-linear-4096x11008", only_reference=True)
    assert row["skipped"] == "needs --with-reference"


def test_a_child_that_dies_is_the_error_of_the_row(answers: dict[str, Any]) -> None:
    answers["time_row"] = ChildError("status -9")
    (row,) = measured("decode")
    assert row["error"] == "status -9"
