"""The page of a comparison: how far two models are apart, and where the error enters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlopt.pages.bars import Bar, bar_chart
from mlopt.pages.comparison_layers import is_broken, layers_chart, layers_table
from mlopt.pages.document import Section, document
from mlopt.pages.html import (
    Column,
    Fact,
    Markup,
    element,
    facts,
    figure,
    key,
    link,
    listed,
    table,
)
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.comparison.rows import MetricRow, OutputRow
from mlopt.runtime.comparison.text import comparison_notes, decibels, metric_value
from mlopt.text.words import counted

_METRICS = 4
"""Metrics among the facts; all are in their table."""

_BARS = 12
"""Outputs with a bar: those of the lowest ratios."""


def comparison_page(comparison: Comparison, *, title: str | None = None) -> str:
    """Return a page of HTML on a comparison, as :func:`plan_page` does on a plan.

    Parameters
    ----------
    comparison
        What :func:`mlopt.runtime.compare` returns. If layers were compared, their chart shows
        where the error enters.
    title
        The heading; None: that two models are compared.

    Raises
    ------
    ConfigError
        matplotlib, which draws the charts, is not installed.
    """
    return document(
        title or "Comparison of two models",
        f"How far the outputs of two models are apart on {counted(comparison.samples, 'sample')}.",
        head=[facts(list(_facts(comparison)))],
        sections=list(_sections(comparison)),
    )


def _facts(comparison: Comparison) -> Iterator[Fact]:
    yield Fact("Samples", str(comparison.samples), "both models ran on the same")
    different = [row for row in comparison.outputs if row.status == "different"]
    if different:
        worst = min(different, key=lambda row: row.distance.snr_db)
        yield Fact("Lowest signal-to-noise ratio", decibels(worst.distance), f"of {worst.name}")
    odd = comparison.uninformative
    note = f"{len(odd)} with nothing to compare" if odd else "all compared"
    yield Fact("Outputs", str(len(comparison.outputs)), note)
    for row in [row for row in comparison.metrics if row.has_value][:_METRICS]:
        output = f"of {row.output}" if row.output else ""
        if row.pair is not None:
            yield Fact(row.name.capitalize(), metric_value(row.pair, row.unit), output)
        else:
            before = f"{metric_value(row.reference, row.unit)} of the reference"
            yield Fact(
                row.name.capitalize(),
                metric_value(row.candidate, row.unit),
                ", ".join(filter(None, [before, output])),
            )
    entering = [row for row in comparison.layers if row.entering.status == "different"]
    if entering:
        worst_layer = min(entering, key=lambda row: row.entering.snr_db)
        yield Fact(
            "Most error enters at",
            decibels(worst_layer.entering),
            ", ".join(worst_layer.weights),
        )


def _sections(comparison: Comparison) -> Iterator[Section]:
    chart = _outputs_chart(comparison.outputs) if not comparison.layers else ""
    if comparison.outputs:
        yield Section.of("outputs", "Outputs", chart, _outputs_table(comparison.outputs))
    metrics = [row for row in comparison.metrics if row.has_value]
    if metrics:
        yield Section.of("metrics", "Metrics", _metrics_table(metrics))
    if comparison.layers:
        yield _layers(comparison)
    notes = list(
        comparison_notes(
            comparison.outputs,
            labels=comparison.labels,
            detections=comparison.detections,
            metrics=comparison.metrics,
            unmatched=comparison.unmatched,
        )
    )
    if notes:
        yield Section.of("notes", "Notes", listed(notes))


def _layers(comparison: Comparison) -> Section:
    swatches = [
        ("error of this weight alone", "error", "dot"),
        ("all errors so far", "accent", "line"),
    ]
    if any(map(is_broken, comparison.layers)):
        swatches.append(("not finite, or not comparable", "ink", "cross"))
    text = (
        "What enters at a weight is measured with the reference's activations in front of it. "
        "Higher is better."
    )
    caption = Markup(f"{link('layers-table', 'The table of layers')} has the same in numbers.")
    return Section.of(
        "layers",
        "Where the error enters",
        element("p", text),
        figure(layers_chart(comparison.layers), caption, legend=key(swatches)),
        layers_table(comparison.layers),
    )


def _outputs_chart(outputs: Sequence[OutputRow]) -> Markup:
    measured = [row for row in outputs if row.status == "different"]
    worst = sorted(measured, key=lambda row: row.distance.snr_db)[:_BARS]
    if len(worst) < 2:
        return Markup()  # one bar says nothing that the facts do not
    most = max([1.0, *(row.distance.snr_db for row in worst)])
    bars = [
        Bar(row.name, decibels(row.distance), None, max(row.distance.snr_db, 0.0) / most)
        for row in worst
    ]
    label = (
        f"Signal-to-noise ratio of {counted(len(bars), 'output')}, the lowest first. "
        "The table below has all numbers."
    )
    caption = "Signal-to-noise ratio in dB: longer is better, and no bar is 0 dB or less."
    return figure(bar_chart("outputs-chart", label, bars), caption)


def _outputs_table(outputs: Sequence[OutputRow]) -> Markup:
    columns = [Column("Output")] + [
        Column(title, is_number=True)
        for title in ("Ratio", "Cosine", "Largest error", "Of largest", "Top 1", "Top 5")
    ]
    rows = []
    for row in outputs:
        distance, agreement = row.distance, row.agreement
        numbers = ["", "", ""]
        if row.is_informative:
            numbers = [
                f"{distance.cosine:.6f}",
                f"{distance.max_absolute:.3g}",
                f"{distance.max_relative:.2%}",
            ]
        shares = [None, None] if agreement is None else [agreement.top1_share, agreement.top5_share]
        tops = ["" if share is None else f"{share:.1%}" for share in shares]
        rows.append([row.name, decibels(distance), *numbers, *tops])
    caption = (
        "Outputs: signal-to-noise ratio, cosine, largest error, that over the largest magnitude, "
        "and how often the best classes agree"
    )
    return table("outputs-table", caption, columns, rows)


def _metrics_table(metrics: Sequence[MetricRow]) -> Markup:
    cells = {
        "Reference": [metric_value(row.reference, row.unit) for row in metrics],
        "Candidate": [metric_value(row.candidate, row.unit) for row in metrics],
        "Both": [metric_value(row.pair, row.unit) for row in metrics],
        "Count": ["" if row.count is None else str(row.count) for row in metrics],
    }
    shown = {title: column for title, column in cells.items() if any(column)}
    columns = [Column("Metric"), Column("Output")]
    columns += [Column(title, is_number=True) for title in shown]
    names = [(row.name, row.output) for row in metrics]
    rows = [[*name, *numbers] for name, *numbers in zip(names, *shown.values(), strict=True)]
    return table("metrics-table", "What the models are judged by", columns, rows)
