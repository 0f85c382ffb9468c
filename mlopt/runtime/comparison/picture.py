"""Picture of where the error of a compressed model enters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mlopt.errors import ConfigError
from mlopt.text.extras import matplotlib_missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlopt.runtime.comparison.measures import Distance
    from mlopt.runtime.comparison.results import Comparison

FORMATS = (".eps", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".webp")
"""File extensions that pictures can be written to."""


def check_picture(path: Path) -> None:
    """Refuse a path that a picture cannot be drawn to, before the work is done.

    Raises
    ------
    ConfigError
        The file's extension is not one of ``FORMATS``, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        ending = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise ConfigError(
            f"a picture cannot be drawn to {path}: it has {ending}; use one of {', '.join(FORMATS)}"
        )
    missing = matplotlib_missing()
    if missing is not None:
        raise ConfigError(missing)


def draw_layers(comparison: Comparison, path: Path) -> None:
    """Draw the signal-to-noise ratio of every layer, in their order, to a file of ``FORMATS``.

    See :func:`layers_figure`.

    Raises
    ------
    ConfigError
        There are no layers in the comparison, or see :func:`check_picture`.
    """
    check_picture(path)
    layers_figure(comparison).savefig(path, dpi=150)


def layers_figure(comparison: Comparison) -> Figure:
    """Draw the layers of a comparison.

    Bars: the error that enters at a layer; line: all errors up to it. Layers without error, and
    those that are zero in both models, have no bar. Crosses: layers whose error is infinite or not
    a number, or that were not comparable.
    """
    if not comparison.layers:
        raise ConfigError("there are no layers to draw; compare with layers=True")
    from matplotlib.figure import Figure

    rows = comparison.layers
    figure = Figure(figsize=(8, 1.5 + 0.22 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    entering, so_far = ([r.entering.snr_db for r in rows], [r.so_far.snr_db for r in rows])
    broken = [p for p in places if _is_broken(rows[p].entering) or _is_broken(rows[p].so_far)]
    axes.barh(places, list(map(_drawable, entering)), color="#7aa6c2", label="entering here")
    axes.plot(
        list(map(_drawable, so_far)), places, "o-", color="#b3432b", markersize=3, label="so far"
    )
    if broken:
        axes.plot([0.0] * len(broken), broken, "kX", label="not finite, or not comparable")
    axes.set_yticks(places, [", ".join(row.weights)[-60:] for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-noise ratio of the layer's output, dB (less is worse)")
    axes.legend(fontsize=7)
    return figure


def _is_broken(distance: Distance) -> bool:
    # if both are zero the ratio is NaN, but nothing is wrong
    return distance.status in ("not finite", "unmeasured") or distance.snr_db == -math.inf


def _drawable(value: float) -> float:
    return value if math.isfinite(value) else math.nan
