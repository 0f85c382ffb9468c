"""A model package on disk: found, checked and opened for reading.

A check refuses what no reader takes ("no reader"), or what could hurt the machine ("harm").
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError

from mlopt.errors import ModelFormatError
from mlopt.mil.blob import Blob, BlobReader
from mlopt.mil.bound_values import name_bound_values
from mlopt.mil.checks import check_package
from mlopt.mil.files import FileState, read_regular, resolved
from mlopt.mil.manifest import Manifest, read_manifest, root_model, shown
from mlopt.mil.messages import Model
from mlopt.mil.misplaced import LONGEST_POINTER, MANIFEST, check_is_package, check_no_pointer
from mlopt.mil.program import Program
from mlopt.mil.walk import file_values

_MODEL_PATH = "@model_path/"
_CONVERT = "Convert it again with convert_to='mlprogram'."
#: In bytes; no protobuf message can be larger.
_LARGEST_MODEL = (1 << 31) - 1
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
    states
        What ``check_unchanged`` compares with: the files read so far. Weight files are added.
    programs
        The ML programs in it: one, or those of a pipeline in order; none where that is allowed.
    manifest
        Its manifest; None for a package that was put together in memory.
    links
        The files read so far that are not in the package, by their path relative to ``path``, and
        where the links lead that are there in their place.
    """

    def __init__(
        self,
        path: Path,
        model_path: PurePosixPath,
        spec: Any,
        states: Mapping[Path, FileState] | None = None,
        *,
        manifest: Manifest | None = None,
        links: Mapping[PurePosixPath, Path] | None = None,
        without_programs: bool = False,
    ) -> None:
        self.path = path
        self.model_path = model_path
        self.spec = spec
        self._readers: dict[PurePosixPath, BlobReader] = {}
        self._weight_paths: dict[str, PurePosixPath] = {}
        self._canonical_names: dict[str, str] = {}
        self._states = dict(states or {})
        self.manifest = manifest
        self.links = dict(links or {})
        self.programs = [
            Program(model, self, enclosing=enclosing, label=label)
            for model, enclosing, label in _ml_programs(spec, (), "")
        ]
        if not self.programs and not without_programs:  # no reader of ML programs
            kind = spec.WhichOneof("Type") or "none"
            raise ModelFormatError(
                f"{self.path / model_path}: the model is of type {kind}; only ML programs can be "
                f"handled. {_CONVERT}"
            )
        #: The names of the weight files that the source has, sorted, whatever becomes of the
        #: references in ``spec``. Known once the package has been checked.
        self.source_weight_files: tuple[str, ...] = ()
        #: (label of the program, function, opset) of bodies that nobody reads, and that were left
        #: out because they hold what cannot be copied.
        self.dropped_bodies: list[tuple[str, str, str]] = []
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
        if file_name not in self._weight_paths:
            self._weight_paths[file_name] = self._checked_weight_path(file_name)
        return self._weight_paths[file_name]

    def _checked_weight_path(self, file_name: str) -> PurePosixPath:
        refused = ModelFormatError(
            f"{self.path / self.model_path}: the weight file name {shown(file_name)} does not "
            f"stay inside the package; allowed is {_MODEL_PATH!r} and a path below the model's "
            "folder that is not the model itself"
        )
        # No reader: Core ML replaces @model_path, and nothing else; harm: a backslash is a folder's
        # end on some systems.
        if not file_name.startswith(_MODEL_PATH) or "\\" in file_name or "\0" in file_name:
            raise refused
        inner = PurePosixPath(file_name.removeprefix(_MODEL_PATH))
        path = self.model_path.parent / inner
        if inner.is_absolute() or ".." in inner.parts or not inner.parts:  # harm
            raise refused
        if path == self.model_path:  # no reader
            raise refused
        return path

    def canonical_name(self, file_name: str) -> str:
        """Return the one spelling of a weight file's name; a model may spell it in many ways."""
        if file_name not in self._canonical_names:
            inner = self.weight_path(file_name).relative_to(self.model_path.parent)
            self._canonical_names[file_name] = f"{_MODEL_PATH}{inner}"
        return self._canonical_names[file_name]

    def reader(self, file_name: str) -> BlobReader:
        """Return the mapped weight file of that name in the model; it is opened once."""
        return self.reader_at(self.weight_path(file_name))

    def reader_at(self, inner: PurePosixPath) -> BlobReader:
        """Return the mapped weight file at a path relative to the package's folder."""
        if inner not in self._readers:
            place, link = resolved(self.path, inner)
            if link is not None:
                self.links[inner] = link
            reader = BlobReader(place)
            self._states[self.path / inner] = reader.state
            self._readers[inner] = reader
        return self._readers[inner]

    def blob(self, file_name: str, offset: int) -> Blob:
        """Return the blob at ``offset`` (bytes) of a weight file as views of the mapped file."""
        return self.reader(file_name).read(offset)

    def release(self) -> None:
        """Drop the pages of all weight files from memory; they are read again when needed."""
        for reader in self._readers.values():
            reader.release(0, reader.size)

    def check_unchanged(self) -> None:
        """Check that the files that have been read are still the same.

        Raises
        ------
        ModelFormatError
            One has been changed, replaced or removed since.
        """
        for path, state in self._states.items():
            try:
                unchanged = FileState.of(os.stat(path)) == state
            except OSError:
                unchanged = False
            if not unchanged:
                raise ModelFormatError(
                    f"{path}: the file was changed while the model was read, so that no sound "
                    "output can be made of it. Run it again once nothing else writes there."
                )

    def __repr__(self) -> str:
        return f"Package({str(self.path)!r}, {len(self.programs)} program(s))"


def open_package(source: Any, *, without_programs: bool = False) -> Package:
    """Open a model package; every reference into its weight files is checked.

    Weights that operations have bound as values are constants in it: see ``name_bound_values``.

    Parameters
    ----------
    source
        The path of an ``.mlpackage`` folder, or a coremltools ``MLModel`` that is an ML program or
        a pipeline. Of an ``MLModel`` the message in memory is taken, which its user may have
        edited, and the weights of the package behind it.
    without_programs
        Whether a model is wanted, too, that holds no ML program.

    Raises
    ------
    ModelFormatError
        It is no model package, it is damaged, or it holds no ML program and has to.
    TypeError
        ``source`` is neither a path nor a model.
    """
    try:
        package = _opened(source, without_programs=without_programs)
        package.source_weight_files = check_package(package)
        for program in package.programs:
            name_bound_values(program)
    except RecursionError:  # harm: the stack would overflow later
        raise ModelFormatError(
            f"{source}: values, types or blocks of the model are nested too deep to be read; it "
            "is damaged"
        ) from None
    return package


def _opened(source: Any, *, without_programs: bool) -> Package:
    """Return the package, of which nothing but the manifest and the model has been read."""
    if isinstance(source, str | os.PathLike):
        path = Path(os.fspath(source)).expanduser()
        spec = None
    elif hasattr(source, "get_spec"):
        spec = source.get_spec()
        location = getattr(source, "package_path", None)
        if location is None:
            raise ModelFormatError(
                f"the model is of type {spec.WhichOneof('Type') or 'none'} and has no package; "
                f"only ML programs can be handled. {_CONVERT}"
            )
        path = Path(location)
    else:
        raise TypeError(
            f"expected the path of an .mlpackage or an MLModel, got {type(source).__name__}"
        )
    check_is_package(path)
    manifest = read_manifest(path)
    model_path = root_model(path, manifest)
    states = {path / MANIFEST: manifest.state}
    links = {} if manifest.link is None else {PurePosixPath(MANIFEST): manifest.link}
    if spec is None:
        spec, states[path / model_path], link = _read_spec(path, model_path)
        if link is not None:
            links[model_path] = link
    return Package(
        path,
        model_path,
        spec,
        states,
        manifest=manifest,
        links=links,
        without_programs=without_programs,
    )


def _read_spec(root: Path, inner: PurePosixPath) -> tuple[Any, FileState, Path | None]:
    """Return the ``Model`` message in a file of a package, the file's state, and a link out."""
    file = root / inner
    spec = Model()
    try:
        place, link = resolved(root, inner)
        content, state = read_regular(place, _LARGEST_MODEL)
        check_no_pointer(file, content[: LONGEST_POINTER + 1])
        spec.ParseFromString(content)
    except DecodeError as error:  # no reader
        raise ModelFormatError(
            f"{file}: the file is no readable model ({error}); it is truncated or damaged"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFormatError(
            f"{file}: the model file that the manifest names is missing"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"{file}: the model file cannot be read: {error}") from error
    if spec.WhichOneof("Type") is None:  # no reader
        raise ModelFormatError(f"{file}: the file holds no model; it is empty or damaged")
    return spec, state, link


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
