"""The picture of ``plans``: how well MiniLM keeps its embeddings, against bytes of the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = "minilm"
KINDS = {"calibrated": "with a calibration", "data-free": "without data"}
MEASURES = {"held-out": "held-out text", "other": "text of another kind"}
COLOURS = {
    "plan": "#c0392b",
    "plan, sequential": "#1e8449",
    "plan, one table": "#e67e22",
    "uniform": "#7a7a7a",
    "greedy": "#3a9bdc",
    "ml-stable-diffusion": "#b8860b",
    "ml-stable-diffusion, cumulative": "#d9a441",
    "argmaxtools": "#8e44ad",
    "coreai-opt": "#111111",
}
"""Of what is drawn, in the order of the legend; plans first, other rules dashed."""
PLANS = tuple(COLOURS)[:3]

Line = tuple[list[float], list[float]]
"""MB and dB of one method, by MB."""


def lines(rows: Iterable[dict[str, Any]], kind: str, measure: str) -> dict[str, Line]:
    """The lines of a panel, of the methods that were measured at all."""
    points: dict[str, set[tuple[float, float]]] = {name: set() for name in COLOURS}
    for row in rows:
        is_drawn = (row["model"], row["kind"]) == (MODEL, kind) and measure in row
        if is_drawn and row["method"] in points:
            points[row["method"]].add((row["bytes"] / 1e6, row[measure]))
    return {
        name: ([size for size, _ in sorted(found)], [value for _, value in sorted(found)])
        for name, found in points.items()
        if found
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the SVG at ``path``, the same bytes for the same rows; ValueError where none fits."""
    panels = {kind: {measure: lines(rows, kind, measure) for measure in MEASURES} for kind in KINDS}
    panels = {kind: found for kind, found in panels.items() if any(found.values())}
    if not panels:
        raise ValueError(f"nothing to draw: no row of {MODEL}")
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and nothing depends on the time or on chance.
    style = {"svg.fonttype": "none", "svg.hashsalt": "plans", "font.size": 10}
    with matplotlib.rc_context(style):
        size = (8.4, 1.2 + 3.2 * len(panels))
        figure = Figure(figsize=size, facecolor="#ffffff", layout="constrained")
        grid = figure.subplots(len(panels), len(MEASURES), sharex=True, sharey=True, squeeze=False)
        for row, (kind, found) in zip(grid, panels.items(), strict=True):
            for axis, (measure, title) in zip(row, MEASURES.items(), strict=True):
                _panel(axis, f"{title}, {KINDS[kind]}", found[measure])
            row[0].set_ylabel("embeddings: signal to noise, dB")
        for axis in grid[-1]:
            axis.set_xlabel("bytes of the package, MB")
        shown: dict[str, Any] = {}
        for axis in grid.flat:
            handles, names = axis.get_legend_handles_labels()
            shown |= dict(zip(names, handles, strict=True))
        labels = [name for name in COLOURS if name in shown]
        figure.legend(
            [shown[name] for name in labels],
            labels,
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axis: Axes, title: str, found: dict[str, Line]) -> None:
    for name, (sizes, values) in found.items():
        is_plan = name in PLANS
        axis.plot(
            sizes,
            values,
            "-" if is_plan else "--",
            color=COLOURS[name],
            marker="o" if is_plan else "s",
            markersize=4.5,
            linewidth=1.8 if is_plan else 1.2,
            label=name,
        )
    axis.set_title(title, fontsize=11)
    axis.grid(color="#e3e3e3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
