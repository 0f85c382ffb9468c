"""A comparison as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.rows import (
    DetectionRow,
    LabelRow,
    LayerRow,
    MetricRow,
    OutputRow,
)
from mlopt.text.names import elided_apart, printable
from mlopt.text.tables import Column, text_table
from mlopt.text.words import counted

_WIDEST = 48
_MARK = " *"
_HINT = (
    "If an output tells nothing about the two models, compare on other samples. If float16 has "
    "lost what was there, `mlopt compare --float16 MODEL` shows the operation."
)
_FOOTNOTE = "* without the elements that are NaN or infinite in both models"


def comparison_text(
    outputs: Sequence[OutputRow],
    *,
    layers: Sequence[LayerRow],
    labels: Sequence[LabelRow],
    detections: Sequence[DetectionRow],
    metrics: Sequence[MetricRow],
    unmatched: Sequence[str],
    samples: int,
    hint: bool,
) -> str:
    """Return tables of the outputs and, if there are any, of the layers, worst first, and notes.

    unmatched: operations that the candidate does not have; hint: whether to say what to do if an
    output has nothing to compare.
    """
    parts = []
    if outputs:
        parts.append(_output_table(outputs))
    if any(row.has_value for row in metrics):
        parts.append(_metric_table([row for row in metrics if row.has_value]))
    if layers:
        parts.append(_layer_table(sorted(layers, key=_badness)))
    if any(_MARK in part for part in parts):
        parts.append(_FOOTNOTE)
    parts += comparison_notes(
        outputs, labels=labels, detections=detections, metrics=metrics, unmatched=unmatched
    )
    if hint and not all(row.is_informative for row in outputs):
        parts.append(_HINT)
    parts.append(f"{counted(samples, 'sample')}.")
    return "\n\n".join(parts)


def comparison_notes(
    outputs: Sequence[OutputRow],
    *,
    labels: Sequence[LabelRow],
    detections: Sequence[DetectionRow],
    metrics: Sequence[MetricRow],
    unmatched: Sequence[str],
) -> Iterator[str]:
    """Yield what the tables do not show, a sentence or two each."""
    yield from _states(outputs)
    yield from _notes(outputs, labels, detections)
    yield from _metric_notes(metrics)
    if unmatched:
        yield f"Not in the candidate, so not compared: {', '.join(shortened(unmatched))}"


def decibels(distance: Distance) -> str:
    """Return a ratio as text: ``"23.4 dB"``, or instead ``"equal"``, ``"zero in both"``, ..."""
    status = distance.status
    if status == "different":
        return f"{distance.snr_db:.1f} dB"
    return f"{status} in both" if status in ("zero", "constant", "saturated") else status


def _output_table(outputs: Sequence[OutputRow]) -> str:
    numbers = [_numbers(output.distance) for output in outputs]
    titles = ("SNR", "cosine", "max error", "of largest")
    columns = [
        Column("output", shortened(output.name for output in outputs)),
        *(
            Column(title, cells, is_number=True)
            for title, cells in zip(titles, zip(*numbers, strict=True), strict=True)
        ),
    ]
    agreements = [output.agreement for output in outputs]
    shares = {
        "top 1": [None if answers is None else answers.top1_share for answers in agreements],
        "top 5": [None if answers is None else answers.top5_share for answers in agreements],
    }
    columns += [
        Column(title, ["" if s is None else f"{s:.1%}" for s in of_outputs], is_number=True)
        for title, of_outputs in shares.items()
        if any(share is not None for share in of_outputs)
    ]
    return text_table(columns)


def _metric_table(metrics: Sequence[MetricRow]) -> str:
    values = {
        "reference": [metric_value(row.reference, row.unit) for row in metrics],
        "candidate": [metric_value(row.candidate, row.unit) for row in metrics],
        "both": [metric_value(row.pair, row.unit) for row in metrics],
        "count": ["" if row.count is None else str(row.count) for row in metrics],
    }
    return text_table(
        [
            Column("metric", shortened(row.name for row in metrics)),
            Column("output", shortened(row.output for row in metrics)),
            *(
                Column(title, cells, is_number=True)
                for title, cells in values.items()
                if any(cells)
            ),
        ]
    )


def _metric_notes(metrics: Sequence[MetricRow]) -> Iterator[str]:
    """Yield each note with the names of its metrics."""
    for note in dict.fromkeys(row.note for row in metrics if row.note):
        names = shortened(row.name for row in metrics if row.note == note)
        yield f"{', '.join(names)}: {printable(note)}."


def metric_value(value: float | None, unit: str) -> str:
    """Return a metric for a reader, "" for none."""
    if value is None:
        return ""
    return f"{value:.2%}" if unit == "share" else f"{value:.6g} {unit}".rstrip()


def _layer_table(layers: Sequence[LayerRow]) -> str:
    entering = [
        _marked(row.entering) if row.entering.samples else printable(row.mismatch or "")
        for row in layers
    ]
    so_far = [_marked(row.so_far) if row.so_far.samples else "" for row in layers]
    return text_table(
        [
            Column("operation", [printable(row.op_type) for row in layers]),
            Column("weight", shortened(", ".join(row.weights) for row in layers)),
            Column("SNR entering", entering, is_number=True),
            Column("SNR so far", so_far, is_number=True),
        ]
    )


def _notes(
    outputs: Sequence[OutputRow], labels: Sequence[LabelRow], detections: Sequence[DetectionRow]
) -> Iterator[str]:
    """Yield what the numbers of the outputs do not show."""
    for boxes in detections:
        yield (
            f"{' and '.join(map(printable, boxes.names))}: {boxes.paired} of {boxes.reference} "
            f"boxes of the reference are among the {boxes.candidate} of the candidate (same class, "
            "half of the union shared); these are compared."
        )
    names = shortened(row.name for row in outputs)
    for name, row in zip(names, outputs, strict=True):
        distance, agreement = row.distance, row.agreement
        if distance.left_out:
            where = (
                f", {distance.mismatched} of them different between the models"
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
    label_names = shortened(label.name for label in labels)
    for name, label in zip(label_names, labels, strict=True):
        yield f"{name}: the same for {label.equal} of {label.samples} samples."


def _states(outputs: Sequence[OutputRow]) -> Iterator[str]:
    """Yield why outputs tell too little to be compared."""
    names = shortened(row.name for row in outputs)
    for name, row in zip(names, outputs, strict=True):
        reference, candidate = row.distance.reference, row.distance.candidate
        if row.status in ("zero", "constant", "saturated"):
            yield f"{name}: both are {reference}, which tells nothing about the two models."
        elif reference.state in ("zero", "constant", "saturated"):
            yield f"{name}: the reference is {reference}."
        elif reference.state == "informative" and candidate.state not in ("informative", "empty"):
            yield f"{name}: the candidate is {candidate}, the reference is not."
        if row.depends_on_samples is False and row.status != "zero":
            yield f"{name}: the same for all samples in the reference; it does not depend on them."


def _badness(row: LayerRow) -> tuple[int, float]:
    """Return a sort key, the worst first: what could not be measured, then the least ratio."""
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
    """Return names as they are shown next to each other."""
    return elided_apart(map(printable, names), _WIDEST)
