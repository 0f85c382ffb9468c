"""An output package that is made again from its source, with all that had to be found out known.

Of our own output its tables are kept, in the form that the labelling kernels take, its scales,
where each weight lies in the file, and all files beside the weights. Of indices and of unchanged
weights nothing is kept: :meth:`KnownOutput.write` makes them from the source's bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.known_tables import KnownTables, known_tables
from mlopt.coreml.weights import Weight, weights_of
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Node
from mlopt.palette.scale import normalised
from mlopt.palette.value.bits import pack_bits, packed_nbytes

_STEP = 1 << 20
"""Elements, about, that a thread labels at a time."""
_BYTES = 4 << 20
"""Bytes that a thread copies at a time."""

Write = Callable[[Any, int], Any]
"""Writes bytes at a place of the output's weight file."""
Jobs = Iterator[Callable[[], Any]]
"""They may run at the same time."""


@dataclass(frozen=True)
class Given:
    """Bytes that are known: headers of blobs, tables, scales."""

    place: int
    content: bytes

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def jobs(self, source: np.ndarray, write: Write) -> Jobs:
        yield lambda: write(self.content, self.place)


@dataclass(frozen=True)
class Copied:
    """A weight that is not changed; ``start`` is where it lies in the source."""

    place: int
    nbytes: int
    start: int

    def jobs(self, source: np.ndarray, write: Write) -> Jobs:
        for done in range(0, self.nbytes, _BYTES):
            part = source[self.start + done : self.start + min(done + _BYTES, self.nbytes)]
            yield lambda part=part, done=done: write(part, self.place + done)


@dataclass(frozen=True)
class Labelled:
    """The packed indices of a weight of ``shape`` and ``dtype`` at ``start`` of the source.

    ``scale`` (None: there is none) is what channels are divided by, [n_0, 1, ..] or all ones but
    another axis.
    """

    place: int
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbits: int
    tables: KnownTables
    scale: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return packed_nbytes(math.prod(self.shape), nbits=self.nbits)

    def jobs(self, source: np.ndarray, write: Write) -> Jobs:
        """Spans of channels: whole groups, and whole bytes of indices."""
        channels, size = self.shape[0], math.prod(self.shape[1:])
        unit = 8 if self.tables.groups == 1 else math.lcm(8, channels // self.tables.groups)
        step = unit * max(1, _STEP // (unit * size))
        for first in range(0, channels, step):
            last = min(first + step, channels)
            yield lambda span=slice(first, last): self._label(source, write, span)

    def _label(self, source: np.ndarray, write: Write, span: slice) -> None:
        channels, size = self.shape[0], math.prod(self.shape[1:])
        start, end = (self.start + n * size * self.dtype.itemsize for n in (span.start, span.stop))
        values = source[start:end].view(self.dtype).reshape(-1, *self.shape[1:])
        if self.scale is not None:
            scale = self.scale if self.scale.shape[0] == 1 else self.scale[span]
            values = normalised(values, scale)
        groups = self.tables.groups
        if groups == 1:
            labels = self.tables.labels(values.reshape(1, -1), slice(0, 1))
        else:
            among = slice(span.start * groups // channels, span.stop * groups // channels)
            labels = self.tables.labels(values.reshape(among.stop - among.start, -1), among)
        write(pack_bits(labels, self.nbits), self.place + span.start * size * self.nbits // 8)


Piece = Given | Copied | Labelled
"""A part of the output's weight file, from ``place`` on; ``jobs`` make it from the source's."""


@dataclass(frozen=True)
class KnownOutput:
    """``files``: content of the files beside the weight file, by path in the package."""

    source_weights: Path
    inner_weights: Path
    pieces: list[Piece]
    files: dict[Path, bytes]

    def write(self, output: Path, *, threads: int) -> None:
        """Make the package ``output``, which is not there yet."""
        path = output / self.inner_weights
        path.parent.mkdir(parents=True)
        for inner, content in self.files.items():
            (output / inner).parent.mkdir(parents=True, exist_ok=True)
            (output / inner).write_bytes(content)
        source = np.asarray(np.memmap(self.source_weights, np.uint8, "r"))
        with path.open("wb", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
            descriptor = file.fileno()

            def write(data: Any, place: int) -> None:
                if os.pwrite(descriptor, data, place) != memoryview(data).nbytes:
                    raise OSError(f"{path}: the disk did not take all bytes")

            jobs = (job for piece in self.pieces for job in piece.jobs(source, write))
            for _ in pool.map(lambda job: job(), jobs):
                pass


def known_output(source: Path, output: Path) -> KnownOutput:
    """What is known of ``output``, which mlopt made of ``source``; it is not needed any more.

    NotImplementedError where it has what the limit does not make: several weight files, groups on
    another axis than the first, tables of 8-bit codes, vectors.
    """
    packages = open_package(source), open_package(output)
    names = [package.weight_files for package in packages]
    if any(len(each) != 1 for each in names):
        raise NotImplementedError(f"the limit of packages with weight files {names}")
    paths = [
        package.path / package.files.path_of(name)
        for package, (name,) in zip(packages, names, strict=True)
    ]
    inner = paths[1].relative_to(output)
    others = (path for path in output.rglob("*") if path.is_file() and path != paths[1])
    return KnownOutput(
        source_weights=paths[0],
        inner_weights=inner,
        pieces=_with_given(paths[1].read_bytes(), _pieces(*packages)),
        files={path.relative_to(output): path.read_bytes() for path in others},
    )


def _with_given(content: bytes, pieces: dict[int, Piece]) -> list[Piece]:
    """The pieces in their order, and what lies between them."""
    every: list[Piece] = []
    end = 0
    for place in sorted(pieces):
        if place > end:
            every.append(Given(end, content[end:place]))
        every.append(pieces[place])
        end = place + pieces[place].nbytes
    return [*every, Given(end, content[end:])]


def _pieces(source: Package, output: Package) -> dict[int, Piece]:
    """The weights of the output that are made from those of the source, by place."""
    originals = {
        weight.name: weight.stored[0]
        for weight in weights_of(source, smallest=1)[0]
        if not weight.is_compressed and weight.stored[0].storage
    }
    found: dict[int, Piece] = {}
    for weight in weights_of(output, smallest=1)[0]:
        original = originals.get(weight.name)
        if weight.is_compressed:
            if original is None:
                raise NotImplementedError(f"the limit of {weight.name!r}, which is new")
            piece: Piece = _labelled(weight, original)
        elif original is not None and weight.stored[0].storage:
            place, nbytes = _place(weight.stored[0])
            piece = Copied(place, nbytes, _place(original)[0])
        else:
            continue
        found[piece.place] = piece
    return found


def _labelled(weight: Weight, original: Constant) -> Labelled:
    by_type = {node.op_type: node for node in weight.chain}
    lookup = by_type.pop("constexpr_lut_to_dense", None)
    scaling = by_type.pop("constexpr_blockwise_shift_scale", None)
    indices, table = (_bound(lookup, name) for name in ("indices", "lut"))
    scale = None if scaling is None else _bound(scaling, "scale")
    dtype = original.numpy_dtype
    if by_type or indices is None or table is None or dtype is None:
        raise NotImplementedError(f"the limit of {weight.name!r}: {weight.chain}")
    entries, *size = table.shape[-2:] if len(table.shape) > 1 else (table.shape[0], 1)
    groups = table.size // entries
    if size != [1] or (groups > 1 and table.shape[0] != groups):
        raise NotImplementedError(f"the limit of {weight.name!r}: tables {table.shape}")
    return Labelled(
        place=_place(indices)[0],
        start=_place(original)[0],
        dtype=dtype,
        shape=weight.shape,
        nbits=entries.bit_length() - 1,
        tables=known_tables(
            np.asarray(table.value()).reshape(groups, entries), coded=scale is None
        ),
        scale=None if scale is None else np.array(scale.value()),
    )


def _bound(node: Node | None, parameter: str) -> Constant | None:
    return None if node is None else node.constant_input(parameter)


def _place(constant: Constant) -> tuple[int, int]:
    """Where the data of a constant begin in its weight file, and how many bytes they are."""
    if constant.storage is None:
        raise NotImplementedError(f"the limit of {constant.name!r}, which is in the message")
    blob = constant.files.blob(*constant.storage)
    return blob.data_offset, blob.nbytes
