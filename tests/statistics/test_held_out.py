"""The held-out check, judged by its formula with plain inverses, and by tables that are fitted."""

import itertools

import attrs
import numpy as np
import pytest

from mlopt.errors import ConfigError
from mlopt.palette.moments import Arrangement, InputMoments
from mlopt.palette.palettize import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics import Calibration, HeldOut, merge
from mlopt.statistics.held_out import held_out, mean_of
from tests.statistics.test_calibration import ROWS, calibration_of, moments_of

RNG = np.random.default_rng(0)


def correlated(positions, columns):
    """Draw inputs from one distribution: [2, positions, columns], half of it for each of two."""
    mix = RNG.normal(size=(columns, columns)) * np.exp(-4 * np.arange(columns) / columns)[:, None]
    return (RNG.normal(size=(2, positions, columns)) @ mix).astype(np.float32)


def sums(x):
    return np.einsum("ti,tj->ij", x, x)[None]


def by_inverses(seen, other):
    """10 log10 of ``tr(N) / tr(L^-1 N L^-T)``, over blocks."""
    white, fitted = np.zeros(2), np.zeros(2)
    for h, n in zip(seen.astype(np.float64), other.astype(np.float64), strict=True):
        factor = np.linalg.cholesky(h + 0.01 * np.trace(h) / len(h) * np.eye(len(h)))
        inverse = np.linalg.inv(factor / np.diagonal(factor))
        for i, each in enumerate((h, n)):
            white[i] += np.trace(each)
            fitted[i] += np.trace(inverse @ each @ inverse.T)
    return 10 * np.log10(white / fitted)


@pytest.mark.parametrize(("columns", "positions"), [(1, 3), (5, 3), (70, 50), (130, 2000)])
def test_the_formula(columns, positions):
    first, second = correlated(positions, columns), correlated(positions, columns)
    seen, other = (np.concatenate(list(map(sums, each))) for each in (first, second))
    check = held_out(seen, other, 4)
    wanted = by_inverses(seen, other)
    assert check.samples == 4
    np.testing.assert_allclose((check.seen_db, check.held_out_db), wanted, atol=0.5)


@pytest.mark.parametrize(("positions", "has_few"), [(30, True), (64, False), (1000, False)])
def test_fitted_tables_gain_what_is_predicted(positions, has_few):
    columns = 64
    x, y = correlated(1000, columns)
    x = x[:positions]
    weight = RNG.normal(size=(48, columns)).astype(np.float32)
    seen, other = sums(x), sums(y)
    moments = InputMoments(
        arrangement=Arrangement(
            shape=weight.shape, split=weight.shape, order=(0, 1), blocks=1, rows=48, columns=columns
        ),
        second=seen / np.float32(positions),
        diagonal=np.einsum("bii->bi", seen) / np.float32(positions),
        mean=np.zeros((1, columns), np.float32),
        count=positions,
    )
    plain, fitted = (
        palettize(weight, PaletteSpec(nbits=3), moments=given)[0].dequantize() - weight
        for given in (None, moments)
    )
    gains = [
        10 * np.log10(np.vdot(plain, plain @ h[0]) / np.vdot(fitted, fitted @ h[0]))
        for h in (seen, other)
    ]
    check = held_out(seen, other, 1)
    # tables and sweeps add a little to error feedback
    np.testing.assert_allclose((check.seen_db, check.held_out_db), gains, atol=2.5)
    assert check.has_few == has_few


def test_what_cannot_be_checked():
    zero = np.zeros((1, 3, 3), np.float32)
    some = sums(correlated(9, 3)[0])
    assert held_out(zero, some, 1) is None
    assert held_out(some, zero, 1) is None
    # a block that no sample reached does not count
    both = held_out(np.concatenate((some, zero)), np.concatenate((some, some)), 1)
    assert both == held_out(some, some, 1)
    with pytest.raises(ValueError, match="finite"):
        HeldOut(3, np.nan, 1.0)


def checked(check, **changes):
    """A calibration with a check."""
    moments = {"0": attrs.evolve(moments_of(ROWS), held_out=check)}
    return calibration_of(ROWS, moments=moments, **changes)


def test_few_samples_are_noted_and_files_keep_it(tmp_path):
    few, enough = HeldOut(31, 7.0, 3.5), HeldOut(31, 7.0, 4.5)
    assert not any("few samples" in note for note in checked(enough).notes)
    checked(few).save(tmp_path / "a")
    loaded = Calibration.load(tmp_path / "a")
    assert loaded.moments["0"].held_out == loaded.held_out == few
    assert loaded.notes[-1] == (
        "few samples for 2 weights: tables fitted to 31 samples would gain 7.0 dB on these and "
        "3.5 dB on others: 'first', 'second'; give more samples, or longer ones"
    )
    assert calibration_of(ROWS).held_out is None
    assert mean_of([few, HeldOut(7, 1.0, 0.5)]) == HeldOut(31, 4.0, 2.0)


@pytest.mark.parametrize(
    "change", [b"[31,7.0,NaN]", b"[31,7.0    ]", b"[31,7.0,[] ]", b"31          "]
)
def test_damaged_checks_are_refused(tmp_path, change):
    checked(HeldOut(31, 7.0, 3.5)).save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    assert content.count(b"[31,7.0,3.5]") == 1
    (tmp_path / "a").write_bytes(content.replace(b"[31,7.0,3.5]", change))
    with pytest.raises(ConfigError, match="the calibration is damaged"):
        Calibration.load(tmp_path / "a")


@pytest.mark.parametrize("has_file", [False, True])
def test_merged_parts_are_checked_by_the_last(tmp_path, has_file):
    check = HeldOut(9, 1.0, 1.0)
    rows = correlated(40, 5).reshape(-1, 5)
    cuts = (0, 20, 50, 80)
    parts = []
    for start, end in itertools.pairwise(cuts):
        moments = {"0": attrs.evolve(moments_of(rows[start:end]), held_out=check)}
        parts.append(calibration_of(rows[start:end], moments=moments))
    merged = merge(parts, tmp_path / "a" if has_file else None)
    wanted = held_out(sums(rows[:50]), sums(rows[50:]), 50)
    found = merged.moments["0"].held_out
    assert found.samples == 50
    np.testing.assert_allclose(
        (found.seen_db, found.held_out_db), (wanted.seen_db, wanted.held_out_db), atol=1e-3
    )
    assert merge(parts[:1]).held_out == check
    assert merge([calibration_of(rows), calibration_of(rows)]).held_out is None
