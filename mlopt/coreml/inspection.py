"""Inventory of a model: a row for each of its weights, read one at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from mlopt.choices import SORT_KEYS, SortKey
from mlopt.coreml.constexpr import CompressedForm
from mlopt.coreml.metadata import CoreMLWeightMetaData
from mlopt.coreml.models import ModelSource
from mlopt.coreml.progress import Progress
from mlopt.coreml.weights import Weight, bytes_once, shown_consumers, weights_of
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.mil.targets import Target
from mlopt.text.json_text import json_text
from mlopt.threads import done_ahead, processors


@attrs.frozen(kw_only=True)
class StoredWeight:
    """One weight: stored as it is, or compressed.

    Parameters
    ----------
    name
        The name of the constant; ``"<operation>_<parameter>_<index>"`` where the value is bound to
        an operation directly. Of a compressed weight, its name once decompressed.
    functions
        The functions that use it, in program order.
    consumers
        The operations that read it, each as ``"type(name)"``.
    shape, dtype
        Of its values; dtype by its numpy-like name (``"float16"``, ``"uint4"``).
    size, nbytes
        Number of elements, and of stored bytes, tables, masks and scales included.
    compression
        How it is compressed, None where it is stored as it is.
    distinct
        Number of distinct values (0 and -0 are one), None where not counted.
    sparsity
        Share of the values whose magnitude is at most 1e-12, 0 to 1, None where not counted.
    """

    name: str
    functions: tuple[str, ...]
    consumers: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    compression: CompressedForm | None = None
    distinct: int | None = None
    sparsity: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        values = attrs.asdict(self)
        values["compression"] = None if self.compression is None else self.compression.as_dict()
        for name in ("functions", "consumers", "shape"):
            values[name] = list(values[name])
        return values


@attrs.frozen(kw_only=True)
class Inventory:
    """The requested weights of a model, and the totals of all its weights.

    Parameters
    ----------
    target
        The model's deployment target by name.
    rows
        One per requested weight, in program order unless sorted.
    weights_in_all, bytes_in_all
        Of the whole model; bytes that several weights share count once.
    """

    target: str
    rows: tuple[StoredWeight, ...]
    weights_in_all: int
    bytes_in_all: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in `rows`."""
        return sum(row.nbytes for row in self.rows)

    def sorted_by(self, key: SortKey) -> Inventory:
        """Return the inventory with sorted rows: names ascending, numbers descending.

        Parameters
        ----------
        key
            "order" is program order. Ties stay in program order.

        Raises
        ------
        ConfigError
            The key is unknown, or is a statistic that was not computed.
        """
        if key not in SORT_KEYS:
            raise ConfigError(f"sort key must be one of {', '.join(SORT_KEYS)}, got {key!r}")
        if key == "order":
            return self
        if key == "name":
            return attrs.evolve(self, rows=tuple(sorted(self.rows, key=lambda row: row.name)))
        column = "nbytes" if key == "bytes" else key
        if any(getattr(row, column) is None for row in self.rows):
            raise ConfigError(
                f"cannot sort by {key!r}, which was not computed; ask for statistics, or sort by "
                "another column"
            )
        ordered = sorted(self.rows, key=lambda row: -getattr(row, column))
        return attrs.evolve(self, rows=tuple(ordered))

    def as_dict(self) -> dict[str, Any]:
        """Return the inventory as JSON values."""
        return {
            "target": self.target,
            "totals": {
                "weights": len(self.rows),
                "bytes": self.nbytes,
                "weights_in_all": self.weights_in_all,
                "bytes_in_all": self.bytes_in_all,
            },
            "rows": [row.as_dict() for row in self.rows],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return the inventory as JSON text."""
        return json_text(self.as_dict(), indent=indent)


def inspect_weights(
    source: ModelSource,
    *,
    patterns: Sequence[str] = (),
    min_size: int = 0,
    statistics: bool = True,
    progress: Progress | None = None,
) -> Inventory:
    """List the weights of a model: the constants of at least 10 elements.

    A compressed weight is one row, with the shape, type and readers of the plain weight; its
    tables, masks and scales have no rows.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel`` of type ``mlprogram``.
    patterns
        Globs; a weight is listed if one of them matches its name, or the name or type of an
        operation that reads it. Empty: all weights.
    min_size
        Smallest number of elements of a listed weight.
    statistics
        Whether to count distinct values and zeros, which reads every listed weight once. As many
        weights are in memory at a time as there are processors.
    progress
        Called as ``progress(elements_done, elements_in_all, weight_name)`` after each weight that
        was counted.

    Raises
    ------
    ModelFormatError
        The source is damaged or is not an ML program.
    """
    package = open_package(source)
    weights, _ = weights_of(package)
    every_row = [_row(weight) for weight in weights]  # refuse a damaged source before any work
    listed = [
        (weight, row)
        for weight, row in zip(weights, every_row, strict=True)
        if weight.size >= min_size and _matches(weight, patterns)
    ]
    rows = [row for _, row in listed]
    if statistics:
        rows = _with_statistics(listed, progress)
    return Inventory(
        target=str(Target.of_specification(max(p.specification_version for p in package.programs))),
        rows=tuple(rows),
        weights_in_all=len(weights),
        bytes_in_all=bytes_once(weights),
    )


def package_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of all files of a package."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _matches(weight: Weight, patterns: Iterable[str]) -> bool:
    names = set(weight.names)
    for user in weight.consumers:
        names |= {user.op_name, user.op_type}
    patterns = tuple(patterns)
    return not patterns or any(fnmatchcase(name, glob) for glob in patterns for name in names)


def _row(weight: Weight) -> StoredWeight:
    return StoredWeight(
        name=weight.name,
        functions=weight.functions,
        consumers=shown_consumers(weight.consumers),
        shape=weight.shape,
        dtype=weight.dtype,
        size=weight.size,
        nbytes=weight.nbytes,
        compression=weight.compression,
    )


def _with_statistics(
    listed: Sequence[tuple[Weight, StoredWeight]], progress: Progress | None
) -> list[StoredWeight]:
    """Return the rows with distinct values and sparsity, counted by all processors."""
    total, done, rows = sum(weight.size for weight, _ in listed), 0, []
    jobs = ((weight.size, partial(_counted, weight)) for weight, _ in listed)
    with contextlib.closing(done_ahead(jobs, processors())) as results:
        for (weight, row), counted in zip(listed, results, strict=True):
            assert counted is not None
            sparsity, distinct = counted
            rows.append(attrs.evolve(row, distinct=distinct, sparsity=sparsity))
            done += weight.size
            if progress is not None:
                progress(done, total, weight.name)
    return rows


def _counted(weight: Weight) -> tuple[float, int]:
    """Return the sparsity and the distinct values of a weight; release its pages afterwards."""
    known = CoreMLWeightMetaData(weight.value())
    counted = known.sparsity, known.unique_values
    weight.release()
    return counted
