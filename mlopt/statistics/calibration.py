"""A calibration: the statistics of the inputs of a model's weights, and their file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import STATISTICS, Statistics
from mlopt.errors import ConfigError
from mlopt.palette.moments import InputMoments
from mlopt.statistics.container import Entry, read, write
from mlopt.statistics.held_out import HeldOut, mean_of
from mlopt.statistics.moment_arrays import MomentArrays
from mlopt.statistics.notes import notes_on
from mlopt.statistics.weight_statistics import WeightStatistics
from mlopt.text.names import shortlist

FORMAT = "mlopt.calibration"
VERSION = "1"
FIELDS = ("second", "diagonal", "mean", "sensitivity")
"""The arrays of moments, in the order of a file."""

_FLOAT = np.dtype("<f4")

Array = npt.NDArray[Any]


@attrs.frozen(eq=False)
class Match:
    """What a calibration knows of a weight.

    moments: of its inputs; is_exact: whether it is the weight that was calibrated; otherwise one
    of the same name and shape, with other values; is_guided: whether gradients weight its inputs.
    """

    moments: InputMoments
    is_exact: bool
    is_guided: bool = False


@attrs.frozen(eq=False, kw_only=True)
class Calibration:
    """Statistics of the inputs of a model's weights.

    Attributes
    ----------
    statistics
        ``"hessian"``: second moments; ``"diagonal"``: only their diagonals; ``"guided"``: second
        moments weighted by gradients.
    samples
        How many samples they are the means of.
    weights
        The weights that have statistics, in program order.
    moments
        The moments, by the keys that the weights give.
    without
        The weights without statistics, by name, and why.
    remarks
        What a reader should know about how weights are read.
    loss
        Of guided statistics the name of the loss whose gradients weight positions, ``"custom"`` for
        one of the user's own.
    marks
        What the first 32 samples are recognized by; none in files of earlier versions.
    """

    statistics: Statistics
    samples: int
    weights: tuple[WeightStatistics, ...]
    moments: Mapping[str, MomentArrays]
    without: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    loss: str = "squared"
    marks: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> str:
        """A digest that is equal for calibrations of the same model with the same statistics."""
        # which of them read the same input may depend on the samples
        described = [{**weight.to_dict(), "moments": None} for weight in self.weights]
        statistics = [self.statistics] if self.loss == "squared" else [self.statistics, self.loss]
        text = json.dumps([*statistics, described, sorted(self.without)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: the remarks, and where samples are few."""
        known = [(weight.name, self.moments[weight.moments]) for weight in self.weights]
        return (*self.remarks, *notes_on(self.samples, known))

    @property
    def held_out(self) -> HeldOut | None:
        """The means of what fitting gains on samples and on others; None if it is not known."""
        checks = [check for w in self.weights if (check := self.moments[w.moments].held_out)]
        return mean_of(checks) if checks else None

    def find(self, name: str, shape: Sequence[int], content: str) -> Match | None:
        """Return what is known of a weight; None if there is nothing.

        It is recognized by its values and shape, or else, as in a fine-tuned copy of the model, by
        its name and shape.

        Parameters
        ----------
        content
            :func:`mlopt.statistics.content_of` its plain values.

        Raises
        ------
        ConfigError
            Its moments are damaged.
        """
        same = self._by_content.get((content, tuple(shape)), [])
        same = [each for each in same if name in each.names] or same
        named = same or self._by_name.get((name, tuple(shape)), [])
        for weight in named:
            arrays = self.moments[weight.moments]
            if arrays.count:
                moments = self.moments_of(weight)
                return Match(moments, is_exact=bool(same), is_guided=arrays.is_guided)
        return None

    def moments_of(self, weight: WeightStatistics) -> InputMoments:
        """Return the moments of the inputs of one of the weights.

        Raises
        ------
        ConfigError
            They are damaged, as by NaN.
        """
        arrays = self.moments[weight.moments]
        try:
            return InputMoments(
                arrangement=weight.arrangement,
                second=arrays.second,
                diagonal=arrays.diagonal,
                mean=arrays.mean,
                count=arrays.count,
                shares=arrays.shares,
            )
        except ConfigError as error:
            raise ConfigError(
                f"the calibration of weight {weight.name!r} is damaged: {error}"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which appears complete or not at all.

        Raises
        ------
        DestinationError
            It cannot be written.
        """
        contents: dict[Entry, Callable[[], Array]] = {}
        for entry in entries_of(self.moments):
            key, _, field = entry.name.rpartition(".")
            contents[entry] = partial(getattr, self.moments[key], field)
        write(Path(path), contents, metadata_of(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Return the calibration in a file; its moments stay in the file until they are used.

        Raises
        ------
        ConfigError
            The file cannot be read, is not a calibration or one of another version, or is damaged.
        """
        file = Path(path)
        metadata, arrays = read(file)
        _check_format(file, metadata)
        try:
            content = json.loads(metadata["content"])
            counts = {str(key): int(count) for key, count in content["counts"].items()}
            # earlier versions had none
            checks = {
                key: HeldOut(int(samples), float(seen), float(other))
                for key, (samples, seen, other) in content.get("held_out", {}).items()
            }
            loaded = cls(
                statistics=content["statistics"],
                samples=int(content["samples"]),
                weights=tuple(map(WeightStatistics.from_dict, content["weights"])),
                moments={
                    key: _moments(arrays, key, count, checks.get(key))
                    for key, count in counts.items()
                },
                without={str(name): str(why) for name, why in content["without"].items()},
                remarks=tuple(map(str, content["remarks"])),
                loss=str(content.get("loss", "squared")),
                marks=tuple(map(str, content.get("marks", ()))),
            )
            _check_shapes(loaded)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{file}: the calibration is damaged: {type(error).__name__}: {error}; copy it "
                "again, or calibrate again"
            ) from None
        for key, moments in loaded.moments.items():
            arrays_of_key = (moments.diagonal, moments.mean, moments.sensitivity)
            if not all(a is None or np.isfinite(a).all() for a in arrays_of_key):
                readers = [w.name for w in loaded.weights if w.moments == key]
                raise ConfigError(
                    f"{file}: the calibration is damaged: it holds NaN or infinite numbers for "
                    f"{shortlist(readers)}; calibrate again"
                )
        return loaded

    @cached_property
    def _by_content(self) -> dict[tuple[str, tuple[int, ...]], list[WeightStatistics]]:
        index: dict[tuple[str, tuple[int, ...]], list[WeightStatistics]] = {}
        for weight in self.weights:
            index.setdefault((weight.content, weight.shape), []).append(weight)
        return index

    @cached_property
    def _by_name(self) -> dict[tuple[str, tuple[int, ...]], list[WeightStatistics]]:
        index: dict[tuple[str, tuple[int, ...]], list[WeightStatistics]] = {}
        for weight in self.weights:
            for name in weight.names:
                index.setdefault((name, weight.shape), []).append(weight)
        return index


def entries_of(moments: Mapping[str, MomentArrays]) -> list[Entry]:
    """Return the arrays of a file, in order, as ``"KEY.second"`` and so on."""
    return [
        Entry(f"{key}.{field}", _FLOAT, array.shape)
        for key, arrays in moments.items()
        for field in FIELDS
        if (array := getattr(arrays, field)) is not None
    ]


def metadata_of(calibration: Calibration) -> dict[str, str]:
    """Return the texts in the header of its file."""
    content = {
        "statistics": calibration.statistics,
        "samples": calibration.samples,
        "weights": [weight.to_dict() for weight in calibration.weights],
        "counts": {key: arrays.count for key, arrays in calibration.moments.items()},
        "without": dict(calibration.without),
        "remarks": calibration.remarks,
        "loss": calibration.loss,
        **({"marks": calibration.marks} if calibration.marks else {}),
        "held_out": {
            key: attrs.astuple(arrays.held_out)
            for key, arrays in calibration.moments.items()
            if arrays.held_out is not None
        },
    }
    text = json.dumps(content, separators=(",", ":"))
    return {"format": FORMAT, "version": VERSION, "content": text}


def _check_format(file: Path, metadata: Mapping[str, str]) -> None:
    given = metadata.get("format")
    if given == f"{FORMAT}.partial":
        raise ConfigError(
            f"{file} is a calibration that is not finished; run the same `mlopt calibrate` again "
            "to finish it"
        )
    if given != FORMAT:
        raise ConfigError(
            f"{file} is not a calibration, but holds other tensors; give a file that `mlopt "
            "calibrate` or Calibration.save has written"
        )
    if metadata.get("version") != VERSION:
        raise ConfigError(
            f"{file}: the calibration has version {metadata.get('version')!r}, and this mlopt "
            f"reads version {VERSION!r}; calibrate again"
        )


def _moments(
    arrays: Mapping[str, Array], key: str, count: int, held_out: HeldOut | None
) -> MomentArrays:
    return MomentArrays(
        second=arrays.get(f"{key}.second"),
        diagonal=arrays[f"{key}.diagonal"],
        mean=arrays[f"{key}.mean"],
        count=count,
        sensitivity=arrays.get(f"{key}.sensitivity"),
        held_out=held_out,
    )


def _check_shapes(calibration: Calibration) -> None:
    """Refuse moments that do not fit their weights, with a ValueError."""
    if calibration.statistics not in STATISTICS:
        raise ValueError(f"unknown statistics {calibration.statistics!r}")
    for weight in calibration.weights:
        matrices, arrays = weight.arrangement, calibration.moments[weight.moments]
        shape = (matrices.blocks, matrices.columns)
        fits = arrays.diagonal.shape == arrays.mean.shape == shape and arrays.count >= 0
        if arrays.second is not None:
            fits &= arrays.second.shape == (*shape, matrices.columns)
        if arrays.sensitivity is not None:
            fits &= arrays.sensitivity.shape == shape[:1]
        if (calibration.statistics == "guided") != (arrays.sensitivity is not None):
            raise ValueError(f"the sensitivity of {weight.name!r} is missing, or too much")
        if not fits or matrices.shape != weight.shape:
            raise ValueError(f"the moments of {weight.name!r} do not fit its shape")
