"""Time every variant of a row in turn, in one process (called in a fresh one for each row).

The limit is a variant like the others, with a module of its own that does it.

Order: imports; one warm-up call of each variant on a small model, with the row's own settings,
which compiles or loads kernels and lazy imports; then rounds, each running every variant that
still has repeats left. A sample covers the job and ``.save`` of a package; opening the MLModel or
building the torch module is outside.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any

from benchmarks.lib.progress import say
from benchmarks.lib.row import LIMIT, REFERENCE, Row, Variant
from benchmarks.lib.rows import BY_NAME
from benchmarks.lib.timing import Timing


def time_row(
    name: str, variants: list[str], source: str, warmup: str, folder: str, repeats: int
) -> dict[str, dict[str, Any]]:
    """Result by variant name: a timing summary, ``output`` and its bytes, or ``error``.

    ``variants`` names the variants to run, ``source`` and ``warmup`` are packages or tasks,
    ``folder`` receives one output for each variant. A variant that fails does not stop the others.
    """
    row = BY_NAME[name]
    chosen = [variant for variant in row.variants if variant.name in variants]
    results: dict[str, dict[str, Any]] = {variant.name: {} for variant in chosen}
    timings = {variant.name: Timing() for variant in chosen}
    for variant in chosen:
        _guarded(results[variant.name], lambda v=variant: _warm_up(row, v, warmup))
    for turn in range(repeats):
        for variant in chosen:
            result = results[variant.name]
            if "error" in result or turn >= _repeats(row, variant, repeats):
                continue
            say(f"{name}: {variant.name}, {turn + 1} of {_repeats(row, variant, repeats)}")
            output = Path(folder) / f"{variant.name.replace(' ', '-').replace(',', '')}.mlpackage"
            sample = (row, variant, source, output, timings[variant.name])
            _guarded(result, lambda s=sample: _sample(*s))
    for variant in chosen:
        if timings[variant.name].wall_s:
            results[variant.name] |= timings[variant.name].summary()
            if variant.tool == REFERENCE and row.settings.get("num_kmeans_workers", 1) > 1:
                # Its pool of processes outlives the call, so their time is not known.
                results[variant.name] |= {"cpu_s": None, "median_cpu_s": None}
    return results


def _repeats(row: Row, variant: Variant, repeats: int) -> int:
    return min(repeats, row.reference_repeats) if variant.tool == REFERENCE else repeats


def _how(row: Row, variant: Variant) -> Any:
    """The module whose functions do the job of a row for a variant."""
    return importlib.import_module("benchmarks.lib.limit" if variant.tool == LIMIT else row.how)


def _guarded(result: dict[str, Any], function: Any) -> None:
    """Merge what ``function`` returns into ``result``, or the traceback of its failure."""
    try:
        result |= function()
    except Exception:
        result["error"] = traceback.format_exc()


def _warm_up(row: Row, variant: Variant, warmup: str) -> dict[str, Any]:
    how = _how(row, variant)
    api = how.import_tool(variant)
    if variant.tool == REFERENCE and not row.reference_warmup:
        return {}
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        opened = how.open_source(row, variant, warmup)
        how.perform(row, variant, api, opened, Path(folder) / "warmup.mlpackage")
    return {}


def _sample(
    row: Row, variant: Variant, source: str, output: Path, timing: Timing
) -> dict[str, Any]:
    how = _how(row, variant)
    api = how.import_tool(variant)
    shutil.rmtree(output, ignore_errors=True)
    opened = how.open_source(row, variant, source)
    done = timing.measure(lambda: how.perform(row, variant, api, opened, output))
    kept: dict[str, Any] = how.keep(row, done, output)
    return kept
