"""A comparison of float32 with float16 as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlopt.runtime.comparison.text import comparison_text, decibels, shortened, table

if TYPE_CHECKING:
    from mlopt.runtime.comparison.float16_rows import Float16Comparison, Float16Row

_REMEDY = (
    "Keep these operations in float32 (coremltools.transform.FP16ComputePrecision with an "
    "op_selector), or scale what goes into them: divide by the largest magnitude before squaring, "
    "and raise what is added before a root or a division."
)


def float16_text(found: Float16Comparison) -> str:
    """Tables of the outputs and of the operations that lose something, the worst first."""
    if not found.operations:
        return "The program declares no result of float16: there is nothing to compare."
    parts = ["float32 (the reference) against what the program declares (the candidate)."]
    parts.append(comparison_text(found.outputs, hint=False))
    if found.harmful:
        names = shortened(row.name for row in found.harmful)
        cells = [_cells(name, row) for name, row in zip(names, found.harmful, strict=True)]
        parts.append(table(_HEADER, cells, texts=_TEXTS))
        parts.append(_REMEDY)
    parts += _notes(found)
    return "\n\n".join(parts)


_HEADER = ["operation", "type", "what happens", "values", "SNR so far", "outputs by it alone"]
_TEXTS = ("operation", "type", "what happens", "values")


def _cells(name: str, row: Float16Row) -> list[str]:
    return [
        name,
        row.op_type,
        "; ".join(_what(row)),
        _values(row),
        _so_far(row),
        _effect(row),
    ]


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


def _notes(found: Float16Comparison) -> Iterator[str]:
    """What the tables do not say."""
    if not found.rows:
        yield "No result overflows, vanishes, or loses more than float16 costs anyway."
    harmless = len(found.rows) - len(found.harmful)
    if harmless:
        yield (
            f"{harmless} more of {found.operations} operations lose numbers without harm to the "
            "outputs on these samples (--json lists them)."
        )
    if found.unmeasured:
        yield f"The effect of {found.unmeasured} operations that lose least was not measured."
    if any(row.inside is not None for row in found.harmful):
        yield (
            "What is beyond 65504 inside an operation overflows where a device computes it in "
            "float16, as the Neural Engine may; here it was computed in float32."
        )
