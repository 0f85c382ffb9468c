"""Samples from the command line: files of arrays, folders of them, functions."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from mlopt.cli.model_inputs import arrays_of
from mlopt.runtime.comparison.split_samples import split_samples
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program

_OPTION = "'--data'"
_WANTED = (
    "give an .npz file with an array for each input, a folder of such files, or module:function"
)


def samples_of(data: str, model: Program | Pipeline) -> Iterable[Mapping[str, Any]]:
    """Return the samples that ``--data`` names; those of a folder are read one file at a time."""
    path = Path(data)
    if path.is_dir():
        return _Folder(path, model)
    if path.exists() or ":" not in data or path.suffix == ".npz":
        if not path.exists():
            raise typer.BadParameter(f"{data} does not exist; {_WANTED}", param_hint=_OPTION)
        return split_samples(model, arrays_of(path, _OPTION))
    return _of_function(data)


class _Folder:
    """The samples of a folder's .npz files, in the order of their names."""

    def __init__(self, path: Path, model: Program | Pipeline) -> None:
        self.files = sorted(each for each in path.iterdir() if each.suffix == ".npz")
        self.model = model
        if not self.files:
            raise typer.BadParameter(
                f"the folder {path} has no .npz files; {_WANTED}", param_hint=_OPTION
            )

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for file in self.files:
            yield from split_samples(self.model, arrays_of(file, _OPTION))


def _of_function(data: str) -> Iterable[Mapping[str, Any]]:
    module_name, _, name = data.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise typer.BadParameter(
            f"the module {module_name!r} cannot be imported: {error}; {_WANTED}",
            param_hint=_OPTION,
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise typer.BadParameter(
            f"the module {module_name!r} has no function {name!r}; {_WANTED}", param_hint=_OPTION
        )
    samples: Iterable[Mapping[str, Any]] = function()
    return samples
