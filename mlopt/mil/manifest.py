"""The manifest of a package: which of its files is the model.

A check refuses what coremltools' own reader of packages refuses ("no reader"), or what could hurt
the machine ("harm"); coremltools refuses more, which the lint reports.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from mlopt.errors import ModelFormatError
from mlopt.mil.files import FileState, check_name, read_regular, resolved
from mlopt.mil.misplaced import MANIFEST, check_no_pointer

#: In bytes. Real ones have a few hundred.
_LARGEST = 1 << 20


@attrs.frozen(eq=False)
class Manifest:
    """The content of a manifest, and the state of its file.

    Attributes
    ----------
    content
        The object in it, whose ``itemInfoEntries`` is a dictionary.
    state
        State of the file when it was read.
    repeated
        Keys that occur more than once in an object, where the last one counts; sorted.
    link
        Target of a link in its place that leads out of the package; None without one.
    """

    content: dict[str, Any]
    state: FileState
    repeated: tuple[str, ...] = ()
    link: Path | None = None

    @property
    def entries(self) -> dict[str, Any]:
        """The items that the package declares, by identifier."""
        entries: dict[str, Any] = self.content["itemInfoEntries"]
        return entries


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the package at ``path``.

    Raises
    ------
    ModelFormatError
        It is missing, or not a manifest.
    """
    file = path / MANIFEST
    repeated: set[str] = set()

    def taking_the_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.update(key for key, count in counts.items() if count > 1)
        return content

    try:
        place, link = resolved(path, PurePosixPath(MANIFEST))
        raw, state = read_regular(place, _LARGEST)  # harm: a larger one
        check_no_pointer(file, raw)
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=taking_the_last)
    except FileNotFoundError:
        raise ModelFormatError(
            f"{file}: the file is missing; {path} is not a model package"
        ) from None
    except ModelFormatError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # no reader
        raise ModelFormatError(f"{file}: the manifest cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("itemInfoEntries"), dict):
        raise ModelFormatError(  # no reader
            f"{file}: the manifest names no root model; expected an object with itemInfoEntries, "
            "an object of entries, and rootModelIdentifier"
        )
    return Manifest(content, state, tuple(sorted(repeated)), link)


def root_model(path: Path, manifest: Manifest) -> PurePosixPath:
    """Return where the root model lies, relative to the package at ``path``.

    Raises
    ------
    ModelFormatError
        The manifest names none, or leads out of the package.
    """
    file = path / MANIFEST
    try:
        entry = manifest.entries[manifest.content["rootModelIdentifier"]]["path"]
        inner = PurePosixPath(entry)
        check_name(entry)
    except (KeyError, TypeError):  # no reader
        raise ModelFormatError(
            f"{file}: the manifest names no root model (rootModelIdentifier, and its entry "
            "with a path)"
        ) from None
    except ValueError as error:  # no reader
        raise ModelFormatError(
            f"{file}: the root model's path {shown(entry)} cannot be a path: {error}"
        ) from None
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:  # harm
        raise ModelFormatError(
            f"{file}: the root model's path {shown(entry)} leaves the package; allowed is a path "
            "below its folder Data"
        )
    return PurePosixPath("Data") / inner


def shown(name: str) -> str:
    """Return a name from a file, quoted and cut to one line, for a message."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")
