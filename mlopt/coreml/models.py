"""Models as arguments and results: paths, and coremltools' ``MLModel``."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlopt.mil.targets import Target

if TYPE_CHECKING:
    import coremltools as ct
    from coremltools.models import MLModel

ModelSource: TypeAlias = "str | os.PathLike[str] | MLModel"
"""The path of an ``.mlpackage``, or an ``MLModel`` that is an ML program or a pipeline of such."""

TargetName: TypeAlias = "Target | str | ct.target"
"""A deployment target such as ``"iOS18"``, ``"macOS15"`` or ``coremltools.target.iOS18``."""


def temporary_package(cleanup: contextlib.ExitStack) -> Path:
    """Return a path for a package in the temporary folder.

    ``cleanup`` removes the package; if its callbacks are dropped, the end of the interpreter does.
    """
    path = Path(tempfile.mkdtemp(suffix=".mlpackage"))
    cleanup.callback(shutil.rmtree, path, ignore_errors=True)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@contextlib.contextmanager
def destination_or_temporary(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield where to write a package: ``output``, or a temporary path, removed after an error."""
    with contextlib.ExitStack() as cleanup:
        yield temporary_package(cleanup) if output is None else Path(output)
        cleanup.pop_all()


def as_mlmodel(
    path: Path,
    *,
    like: MLModel | None = None,
    is_temporary: bool = False,
    skip_model_load: bool | None = None,
) -> MLModel:
    """Load a package as an ``MLModel``.

    Parameters
    ----------
    like
        The ``MLModel`` that it was made from: its compute units, function and hints are used, and
        if it was not loaded into Core ML, the new model is not either. None: defaults.
    is_temporary
        Remove the package when the interpreter ends.
    skip_model_load
        Do not load the model into Core ML, even on a Mac. None: as ``like``.
    """
    options: dict[str, Any] = {"is_temp_package": is_temporary}
    if like is not None:
        options["compute_units"] = like.compute_unit
        options["function_name"] = like.function_name
        options["optimization_hints"] = like.optimization_hints
        options["skip_model_load"] = like.__proxy__ is None
    if skip_model_load is not None:
        options["skip_model_load"] = skip_model_load
    return _model_class()(str(path), **options)


@cache
def _model_class() -> type:
    """Return a subclass of ``MLModel`` that loads its program at the first use.

    coremltools' functions return models with the program that they were made from, and code that
    inspects one reads its ``_mil_program``. A package comes without: it is loaded from there.
    """
    # coremltools takes seconds to import, and files can be palettized without it
    from coremltools.converters.mil.frontend.milproto import load
    from coremltools.models import MLModel

    class LoadingMLModel(MLModel):  # type: ignore[misc]
        """``MLModel`` that loads its program at the first use."""

        _program: Any = None
        _is_saved: bool = False

        @property
        def _mil_program(self) -> Any:
            is_there = self._program is not None or self._is_saved
            if not is_there and self._spec.WhichOneof("Type") == "mlProgram":
                self._program = load.load(
                    self._spec, self._spec.specificationVersion, self.weights_dir
                )
            return self._program

        @_mil_program.setter
        def _mil_program(self, program: Any) -> None:
            self._program = program

        def save(self, save_path: str) -> None:
            # It looks for debug handles in the program, which programs in packages never have.
            self._is_saved = True
            try:
                super().save(save_path)
            finally:
                self._is_saved = False

    LoadingMLModel.save.__doc__ = MLModel.save.__doc__
    return LoadingMLModel


def rewritten_mlmodel(write: Callable[[Path], Path], *, like: MLModel | None) -> MLModel:
    """Return the ``MLModel`` of a temporary package; see ``as_mlmodel`` for ``like``.

    ``write`` gets the path to write the package to, and returns the path that it wrote.
    """
    with destination_or_temporary(None) as path:
        path = write(path)
    return as_mlmodel(path, like=like, is_temporary=True)
