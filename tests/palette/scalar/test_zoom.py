"""Zooming in on bounds finds what sorting all values finds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.stored import rounding_of
from mlopt.palette.scalar.whole import cluster_whole, is_worth_zooming
from mlopt.palette.scalar.zoom import table_by_zooming

N = 40_000


def values_of(kind: str) -> np.ndarray:
    generator = np.random.default_rng(7)
    values = {
        "normal": lambda: generator.standard_normal(N),
        "heavy tails": lambda: generator.standard_t(3, N),
        "even": lambda: generator.uniform(-1, 1, N),
        "two far groups": lambda: generator.normal(0, 0.01, N) + (generator.random(N) < 0.3) * 50,
        "few decimals": lambda: np.round(generator.standard_normal(N), 3),
        "scaled codes": lambda: generator.normal(0, 0.02, N).astype(np.float16) / np.float32(0.07),
        "offset": lambda: generator.normal(1000, 0.5, N),
    }[kind]()
    return np.asarray(values, np.float32)


def importance_of(kind: str) -> np.ndarray | None:
    generator = np.random.default_rng(8)
    return {
        "equal": None,
        "mild": generator.uniform(0.5, 2, N),
        # spreads over 40 decimal places: the smallest vanish in any sum
        "extreme": generator.gamma(0.3, 1, N) ** 2,
        "half of it zero": generator.integers(0, 2, N).astype(float),
    }[kind]


def error(values: np.ndarray, importance: np.ndarray | None, table: np.ndarray) -> float:
    """Weighted squared error of the nearest entries, by brute force."""
    nearest = np.abs(values.astype(np.float64)[:, None] - table[None, :]).min(axis=1)
    return float(np.sum(nearest**2 * (1.0 if importance is None else importance)))


def parts(values: np.ndarray, importance: np.ndarray | None):
    def again() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, values.size, 17_000):
            span = slice(first, first + 17_000)
            yield values[span], np.empty(0) if importance is None else importance[span]

    return again


@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "heavy tails",
        "even",
        "few decimals",
        "scaled codes",
        "offset",
    ],
)
@pytest.mark.parametrize("weighing", ["equal", "mild", "extreme", "half of it zero"])
@pytest.mark.parametrize("entries", [2, 4, 16, 64])
@pytest.mark.covering(2)
def test_same_error_as_sorting(kind: str, weighing: str, entries: int) -> None:
    values, importance = values_of(kind), importance_of(weighing)
    zoomed = table_by_zooming(parts(values, importance), entries, rounding_of("float64"))
    sorted_out = cluster_rows(
        values[None],
        entries.bit_length() - 1,
        table_dtype=np.dtype(np.float64),
        importance=None if importance is None else importance[None],
    )
    assert zoomed is not None
    assert np.all(np.diff(zoomed.table) > 0)
    ours, theirs = (error(values, importance, t) for t in (zoomed.table, sorted_out.tables[0]))
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_stored_table_is_storable_and_no_worse_than_rounding(dtype: type) -> None:
    values = values_of("normal")
    exact = table_by_zooming(parts(values, None), 16, rounding_of("float64"))
    stored = table_by_zooming(parts(values, None), 16, rounding_of(np.dtype(dtype).name))
    assert exact is not None
    assert stored is not None
    np.testing.assert_array_equal(stored.table, stored.table.astype(dtype))
    rounded = exact.table.astype(dtype).astype(np.float64)
    assert error(values, None, stored.table) <= error(values, None, rounded)


def test_cells_that_separate_nothing_are_left_to_sorting() -> None:
    crowded = np.full(N, 1.0, np.float32)
    crowded[:1000] += np.arange(1000, dtype=np.float32) * np.float32(1e-6)
    crowded[0] = 1e30
    assert table_by_zooming(parts(crowded, None), 16, rounding_of("float64")) is None
    assert table_by_zooming(parts(np.ones(N, np.float32), None), 16, rounding_of("float64")) is None
    two_groups = values_of("two far groups")
    zoomed = table_by_zooming(parts(two_groups, None), 4, rounding_of("float64"))
    judge = cluster_rows(two_groups[None], 2, table_dtype=np.dtype(np.float64)).tables[0]
    assert zoomed is not None
    ours, theirs = (error(two_groups, None, t) for t in (zoomed.table, judge))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_power_of_two_scales_the_table_exactly() -> None:
    values = values_of("heavy tails")
    table = table_by_zooming(parts(values, None), 16, rounding_of("float64"))
    smaller = table_by_zooming(
        parts(values * np.float32(2.0**-12), None), 16, rounding_of("float64")
    )
    assert table is not None
    assert smaller is not None
    np.testing.assert_array_equal(table.table * 2.0**-12, smaller.table)


def test_whole_weight_in_parts_and_threads() -> None:
    weight = values_of("normal").reshape(200, 200)
    importance = np.broadcast_to(np.linspace(0.5, 2, 200)[:, None], weight.shape)
    assert is_worth_zooming(weight, 16)
    assert not is_worth_zooming(weight, 256)
    assert not is_worth_zooming(weight.astype(np.float16), 2)
    found = [
        cluster_whole(
            weight, 4, table_dtype=np.dtype(np.float32), importance=importance, workers=workers
        )
        for workers in (1, 3)
    ]
    assert found[0] is not None
    assert found[1] is not None
    table, labels, _ = found[0]
    np.testing.assert_array_equal(table, found[1][0])
    np.testing.assert_array_equal(labels, found[1][1])
    distances = np.abs(weight.astype(np.float64)[..., None] - table)
    np.testing.assert_array_equal(labels, distances.argmin(axis=-1))
