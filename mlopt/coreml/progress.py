"""How long jobs tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called after each weight: elements done, elements in all, the weight's name."""
