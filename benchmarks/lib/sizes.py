"""Bytes on disk, and bits of a weight."""

from __future__ import annotations

from pathlib import Path


def package_bytes(package: Path | str) -> int:
    """Bytes of all files of a package together: manifest, program and weights."""
    return sum(file.stat().st_size for file in Path(package).rglob("*") if file.is_file())


def weight_bytes(package: Path | str) -> int:
    """Bytes of the weight files of a package."""
    return sum(file.stat().st_size for file in Path(package).rglob("weight.bin"))


def bits_per_weight(stored: int, original: int, elements: int) -> float:
    """Bits of each of the ``elements`` that were compressed, tables and scales included.

    ``stored`` and ``original``: bytes of all weights with these compressed, and in float16.
    """
    return 16 - 8 * (original - stored) / elements
