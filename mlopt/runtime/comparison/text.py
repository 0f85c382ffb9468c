"""A comparison as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mlopt.text import elided_apart, printable

if TYPE_CHECKING:
    from mlopt.runtime.comparison.measures import Distance
    from mlopt.runtime.comparison.results import Comparison, LayerRow, OutputRow

_WIDEST = 48
_MARK = " *"
_HINT = (
    "Where an output says nothing of the two models, compare on other samples. If float16 has lost "
    "what was there, `mlopt compare --float16 MODEL` shows the operation."
)
_FOOTNOTE = "* without the elements that are NaN or infinite in both models"


def comparison_text(comparison: Comparison, *, hint: bool = True) -> str:
    """Tables of the outputs and, if they were compared, of the layers, the worst first.

    hint: whether to say what to do where an output has nothing to compare.
    """
    parts = []
    if comparison.outputs:
        parts.append(_output_table(comparison.outputs))
    if comparison.layers:
        header = ["operation", "weight", "SNR entering", "SNR so far"]
        worst_first = sorted(comparison.layers, key=_badness)
        weights = shortened(", ".join(row.weights) for row in worst_first)
        layers = [
            [
                printable(row.op_type),
                shown,
                _marked(row.entering) if row.entering.samples else printable(row.mismatch or ""),
                _marked(row.so_far) if row.so_far.samples else "",
            ]
            for row, shown in zip(worst_first, weights, strict=True)
        ]
        parts.append(table(header, layers))
    if any(_MARK in part for part in parts):
        parts.append(_FOOTNOTE)
    parts += _states(comparison)
    parts += _notes(comparison)
    if comparison.unmatched:
        names = ", ".join(shortened(comparison.unmatched))
        parts.append(f"Not in the candidate, so not compared: {names}")
    if hint and comparison.uninformative:
        parts.append(_HINT)
    parts.append("1 sample." if comparison.samples == 1 else f"{comparison.samples} samples.")
    return "\n\n".join(parts)


def decibels(distance: Distance) -> str:
    """A ratio for a reader: ``"23.4 dB"``, or in its place ``"equal"``, ``"zero in both"``, ..."""
    status = distance.status
    if status == "different":
        return f"{distance.snr_db:.1f} dB"
    return f"{status} in both" if status in ("zero", "constant", "saturated") else status


def _output_table(outputs: Sequence[OutputRow]) -> str:
    header = ["output", "SNR", "cosine", "max error", "of largest"]
    names = shortened(output.name for output in outputs)
    rows = [[name, *_numbers(output.distance)] for name, output in zip(names, outputs, strict=True)]
    agreements = [output.agreement for output in outputs]
    columns = {
        "top 1": [None if found is None else found.top1_share for found in agreements],
        "top 5": [None if found is None else found.top5_share for found in agreements],
    }
    for title, shares in columns.items():
        if any(share is not None for share in shares):
            header.append(title)
            for row, share in zip(rows, shares, strict=True):
                row.append("" if share is None else f"{share:.1%}")
    return table(header, rows)


def _notes(comparison: Comparison) -> Iterator[str]:
    """What the numbers of the outputs do not say."""
    for boxes in comparison.detections:
        yield (
            f"{' and '.join(map(printable, boxes.names))}: {boxes.paired} of {boxes.reference} "
            f"boxes of the reference are among the {boxes.candidate} of the candidate (same class, "
            "half of the union shared); these are compared."
        )
    names = shortened(row.name for row in comparison.outputs)
    for name, row in zip(names, comparison.outputs, strict=True):
        distance, agreement = row.distance, row.agreement
        if distance.left_out:
            where = (
                f", {distance.mismatched} of them not the same in both models"
                if distance.mismatched
                else " in both models"
            )
            counts = f"{distance.left_out} of {distance.elements}"
            yield f"{name}: {counts} elements are NaN or infinite{where}."
        if agreement is not None and agreement.not_a_number:
            yield (
                f"{name}: {agreement.not_a_number} of {agreement.samples} samples have NaN among "
                "their scores, and count as no agreement."
            )
    labels = shortened(label.name for label in comparison.labels)
    for name, label in zip(labels, comparison.labels, strict=True):
        yield f"{name}: the same for {label.equal} of {label.samples} samples."


def _states(comparison: Comparison) -> Iterator[str]:
    """What outputs have too little of to be compared."""
    names = shortened(row.name for row in comparison.outputs)
    for name, row in zip(names, comparison.outputs, strict=True):
        reference, candidate = row.distance.reference, row.distance.candidate
        if row.status in ("zero", "constant", "saturated"):
            yield f"{name}: both are {reference}, which says nothing of the two models."
        elif reference.state in ("zero", "constant", "saturated"):
            yield f"{name}: the reference is {reference}."
        elif reference.state == "informative" and candidate.state not in ("informative", "empty"):
            yield f"{name}: the candidate is {candidate}, the reference is not."
        if row.depends_on_samples is False and row.status != "zero":
            yield f"{name}: the same for all samples in the reference; it does not depend on them."


def _badness(row: LayerRow) -> tuple[int, float]:
    """For sorting, the worst first: what could not be measured, then the least ratio."""
    if row.entering.status == "different":
        return 1, row.entering.snr_db
    is_unknown = row.entering.status in ("unmeasured", "not finite")
    return (0, -math.inf) if is_unknown else (2, math.inf)


def _marked(distance: Distance) -> str:
    text = decibels(distance)
    return text + _MARK if distance.left_out and distance.status != "not finite" else text


def _numbers(distance: Distance) -> list[str]:
    if distance.status not in ("different", "equal"):
        return [_marked(distance), "", "", ""]
    return [
        _marked(distance),
        f"{distance.cosine:.6f}",
        f"{distance.max_absolute:.3g}",
        f"{distance.max_relative:.2%}",
    ]


def shortened(names: Iterable[str]) -> list[str]:
    """Names as they are shown beside each other."""
    return elided_apart(map(printable, names), _WIDEST)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Sequence[str] = ("output", "operation", "weight"),
) -> str:
    """Columns of text; those named in ``texts`` to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lefts = [i for i, name in enumerate(header) if name in texts]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in lefts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "-" * len(line([" " * w for w in widths]) or "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join([line(header), rule, *map(line, rows)])
