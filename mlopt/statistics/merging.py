"""Calibrations of parts of the samples, merged into that of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.statistics.calibration import FIELDS, Calibration, entries_of, metadata_of
from mlopt.statistics.container import Entry, write
from mlopt.statistics.held_out import HeldOut, held_out
from mlopt.statistics.moment_arrays import MomentArrays

Array = npt.NDArray[Any]


def merge(
    parts: Sequence[Calibration | str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
) -> Calibration:
    """Return the calibration of all samples from those of parts of them.

    Means are averaged, weighted by their numbers of positions, or by their sensitivities. The
    held-out check is that of the last part by those before it.

    Parameters
    ----------
    parts
        Calibrations, or their files, of one model with the same statistics and different samples.
    output
        A file to write the result to, one array after the other; None: it is kept in memory.

    Raises
    ------
    ConfigError
        There are none, or they are of different models or statistics, or cannot be read.
    DestinationError
        ``output`` cannot be written.
    """
    loaded = [part if isinstance(part, Calibration) else Calibration.load(part) for part in parts]
    if not loaded:
        raise ConfigError("merge needs one calibration or more, got none")
    first = loaded[0]
    for number, part in enumerate(loaded):
        _check_alike(first, part, number)
    sources = _sources(loaded)
    keys = {tuple(names): key for key, names in sources.items()}
    weights = tuple(
        attrs.evolve(each[0], moments=keys[tuple(weight.moments for weight in each)])
        for each in zip(*(part.weights for part in loaded), strict=True)
    )
    moments = {
        key: [part.moments[name] for part, name in zip(loaded, names, strict=True)]
        for key, names in sources.items()
    }
    before = sum(part.samples for part in loaded[:-1])
    merged = attrs.evolve(
        first,
        samples=sum(part.samples for part in loaded),
        weights=weights,
        remarks=tuple(dict.fromkeys(r for part in loaded for r in part.remarks)),
        marks=tuple(dict.fromkeys(mark for part in loaded for mark in part.marks)),
        moments={
            # shapes and counts; the arrays follow
            key: attrs.evolve(
                parts[0],
                count=sum(each.count for each in parts),
                held_out=_held_out(parts, before),
            )
            for key, parts in moments.items()
        },
    )
    if output is not None:
        contents: dict[Entry, Callable[[], Array]] = {}
        for entry in entries_of(merged.moments):
            key, _, field = entry.name.rpartition(".")
            contents[entry] = partial(_average, moments[key], field)
        write(Path(output), contents, metadata_of(merged))
        return Calibration.load(output)
    return attrs.evolve(
        merged,
        moments={key: _averaged(arrays, moments[key]) for key, arrays in merged.moments.items()},
    )


def _sources(parts: Sequence[Calibration]) -> dict[str, list[str]]:
    """Return, for each of the moments of all samples, their keys in the parts.

    Weights share moments that share them in each part.
    """
    names = {
        tuple(weight.moments for weight in each): None
        for each in zip(*(part.weights for part in parts), strict=True)
    }
    return {str(number): list(each) for number, each in enumerate(names)}


def _held_out(parts: Sequence[MomentArrays], samples: int) -> HeldOut | None:
    """Return the gain of what all parts but the last would be fitted to, on these and on the last.

    None if no part has such a check, as moments of lookups, which have no matrices.
    """
    *seen, last = parts
    if not seen or not any(each.held_out for each in parts):
        return last.held_out
    if last.second is None or not last.count or not any(each.count for each in seen):
        return None
    return held_out(_average(seen, "second"), last.second, samples)


def _averaged(described: MomentArrays, parts: Sequence[MomentArrays]) -> MomentArrays:
    """Return moments of all parts; described: all but the arrays of the result."""
    fields = [field for field in FIELDS if getattr(described, field) is not None]
    arrays: dict[str, Any] = {field: _average(parts, field) for field in fields}
    return attrs.evolve(described, **arrays)


def _average(parts: Sequence[MomentArrays], field: str) -> Array:
    """Return the means of all parts; of sensitivities, which are sums, the sum."""
    result: Array = np.zeros_like(getattr(parts[0], field))
    if field == "sensitivity":
        sums = np.array([each.sensitivity for each in parts], np.float32)
        return np.asarray(sums.sum(axis=0))
    for each, share in zip(parts, _shares(parts, by_block=field == "mean"), strict=True):
        result += getattr(each, field) * share.reshape(-1, *[1] * (result.ndim - 1))
    return result


def _shares(moments: Sequence[MomentArrays], *, by_block: bool) -> Array:
    """Return what each of several moments counts, float32 [parts, blocks or 1], 1 in sum or all 0.

    If a gradient has reached some, those that none has reached count nothing.
    """
    sizes = np.array([[each.count] for each in moments], np.float64)
    if any(each.is_guided for each in moments):
        sizes = np.array([each.sensitivity for each in moments], np.float64)
        sizes = sizes if by_block else sizes.mean(axis=1, keepdims=True)
    total = sizes.sum(axis=0)
    return np.asarray(sizes / np.where(total > 0, total, 1), np.float32)


def _check_alike(first: Calibration, other: Calibration, number: int) -> None:
    if first.statistics != other.statistics:
        raise ConfigError(
            f"calibrations of different statistics cannot be merged: the first has "
            f"{first.statistics!r}, number {number + 1} {other.statistics!r}"
        )
    if first.loss != other.loss:
        raise ConfigError(
            f"calibrations of different losses cannot be merged: the first has {first.loss!r}, "
            f"number {number + 1} {other.loss!r}"
        )
    if first.identity != other.identity:
        raise ConfigError(
            f"calibrations of different models cannot be merged: the weights of number "
            f"{number + 1} are not those of the first; calibrate the same model in all parts"
        )
