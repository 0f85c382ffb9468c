"""Names in messages: the first ones, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LISTED = 10
"""How many a message shows; it counts the others."""


def listed(names: Sequence[Any]) -> str:
    """Names for a message: ``"'a', 'b' and 3 more"``."""
    shown = ", ".join(map(repr, names[:LISTED]))
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"
