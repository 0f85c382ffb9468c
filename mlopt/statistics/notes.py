"""Notes: what a reader of a calibration should know about its samples."""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.statistics.held_out import mean_of
from mlopt.statistics.moment_arrays import MomentArrays
from mlopt.text.names import shortlist
from mlopt.text.words import counted

FEWEST_SAMPLES = 8
"""Samples below which a calibration says that they are few."""


def notes_on(samples: int, known: Sequence[tuple[str, MomentArrays]]) -> list[str]:
    """Return where samples are few, or did not reach a weight.

    known: the name of each weight, and the moments of its inputs.
    """
    notes = []
    if samples < FEWEST_SAMPLES:
        notes.append(
            f"{counted(samples, 'sample')}: {FEWEST_SAMPLES} or more are useful, 32 and more are "
            "better"
        )
    unread = [name for name, moments in known if not moments.count]
    if unread:
        notes.append(f"no sample reached {counted(len(unread), 'weight')}: {shortlist(unread)}")
    plain = [name for name, moments in known if _is_without_gradient(moments)]
    if plain:
        notes.append(
            f"no gradient reached {counted(len(plain), 'weight')}, whose inputs all count "
            f"alike: {shortlist(plain)}"
        )
    few = [name for name, moments in known if _has_few_positions(moments)]
    if few:
        notes.append(
            f"fewer positions than columns for {counted(len(few), 'weight')}: "
            f"{shortlist(few)}; give more samples, or longer ones"
        )
    checks = {name: check for name, moments in known if (check := moments.held_out)}
    failed = {name: check for name, check in checks.items() if check.has_few}
    if failed:
        mean = mean_of(list(failed.values()))
        notes.append(
            f"few samples for {counted(len(failed), 'weight')}: tables fitted to "
            f"{counted(mean.samples, 'sample')} would gain {mean.seen_db:.1f} dB on these and "
            f"{mean.held_out_db:.1f} dB on others: {shortlist(list(failed))}; give more samples, "
            "or longer ones"
        )
    return notes


def _is_without_gradient(moments: MomentArrays) -> bool:
    return moments.sensitivity is not None and moments.count > 0 and not moments.is_guided


def _has_few_positions(moments: MomentArrays) -> bool:
    return moments.second is not None and 0 < moments.count < moments.diagonal.shape[1]
