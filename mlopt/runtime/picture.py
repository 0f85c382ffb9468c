"""A picture of where the error of a compressed model enters."""

from __future__ import annotations

import math
from pathlib import Path

from mlopt.errors import ConfigError
from mlopt.runtime.comparison import Comparison


def draw_layers(comparison: Comparison, path: Path) -> None:
    """Draw the signal-to-noise ratio of every layer, in their order, to a file (.png, .svg, .pdf).

    Bars: the error that enters at a layer; line: all errors up to it. Layers without error have
    no bar.

    Raises
    ------
    ConfigError
        There are no layers in the comparison, or matplotlib is not installed.
    """
    if not comparison.layers:
        raise ConfigError("there are no layers to draw; compare with layers=True")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "drawing needs matplotlib; install mlopt with its extra: pip install 'mlopt[report]'"
        ) from None
    rows = comparison.layers
    figure = Figure(figsize=(8, 1.5 + 0.22 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    entering = [_drawable(row.entering.snr_db) for row in rows]
    so_far = [_drawable(row.so_far.snr_db) for row in rows]
    axes.barh(places, entering, color="#7aa6c2", label="entering here")
    axes.plot(so_far, places, "o-", color="#b3432b", markersize=3, label="so far")
    axes.set_yticks(places, [", ".join(row.weights)[-60:] for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-noise ratio of the layer's output, dB (less is worse)")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _drawable(value: float) -> float:
    return value if math.isfinite(value) else math.nan
