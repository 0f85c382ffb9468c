"""Every scalar path ends: its work is counted, on weights that are hard to separate."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlopt.palette import PaletteSpec, palettize
from mlopt.palette.scalar.cells import Parts
from mlopt.palette.scalar.groups import cluster_rows
from mlopt.palette.scalar.kmeans1d import MOST_PASSES, first_penalty, solve
from mlopt.palette.scalar.segments import fill_sums, make_scratch
from mlopt.palette.scalar.stored import rounding_of
from mlopt.palette.scalar.uniform import uniform_labels
from mlopt.palette.scalar.zoom import MOST_CELLS, MOST_STUCK, SHARE_ENOUGH, table_by_zooming
from mlopt.palette.scale import channel_scale, normalised
from tests.palette import references as ref

ROWS, COLUMNS = 256, 512
MOST_ZOOM_PASSES = 1 + 1 + SHARE_ENOUGH + MOST_STUCK + 2
Weighted = tuple[np.ndarray, np.ndarray | None]


def _lattice(rng: np.random.Generator, bits: int) -> Weighted:
    """A float16 weight dequantized from blocks, divided by its channels' largest magnitudes."""
    x = rng.standard_normal((ROWS, COLUMNS)) * np.exp(rng.normal(0, 0.4, (ROWS, 1)))
    blocks = x.reshape(ROWS, -1, 32)
    step = np.abs(blocks).max(-1, keepdims=True) / ((1 << (bits - 1)) - 1)
    weight = (np.round(blocks / step) * step).reshape(ROWS, COLUMNS).astype(np.float16)
    scale = channel_scale(weight, 0)
    importance = np.broadcast_to(scale.astype(np.float64) ** 2, weight.shape)
    return normalised(weight, scale), importance


def _atom_at_a_bound(rng: np.random.Generator) -> Weighted:
    """Two bells, and just between them very many equal values that hardly matter."""
    values = rng.normal(0, 0.1, ROWS * COLUMNS) + rng.integers(0, 2, ROWS * COLUMNS)
    importance = np.ones(values.size)
    values[:70_000], importance[:70_000] = 0.5, 1e-9
    return values.astype(np.float32), importance


def _weighted(rng: np.random.Generator, decades: float) -> Weighted:
    values = rng.standard_normal(ROWS * COLUMNS).astype(np.float32)
    return values, 10.0 ** rng.uniform(-decades, 0, values.size)


def _plain(numbers: np.ndarray) -> Weighted:
    return np.asarray(numbers, np.float32), None


N = ROWS * COLUMNS
KINDS = {
    "gaussian": lambda rng: _plain(rng.standard_normal(N)),
    "laplace": lambda rng: _plain(rng.laplace(size=N)),
    "student": lambda rng: _plain(rng.standard_t(2, N)),
    "cauchy": lambda rng: _plain(rng.standard_cauchy(N)),
    "two scales": lambda rng: _plain(rng.standard_normal(N) * (1 + 999 * (rng.random(N) < 0.01))),
    "bimodal": lambda rng: _plain(rng.normal(0, 0.02, N) + rng.integers(0, 2, N)),
    "8-bit lattice": lambda rng: _lattice(rng, 8),
    "4-bit lattice": lambda rng: _lattice(rng, 4),
    "decimals": lambda rng: _plain(np.round(rng.standard_normal(N), 3)),
    "few": lambda rng: _plain(rng.integers(-150, 150, N) * 1e-3),
    "ties": lambda rng: _plain(np.where(rng.random(N) < 0.5, 0.3, rng.standard_normal(N))),
    "atom at a bound": _atom_at_a_bound,
    "importance over 12 decades": lambda rng: _weighted(rng, 12),
    "importance over 300 decades": lambda rng: _weighted(rng, 300),
}


def parts_of(values: np.ndarray, importance: np.ndarray | None) -> Parts:
    def again() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield values.ravel(), np.empty(0) if importance is None else importance.ravel()

    return again


@pytest.mark.parametrize(
    ("nbits", "table_dtype"),
    [(1, "float32"), (4, "float16"), (4, "bfloat16"), (6, "float16"), (6, "float32")],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.covering(2)
def test_zooming_ends_and_finds_what_sorting_finds(kind: str, nbits: int, table_dtype: str) -> None:
    values, importance = KINDS[kind](np.random.default_rng(1))
    rounding = rounding_of(table_dtype)
    zoomed = table_by_zooming(parts_of(values, importance), 1 << nbits, rounding)
    if zoomed is None:
        assert kind in ("few", "cauchy", "two scales", "student", "4-bit lattice", "bimodal")
        return
    assert zoomed.passes <= MOST_ZOOM_PASSES
    assert zoomed.cells <= MOST_CELLS
    assert zoomed.gathered <= values.size
    assert zoomed.penalties <= MOST_PASSES
    judge = cluster_rows(
        values.reshape(1, -1),
        nbits,
        table_dtype=np.dtype(ref.FORMATS[table_dtype]),
        importance=None if importance is None else importance.reshape(1, -1),
    )
    flat = None if importance is None else importance.ravel()
    ours, theirs = (
        float(ref.nearest_cost(values, t, flat)) for t in (zoomed.table, judge.tables[0])
    )
    # both within their gaps of one optimum
    assert zoomed.plain <= ours * (1 + 1e-9)
    assert ours <= (zoomed.plain + zoomed.gap if zoomed.gap else theirs) * (1 + 1e-9)
    assert ours <= theirs * (1 + 1e-4)


def geometric(n: int, ratio: float) -> np.ndarray:
    return ratio ** -np.arange(float(n))[::-1]


@pytest.mark.parametrize("weighing", ["equal", "rising", "falling", "any"])
@pytest.mark.parametrize("ratio", [1.0001, 1.05, 1.5, 2.0, 10.0])
def test_penalties_tried_are_bounded(ratio: float, weighing: str) -> None:
    n = min(90, int(300 / np.log10(ratio)))
    values = geometric(n, ratio)
    masses = {
        "equal": np.ones(n),
        "rising": geometric(n, ratio),
        "falling": 1 / geometric(n, ratio),
        "any": 10.0 ** np.random.default_rng(2).uniform(-12, 0, n),
    }[weighing]
    masses = masses / masses.max()
    keep = masses > 2.0**-46
    values, masses = values[keep], masses[keep]
    n = len(values)
    prefix, space = fill_sums(values, masses, np.empty((3, n + 1))), make_scratch(n)
    least = ref.least_costs(ref.segment_costs(values, masses), n)
    spread = ref.spread(values, masses)
    worst = 0
    for k in range(2, n):
        _, passes = solve(prefix, k, first_penalty(values, prefix, k, space), space)
        worst = max(worst, passes)
        paid = ref.cost_of_bounds(values, masses, space.bounds[: k + 1])
        assert paid <= least[k - 1] + 1e-13 * spread
    # far from MOST_PASSES, which no input should come near
    assert worst <= 40


def test_labels_of_subnormal_uniform_tables() -> None:
    steps = np.arange(5) * np.float16(2.0**-24)
    table = np.repeat(steps, 52)[:256].astype(np.float16)
    values = np.random.default_rng(4).integers(0, 5, 3000).astype(np.float64) * 2.0**-24
    labels = uniform_labels(values.astype(np.float32)[None], table.astype(np.float32)[None])
    distances = np.abs(values[:, None] - table.astype(np.float64))
    np.testing.assert_array_equal(labels[0], distances.argmin(axis=1))


@st.composite
def hard_rows(draw: st.DrawFn) -> Weighted:
    """float64 weights and importance of any magnitude: atoms, geometric, subnormal, huge."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = draw(st.integers(-1074, 1020))
    kind = draw(st.sampled_from(["normal", "atoms", "geometric", "steps"]))
    values = {
        "normal": rng.standard_normal(n),
        "atoms": rng.integers(-2, 3, n) + (rng.random(n) < 0.3) * rng.standard_normal(n),
        "geometric": rng.choice([-1, 1], n) * 2.0 ** -rng.integers(0, 60, n),
        "steps": rng.integers(-9, 9, n).astype(float),
    }[kind]
    values = np.ldexp(values, exponent)
    values[~np.isfinite(values)] = 0.0
    decades = draw(st.sampled_from([0, 3, 12, 300]))
    height = draw(st.sampled_from([-300, 0, 300]))
    if not decades:
        return values, None
    return values, 10.0 ** np.clip(rng.uniform(-decades, 0, n) + height, -320, 308)


@given(hard_rows(), st.sampled_from([1, 2, 3]))
@example((np.array([1e308, -1e308, 1.7e308, 3.0, 0.0]), None), 1)
@example((np.array([5e-324, -5e-324, 1e-323, 5e-323, 0.0]), None), 1)
@example((np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.full(5, 1e308)), 1)
@example((np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.full(5, 1e-308)), 1)
@settings(max_examples=300, deadline=None)
def test_weights_of_any_magnitude(row: Weighted, nbits: int) -> None:
    weight, importance = row
    palettized, _ = palettize(weight, PaletteSpec(nbits=nbits), importance=importance)
    table = palettized.table.reshape(-1)
    assert np.isfinite(table).all()
    assert (np.diff(table) >= 0).all()
    # in extended precision, whose range nothing here leaves
    level = np.abs(weight).max() or 1.0
    x = weight.astype(np.longdouble) / np.longdouble(level)
    h = np.ones(len(x)) if importance is None else importance
    h = np.asarray(h, np.longdouble) / np.longdouble(np.max(h))
    stored = table.astype(np.longdouble) / np.longdouble(level)
    paid = (h * np.min((x[:, None] - stored) ** 2, axis=1)).sum()
    order = np.argsort(x)
    costs = ref.segment_costs(x[order], h[order])
    least = min(ref.least_costs(costs, min(1 << nbits, len(x))))
    # what importance too small for sums may cost, and what a table of subnormal steps cannot hold
    step = np.longdouble(5e-324) / np.longdouble(level)
    assert paid <= least * (1 + 1e-9) + h.sum() * (1e-12 * (x.max() - x.min()) ** 2 + step**2)


def test_how_near_the_least_error_is() -> None:
    rng = np.random.default_rng(6)
    offset = (1 + 0.05 * rng.standard_normal((64, 1024))).astype(np.float16)
    _, coarse = palettize(offset, PaletteSpec(nbits=6))
    values, masses = ref.distinct(offset)
    plain = ref.cost_of_bounds(
        values,
        masses,
        np.append(0, np.cumsum(_cluster_sizes(values, masses, 64))),
    )
    assert coarse.within >= 0.005
    assert coarse.noise <= float(plain) * (1 + coarse.within) * (1 + 1e-9)
    assert coarse.note == f"proven within {100 * coarse.within:.2g} % of the least error"
    assert "could not be proven" in attrs.evolve(coarse, within=1.5).note
    _, fine = palettize(rng.standard_normal((64, 1024)).astype(np.float16), PaletteSpec(nbits=4))
    assert fine.within == 0.0
    assert fine.note is None


def _cluster_sizes(values: np.ndarray, masses: np.ndarray, k: int) -> np.ndarray:
    from mlopt.palette import kmeans1d

    return np.diff(kmeans1d(values, masses, k))
