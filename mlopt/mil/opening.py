"""Opening a package: locate it, check it, and normalize it.

A check refuses what no reader accepts ("no reader"), or what could hurt the machine ("harm").
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from mlopt.errors import ModelFormatError
from mlopt.mil.bound_values import name_bound_values
from mlopt.mil.checks import check_package
from mlopt.mil.files import FileState, read_regular, resolved
from mlopt.mil.manifest import read_manifest, root_model
from mlopt.mil.messages import Model
from mlopt.mil.misplaced import LONGEST_POINTER, MANIFEST, check_is_package, check_no_pointer
from mlopt.mil.package import CONVERT, Package

if TYPE_CHECKING:
    from coremltools.models import MLModel

#: In bytes; no protobuf message can be larger.
_LARGEST_MODEL = (1 << 31) - 1


def open_package(
    source: str | os.PathLike[str] | MLModel, *, without_programs: bool = False
) -> Package:
    """Open a model package, and check every reference into its weight files.

    Weights that operations have bound as values become constants: see ``name_bound_values``.

    Parameters
    ----------
    source
        The path of an ``.mlpackage`` folder, or a coremltools ``MLModel`` that is an ML program or
        a pipeline. For an ``MLModel``, its message in memory is used, which may have been edited,
        and the weights come from its package.
    without_programs
        Whether to accept a model that holds no ML program.

    Raises
    ------
    ModelFormatError
        It is not a model package, is damaged, or holds no ML program although one is required.
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


def _opened(source: str | os.PathLike[str] | MLModel, *, without_programs: bool) -> Package:
    """Return the package after reading only the manifest and the model."""
    if isinstance(source, str | os.PathLike):
        path = Path(os.fspath(source)).expanduser()
        spec = None
    elif hasattr(source, "get_spec"):
        spec = source.get_spec()
        location = getattr(source, "package_path", None)
        if location is None:
            raise ModelFormatError(
                f"the model is of type {spec.WhichOneof('Type') or 'none'} and has no package; "
                f"only ML programs can be handled. {CONVERT}"
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


def _read_spec(root: Path, inner: PurePosixPath) -> tuple[Model, FileState, Path | None]:
    """Return the ``Model`` message in a package's file, its state, and the target of a link out."""
    file = root / inner
    spec = Model()
    try:
        place, link = resolved(root, inner)
        content, state = read_regular(place, _LARGEST_MODEL)
        check_no_pointer(file, content[: LONGEST_POINTER + 1])
        spec.ParseFromString(content)
    except DecodeError as error:  # no reader
        raise ModelFormatError(
            f"{file}: the file is not a readable model ({error}); it is truncated or damaged"
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
