"""Command-line options that the scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--rows``, ``--list`` and ``--json``; the description keeps its lines."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows, in this order")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")


def add_common(parser: argparse.ArgumentParser, repeats: int | None = None) -> None:
    """Add ``--rows``, ``--list``, ``--json``, what to leave out, and ``--repeats``.

    ``repeats`` is the default number of samples; None: the script times nothing.
    """
    add_row_options(parser)
    left_out = parser.add_mutually_exclusive_group()
    left_out.add_argument("--skip-reference", action="store_true", help="run mlopt only")
    left_out.add_argument("--only-reference", action="store_true", help="run coremltools only")
    if repeats is not None:
        parser.add_argument(
            "--repeats",
            type=int,
            default=repeats,
            metavar="N",
            help=f"samples of each variant (default {repeats}); slow reference rows take fewer",
        )


def choose(available: Mapping[str, T], names: list[str] | None) -> list[T]:
    """The rows named (None: all), in that order; SystemExit names what there is."""
    if names is None:
        return list(available.values())
    unknown = [name for name in names if name not in available]
    if unknown:
        raise SystemExit(f"no row {', '.join(unknown)}; there are: {', '.join(available)}")
    return [available[name] for name in names]


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a script whose rows ``measured_row`` measures."""
    add_common(parser, repeats=5)
    parser.add_argument("--skip-memory", action="store_true", help="leave out the memory runs")


def job_options(name: str, description: str | None, argv: list[str] | None) -> argparse.Namespace:
    """The options of a script that has no others than those of ``add_job_options``."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    add_job_options(parser)
    return parser.parse_args(argv)
