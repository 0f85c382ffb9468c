"""A model package on disk: found, checked and opened for reading."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError

from mlopt.errors import ModelFormatError
from mlopt.mil.blob import Blob, BlobReader
from mlopt.mil.messages import Model
from mlopt.mil.program import Program
from mlopt.mil.walk import file_values

_MODEL_PATH = "@model_path/"
_PIPELINES = {
    "pipeline": lambda model: model.pipeline,
    "pipelineClassifier": lambda model: model.pipelineClassifier.pipeline,
    "pipelineRegressor": lambda model: model.pipelineRegressor.pipeline,
}


class Package:
    """An opened model package.

    Attributes
    ----------
    path
        The package's folder.
    model_path
        Its model file, relative to ``path``.
    spec
        The ``Model`` message, a private copy to be edited in place.
    programs
        The ML programs in it: one, or those of a pipeline in order.
    """

    def __init__(self, path: Path, model_path: PurePosixPath, spec: Any) -> None:
        self.path = path
        self.model_path = model_path
        self.spec = spec
        self._readers: dict[str, BlobReader] = {}
        self.programs = [
            Program(model, self, enclosing=enclosing, label=label)
            for model, enclosing, label in _ml_programs(spec, (), "")
        ]
        if not self.programs:
            kind = spec.WhichOneof("Type") or "none"
            raise ModelFormatError(
                f"{self.path / model_path}: the model is of type {kind}; only ML programs can be "
                "handled. Convert it again with convert_to='mlprogram'."
            )
        #: The weight files that the source has, whatever becomes of the references in ``spec``.
        self.source_weight_files = tuple(self.weight_files)
        #: Set by a writer: the references in ``spec`` then belong to what was written.
        self.written = False

    @property
    def weight_files(self) -> list[str]:
        """The file names of weight files that the programs refer to, sorted."""
        return sorted({value.blobFileValue.fileName for value in self.file_values()})

    def file_values(self) -> Iterator[Any]:
        """Yield every ``Value`` of every program that lies in a weight file, in program order."""
        for program in self.programs:
            yield from file_values(program.message)

    def weight_path(self, file_name: str) -> PurePosixPath:
        """Return where a weight file lies, relative to the package's folder.

        Raises
        ------
        ModelFormatError
            The name is not relative to the model, or leaves the package.
        """
        refused = ModelFormatError(
            f"{self.path / self.model_path}: the weight file name {file_name!r} does not stay "
            f"inside the package; allowed is {_MODEL_PATH!r} and a path below the model's folder"
        )
        if not file_name.startswith(_MODEL_PATH) or "\\" in file_name or "\0" in file_name:
            raise refused
        inner = PurePosixPath(file_name.removeprefix(_MODEL_PATH))
        if inner.is_absolute() or ".." in inner.parts or not inner.parts:
            raise refused
        return self.model_path.parent / inner

    def reader(self, file_name: str) -> BlobReader:
        """Return the mapped weight file of that name in the model; it is opened once."""
        if file_name not in self._readers:
            self._readers[file_name] = BlobReader(self.path / self.weight_path(file_name))
        return self._readers[file_name]

    def blob(self, file_name: str, offset: int) -> Blob:
        """Return the blob at ``offset`` (bytes) of a weight file as views of the mapped file."""
        return self.reader(file_name).read(offset)

    def check_blobs(self) -> None:
        """Check the metadata of every blob that the programs refer to.

        Raises
        ------
        ModelFormatError
            A weight file is missing, or one of its blobs is damaged.
        """
        for count, value in enumerate(self.file_values()):
            reference = value.blobFileValue
            self.reader(reference.fileName).read(reference.offset)
            if count % 256 == 0:  # touching metadata maps whole runs of pages around it
                self._release_all()
        self._release_all()

    def _release_all(self) -> None:
        for reader in self._readers.values():
            reader.release(0, reader.size)

    def __repr__(self) -> str:
        return f"Package({str(self.path)!r}, {len(self.programs)} program(s))"


def open_package(source: Any) -> Package:
    """Open a model package; every reference into its weight files is checked.

    Parameters
    ----------
    source
        The path of an ``.mlpackage`` folder, or a coremltools ``MLModel`` that is an ML program or
        a pipeline. Of an ``MLModel`` the message in memory is taken, which its user may have
        edited, and the weights of the package behind it.

    Raises
    ------
    ModelFormatError
        It is no model package, it is damaged, or it holds no ML program.
    TypeError
        ``source`` is neither a path nor a model.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(os.fspath(source)).expanduser()
        model_path = _find_model(path)
        spec = _read_spec(path / model_path)
    elif hasattr(source, "get_spec"):
        spec = source.get_spec()
        location = getattr(source, "package_path", None)
        if location is None:
            raise ModelFormatError(
                f"the model is of type {spec.WhichOneof('Type') or 'none'} and has no package; "
                "only ML programs can be handled. Convert it again with convert_to='mlprogram'."
            )
        path = Path(location)
        model_path = _find_model(path)
    else:
        raise TypeError(
            f"expected the path of an .mlpackage or an MLModel, got {type(source).__name__}"
        )
    package = Package(path, model_path, spec)
    package.check_blobs()
    return package


def _find_model(path: Path) -> PurePosixPath:
    """Return the path of the root model relative to the package at ``path``."""
    if not path.is_dir():
        what = "it does not exist; a model package is a folder named *.mlpackage"
        if path.exists():
            what = (
                "it is a file; a model package is a folder named *.mlpackage. Convert the source "
                "again with convert_to='mlprogram'."
            )
        raise ModelFormatError(f"{path}: {what}")
    manifest = path / "Manifest.json"
    try:
        content = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        raise ModelFormatError(
            f"{manifest}: the file is missing; {path} is no model package"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{manifest}: the manifest cannot be read: {error}") from error
    try:
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        inner = PurePosixPath(entry)
    except (KeyError, TypeError):
        raise ModelFormatError(
            f"{manifest}: the manifest names no root model (rootModelIdentifier, and its entry "
            "with a path)"
        ) from None
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise ModelFormatError(f"{manifest}: the root model's path {entry!r} leaves the package")
    model_path = PurePosixPath("Data") / inner
    if not (path / model_path).is_file():
        raise ModelFormatError(
            f"{path / model_path}: the model file that the manifest names is missing"
        )
    return model_path


def _read_spec(file: Path) -> Any:
    """Return the ``Model`` message in ``file``."""
    spec = Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelFormatError(
            f"{file}: the file is no readable model ({error}); it is truncated or damaged"
        ) from error
    except OSError as error:
        raise ModelFormatError(f"{file}: the model file cannot be read: {error}") from error
    if spec.WhichOneof("Type") is None:
        raise ModelFormatError(f"{file}: the file holds no model; it is empty or damaged")
    return spec


def _ml_programs(
    model: Any, enclosing: tuple[Any, ...], label: str
) -> Iterator[tuple[Any, tuple[Any, ...], str]]:
    """Yield (model with a program, pipelines around it from outside in, its label in them)."""
    kind = model.WhichOneof("Type")
    if kind == "mlProgram":
        yield model, enclosing, label
    elif kind in _PIPELINES:
        pipeline = _PIPELINES[kind](model)
        for index, inner in enumerate(pipeline.models):
            name = pipeline.names[index] if index < len(pipeline.names) else f"model{index}"
            yield from _ml_programs(
                inner, (*enclosing, model), f"{label}/{name}" if label else name
            )
