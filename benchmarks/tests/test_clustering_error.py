"""The metric and the comparison, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lib.clustering_error import compare, snr_db, squared_error


def test_squared_error_is_in_float64() -> None:
    original = np.array([1.0, -2.0, 3.0], np.float16)
    stored = np.array([1.5, -2.0, 1.0], np.float16)
    assert squared_error(original, stored) == 4.25
    assert snr_db(14.0, 1.4) == pytest.approx(10.0)
    assert snr_db(14.0, 0.0) is None


def row(name: str, error: float) -> dict[str, object]:
    return {"name": name, "squared_error": error}


def test_compare_counts_violations_and_what_only_one_side_did() -> None:
    ours = [row("a", 1.0), row("b", 3.0), row("c", 0.0), row("extra", 1.0)]
    theirs = [row("a", 2.0), row("b", 2.0), row("c", 0.0), row("missed", 1.0)]
    result = compare(ours, theirs)
    assert result["compared"] == 3
    assert result["below"] == 1
    assert result["violations"] == 1
    assert result["violating_weights"] == ["b"]
    assert (result["ratio_min"], result["ratio_median"], result["ratio_max"]) == (0.5, 1.0, 1.5)
    assert result["only_ours"] == ["extra"]
    assert result["only_theirs"] == ["missed"]
