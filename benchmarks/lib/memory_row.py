"""Peak memory of one variant of a row (called in a fresh process for each).

No warm-up: what a first call allocates counts. Opening the model counts too, since a job that
streams does it as part of its work; so do the weights of a torch module.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.rows import BY_NAME


def peak_of(name: str, variant: str, source: str) -> dict[str, Any]:
    """``peak_above_imports_bytes``, ``after_imports_bytes`` and what the job itself imported."""
    row = BY_NAME[name]
    chosen = next(each for each in row.variants if each.name == variant)
    how = importlib.import_module(row.how)
    api = how.import_tool(chosen)
    modules = set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        memory = PeakMemory()
        opened = how.open_source(row, chosen, source)
        how.perform(row, chosen, api, opened, Path(folder) / "output.mlpackage")
        peak = memory.above_start_bytes()
    late = {module.partition(".")[0] for module in set(sys.modules) - modules}
    return {
        "peak_above_imports_bytes": peak,
        "after_imports_bytes": memory.start_bytes,
        "largest_child_bytes": memory.children_bytes(),
        "imported_by_job": sorted(each for each in late if not each.startswith("_")),
    }
