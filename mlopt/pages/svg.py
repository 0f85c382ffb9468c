"""SVG of matplotlib made fit for a page: short, in the page's colours, and with ids of its own."""

from __future__ import annotations

import re

_BITS = (0, 1, 2, 3, 4, 6, 8)
_NAMES = ("ink", "muted", "rule", "paper", "accent", "before", "error", *(f"b{n}" for n in _BITS))
COLOURS = {name: f"#0000{place:02x}" for place, name in enumerate(_NAMES, 1)}
"""What matplotlib draws with for each colour that the page has a name for."""

_LONG = re.compile(r"-?\d+\.\d{3,}")  # hundredths of a pixel are enough


def colour(name: str) -> str:
    """Return what matplotlib draws with for a colour of the page, such as ``"accent"``."""
    return COLOURS[name]


def tidy(text: str, key: str) -> str:
    """Return what is in a drawing, fit to stand in a page next to others."""
    inner = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    # rules for everything in an SVG would hold for everything on the page
    inner = re.sub(r"\s*<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = inner.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', inner))
    inner = re.sub(r' id="([^"]*)"', lambda match: _id(match, key, used), inner)
    inner = re.sub(r'(href="|url\()#', rf"\g<1>#{key}-", inner)
    inner = re.sub(r"font-family: [^;\"]*(; )?|font: ([\d.]+px) [^;\"]*", _font, inner)
    for name, value in COLOURS.items():
        inner = inner.replace(value, f"var(--{name})")
    inner = re.sub(r'="[^"]*"', lambda match: _LONG.sub(_rounded, match[0]), inner)
    inner = re.sub(r"\s*\n\s*", "\n", inner)
    return re.sub(r" ?\n(?=[LMCzQ\"])", "", inner)


def _id(match: re.Match[str], key: str, used: set[str]) -> str:
    if match[1].startswith("hover-"):
        return match[0]
    return f' id="{key}-{match[1]}"' if match[1] in used else ""


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}"


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}" if match[2] else ""
