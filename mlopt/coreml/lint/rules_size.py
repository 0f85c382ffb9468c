"""Rules about size: bytes that a model could do without."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import DEFAULT_WEIGHT_THRESHOLD
from mlopt.coreml.lint.findings import Place
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.rules_form import sound_palettes
from mlopt.coreml.lint.subject import (
    LUT_TO_DENSE,
    Palette,
    Subject,
    place_of_weight,
    type_of_input,
)
from mlopt.coreml.weights import Weight
from mlopt.mil.blob import Blob
from mlopt.mil.constexpr_forms import INDEX_BITS, OLD_INDEX_BITS
from mlopt.mil.program import Node, Program
from mlopt.palette.value.bits import packed_nbytes, unpack_bits
from mlopt.text.words import human_bytes

_CHUNK = 1 << 20  # bytes that are looked at together
_INDICES = 1 << 17  # indices that are looked at together; a multiple of 8, to end at whole bytes
_HEAD = 4096  # bytes of a blob by which it is told from most others
_SMALLEST_DUPLICATE = 4096  # bytes from which a second copy is worth a word
_SMALLEST_REMAINDER = 4096  # bytes of a weight file that nothing refers to, likewise
_PER_BLOB = 64  # bytes of a blob's metadata, and what blobs are aligned to


@rule(
    "compressed-larger-than-plain",
    severity="warning",
    remedy="leave the weight as it is, or use fewer bits, larger groups or one table",
)
def compressed_larger_than_plain(subject: Subject) -> Iterator[Hit]:
    """A compressed weight that takes as many bytes as the plain one, or more.

    Tables, scales and masks count too: for a small weight, or with many tables, they take more than
    the indices save. Sparse weights have a rule of their own.
    """
    for weight in subject.compressed:
        stored, plain = weight.nbytes, weight.plain_nbytes
        is_sparse = any(
            _sparse_sizes(node, weight.size) is not None for node in reversed(weight.chain)
        )
        if weight.size and stored >= plain and not is_sparse:
            yield Hit(
                f"{human_bytes(stored)} compressed, {human_bytes(plain)} plain",
                place_of_weight(weight),
            )


@rule(
    "sparse-larger-than-dense",
    severity="warning",
    remedy="compress the weight without pruning, its zeros as one of the values; or prune more of "
    "it",
)
def sparse_larger_than_dense(subject: Subject) -> Iterator[Hit]:
    """A sparse weight that would be smaller with its zeros written out.

    The mask takes 1 bit per element. Pruning must save more than that: at 4 bits it pays only if
    more than a quarter of the elements are zero.
    """
    for weight in subject.compressed:
        for node in reversed(weight.chain):
            sizes = _sparse_sizes(node, weight.size)
            if sizes is not None and sizes[0] >= sizes[1] > 0:
                yield Hit(
                    f"mask and non-zero values take {human_bytes(sizes[0])}, all values "
                    f"{human_bytes(sizes[1])}",
                    place_of_weight(weight),
                )


@rule(
    "partly-filled-table",
    severity="warning",
    remedy="palettize the weight again with the fewer bits, or with mode unique, which finds them "
    "by itself and loses nothing",
)
def partly_filled_table(subject: Subject) -> Iterator[Hit]:
    """Tables with so few entries in use that fewer index bits would suffice.

    The same values can be stored with fewer bits per index, without any loss.
    """
    for weight in subject.compressed:
        for palette in sound_palettes(weight):
            narrower = _narrowest(palette)
            if narrower is None:
                continue
            count = math.prod(palette.index_shape)
            before = packed_nbytes(count, nbits=palette.nbits)
            saved = before - packed_nbytes(count, nbits=narrower)
            yield Hit(
                f"indices of {palette.nbits} bits, {narrower} would do: "
                f"{human_bytes(saved)} of {human_bytes(before)}",
                place_of_weight(weight),
            )


@rule(
    "uncompressed-share",
    severity="warning",
    remedy="compress these too, or silence this rule if they are plain on purpose",
)
def uncompressed_share(subject: Subject) -> Iterator[Hit]:
    """Plain weights that make up more than half of the bytes of a compressed model.

    Some weights were compressed and these were not: left out by a rule, a threshold or a failure,
    they now dominate the size.
    """
    for program in subject.package.programs:
        compressed = [weight for weight in subject.compressed if weight.program is program]
        plain = [weight for weight in subject.plain if weight.program is program]
        stored = sum(weight.nbytes for weight in compressed)
        left = sorted(filter(_is_worth_compressing, plain), key=lambda weight: -weight.nbytes)
        size = sum(weight.nbytes for weight in left)
        if compressed and size > stored:
            largest = ", ".join(f"{w.name} ({human_bytes(w.nbytes)})" for w in left[:3])
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            yield Hit(
                f"{human_bytes(size)} plain, {human_bytes(stored)} compressed: {largest}{more}",
                Place(model=program.label),
            )


@rule(
    "float32-weights",
    severity="warning",
    remedy="convert the source with compute_precision=FLOAT16 (the default), or compress the "
    "weight",
)
def float32_weights(subject: Subject) -> Iterator[Hit]:
    """Large plain weights of float32.

    They take twice the bytes of float16, and the Neural Engine, which computes in float16, cannot
    run the operations that read them.
    """
    for weight in subject.plain:
        if weight.dtype == "float32" and weight.size > DEFAULT_WEIGHT_THRESHOLD:
            yield Hit(
                f"{human_bytes(weight.nbytes)}, half of it in float16", place_of_weight(weight)
            )


@rule(
    "duplicate-weights",
    severity="warning",
    remedy="write the model again with any command of mlopt, which stores equal values once",
)
def duplicate_weights(subject: Subject) -> Iterator[Hit]:
    """Equal constants that are stored more than once.

    Each copy takes its bytes; operations and functions can refer to a single one.
    """
    for copies in _equal_blobs(subject):
        first = copies[0]
        others = ", ".join(dict.fromkeys(copy.name for copy in copies[1:4]))
        more = f" and {len(copies) - 4} more" if len(copies) > 4 else ""
        yield Hit(
            f"{human_bytes(first.blob.nbytes)} stored {len(copies)} times, again for "
            f"{others}{more}",
            Place(
                model=first.program.label,
                functions=(first.node.function,),
                weight=first.name,
                names=frozenset(copy.name for copy in copies),
            ),
        )


@rule(
    "unread-weight",
    severity="warning",
    remedy="remove what is not used from the source and convert it again",
)
def unread_weight(subject: Subject) -> Iterator[Hit]:
    """A weight that no operation reads and no block returns.

    It takes its bytes and has no effect.
    """
    for compressed in subject.compressed:
        if not compressed.consumers and not compressed.is_block_output:
            yield Hit(f"{human_bytes(compressed.nbytes)} unread", place_of_weight(compressed))
    for plain in subject.plain:
        if not plain.consumers and not plain.is_block_output:
            yield Hit(f"{human_bytes(plain.nbytes)} unread", place_of_weight(plain))


@rule(
    "unreferenced-bytes",
    severity="warning",
    remedy="write the model again with any command of mlopt, which keeps only what is referred to",
)
def unreferenced_bytes(subject: Subject) -> Iterator[Hit]:
    """A weight file with bytes that nothing refers to.

    An edit of the model left them behind, and they are shipped with it.
    """
    package = subject.package
    used: dict[str, dict[int, int]] = {}
    for value in package.file_values():
        reference = value.blobFileValue
        blob = package.files.blob(reference.fileName, reference.offset)
        aligned = -(-(_PER_BLOB + blob.nbytes) // _PER_BLOB) * _PER_BLOB
        path = str(package.files.path_of(reference.fileName))
        used.setdefault(path, {})[reference.offset] = aligned
    for name in package.weight_files:
        path = str(package.files.path_of(name))
        rest = package.files.reader(name).size - _PER_BLOB - sum(used.pop(path, {}).values())
        if rest >= _SMALLEST_REMAINDER:
            yield Hit(f"{human_bytes(rest)} of {path}", Place())


@attrs.frozen(eq=False)
class _Copy:
    """A constant in a weight file."""

    name: str
    program: Program
    node: Node
    blob: Blob


def _equal_blobs(subject: Subject) -> Iterator[list[_Copy]]:
    """Large blobs that equal each other; each blob once, by the first constant that has it."""
    package = subject.package
    stored: dict[tuple[str, int], _Copy] = {}
    for program, nodes in zip(package.programs, subject.nodes, strict=True):
        for constant in program.constants(nodes):
            if constant.storage is not None and constant.nbytes >= _SMALLEST_DUPLICATE:
                blob = package.files.blob(*constant.storage)
                stored.setdefault(
                    constant.storage, _Copy(constant.name, program, constant.node, blob)
                )
    alike: dict[tuple[object, ...], list[tuple[tuple[str, int], _Copy]]] = {}
    for storage, copy in stored.items():
        # Only within a file can values be shared.
        head = bytes(copy.blob.data[:_HEAD])
        kind = (package.files.path_of(storage[0]), copy.blob.dtype, copy.blob.nbytes, head)
        alike.setdefault(kind, []).append((storage, copy))
    for candidates in alike.values():
        if len(candidates) == 1:
            continue
        equal: dict[bytes, list[_Copy]] = {}
        for (file_name, _), copy in candidates:
            digest = hashlib.blake2b()
            for start in range(0, copy.blob.nbytes, _CHUNK):
                digest.update(copy.blob.data[start : start + _CHUNK].data)
            package.files.reader(file_name).release(copy.blob.data_offset, copy.blob.nbytes)
            equal.setdefault(digest.digest(), []).append(copy)
        yield from (copies for copies in equal.values() if len(copies) > 1)


def _is_worth_compressing(weight: Weight) -> bool:
    return (
        weight.dtype in ("float16", "float32")
        and weight.size > DEFAULT_WEIGHT_THRESHOLD
        and len(weight.shape) > 1
        and not weight.is_part
    )


def _sparse_sizes(node: Node, size: int) -> tuple[int, int] | None:
    """Bytes of mask and non-zero values, and of all values at that width; None if not sparse.

    Tables and scales are left out: they are the same on both sides.
    """
    for mask_name, values_name in (
        ("mask", "nonzero_data"),
        ("indices_mask", "indices_nonzero_data"),
        ("data_mask", "nonzero_data"),
    ):
        mask, values = node.constant_input(mask_name), node.constant_input(values_name)
        if mask is not None and values is not None:
            dtype, _ = type_of_input(node, values_name)
            return mask.nbytes + values.nbytes, dtype.nbytes(size)
    return None


def _narrowest(palette: Palette) -> int | None:
    """The fewest bits that hold what a palette uses; None where those are the ones it has."""
    allowed = OLD_INDEX_BITS if palette.is_old_form else INDEX_BITS
    widths = [nbits for nbits in allowed if nbits < palette.nbits]
    if not widths or palette.node.op_type != LUT_TO_DENSE or palette.lut is None:
        return None
    used = _most_used_entries(palette, at_most=1 << widths[-1])
    if used is None:
        return None
    return next((nbits for nbits in widths if used <= 1 << nbits), None)


def _most_used_entries(palette: Palette, *, at_most: int) -> int | None:
    """The most entries, by value, that a table's indices refer to; None if above `at_most`.

    Indices are read until one table is seen to use more.
    """
    assert palette.lut is not None
    entries, count = palette.entries, math.prod(palette.index_shape)
    classes = _values_of_entries(palette)
    used = np.zeros((palette.tables, entries), np.bool_)
    packed = palette.indices.value().reshape(-1)
    most = 0
    for start in range(0, count, _INDICES):
        stop = min(start + _INDICES, count)
        bits = packed[start * palette.nbits // 8 : packed_nbytes(stop, nbits=palette.nbits)]
        indices = unpack_bits(bits, palette.nbits, stop - start)
        tables = _tables_of(palette, start, stop)
        used[tables, classes[tables, indices]] = True
        most = int(used.sum(axis=1).max())
        if most > at_most:
            break
    palette.indices.release()
    return None if most > at_most else most


def _values_of_entries(palette: Palette) -> npt.NDArray[np.intp]:
    """[tables, entries]: for each entry the first one of its table with the same bits."""
    assert palette.lut is not None
    lut = np.ascontiguousarray(palette.lut.value()).reshape(palette.tables * palette.entries, -1)
    cells = lut.view(np.dtype((np.void, lut.shape[1] * lut.itemsize))).reshape(
        palette.tables, palette.entries
    )
    classes = np.empty(cells.shape, np.intp)
    for table, row in zip(classes, cells, strict=True):
        _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
        table[:] = first[inverse.reshape(-1)]
    return classes


def _tables_of(palette: Palette, start: int, stop: int) -> npt.NDArray[np.intp] | int:
    """The table of each index from `start` to `stop`, counted in C order."""
    if palette.tables == 1:
        return 0
    places = np.unravel_index(np.arange(start, stop), palette.index_shape)
    groups = [
        place // (length // count)
        for place, length, count in zip(places, palette.index_shape, palette.groups, strict=True)
    ]
    return np.asarray(np.ravel_multi_index(groups, palette.groups), np.intp)
