"""A model package: its message, the ML programs in it, and its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mlopt.errors import ModelFormatError
from mlopt.mil.files import FileState
from mlopt.mil.manifest import Manifest, read_manifest
from mlopt.mil.messages import Model, Value
from mlopt.mil.misplaced import MANIFEST
from mlopt.mil.program import Program
from mlopt.mil.walk import file_values
from mlopt.mil.weight_files import WeightFiles

#: The remedy for a model that is not an ML program.
CONVERT = "Convert it again with convert_to='mlprogram'."
_PIPELINES = {
    "pipeline": lambda model: model.pipeline,
    "pipelineClassifier": lambda model: model.pipelineClassifier.pipeline,
    "pipelineRegressor": lambda model: model.pipelineRegressor.pipeline,
}


class Package:
    """An opened model package; ``mlopt.mil.opening.open_package`` returns a checked one.

    Attributes
    ----------
    path
        The package's folder.
    model_path
        Its model file, relative to ``path``.
    spec
        The ``Model`` message, a private copy to be edited in place.
    files
        Its weight files.
    programs
        The ML programs in it: one, or those of a pipeline in order; none if that is allowed.
    manifest
        Its manifest; None for a package that was built in memory.
    """

    def __init__(
        self,
        path: Path,
        model_path: PurePosixPath,
        spec: Model,
        states: Mapping[Path, FileState] | None = None,
        *,
        manifest: Manifest | None = None,
        links: Mapping[PurePosixPath, Path] | None = None,
        without_programs: bool = False,
    ) -> None:
        self.path = path
        self.model_path = model_path
        self.spec = spec
        self.files = WeightFiles(path, model_path)
        self._states = dict(states or {})
        self.manifest = manifest
        self._links = dict(links or {})
        self.programs = [
            Program(model, self.files, enclosing=enclosing, label=label)
            for model, enclosing, label in _ml_programs(spec, (), "")
        ]
        if not self.programs and not without_programs:  # no reader of ML programs
            kind = spec.WhichOneof("Type") or "none"
            raise ModelFormatError(
                f"{self.path / model_path}: the model is of type {kind}; only ML programs can be "
                f"handled. {CONVERT}"
            )
        #: The names of the source's weight files, sorted, even after the references in ``spec``
        #: have changed. Set once the package has been checked.
        self.source_weight_files: tuple[str, ...] = ()
        #: (label of the program, function, opset) of unused function bodies that were dropped
        #: because they hold values that cannot be copied.
        self.dropped_bodies: list[tuple[str, str, str]] = []
        #: Set by a writer: the references in ``spec`` then belong to what was written.
        self.written = False

    @property
    def links(self) -> dict[PurePosixPath, Path]:
        """Targets of links to files outside the package, of the files read so far.

        The keys are paths relative to the package.
        """
        return {**self._links, **self.files.links}

    @property
    def weight_files(self) -> list[str]:
        """The names of the weight files that the programs refer to, sorted."""
        return sorted({value.blobFileValue.fileName for value in self.file_values()})

    def file_values(self) -> Iterator[Value]:
        """Yield every ``Value`` of the programs that is in a weight file, in program order."""
        for program in self.programs:
            yield from file_values(program.message)

    def check_unchanged(self) -> None:
        """Check that the files that have been read are still the same.

        Raises
        ------
        ModelFormatError
            A file has been changed, replaced or removed since.
        """
        for path, state in {**self._states, **self.files.states}.items():
            if not self._is_unchanged(path, state):
                raise ModelFormatError(
                    f"{path}: the file was changed while the model was read, so no "
                    "consistent output can be made. Run it again once nothing else writes there."
                )

    def _is_unchanged(self, path: Path, state: FileState) -> bool:
        try:
            if FileState.of(os.stat(path)) == state:
                return True
            # coremltools writes the manifest again, as it was, whenever it opens a package
            return (
                self.manifest is not None
                and path == self.path / MANIFEST
                and read_manifest(self.path).content == self.manifest.content
            )
        except (OSError, ModelFormatError):
            return False

    def __repr__(self) -> str:
        return f"Package({str(self.path)!r}, {len(self.programs)} program(s))"


def _ml_programs(
    model: Model, enclosing: tuple[Model, ...], label: str
) -> Iterator[tuple[Model, tuple[Model, ...], str]]:
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
