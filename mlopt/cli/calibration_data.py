"""Samples from the command line: files and folders, functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from mlopt.cli.functions import imported_function
from mlopt.cli.sample_files import SAMPLES, ImageFiles, is_archive, samples_in
from mlopt.runtime.comparison.split_samples import Taking

_OPTION = "'--data'"
_WANTED = f"give a file or folder of samples ({SAMPLES}), or module:function"


def samples_of(
    data: str, model: Taking, *, count: int | None = None, quiet: bool = False
) -> Iterable[Mapping[str, Any]]:
    """Return the samples that ``--data`` names, the first ``count`` of them.

    Those of a folder are read one file at a time, those of a file at once. Unless quiet, what a
    folder has beside samples is named on standard error.
    """
    path = Path(data)
    if not path.exists() and ":" in data and is_archive(path) and path.suffix != ".npz":
        return _first(_of_function(data), count)
    if not path.exists():
        raise typer.BadParameter(f"{data} does not exist; {_WANTED}", param_hint=_OPTION)
    samples = samples_in(path, model, _OPTION)
    if not quiet:
        samples.show_left_out()
    return _first(samples if path.is_dir() else list(samples), count)


def _first(samples: Iterable[Mapping[str, Any]], count: int | None) -> Iterable[Mapping[str, Any]]:
    if count is None:
        return samples
    if isinstance(samples, list):
        return samples[:count]
    return samples.first(count) if isinstance(samples, ImageFiles) else islice(samples, count)


def _of_function(data: str) -> Iterable[Mapping[str, Any]]:
    function = imported_function(data, _OPTION, _WANTED)
    samples: Iterable[Mapping[str, Any]] = function()
    return samples
