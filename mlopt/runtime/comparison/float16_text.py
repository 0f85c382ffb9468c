"""A comparison of float32 with float16 as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mlopt.runtime.comparison.float16_rows import Float16Row
from mlopt.runtime.comparison.text import decibels, shortened
from mlopt.text.names import printable
from mlopt.text.tables import Column, text_table

_REMEDY = (
    "Keep these operations in float32 (coremltools.transform.FP16ComputePrecision with an "
    "op_selector), or scale what goes into them: divide by the largest magnitude before squaring, "
    "and raise what is added before a root or a division."
)
_INSIDE = (
    "What is beyond 65504 inside an operation overflows where a device computes it in float16, as "
    "the Neural Engine may; here it was computed in float32."
)


def float16_text(
    outputs: str, rows: Sequence[Float16Row], *, operations: int, unmeasured: int
) -> str:
    """Return the text of the outputs, a table of the operations that lose something, and notes.

    rows: the worst first; operations, unmeasured: as in ``Float16Comparison``.
    """
    parts = ["float32 (the reference) against what the program declares (the candidate).", outputs]
    harmful = [row for row in rows if not row.is_harmless]
    if harmful:
        parts += [_table(harmful), _REMEDY]
    if not rows:
        parts.append("No result overflows, vanishes, or loses more than float16 costs anyway.")
    if len(harmful) < len(rows):
        parts.append(
            f"{len(rows) - len(harmful)} more of {operations} operations lose numbers without harm "
            "to the outputs on these samples (--json lists them)."
        )
    if unmeasured:
        parts.append(f"The effect of {unmeasured} operations that lose least was not measured.")
    if any(row.inside is not None for row in harmful):
        parts.append(_INSIDE)
    return "\n\n".join(parts)


def _table(rows: Sequence[Float16Row]) -> str:
    return text_table(
        [
            Column("operation", shortened(row.name for row in rows)),
            Column("type", [printable(row.op_type) for row in rows]),
            Column("what happens", ["; ".join(_what(row)) for row in rows]),
            Column("values", [_values(row) for row in rows]),
            Column("SNR so far", [_so_far(row) for row in rows], is_number=True),
            Column("outputs by it alone", [_effect(row) for row in rows], is_number=True),
        ]
    )


def _what(row: Float16Row) -> Iterator[str]:
    for kind in row.kinds:
        if kind == "overflows":
            yield f"{_share(row.overflowed, row)} overflow"
        elif kind == "vanishes":
            yield f"{_share(row.vanished, row)} become zero"
        elif kind == "imprecise":
            yield f"{decibels(row.entering)} are left"
        elif kind == "not finite":
            yield f"{_share(row.not_finite, row)} become NaN or infinite"
        elif kind == "cancels":
            yield f"loses {row.lost_db:.0f} dB of its arguments"
        else:
            yield f"inside up to {row.inside:.2g}"


def _share(count: int, row: Float16Row) -> str:
    share = count / row.elements
    return "all" if count == row.elements else f"{share:.1%}" if share >= 0.001 else f"{count}"


def _values(row: Float16Row) -> str:
    if math.isnan(row.least):
        return "none"
    return f"{row.least:.2g} to {row.greatest:.2g}"


def _so_far(row: Float16Row) -> str:
    return decibels(row.so_far) if row.so_far.samples else ""


def _effect(row: Float16Row) -> str:
    if row.effect_db is None:
        return ""
    if math.isnan(row.effect_db):
        return "not finite"
    return "equal" if row.effect_db == math.inf else f"{row.effect_db:.1f} dB"
