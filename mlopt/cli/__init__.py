"""Command line: ``mlopt inspect``, ``palettize``, ``decompress``, ``raise``, ``lint`` and others.

Commands build values, call the library and print what it returns. Starting up loads neither the
library nor coremltools; a command loads what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from mlopt import __version__
from mlopt.cli.calibrate import calibrate_model
from mlopt.cli.compare import compare_models
from mlopt.cli.decompress import decompress_model
from mlopt.cli.exit_codes import EXIT_CODES
from mlopt.cli.inspect import inspect_model
from mlopt.cli.lint import lint_model
from mlopt.cli.palettize import palettize_model
from mlopt.cli.plan import plan_model
from mlopt.cli.raising import raise_model
from mlopt.cli.run import run_model
from mlopt.cli.tune import tune_model

__all__ = ["app", "main"]

_BY_SIGNAL = 128  # exit codes above say which signal ended the program

app = typer.Typer(
    name="mlopt",
    no_args_is_help=True,
    add_completion=False,
    # Plain help and errors: they also go to logs and files, and long paths are not broken.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect", epilog=EXIT_CODES)(inspect_model)
app.command("palettize", epilog=EXIT_CODES)(palettize_model)
app.command("decompress", epilog=EXIT_CODES)(decompress_model)
app.command("raise", epilog=EXIT_CODES)(raise_model)
app.command("run", epilog=EXIT_CODES)(run_model)
app.command("calibrate", epilog=EXIT_CODES)(calibrate_model)
app.command("plan", epilog=EXIT_CODES)(plan_model)
app.command("tune", epilog=EXIT_CODES)(tune_model)
app.command("compare", epilog=EXIT_CODES)(compare_models)
app.command("lint", epilog=EXIT_CODES)(lint_model)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlopt {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def _mlopt(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Palettize Core ML models, and account for every weight."""


def main() -> None:
    """Run the command line of this process and exit with one of the documented codes."""
    # A terminated run cleans up like an interrupted one.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit_by_signal)
    for stream in (sys.stdout, sys.stderr):
        # Names of weights may hold any character; a terminal that cannot show it gets an escape.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="mlopt")
    except SystemExit as ending:
        if isinstance(ending.code, int) and ending.code > _BY_SIGNAL:
            # Everything is cleaned up by now; threads that still cluster are not waited for.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ending.code)
        raise


def _exit_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_BY_SIGNAL + number)
