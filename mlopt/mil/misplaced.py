"""Things that are mistaken for a package, or for a file of one, and what to do about each.

The message says what it is and what to give instead. No reader takes any of them as a package.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from google.protobuf.message import DecodeError

from mlopt.errors import ModelFormatError
from mlopt.mil.files import read_regular
from mlopt.mil.messages import Model

MANIFEST = "Manifest.json"

_CONVERT = "Convert the source again with convert_to='mlprogram'."
_POINTERS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)
#: In bytes; the upper limit that Git LFS gives for a pointer.
LONGEST_POINTER = 1024
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
#: In bytes: the largest lone model file that is parsed, only to say in the message what it is.
_MOST_LOOKED_INTO = 64 << 20
#: How many of the packages in a folder are named.
_MOST_NAMED = 5


def check_no_pointer(path: str | os.PathLike[str], content: bytes) -> None:
    """Check that a file is not the pointer that Git LFS leaves until the file is fetched.

    ``content``: its first bytes, at least ``LONGEST_POINTER`` of them or the whole file.

    Raises
    ------
    ModelFormatError
        It is a pointer.
    """
    if len(content) > LONGEST_POINTER or not content.startswith(_POINTERS):
        return
    fields = dict(line.partition(b" ")[::2] for line in content.splitlines())
    size = fields.get(b"size", b"").decode("ascii", "replace")
    of = f" of a file of {size} bytes" if size.isdigit() else ""
    raise ModelFormatError(
        f"{os.fspath(path)}: it is a Git LFS pointer in place{of or ' of the file'}, which has not "
        "been fetched. Run `git lfs install` and `git lfs pull` in the repository that it came "
        "with, or download the file itself."
    )


def check_is_package(path: Path) -> None:
    """Check that there is a folder at ``path`` that may be a package.

    Raises
    ------
    ModelFormatError
        There is something else; the message says what to give instead.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        within = _package_around(path)
        raise ModelFormatError(
            f"{path}: it does not exist; "
            + (
                f"give the package itself: {within}"
                if within is not None
                else "a model package is a folder named *.mlpackage"
            )
        ) from None
    if stat.S_ISDIR(mode):
        _check_folder(path)
    else:
        raise ModelFormatError(f"{path}: {_what_file(path, mode)}")


def _check_folder(path: Path) -> None:
    if os.path.lexists(path / MANIFEST):
        return
    if (path / "coremldata.bin").exists():
        raise ModelFormatError(
            f"{path}: it is a compiled model (.mlmodelc), which cannot be edited; give the "
            ".mlpackage that it was compiled from"
        )
    within = _package_around(path)
    if within is not None:
        raise ModelFormatError(f"{path}: it is a folder of a package; give the package: {within}")
    if path.suffix != ".mlpackage":
        held = _packages_in(path)
        if held:
            raise ModelFormatError(
                f"{path}: it is not a model package, but holds "
                f"{'one' if len(held) == 1 else 'some'}; give {' or '.join(held)}"
            )


def _what_file(path: Path, mode: int) -> str:
    """Return what a file that was given as a package is, and what to give instead."""
    within = _package_around(path)
    if within is not None:
        return f"it is a file of a package; give the package: {within}"
    start = b""
    if stat.S_ISREG(mode):
        try:
            with open(path, "rb") as file:
                start = file.read(LONGEST_POINTER + 1)
        except OSError as error:
            return f"it is a file, which cannot be read ({error}); {_PACKAGE}. {_CONVERT}"
    check_no_pointer(path, start)
    if start.startswith(_ZIP):
        return f"it is a zip archive, and {_PACKAGE}; unpack it, and give the package that is in it"
    if path.suffix == ".mlmodel":
        return _what_model(path)
    return f"it is a file; {_PACKAGE}. {_CONVERT}"


_PACKAGE = "a model package is a folder named *.mlpackage"


def _what_model(path: Path) -> str:
    """Return which kind of model a single file holds."""
    model = Model()
    try:
        model.ParseFromString(read_regular(path, _MOST_LOOKED_INTO)[0])
    except (ModelFormatError, OSError, DecodeError):
        return f"it is a model in one file, which cannot hold an ML program; {_PACKAGE}. {_CONVERT}"
    kind = model.WhichOneof("Type")
    if kind == "mlProgram":
        return (
            "it is the model file of a package without the package, whose weights are in another "
            "file of it; give the .mlpackage folder that it was taken from"
        )
    return (
        f"it is a model in one file, of type {kind or 'none'}; only ML programs can be handled, "
        f"and {_PACKAGE}. {_CONVERT}"
    )


def _package_around(path: Path) -> Path | None:
    """Return the package that ``path`` lies in, the innermost one."""
    try:
        return next((p for p in path.parents if (p / MANIFEST).is_file()), None)
    except (OSError, ValueError):
        return None


def _packages_in(path: Path) -> list[str]:
    """Return the names of some packages in a folder."""
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".mlpackage"))
    except OSError:
        return []
    shown = [str(path / name) for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        shown.append(f"another of its {len(names)} packages")
    return shown
