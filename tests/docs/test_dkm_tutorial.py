"""The tutorial shows the code of its script."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.docs.pages import blocks

ROOT = Path(__file__).parents[2]
TUTORIAL = "docs/tutorials/dkm.md"
SCRIPT = (
    (ROOT / "fixtures" / "dkm_tutorial.py")
    .read_text(encoding="utf-8")
    .replace("  # noqa: E402", "")
)
BLOCKS = blocks(TUTORIAL, "python")


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 7


@pytest.mark.parametrize("block", BLOCKS)
def test_the_script_has_the_block(block: str) -> None:
    indented = (textwrap.indent(block, " " * margin) for margin in (0, 4))
    assert any("\n" + lines in SCRIPT for lines in indented)
