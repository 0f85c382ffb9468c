"""The pages of the documentation, and the code on them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "CHANGELOG.md"
)
"""The pages by their path from the root: those in docs/, the README and CONTRIBUTING."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language, in order."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, text_of(page), flags=re.MULTILINE | re.DOTALL)
