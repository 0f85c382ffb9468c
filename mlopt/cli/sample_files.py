"""Samples in files and folders: archives of arrays (.npz), arrays (.npy) and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import typer

from mlopt.cli.model_inputs import ARRAYS, IMAGES, array_of, arrays_of, image_of
from mlopt.cli.terminal import show
from mlopt.errors import InputError
from mlopt.runtime.comparison.split_samples import Taking, split_samples
from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.described import Feature
from mlopt.runtime.features.images import ImageFeature
from mlopt.runtime.features.pictures import fitted_picture
from mlopt.text.names import shortlist

_ARCHIVES = (".npz",)
_KINDS = {
    **dict.fromkeys(_ARCHIVES, "archives of arrays (.npz)"),
    **dict.fromkeys(ARRAYS, "arrays (.npy)"),
    **dict.fromkeys(IMAGES, "images"),
}
SAMPLES = f"{', '.join(_ARCHIVES + ARRAYS)} or images ({', '.join(IMAGES)})"
"""The files that hold samples, for a message."""

_Row: TypeAlias = Mapping[str, Path]
"""Files that are read together: by the input that each is for, or one archive by ""."""


def is_archive(path: Path) -> bool:
    """Return whether a path is read as an .npz file: neither a folder, an array nor an image."""
    return not path.is_dir() and path.suffix.lower() not in (*ARRAYS, *IMAGES)


def samples_in(path: Path, model: Taking, option: str) -> SampleFiles:
    """Return the samples in a file or folder for a model; errors are about an option.

    A folder has files of one kind, of which each holds samples of a model with one input, or
    archives, which have an array for each; or it has a folder for each input, with files of equal
    names. Files are read one after the other, in the order of their names.

    Raises
    ------
    typer.BadParameter
        The files are missing or of several kinds, or do not tell which input they are for. While
        the samples are read: a file cannot be.
    InputError
        While they are read: what a file holds does not fit the model.
    """
    return _Found(model, option).samples(path)


class SampleFiles:
    """Samples in files that are read one after the other.

    left_out: the names of what else is in the folder.
    """

    def __init__(
        self, model: Taking, rows: Sequence[_Row], option: str, left_out: Sequence[str] = ()
    ) -> None:
        self.model, self.rows, self.option, self.left_out = model, rows, option, tuple(left_out)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self.rows:
            yield from self._samples(row)

    def show_left_out(self) -> None:
        """Name on standard error what else is in the folder, if anything."""
        if self.left_out:
            show(f"Left out, no samples: {shortlist(self.left_out)}.", is_error=True)

    def _samples(self, row: _Row) -> Sequence[Mapping[str, Any]]:
        images = {}
        parts: list[Sequence[Mapping[str, Any]]] = []
        for name, path in row.items():
            try:
                if not name:
                    return split_samples(self.model, arrays_of(path, self.option))
                if path.suffix.lower() in IMAGES:
                    images[name] = _pixels(path, self.model.inputs[name], self.option)
                else:
                    parts.append(split_samples(self.model, {name: array_of(path, self.option)}))
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        counts = {len(part) for part in parts} | ({1} if images else set())
        if len(counts) > 1:
            files = ", ".join(map(str, row.values()))
            raise InputError(f"{files}: they hold different numbers of samples, {sorted(counts)}")
        joined = [dict(images) for _ in range(counts.pop())]
        for part in parts:
            for sample, values in zip(joined, part, strict=True):
                sample.update(values)
        return joined


class ImageFiles(SampleFiles):
    """Samples of which each has an image, so that their number is known before they are read."""

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> ImageFiles:
        """Return the first samples, at most ``count``."""
        return ImageFiles(self.model, self.rows[:count], self.option, self.left_out)


class _Found:
    """Which files there are, and what each is for."""

    def __init__(self, model: Taking, option: str) -> None:
        self.model, self.option = model, option

    def samples(self, path: Path) -> SampleFiles:
        if not path.is_dir():
            return self._made([self._row(path)], ())
        entries = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        folders = [each for each in entries if each.is_dir()]
        files = [each for each in entries if not each.is_dir() and _kind(each)]
        if files and any(each.name in self.model.inputs for each in folders):
            self._refuse(
                f"the folder {path} has files with samples ({files[0].name}), and folders that are "
                "named as inputs; give either"
            )
        if files:
            self._check_one_kind(path, files)
            rows = [self._row(file) for file in files]
            left_out = [each.name for each in entries if each not in files]
            return self._made(rows, left_out)
        if folders:
            rows = self._rows_of_inputs(path, folders)
            left_out = [each.name for each in entries if each not in folders]
            return self._made(rows, left_out)
        there = shortlist([each.name for each in entries]) or "nothing"
        self._refuse(f"the folder {path} has no files with samples ({SAMPLES}), but {there}")

    def _made(self, rows: Sequence[_Row], left_out: Sequence[str]) -> SampleFiles:
        is_image = any(path.suffix.lower() in IMAGES for path in rows[0].values())
        made = ImageFiles if is_image else SampleFiles
        return made(self.model, rows, self.option, left_out)

    def _row(self, path: Path) -> _Row:
        """Return which input a file is for that is there alone."""
        suffix = path.suffix.lower()
        if suffix not in (*ARRAYS, *IMAGES):
            return {"": path}
        inputs = self.model.inputs.values()
        needed = [feature for feature in inputs if not feature.is_optional]
        pictured = [feature for feature in inputs if isinstance(feature, ImageFeature)]
        taking = pictured if suffix in IMAGES and pictured else needed or list(inputs)
        if len(taking) != 1 or any(feature not in taking for feature in needed):
            names = shortlist([feature.name for feature in needed or inputs]) or "none"
            self._refuse(
                f"{path} does not tell which input it is for, of {names}; give a folder with a "
                "folder for each input, named as it, with files of equal names; or .npz files "
                "with an array for each"
            )
        if suffix in IMAGES:
            self._check_takes_images(path, taking[0])
        return {taking[0].name: path}

    def _rows_of_inputs(self, path: Path, folders: Sequence[Path]) -> list[_Row]:
        inputs = self.model.inputs
        unknown = [folder.name for folder in folders if folder.name not in inputs]
        if unknown:
            self._refuse(
                f"the folder {path} has no files with samples but folders, and the model has no "
                f"input {shortlist(unknown)}; its inputs are "
                f"{shortlist(list(inputs))}. Name folders as the inputs that their "
                "files are for, or put the files of all into one folder"
            )
        present = {folder.name for folder in folders}
        missing = [f.name for f in inputs.values() if not f.is_optional and f.name not in present]
        if missing:
            self._refuse(
                f"the folder {path} has no folder for the input {shortlist(missing)}; add one"
            )
        by_input = {folder.name: self._by_stem(folder) for folder in folders}
        first, *others = by_input.items()
        for name, files in others:
            odd = sorted(first[1].keys() ^ files.keys())
            if odd:
                here, there = (first[0], name) if odd[0] in first[1] else (name, first[0])
                self._refuse(
                    f"{by_input[here][odd[0]]} has no file of that name in the folder {there!r}; "
                    "each input needs a file for each sample"
                )
        return [{n: files[stem] for n, files in by_input.items()} for stem in sorted(first[1])]

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        """Return the files of one input by their names without endings."""
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in (*ARRAYS, *IMAGES):
                self._refuse(f"{path} is neither an array (.npy) nor an image; remove it")
            if path.stem in files:
                self._refuse(f"{path} and {files[path.stem].name} have equal names; remove one")
            files[path.stem] = path
        if not files:
            self._refuse(f"the folder {folder} is empty; add an array (.npy) or image per sample")
        self._check_one_kind(folder, list(files.values()))
        if next(iter(files.values())).suffix.lower() in IMAGES:
            self._check_takes_images(folder, self.model.inputs[folder.name])
        return files

    def _check_one_kind(self, folder: Path, files: Sequence[Path]) -> None:
        examples = {_kind(file): file.name for file in files}
        if len(examples) > 1:
            found = " and ".join(f"{kind}, such as {name}" for kind, name in examples.items())
            self._refuse(f"the folder {folder} has {found}; give a folder with files of one kind")

    def _check_takes_images(self, path: Path, feature: Feature) -> None:
        if isinstance(feature, ImageFeature):
            return
        shapes = f" {feature.described_shapes()}" if isinstance(feature, ArrayFeature) else ""
        kind = "an array" if isinstance(feature, ArrayFeature) else "no image"
        self._refuse(
            f"{path} has pixels, and the input {feature.name!r} is {kind}{shapes}, which does not "
            "tell their scale and the order of their colours; give arrays (.npy or .npz) of what "
            "the model expects, or module:function that yields them"
        )

    def _refuse(self, message: str) -> NoReturn:
        raise typer.BadParameter(message, param_hint=self.option)


def _kind(path: Path) -> str:
    return _KINDS.get(path.suffix.lower(), "")


def _pixels(path: Path, feature: Feature, option: str) -> Any:
    """Return the pixels of an image file as a feature takes them."""
    assert isinstance(feature, ImageFeature)
    return feature.tensor(fitted_picture(image_of(path, option), feature)).numpy()
