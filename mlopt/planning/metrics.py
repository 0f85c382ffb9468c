"""Metrics of the user: a function, or a command that gets a package and prints a number."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from mlopt.errors import ConfigError, MlOptError, RunError
from mlopt.requests.checked import shown

Metric: TypeAlias = "Callable[[Path], float]"
"""Returns a number for the path of a package; more is better."""

PLACE = "{}"
"""What stands for the package in a command."""

_SHOWN = 2000  # characters of what a command printed, at most


def metric_of_command(command: str) -> Metric:
    """Return the metric that a command prints as the last line of its standard output.

    command: as for a shell, but run without one; ``{}`` is the path of the package.

    Raises
    ------
    ConfigError
        There is no ``{}``, or a quote is not closed. Calls of the metric raise RunError.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(
            f"the metric's command cannot be read: {error}, got {command!r}"
        ) from None
    if not any(PLACE in word for word in words):
        raise ConfigError(
            f"the metric's command must say with {PLACE} where the package's path goes, got "
            f"{command!r}"
        )

    def metric(package: Path) -> float:
        asked = [word.replace(PLACE, str(package)) for word in words]
        try:
            run = subprocess.run(asked, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunError(f"the metric's command cannot be run: {error}") from error
        lines = run.stdout.strip().splitlines()
        try:
            if run.returncode:
                raise ValueError
            return float(lines[-1])
        except (ValueError, IndexError):
            raise RunError(
                f"the metric's command ended with {run.returncode}; it must print a number last. "
                f"It printed:\n{run.stdout[-_SHOWN:]}{run.stderr[-_SHOWN:]}"
            ) from None

    return metric


def checked_metric(metric: Metric) -> Metric:
    """Return a metric whose result is checked.

    Raises
    ------
    ConfigError
        It cannot be called. Its calls raise RunError.
    """
    if not callable(metric):
        raise ConfigError(f"a metric is a function of a package's path, got {shown(metric)}")

    def checked(package: Path) -> float:
        try:
            value = float(metric(package))
        except MlOptError:
            raise
        except Exception as error:
            raise RunError(f"the metric failed: {type(error).__name__}: {error}") from error
        if math.isnan(value):
            raise RunError("the metric is not a number (NaN)")
        return value

    return checked
