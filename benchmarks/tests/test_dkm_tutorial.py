"""The code that fixtures/DKM.md shows is that of the script."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (FIXTURES / "DKM.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
SCRIPT = (FIXTURES / "dkm_tutorial.py").read_text(encoding="utf-8").replace("  # noqa: E402", "")


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 7


@pytest.mark.parametrize("block", BLOCKS)
def test_the_script_has_the_block(block: str) -> None:
    found = (textwrap.indent(block, " " * margin) for margin in (0, 4))
    assert any("\n" + lines in SCRIPT for lines in found)
