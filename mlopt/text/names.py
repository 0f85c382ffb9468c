"""Display of names that come from models: any characters, of any length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SHORTLIST = 10
"""Number of names, or problems, that a message shows; it counts the others."""

_DOTS = ".."


def printable(text: str) -> str:
    """Return `text` on one line, escaping what would move the cursor or colour a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def printable_lines(text: str) -> str:
    """Return `text` with such escapes, its line ends kept."""
    return "\n".join(map(printable, text.split("\n")))


def shortlist(names: Sequence[Any]) -> str:
    """Return names for a message, the first ones and how many more: ``"'a', 'b' and 3 more"``."""
    shown = ", ".join(map(repr, names[:SHORTLIST]))
    return shown if len(names) <= SHORTLIST else f"{shown} and {len(names) - SHORTLIST} more"


def middle_elided(text: str, width: int) -> str:
    """Return `text` in at most `width` (5 or more) characters, dots for its middle if needed."""
    if len(text) <= width:
        return text
    head = (width - len(_DOTS)) // 2
    return f"{text[:head]}{_DOTS}{text[len(text) - (width - len(_DOTS) - head) :]}"


def elided_apart(texts: Iterable[str], width: int) -> list[str]:
    """Return `texts` in at most `width` (12 or more) characters each, still distinct.

    What fits stays. Others lose their middle; if that makes some equal, the part that differs is
    shown between two gaps; and what is equal even then is numbered.
    """
    given = list(texts)
    names = list(dict.fromkeys(given))
    shown = {name: middle_elided(name, width) for name in names}
    _tell_apart([name for name in names if len(name) > width], width, shown)
    taken = {name for name in names if len(name) <= width}
    for name in names:
        if len(name) <= width:
            continue
        number = 1
        while shown[name] in taken:
            number += 1
            shown[name] = _numbered(name, width, number)
        taken.add(shown[name])
    return [shown[name] for name in given]


def _tell_apart(names: Sequence[str], width: int, shown: dict[str, str]) -> None:
    """Change the display of those `names` that are displayed alike."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(shown[name], []).append(name)
    for group in groups.values():
        if len(group) == 1:
            continue
        first = _common_prefix(group)
        for name in group:
            shown[name] = _around(name, first, width)
        # The character there is shown of all, so that each part of the group is a smaller one.
        if len({shown[name] for name in group}) > 1:
            _tell_apart(group, width, shown)


def _common_prefix(names: Sequence[str]) -> int:
    """Return the length of the common start of all `names`, which are different."""
    low, high = min(names), max(names)
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(low))


def _around(text: str, place: int, width: int) -> str:
    """Return the head of a text, the surroundings of a place in it, and its tail."""
    room = width - 2 * len(_DOTS)
    side = room // 4
    middle = room - 2 * side
    start = max(0, place - middle // 2)
    if start <= side + len(_DOTS):  # no gap in front
        front, start, end = "", 0, middle + side + len(_DOTS)
    else:
        front, end = text[:side] + _DOTS, start + middle
    if len(text) - end <= side + len(_DOTS):  # no gap behind
        return front + text[start:]
    return f"{front}{text[start:end]}{_DOTS}{text[len(text) - side :]}"


def _numbered(text: str, width: int, number: int) -> str:
    """Return the head and the tail of a text around a number."""
    middle = f"{_DOTS}{number}{_DOTS}"
    head = max(width - len(middle), 2) // 2
    tail = max(width - len(middle) - head, 1)
    return f"{text[:head]}{middle}{text[len(text) - tail :]}"
