"""The picture of ``answers``: how well MiniLM keeps its embeddings, against bits of a weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL, FORMS = "minilm", "layers, "
PANELS = {"held-out": "held-out text", "other": "text of another kind"}
COLOURS = {
    "plain": "#7a7a7a",
    "diagonal": "#b8860b",
    "hessian": "#3a9bdc",
    "guided": "#0b5394",
    "sequential": "#1e8449",
    "tuned": "#c0392b",
    "GPTQ, affine, ordered": "#8e44ad",
    "SKM of coremltools": "#111111",
}
"""Of what is drawn, in the order of the legend; of mlopt first, references dashed."""
OF_MLOPT = tuple(COLOURS)[:6]

Line = tuple[list[float], list[float]]
"""Bits and dB of one method, by bits."""


def lines(rows: Iterable[dict[str, Any]], measure: str) -> dict[str, Line]:
    """The lines of a panel, of the methods that were measured at all."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in COLOURS}
    for row in rows:
        is_drawn = row["model"] == MODEL and row["form"].startswith(FORMS) and measure in row
        if is_drawn and row["method"] in points:
            points[row["method"]].append((row["bits"], row[measure]))
    return {
        name: ([bits for bits, _ in sorted(found)], [value for _, value in sorted(found)])
        for name, found in points.items()
        if found
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the SVG at ``path``, the same bytes for the same rows; ValueError where none fits."""
    panels = {title: lines(rows, measure) for measure, title in PANELS.items()}
    if not any(panels.values()):
        raise ValueError(f"nothing to draw: no row of {MODEL} of a form {FORMS}...")
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and nothing depends on the time or on chance.
    style = {"svg.fonttype": "none", "svg.hashsalt": "answers", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 4.2), facecolor="#ffffff", layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, found) in zip(axes, panels.items(), strict=True):
            _panel(axis, title, found)
        axes[0].set_ylabel("embeddings: signal to noise, dB")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axis: Axes, title: str, found: dict[str, Line]) -> None:
    from matplotlib.ticker import MultipleLocator

    for name, (bits, values) in found.items():
        is_ours = name in OF_MLOPT
        axis.plot(
            bits,
            values,
            "-" if is_ours else "--",
            color=COLOURS[name],
            marker="o" if is_ours else "s",
            markersize=4.5,
            linewidth=1.8 if is_ours else 1.4,
            label=f"mlopt: {name}" if is_ours else name,
        )
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("bits for each weight, tables and scales included")
    axis.set_xticks([2, 3, 4])
    axis.yaxis.set_major_locator(MultipleLocator(5))
    axis.grid(color="#e3e3e3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
