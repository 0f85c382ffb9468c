"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path


def package_bytes(package: Path | str) -> int:
    """Bytes of all files of a package together: manifest, program and weights."""
    return sum(file.stat().st_size for file in Path(package).rglob("*") if file.is_file())
