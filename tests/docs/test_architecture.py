"""The way of one weight is the one that the architecture shows."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numba.extending import is_jitted

from mlopt.coreml import palettize
from tests.coreml.conftest import chain, global_config, saved
from tests.docs.pages import ROOT, text_of
from tests.docs.test_names import named

ROW = re.compile(r"^\| `(mlopt/[\w/]+\.py)` \| (`.*`) \|$", flags=re.MULTILINE)


def listed() -> list[tuple[str, str]]:
    """File and function, in order."""
    page = text_of("docs/architecture.md").partition("## The way of one weight")[2]
    rows = ROW.findall(page.partition("\n## ")[0])
    return [(file, name) for file, names in rows for name in re.findall(r"`([\w.]+)`", names)]


def called(source: Path, output: Path) -> set[tuple[str, str]]:
    """File and function of all that palettizing calls."""
    calls = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            calls.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        palettize(source, global_config(), output=output)
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return calls


def test_the_way_of_one_weight(tmp_path):
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    source = saved(chain({"w0": values}, "iOS16"), tmp_path / "source.mlpackage")
    calls = called(source, tmp_path / "output.mlpackage")
    way = listed()
    assert len(way) > 30
    for file, name in way:
        thing = named(f"{file.removesuffix('.py').replace('/', '.')}.{name}")
        if is_jitted(thing) or isinstance(thing, type):
            continue  # compiled, or constructed by a method that attrs has written: no call to see
        assert (str(ROOT / file), name) in calls, f"{file}: {name} is not called"
