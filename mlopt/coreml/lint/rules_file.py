"""Rules about the files of a package: oddities that do not keep it from being read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mlopt.coreml.constexpr.parameters import is_constexpr
from mlopt.coreml.lint.findings import Place
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import Subject, place_of_value
from mlopt.mil.blob import ALIGNMENT, METADATA_BYTES, Blob, stored_as
from mlopt.mil.package import Package
from mlopt.mil.targets import Target, opset_target
from mlopt.mil.values import is_as_written, tensor_type_of
from mlopt.mil.walk import every_value

_REWRITE = "write the model again with any command of mlopt"
_ENTRY_KEYS = ("author", "description", "name", "path")


@rule(
    "linked-file",
    severity="warning",
    remedy="ship a copy whose links are resolved; whatever mlopt writes is one",
)
def linked_file(subject: Subject) -> Iterator[Hit]:
    """A file of the package that is a link to something outside it.

    Copying, sending or bundling the package does not include the targets of its links, and a change
    to a target changes every package that shares it.
    """
    for inner, real in sorted(subject.package.links.items()):
        yield Hit(f"{inner} is {real}", Place())


@rule("undefined-blob-headers", severity="note", remedy=f"nothing, or {_REWRITE}")
def undefined_blob_headers(subject: Subject) -> Iterator[Hit]:
    """Headers of blobs with undefined words.

    coremltools 5 to 7 left the words after the data offset uninitialized. Nothing reads them, but
    equal models have different files, and the words are whatever was in memory at the time.
    """
    for inner, blobs in _blobs_by_file(subject.package):
        count = sum(blob.has_undefined_words for blob in blobs)
        if count:
            yield Hit(f"{count} of {len(blobs)} blobs of {inner}", Place())


@rule("blob-count", severity="warning", remedy=_REWRITE)
def blob_count(subject: Subject) -> Iterator[Hit]:
    """A weight file whose header counts fewer blobs than the model refers to.

    A model finds its blobs without that number, but tools that list or merge weight files rely on
    it and miss the remaining blobs.
    """
    for inner, blobs in _blobs_by_file(subject.package):
        claimed = subject.package.files.reader_at(inner).count
        if claimed < len(blobs):
            yield Hit(
                f"{inner} claims {claimed} blobs, and the model refers to {len(blobs)}", Place()
            )


@rule("blob-layout", severity="warning", remedy=_REWRITE)
def blob_layout(subject: Subject) -> Iterator[Hit]:
    """Blobs that are not laid out as every known writer lays them out.

    Blobs begin at multiples of 64 bytes, their data directly after their metadata, and none
    overlaps another. Readers that map the file may need the alignment, and tools that edit one blob
    change any other that overlaps it.
    """
    for inner, blobs in _blobs_by_file(subject.package):
        apart = [b for b in blobs if b.data_offset != b.offset + METADATA_BYTES]
        unaligned = [b for b in blobs if b.offset % ALIGNMENT or b.data_offset % ALIGNMENT]
        spare = [b for b in blobs if b.spare]
        for what, found in (
            ("do not begin at a multiple of 64 bytes", unaligned),
            ("do not have their data directly after their metadata", apart),
            ("have bytes after their last element", spare),
        ):
            if found:
                yield Hit(
                    f"{len(found)} of {len(blobs)} blobs of {inner} {what}, the first at offset "
                    f"{found[0].offset}",
                    Place(),
                )
        overlap = _first_overlap(blobs)
        if overlap is not None:
            yield Hit(f"blobs of {inner} lie in one another, the first at byte {overlap}", Place())


@rule(
    "type-in-weight-file",
    severity="warning",
    remedy="convert the source again with coremltools, which stores such constants in the model",
)
def type_in_weight_file(subject: Subject) -> Iterator[Hit]:
    """A constant in the weight file of a type that weight files cannot hold.

    Booleans are read from bytes (true if not 0), and 64-bit numbers from 32-bit ones. coremltools
    has no such form, and cannot load the model.
    """
    for program in subject.package.programs:
        for placed in every_value(program.message):
            if placed.value.WhichOneof("value") == "blobFileValue":
                typed = tensor_type_of(placed.value.type)
                if typed is not None and stored_as(typed[0]) is not typed[0]:
                    yield Hit(
                        f"{typed[0].name} of shape {list(typed[1])}, stored as "
                        f"{stored_as(typed[0]).name}",
                        place_of_value(program, placed),
                    )


@rule(
    "value-in-another-field",
    severity="warning",
    remedy="have its writer store each type in the member of TensorValue that coremltools uses",
)
def value_in_another_field(subject: Subject) -> Iterator[Hit]:
    """Values in the model that are not stored in the way their type is.

    For example, the numbers of an int8 tensor as ints instead of bytes, or more bytes than
    elements. coremltools cannot load most of them, and other readers may interpret them otherwise.
    """
    for program in subject.package.programs:
        odd = [
            placed
            for placed in every_value(program.message)
            if placed.value.WhichOneof("value") == "immediateValue"
            and not is_as_written(placed.value)
        ]
        if odd:
            yield Hit(f"{len(odd)} values, the first here", place_of_value(program, odd[0]))


@rule("unused-body", severity="note", remedy="have its writer leave it out")
def unused_body(subject: Subject) -> Iterator[Hit]:
    """A function with a body for an opset other than its own.

    A function is read for the opset that it names. Other bodies are shipped with it, and are
    written again unchanged, unless they refer to something that is missing.
    """
    package = subject.package
    for program in package.programs:
        for function in program.functions:
            for opset in sorted(set(function.message.block_specializations) - {function.opset}):
                yield Hit(
                    f"a body for {opset}, and the function is of {function.opset}",
                    Place(model=program.label, functions=(function.name,)),
                )
    for label, name, opset in package.dropped_bodies:
        yield Hit(
            f"a body for {opset} that refers to something that is missing; it is not written again",
            Place(model=label, functions=(name,)),
            severity="warning",
        )


@rule("version-below-opset", severity="error", remedy=f"{_REWRITE}, which gives it the version")
def version_below_opset(subject: Subject) -> Iterator[Hit]:
    """A specification version that is older than the opset of a function.

    coremltools reads the operations as those of the version, and fails or misreads them; a system
    of that version accepts the model and then does not know the opset.
    """
    for program in subject.package.programs:
        newer = [
            f
            for f in program.functions
            if opset_target(f.opset).specification_version > program.declared_version
        ]
        if newer:
            newest = max(newer, key=lambda f: opset_target(f.opset))
            yield Hit(
                f"specification version {program.declared_version}, and opset {newest.opset} "
                f"belongs to {opset_target(newest.opset).specification_version}",
                Place(model=program.label, functions=tuple(f.name for f in newer)),
            )


@rule(
    "version-above-opset",
    severity="warning",
    remedy="set_deployment_target (`mlopt raise`) with the model's own target gives all functions "
    "the opset of the version",
)
def version_above_opset(subject: Subject) -> Iterator[Hit]:
    """Compressed weights in the form of an opset that is older than the model's version.

    Core ML reads a function by its opset, coremltools by the version: from version 9 on it expects
    the form of iOS18, and cannot load the model.
    """
    for program, nodes in zip(subject.package.programs, subject.nodes, strict=True):
        if program.specification_version < Target.iOS18.specification_version:
            continue
        for function in program.functions:
            count = sum(is_constexpr(n) and n.function == function.name for n in nodes)
            if count and opset_target(function.opset) < Target.iOS18:
                yield Hit(
                    f"{count} operations of {function.opset} in a model of specification version "
                    f"{program.specification_version}",
                    Place(model=program.label, functions=(function.name,)),
                )


@rule(
    "manifest-entries",
    severity="error",
    remedy='complete Manifest.json: fileFormatVersion "1.0.0", and for every entry author, '
    "description, name and the path of something that is there",
)
def manifest_entries(subject: Subject) -> Iterator[Hit]:
    """A manifest that lacks entries that readers of packages require.

    mlopt finds the model anyway, but coremltools and Core ML check every entry, and refuse the
    package.
    """
    manifest = subject.package.manifest
    if manifest is None:
        return
    if not isinstance(manifest.content.get("fileFormatVersion"), str):
        yield Hit("no fileFormatVersion", Place())
    for identifier, entry in sorted(manifest.entries.items()):
        problem = _entry_problem(subject.package, entry)
        if problem:
            yield Hit(f"entry {identifier!r} {problem}", Place())


@rule(
    "manifest-repeats-a-key",
    severity="warning",
    remedy="remove all but one of the values from Manifest.json",
)
def manifest_repeats_a_key(subject: Subject) -> Iterator[Hit]:
    """A key that an object in the manifest has more than once.

    The last value counts, here and in coremltools; other JSON readers may differ.
    """
    manifest = subject.package.manifest
    for key in () if manifest is None else manifest.repeated:
        yield Hit(repr(key), Place())


def _entry_problem(package: Package, entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "is not an object"
    missing = [key for key in _ENTRY_KEYS if not isinstance(entry.get(key), str)]
    if missing:
        return f"has no {', '.join(missing)}"
    try:
        there = (package.path / "Data" / entry["path"]).exists()
    except (OSError, ValueError):
        there = False
    return None if there else f"is for {entry['path']!r}, which is not there"


def _blobs_by_file(package: Package) -> Iterator[tuple[PurePosixPath, list[Blob]]]:
    """Weight files that the model refers to, and the blobs in each, in order."""
    offsets: dict[PurePosixPath, set[int]] = {}
    for value in package.file_values():
        reference = value.blobFileValue
        offsets.setdefault(package.files.path_of(reference.fileName), set()).add(reference.offset)
    for inner in sorted(offsets):
        reader = package.files.reader_at(inner)
        yield inner, [reader.read(offset) for offset in sorted(offsets[inner])]


def _first_overlap(blobs: list[Blob]) -> int | None:
    """The first byte that two blobs have, other than the same data under two offsets."""
    parts = {(b.data_offset, b.data_offset + b.nbytes) for b in blobs if b.nbytes}
    parts |= {(b.offset, b.offset + METADATA_BYTES) for b in blobs}
    for (_, end), (start, _) in itertools.pairwise(sorted(parts)):
        if start < end:
            return start
    return None
