"""Run every benchmark in turn, and say what moved since a stored run of the same machine.

    python -m benchmarks [--json FILE] [--against FILE] [--skip-reference]
    python -m benchmarks --read FILE --against FILE

A run is compared with FILE, or else with the last whole run on this machine in which nothing
failed, which is kept in the cache folder. The second command compares two stored runs, of all
benchmarks or of one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import (
    answers,
    clustering_kinds,
    compressed_packages,
    compression_ratios,
    coreml_jobs,
    dkm_accuracy,
    exact_kmeans,
    large_package,
    linear_forms,
    plans,
    runtime_overhead,
    runtime_speed,
    scale_importance,
    torch_dkm,
    torch_jobs,
    torch_sensitivity,
    vector_kmeans,
)
from benchmarks.lib.environment import environment
from benchmarks.lib.kept_run import keep_run, kept_run
from benchmarks.lib.moved import print_moved


def main(argv: list[str] | None = None) -> int:
    """Run all; 1 where any of them failed, else 0. The JSON holds one result a script."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--skip-reference", action="store_true", help="run mlopt only")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="say what moved since then (default: the last run)",
    )
    parser.add_argument("--read", type=Path, metavar="FILE", help="a stored run: measure nothing")
    options = parser.parse_args(argv)
    for file in (options.against, options.read):
        if file is not None and not file.exists():
            parser.error(f"{file} does not exist; a run is stored with --json FILE")
    if options.read is not None:
        if options.against is None:
            parser.error("--read compares a stored run: say with which one, --against FILE")
        print_moved(options.against, options.read)
        return 0
    common = ["--skip-reference"] if options.skip_reference else []
    results = {"environment": environment()}
    status = 0
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        for script, extra in (
            (coreml_jobs, common),
            (compressed_packages, common),
            (torch_jobs, common),
            (torch_sensitivity, common),
            (torch_dkm, common),
            (dkm_accuracy, common),
            (runtime_speed, []),
            (runtime_overhead, []),
            (exact_kmeans, common),
            (clustering_kinds, []),
            (vector_kmeans, common),
            (compression_ratios, common),
            (scale_importance, []),
            (answers, []),
            (plans, ["--models", "digits"]),
            (linear_forms, []),
            (large_package, []),
        ):
            file = Path(folder) / "result.json"
            status |= script.main([*extra, "--json", str(file)])
            results[script.__name__.rpartition(".")[2]] = json.loads(file.read_text())["rows"]
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=2) + "\n")
        against = options.against or kept_run()
        now = Path(folder) / "now.json"
        now.write_text(json.dumps(results))
        try:
            if against.exists():
                print_moved(against, now)
        finally:
            # a damaged file of an earlier run must not lose this one, nor all later ones
            if status == 0 and not options.skip_reference:
                print(f"Kept for the next run to be compared with: {keep_run(results)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
