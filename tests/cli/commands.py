"""Calls of the command line, in this process and in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import mlopt
from mlopt.cli import app

ROOT = Path(mlopt.__file__).parents[1]


GROUPED = ("--granularity", "per_grouped_channel")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def environment(**changes):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}


def run(*arguments, **changes):
    """The command line as a process of its own, with nothing of a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "mlopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        env=environment(**changes),
    )


def json_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
