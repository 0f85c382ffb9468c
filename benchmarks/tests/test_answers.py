"""The texts that calibrate and judge."""

from __future__ import annotations

from benchmarks.tasks.texts import paragraphs


def test_texts_share_no_paragraph() -> None:
    calibration, held_out, other = map(
        frozenset, map(paragraphs, ("calibration", "held-out", "other"))
    )
    assert calibration
    assert held_out
    assert other
    assert not calibration & held_out
    assert not (calibration | held_out) & other
