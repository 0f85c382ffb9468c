"""The callback by which long jobs report their progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called after each weight: elements done, elements in all, the weight's name."""
