"""Charts: drawn by matplotlib, put into a page as SVG that takes the colours of its theme.

A chart is drawn twice, for a wide page and for a phone, and style shows one of them. Colours are
drawn as numbers that stand for the names of the page's own, and names from models as numbers that
stand for them, so that matplotlib lays out nothing but plain text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs

from mlopt.errors import ConfigError
from mlopt.pages.html import Markup, escaped
from mlopt.pages.svg import colour, tidy
from mlopt.text.extras import matplotlib_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 832, 328
"""Widths of a chart, in pixels of a page: in a column of text, and on a phone."""

_STANDING = re.compile(r'<g id="hover-(\d+)">|\[\[(\d+)\]\]')
_DOTS = 72.0  # pixels of an inch: one unit of a figure is one of the page


@attrs.define
class Canvas:
    """What a chart is drawn on.

    Attributes
    ----------
    figure
        Of matplotlib, without axes.
    is_narrow
        Whether it is the drawing for a phone. This one has no texts to hover over.
    """

    figure: Figure
    is_narrow: bool
    _hovers: list[str] = attrs.field(factory=list, init=False)
    _names: list[str] = attrs.field(factory=list, init=False)

    @property
    def width(self) -> int:
        """Its width in pixels."""
        return NARROW if self.is_narrow else WIDE

    @property
    def height(self) -> float:
        """Its height in pixels."""
        return float(self.figure.get_figheight() * _DOTS)

    def hover(self, artist: Any, text: str) -> None:
        """Show a text where the mouse is on something that was drawn."""
        if not self.is_narrow:
            artist.set_gid(f"hover-{len(self._hovers)}")
            self._hovers.append(text)

    def columns(self, axes: Axes, edges: Any, texts: list[str]) -> None:
        """Show a text where the mouse is between two edges [count + 1], however high."""
        if self.is_narrow:
            return
        from matplotlib.patches import Rectangle

        for (left, right), text in zip(pairwise(edges), texts, strict=True):
            patch = Rectangle(
                (left, 0.0),
                right - left,
                1.0,
                transform=axes.get_xaxis_transform(),
                facecolor="none",
                linewidth=0,
            )
            axes.add_artist(patch)  # add_patch would compute the limits of the axes for each
            self.hover(patch, text)

    def name(self, text: str) -> str:
        """Return what matplotlib draws for a name that may have any characters."""
        self._names.append(text)
        return f"[[{len(self._names) - 1}]]"

    def markup(self, key: str, label: str) -> Markup:
        """Return the drawing as an element; key: an id unlike all others of the page."""
        text = tidy(_saved(self.figure), key)
        # in one pass: a text to hover over may look like what stands for a name
        text = _STANDING.sub(self._meant, text)
        kind = "narrow" if self.is_narrow else "wide"
        box = f"0 0 {self.width} {self.height:.4g}"
        return Markup(
            f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{html.escape(label)}">'
            f"{text}</svg>"
        )

    def _meant(self, match: re.Match[str]) -> str:
        if match[1] is not None:
            return f'<g class="h"><title>{escaped(self._hovers[int(match[1])])}</title>'
        return escaped(self._names[int(match[2])])


def chart(
    key: str, label: str, draw: Callable[[Canvas], None], *, wide: float, narrow: float
) -> Markup:
    """Return a chart in both its drawings.

    Parameters
    ----------
    key
        An id unlike all others of the page.
    label
        What the chart shows, in a sentence, for those who do not see it.
    draw
        Called with each canvas.
    wide, narrow
        The heights of the drawings in pixels.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    drawn = []
    for is_narrow, height in ((False, wide), (True, narrow)):
        width = NARROW if is_narrow else WIDE
        # the drawing is the same whatever a user's own settings of matplotlib are
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_settings(key))
            figure = Figure(figsize=(width / _DOTS, height / _DOTS))
            canvas = Canvas(figure, is_narrow)
            draw(canvas)
            drawn.append(canvas.markup(f"{key}-{'narrow' if is_narrow else 'wide'}", label))
    return Markup("\n".join(drawn))


def check_drawing() -> None:
    """Refuse to go on where nothing can be drawn, before work is done that ends in a chart.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    missing = matplotlib_missing()
    if missing is not None:
        raise ConfigError(missing)


def plain_axes(
    canvas: Canvas, *, ratios: tuple[float, ...] = (1,), has_ticks: bool = True
) -> list[Axes]:
    """Return axes below each other in the style of the page, with lines across at their ticks.

    ratios: their heights; has_ticks: whether the lowest has numbers below it.
    """
    # room for the title above and for the ticks, of which half the last one is beyond the axis
    left, right = 46 / canvas.width, 1 - (30 if has_ticks else 8) / canvas.width
    bottom, top = (42 if has_ticks else 26) / canvas.height, 1 - 24 / canvas.height
    rows = len(ratios)
    grid = canvas.figure.add_gridspec(
        rows, 1, left=left, right=right, bottom=bottom, top=top, height_ratios=ratios, hspace=0.5
    )
    found = []
    for row in range(rows):
        axes = canvas.figure.add_subplot(grid[row])
        axes.grid(axis="y", color=colour("rule"), linewidth=1)
        axes.set_axisbelow(True)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=6)
        found.append(axes)
    return found


def titled(axes: Axes, text: str) -> None:
    """Say above axes what their height is."""
    axes.set_title(text, loc="left", x=0.0, color=colour("muted"), fontsize=12, pad=8)


def filled(axes: Axes, boxes: Any, *, name: str) -> None:
    """Fill boxes, rows of left, bottom, right, top [count, 4], as one shape of one colour."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(boxes):
        return
    corners = [Path([(a, b), (a, d), (c, d), (c, b), (a, b)], closed=True) for a, b, c, d in boxes]
    shape = Path.make_compound_path(*corners)
    axes.add_artist(PathPatch(shape, facecolor=colour(name), linewidth=0))


def _settings(key: str) -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "font.size": 12.0,
        "text.color": colour("ink"),
        "text.parse_math": False,
        "axes.edgecolor": colour("rule"),
        "axes.labelcolor": colour("muted"),
        "axes.unicode_minus": False,
        "path.simplify": False,
        "xtick.color": colour("muted"),
        "ytick.color": colour("muted"),
    }


def _saved(figure: Figure) -> str:
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return stream.getvalue()
