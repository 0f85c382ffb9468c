"""The weight files of a package: their names in the model, and their blobs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mlopt.errors import ModelFormatError
from mlopt.mil.blob import Blob, BlobReader
from mlopt.mil.files import FileState, resolved
from mlopt.mil.manifest import shown

_MODEL_PATH = "@model_path/"


class WeightFiles:
    """The weight files of a package; each is opened once, when it is first read.

    Attributes
    ----------
    root
        The package's folder.
    model_path
        Its model file, relative to ``root``.
    states
        The states of the files read so far, by path.
    links
        Targets of links to files outside the package, of the files read so far, by path relative to
        ``root``.
    """

    def __init__(self, root: Path, model_path: PurePosixPath) -> None:
        self.root = root
        self.model_path = model_path
        self.states: dict[Path, FileState] = {}
        self.links: dict[PurePosixPath, Path] = {}
        self._readers: dict[PurePosixPath, BlobReader] = {}
        self._paths: dict[str, PurePosixPath] = {}
        self._canonical_names: dict[str, str] = {}

    def path_of(self, file_name: str) -> PurePosixPath:
        """Return where a weight file lies, relative to the package's folder.

        Raises
        ------
        ModelFormatError
            The name is not relative to the model, or leaves the package.
        """
        if file_name not in self._paths:
            self._paths[file_name] = self._checked_path(file_name)
        return self._paths[file_name]

    def _checked_path(self, file_name: str) -> PurePosixPath:
        refused = ModelFormatError(
            f"{self.root / self.model_path}: the weight file name {shown(file_name)} does not "
            f"stay inside the package; allowed is {_MODEL_PATH!r} and a path below the model's "
            "folder that is not the model itself"
        )
        # No reader: Core ML replaces @model_path, and nothing else; harm: a backslash separates
        # folders on some systems.
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
        """Return the canonical spelling of a weight file's name; a model may use several."""
        if file_name not in self._canonical_names:
            inner = self.path_of(file_name).relative_to(self.model_path.parent)
            self._canonical_names[file_name] = f"{_MODEL_PATH}{inner}"
        return self._canonical_names[file_name]

    def reader(self, file_name: str) -> BlobReader:
        """Return the mapped weight file of that name in the model."""
        return self.reader_at(self.path_of(file_name))

    def reader_at(self, inner: PurePosixPath) -> BlobReader:
        """Return the mapped weight file at a path relative to the package's folder."""
        if inner not in self._readers:
            path, link = resolved(self.root, inner)
            if link is not None:
                self.links[inner] = link
            reader = BlobReader(path)
            self.states[self.root / inner] = reader.state
            self._readers[inner] = reader
        return self._readers[inner]

    def blob(self, file_name: str, offset: int) -> Blob:
        """Return the blob at ``offset`` (bytes) of a weight file as views of the mapped file."""
        return self.reader(file_name).read(offset)

    def release(self) -> None:
        """Drop the pages of all weight files from memory; they are read again when needed."""
        for reader in self._readers.values():
            reader.release(0, reader.size)
