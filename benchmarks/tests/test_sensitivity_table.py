"""Means, spreads and comparisons over seeds, by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.sensitivity_table import COLUMNS, spread, table_lines, wins


def row(tool: str, method: str, bits: int | None, seed: int, loss: float) -> dict[str, Any]:
    named = {"tool": tool, "method": method, "bits": bits, "seed": seed}
    return {**named, "loss": loss, "calibration_loss": 2 * loss, "measure": 0.5}


def test_spread_is_the_standard_deviation_of_a_sample() -> None:
    assert spread([1.0, 3.0]) == "2 ± 1.4"
    assert spread([2.0, 2.0]) == "2"
    assert spread([2.0]) == "2"


def test_wins_are_counted_seed_by_seed() -> None:
    plain = [row(PROJECT, "k-means", 2, seed, 1.0) for seed in range(2)]
    ours = [row(PROJECT, "SKM", 2, seed, loss) for seed, loss in enumerate((0.5, 1.0, 0.1))]
    assert wins(ours, plain) == "1/2"
    assert wins(ours, []) == "0/0"


def test_lines_are_in_order_of_bits_with_one_for_the_float_network() -> None:
    rows = [
        row(PROJECT, "float", None, 0, 1.0),
        row(PROJECT, "k-means", 2, 0, 3.0),
        row(PROJECT, "SKM", 2, 0, 2.0),
        row(PROJECT, "k-means", 3, 0, 1.5),
        row(REFERENCE, "float", None, 0, 1.0),
        row(REFERENCE, "k-means", 2, 0, 4.0),
        row(REFERENCE, "SKM", 2, 0, 5.0),
    ]
    lines = table_lines(rows)
    assert lines == [
        ("-", "float", "1", "1", "-", "2", "0.5"),
        ("2", "k-means mlopt", "1", "3", "-", "6", "0.5"),
        ("2", "SKM mlopt", "1", "2", "1/1", "4", "0.5"),
        ("2", "k-means coremltools", "1", "4", "-", "8", "0.5"),
        ("2", "SKM coremltools", "1", "5", "0/1", "10", "0.5"),
        ("3", "k-means mlopt", "1", "1.5", "-", "3", "0.5"),
    ]
    assert {len(line) for line in lines} == {len(COLUMNS) + 1}
