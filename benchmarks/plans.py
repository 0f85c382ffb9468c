"""What plans are worth: their answers at equal bytes, beside other rules for who gets which width.

    python -m benchmarks.plans [--models NAME ...] [--bits N ...] [--methods NAME ...]
        [--kinds data-free calibrated] [--costs near] [--samples 32] [--cache FOLDER]
        [--json FILE] [--picture FILE.svg]
    python -m benchmarks.plans --read FILE ... [--json FILE] [--picture FILE.svg]

A model is palettized with one width for all weights, and what its package takes is the budget of
the plan and of every rule. All choose by the same losses of the same forms. data-free: tables are
fitted to the weights, losses come from random inputs; calibrated: tables are fitted with a
calibration, and losses come from samples that were kept out of it. Who judges, and by what
measures, is as in ``benchmarks.answers``; resnet50 and speech-encoder have random weights and are
asked about noise. The second command joins results that are stored.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import child, plans_picture
from benchmarks.lib.output import megabytes, number, print_table, write_json
from benchmarks.lib.packages import missing, package
from benchmarks.tasks import photographs
from benchmarks.tasks.plan_runs import KINDS, METHODS
from benchmarks.tasks.plan_trials import PLANNED
from mlopt.choices import COSTS

SUBJECT = "plans and other rules at equal bytes"
WIDTHS = (2, 3, 4, 6)
MEASURES = ("held-out", "other", "top-1")
COLUMNS = (
    "model",
    "kind",
    "bytes of",
    "method",
    *MEASURES,
    "bits",
    "bytes",
    "as planned",
    "sum of losses",
    "gap",
    "seconds",
    "peak, MB",
)
DIGITS = Path(__file__).resolve().parents[1] / "fixtures" / "digits-iOS18.mlpackage"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 1 where something raised or a package has other bytes than it may, else 0."""
    options = _options(argv)
    rows: list[dict[str, Any]] = []
    if options.read:
        rows = arranged(json.loads(file.read_text())["rows"] for file in options.read)
        write_json(options.json, SUBJECT, rows)
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        cache = options.cache or Path(folder)
        for model in () if options.read else options.models:
            for kind in options.kinds:
                rows += _rows(model, kind, options, cache)
                write_json(options.json, SUBJECT, rows)  # each time: a later one may fail
    print_table(SUBJECT, COLUMNS, map(_line, rows))
    if options.picture is not None:
        plans_picture.draw(rows, options.picture)
    failures = [row for row in rows if "error" in row or not _has_its_bytes(row)]
    for row in failures:
        reason = row.get("error") or "{bytes} bytes, not {planned} of {limit}".format(**row)
        print(f"failed: {row['model']}, {row['kind']}, {row['width']}, {row['method']}: {reason}")
    return 1 if failures else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.plans", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=list(PLANNED), default=list(PLANNED))
    parser.add_argument("--bits", nargs="+", type=int, choices=(1, 2, 3, 4, 6, 8), default=WIDTHS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--costs", choices=COSTS, default="near", help="which losses are measured (default near)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=32,
        metavar="N",
        help="for losses, a quarter of all at most (default 32)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="of what plans cluster and measure, to keep"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows of MiniLM, SVG")
    parser.add_argument(
        "--read", nargs="+", type=Path, metavar="FILE", help="what --json wrote: measure nothing"
    )
    return parser.parse_args(argv)


def _rows(model: str, kind: str, options: argparse.Namespace, cache: Path) -> list[dict[str, Any]]:
    """The rows of a model and a kind, measured in a process of their own."""
    reason = missing(model)
    if reason is None and model == "efficientnet-lite0":
        reason = photographs.missing()
    if reason is not None:
        print(f"{model} is skipped: {reason}")
        return []
    asked = {
        "model": model,
        "path": str(DIGITS if model == "digits" else package(model)),
        "kind": kind,
        "widths": options.bits,
        "methods": options.methods,
        "costs": options.costs,
        "count": options.samples,
        "cache": str(cache),
    }
    try:
        found: list[dict[str, Any]] = child.call("benchmarks.tasks.plan_runs:measure", **asked)
    except child.ChildError as error:
        print(error, file=sys.stderr)
        last = str(error).strip().splitlines()[-1]
        return [{"model": model, "kind": kind, "width": None, "method": "all", "error": last}]
    return found


def arranged(results: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several results by model, kind and width; of equal names the last."""
    keys = ("model", "kind", "width", "method")
    found = {tuple(row[key] for key in keys): row for rows in results for row in rows}
    models = list(PLANNED)

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        return models.index(row["model"]), KINDS.index(row["kind"]), row["width"] or 0

    return sorted(found.values(), key=place)


def _line(row: dict[str, Any]) -> list[str]:
    width = row["width"]
    return [
        row["model"],
        row["kind"],
        "" if width is None else f"{width} bits",
        row["method"],
        *(number(row.get(name)) for name in (*MEASURES, "bits")),
        f"{row['bytes']:,}" if "bytes" in row else _without_bytes(row),
        _as_planned(row),
        number(row.get("expected"), 3),
        number(row.get("gap"), 2),
        number(row.get("seconds"), 3),
        megabytes(row.get("peak_bytes")),
    ]


def _without_bytes(row: dict[str, Any]) -> str:
    if "error" in row:
        return "failed"
    if "measured" in row:
        return f"{row['measured']:.0%} measured"
    return "none fits" if "limit" in row else "-"


def _as_planned(row: dict[str, Any]) -> str:
    """Whether the written bytes are the planned ones, or how many they are more."""
    if "planned" not in row:
        return "-"
    more = row["bytes"] - row["planned"]
    return f"{more:+,}" if more else "yes"


def _has_its_bytes(row: dict[str, Any]) -> bool:
    """Whether a package has the planned bytes, and no more than it may."""
    return "planned" not in row or row["bytes"] == row["planned"] <= row["limit"]


if __name__ == "__main__":
    sys.exit(main())
