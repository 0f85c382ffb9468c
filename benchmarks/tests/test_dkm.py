"""What is measured of DKM and how it is shown: bytes saved, comparisons, means and the aim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.lib.accuracy_table import COLUMNS as ACCURACY_COLUMNS
from benchmarks.lib.accuracy_table import missed, points_below, table_lines
from benchmarks.lib.dkm_rows import DKM_ROWS
from benchmarks.lib.dkm_steps import STRIDE, SignDescent, matrix_elements
from benchmarks.lib.dkm_table import COLUMNS, compare, exceeded, table_line
from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.saved_bytes import saved_bytes
from benchmarks.tasks.dkm_tasks import BUILDERS, task


def test_every_row_has_its_task_and_a_name_of_its_own() -> None:
    assert {row.model for row in DKM_ROWS} <= set(BUILDERS)
    assert len({row.name for row in DKM_ROWS}) == len(DKM_ROWS)


def test_tasks_are_the_same_each_time_and_the_input_needs_a_gradient() -> None:
    first, second = task("warmup"), task("warmup")
    assert torch.equal(first.module[0].weight, second.module[0].weight)
    assert first.samples[0][0].requires_grad


def test_a_storage_counts_once_and_parameters_do_not() -> None:
    layer = nn.Linear(3, 5, bias=False)
    x = torch.ones(2, 3, requires_grad=True)
    # the layer saves x [2, 3] and its weight, the square its input [2, 5], in float32
    assert saved_bytes(lambda: layer(x).square().sum(), layer) == 4 * (6 + 10)
    assert layer.weight.grad is not None
    # x again, under another view
    twice = saved_bytes(lambda: layer(x).square().sum() + x.view(6).square().sum(), layer)
    assert twice == 4 * (6 + 10)


def test_weights_move_by_one_stride_against_the_gradient() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([2.0, 0.0, -0.5])
    SignDescent([weight]).step()
    assert weight.tolist() == pytest.approx([-STRIDE, 0.0, STRIDE])


def test_matrices_above_the_threshold_are_counted() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2), nn.LayerNorm(2))
    assert matrix_elements(module, 10) == 20


def line(first: float, later: float, saved: float = 4.0) -> dict[str, Any]:
    def times(value: float) -> dict[str, Any]:
        return {"median_wall_s": value, "spread_wall_s": [value, value]}

    return {
        "first": times(first),
        "later": times(later),
        "plain": times(0.5),
        "weights": 10**9,
        "memory": {"peak_above_imports_bytes": 1e6},
        "saved_bytes_a_weight": saved,
    }


def test_ours_is_compared_with_theirs_in_both_kinds_of_steps() -> None:
    lines = {REFERENCE: line(100.0, 10.0), PROJECT: line(4.0, 2.0)}
    compare(lines)
    assert "first_times_faster" not in lines[REFERENCE]
    cells = dict(zip(COLUMNS, table_line("row", PROJECT, lines[PROJECT]), strict=True))
    assert lines[PROJECT]["first_times_faster"] == 25
    assert cells["faster"] == "5x"  # of the two columns, the later
    assert (cells["DKM"], cells["ns/weight"]) == ("75%", "1.5")


def test_a_line_that_failed_is_shown_and_not_compared() -> None:
    lines = {REFERENCE: {"error": "MemoryError"}, PROJECT: line(4.0, 2.0)}
    compare(lines)
    assert "first_times_faster" not in lines[PROJECT]
    assert len(table_line("row", REFERENCE, lines[REFERENCE])) == len(COLUMNS)


def test_more_saved_than_the_limit_is_told() -> None:
    assert exceeded(line(1.0, 1.0, saved=8.0)) is None
    assert "8.50 bytes a weight" in str(exceeded(line(1.0, 1.0, saved=8.5)))
    assert exceeded({"error": "MemoryError"}) is None


def row(method: str, bits: int | None, accuracy: float, tool: str = PROJECT) -> dict[str, Any]:
    named = {"tool": tool, "method": method, "bits": bits, "seed": 0}
    return {**named, "accuracy": accuracy, "loss": 0.5, "seconds": 2.0}


def test_lines_have_means_and_the_distance_to_float() -> None:
    rows = [
        row("DKM", 2, 0.98),
        row("float", None, 0.995),
        row("DKM", 2, 0.99),
        row("DKM", 2, 0.9, REFERENCE),
        row("float, tuned", None, 0.995),
    ]
    lines = table_lines(rows)
    assert lines == [
        ("-", "float", "1", "99.5", "0.5", "0.00", "2 s"),
        ("-", "float, tuned", "1", "99.5", "0.5", "0.00", "2 s"),
        ("2", "DKM mlopt", "2", "98.5 ± 0.71", "0.5", "1.00", "2 s"),
        ("2", "DKM coremltools", "1", "90", "0.5", "9.50", "2 s"),
    ]
    assert {len(cells) for cells in lines} == {len(ACCURACY_COLUMNS)}


def test_the_aim_is_about_our_dkm_at_two_bits() -> None:
    trained = row("float", None, 0.995)
    assert missed([trained, row("DKM", 2, 0.986)]) is None
    assert "1.50 percentage points" in str(missed([trained, row("DKM", 2, 0.98)]))
    assert missed([trained, row("DKM", 1, 0.5), row("DKM", 2, 0.5, REFERENCE)]) is None
    assert missed([row("DKM", 2, 0.5)]) is None
    assert points_below([row("DKM", 2, 0.98), row("DKM", 2, 0.99)], 1.0) == pytest.approx(1.5)
