"""The limit of a job: the least time in which the same result can be made, nothing found out.

What palettizes: the source's weights are read, each is labelled with a table that is known before,
indices are packed, and every byte of the output is written (:mod:`benchmarks.lib.known_output`).
What changes nothing: a copy of the package. Metadata: a read of its weight files. Like every copy
it leaves the output in the page cache; mlopt waits for the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib import perform as jobs
from benchmarks.lib.known_output import KnownOutput, known_output
from benchmarks.lib.row import PROJECT, Row, Variant

_CHUNK = 4 << 20

_known: dict[tuple[str, str, str], KnownOutput] = {}
"""What is known of an output, by names of row and limit and by source: made once a process."""


def import_tool(variant: Variant) -> Any:
    """The module ``mlopt.coreml``, which makes the output that the limit makes again."""
    import mlopt.coreml

    return mlopt.coreml


def open_source(row: Row, variant: Variant, source: str) -> Callable[[Path], None]:
    """What makes the output of a row at a path; finding out what it needs to know is done here."""
    package, threads = Path(source), _threads(row)
    match row.action:
        case "palettize":
            key = (row.name, variant.name, source)
            if key not in _known:
                _known[key] = _find_out(row, variant, package)
            known = _known[key]
            return lambda output: known.write(output, threads=threads)
        case "unchanged":
            return lambda output: _copy(package, output)
        case "metadata" | "metadata-statistics":
            return lambda _: _read(package, threads)
    raise NotImplementedError(f"there is no limit for {row.action}")


def perform(
    row: Row, variant: Variant, api: Any, source: Callable[[Path], None], output: Path
) -> dict[str, Any]:
    """Do what ``open_source`` prepared; there is nothing to report."""
    source(output)
    return {}


def keep(row: Row, done: dict[str, Any], output: Path) -> dict[str, Any]:
    """The output and its bytes, where there is one."""
    return jobs.keep(row, done, output)


def _find_out(row: Row, variant: Variant, source: Path) -> KnownOutput:
    """Run mlopt from file to file, and keep of its output what the limit need not find out."""
    ours = Variant(PROJECT, variant.label, variant.extra, streaming=True)
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        output = Path(folder) / "ours.mlpackage"
        jobs.perform(row, ours, jobs.import_tool(ours), source, output)
        return known_output(source, output)


def _threads(row: Row) -> int:
    """As many as mlopt uses for the row."""
    from mlopt.threads import processors

    asked = row.settings.get("num_kmeans_workers", 1)
    return min(asked, processors()) if asked > 1 else processors()


def _copy(package: Path, output: Path) -> None:
    shutil.copytree(package, output)


def _read(package: Path, threads: int) -> None:
    """Read the weight files, in chunks that are dropped again."""
    with ThreadPoolExecutor(threads) as pool:
        for path in package.rglob("*.bin"):
            starts = range(0, path.stat().st_size, _CHUNK)
            for _ in pool.map(partial(_read_chunk, path), starts):
                pass


def _read_chunk(path: Path, start: int) -> None:
    with path.open("rb", buffering=0) as file:
        os.pread(file.fileno(), _CHUNK, start)
