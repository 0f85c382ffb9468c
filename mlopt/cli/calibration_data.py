"""Samples from the command line: files of arrays, folders of them, functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from mlopt.cli.functions import imported_function
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
    function = imported_function(data, _OPTION, _WANTED)
    samples: Iterable[Mapping[str, Any]] = function()
    return samples
