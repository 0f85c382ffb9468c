"""Exit codes of commands, and errors as one block of text."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from enum import IntEnum
from typing import NoReturn

import typer

from mlopt.errors import MlOptError, ModelFormatError, RunError, TargetError
from mlopt.text.names import printable_lines

_TRACEBACK = "MLOPT_TRACEBACK"


class ExitCode(IntEnum):
    """Exit statuses of the commands. The numbers are part of the interface."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TARGET = 3
    MODEL = 4
    NOTHING_PALETTIZED = 5
    FINDINGS = 6
    INTERRUPTED = 130


# The first line, a backspace, keeps the lines as they are in the help.
EXIT_CODES = """\b
Exit codes:
  0    done
  1    something else failed: a model that ran, a report that cannot be written, a fault of mlopt
  2    an option or the configuration is wrong, or the output cannot be written (a full disk)
  3    the deployment target cannot express the request
  4    the model is missing, damaged, or no ML program
  5    palettize: every weight was kept as it is
  6    lint: errors were found (with --strict: errors or warnings); compare --min-snr: it is less
  130  interrupted; what was unfinished is removed, an earlier output as it was (calibrate goes on
       from its .partial file)
"""


@contextlib.contextmanager
def errors_explained() -> Iterator[None]:
    """Print an error that the block raises to stderr and exit with its code, without traceback.

    Errors about options pass through: typer prints them in the same form.
    """
    try:
        yield
    except typer.Exit:
        raise
    except typer.BadParameter as error:
        error.message = printable_lines(error.message)
        raise
    except BrokenPipeError:
        # The reader of the output has closed it; typer ends the program quietly.
        raise
    except KeyboardInterrupt:
        _fail("Interrupted.", ExitCode.INTERRUPTED)
    except Exception as error:
        _fail(*explained(error))


def explained(error: Exception) -> tuple[str, ExitCode]:
    """Return the text to print for an error, and its exit code."""
    if isinstance(error, TargetError):
        hint = "Parameters are options here: minimum_deployment_target is --target, such as iOS18."
        return f"Error: {error}\n{hint}", ExitCode.TARGET
    known = {
        ModelFormatError: ExitCode.MODEL,
        RunError: ExitCode.FAILED,
        MlOptError: ExitCode.USAGE,
        OSError: ExitCode.FAILED,
    }
    for kind, code in known.items():
        if isinstance(error, kind):
            return f"Error: {error}", code
    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    return (
        f"Error: unexpected {type(error).__name__}: {error}\n"
        f"This is a fault of mlopt. Run it with {_TRACEBACK}=1 to see where.",
        ExitCode.FAILED,
    )


def _fail(message: str, code: ExitCode) -> NoReturn:
    typer.echo(printable_lines(message), err=True)
    raise typer.Exit(code) from None
