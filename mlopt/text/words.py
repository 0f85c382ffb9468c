"""Numbers as words: counts, byte sizes, shares."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, plural with an ``s``: ``"1 weight"``, ``"3 weights"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_bytes(count: int) -> str:
    """Return `count` bytes in decimal units: ``"512 B"``, ``"1.5 kB"``, ``"23.4 MB"``."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:.1f} {unit}"


def size_change(before: int, after: int) -> str:
    """Return how ``after`` bytes compare with ``before``: ``"3.64 times smaller"``."""
    factor = max(before, after) / min(before, after) if before and after else 1.0
    if factor < 1.005:
        return "as large as before"
    return f"{factor:.2f} times {'smaller' if after < before else 'larger'}"


def sizes_compared(before: int, after: int) -> str:
    """Return two sizes and their ratio: ``"3.6 MB -> 1.0 MB, 3.64 times smaller"``."""
    return f"{human_bytes(before)} -> {human_bytes(after)}, {size_change(before, after)}"


def percent(share: float) -> str:
    """Return a share (0 to 1) in percent, with a decimal if it would otherwise read 0 or 100."""
    return f"{100 * share:.0f} %" if 0.01 <= share <= 0.99 else f"{100 * share:.1f} %"
