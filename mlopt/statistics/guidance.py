"""Guidance: what a calibration says for the clustering of the weights of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import Method
from mlopt.errors import ConfigError
from mlopt.palette.moments import InputMoments
from mlopt.palette.moments.solve import can_refine
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.calibration import Calibration, Match
from mlopt.statistics.weight_statistics import content_of
from mlopt.text.names import shortlist
from mlopt.text.words import counted

CalibrationSource: TypeAlias = "Calibration | str | os.PathLike[str]"
"""A calibration, or the path of its file."""

BiasT = TypeVar("BiasT")
"""A bias of an operation of a program, or of a module."""


@attrs.frozen(eq=False)
class Guidance(Generic[BiasT]):
    """How a calibration guides the clustering of one weight.

    Parameters
    ----------
    method
        ``"sequential"``, ``"guided"``, ``"hessian"``, ``"diagonal"``, or ``"plain"`` where nothing
        is known.
    moments
        Of the inputs, about zero; None for ``"plain"``. They may be those of a mapped file.
    bias
        Where the mean error of the outputs is folded into; None: nowhere.
    is_centred
        Whether the mean error costs nothing, since a bias takes it.
    notes
        What a reader of the report should know, one sentence each.
    shift
        float32 of the weight's shape, added to it before it is clustered: what makes up for errors
        of its inputs. None for 0.
    """

    method: str = "plain"
    moments: InputMoments | None = None
    bias: BiasT | None = None
    is_centred: bool = False
    notes: tuple[str, ...] = ()
    shift: npt.NDArray[np.float32] | None = None

    def fitted(self) -> InputMoments | None:
        """Return the moments that tables are fitted to, about the mean if it costs nothing.

        These are computed, in memory, at each call: of all weights they may not fit there.
        """
        return self.moments.centred() if self.moments and self.is_centred else self.moments

    def target(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is to be clustered for a weight, of its shape and dtype."""
        if self.shift is None:
            return weight
        with np.errstate(over="ignore"):
            moved = (weight.astype(np.float32) + self.shift).astype(weight.dtype)
        return np.where(np.isfinite(moved.astype(np.float32)), moved, weight)

    def outcome(
        self, weight: npt.NDArray[Any], decompress: Callable[[], npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.float64] | None, float | None]:
        """Return the mean error of the outputs, and their signal-to-noise ratio in dB.

        Parameters
        ----------
        weight
            The plain weight.
        decompress
            Returns what is stored for it, decompressed; called only if there are statistics.

        Returns
        -------
        mean_error
            float64[outputs], to be added to the bias; None where there is none to correct.
        ratio
            As in a report's rows; None without statistics.
        """
        fitted = self.fitted()
        if self.moments is None or fitted is None:
            return None, None
        stored = decompress()
        ratio = decibels(fitted.output_power(weight), fitted.output_error(weight, stored))
        if self.bias is None:
            return None, ratio
        return self.moments.mean_error(weight, stored).reshape(-1), ratio


def decibels(power: float, error: float) -> float:
    """Return the ratio of two mean squares, signal and error, in dB; infinity without an error."""
    if error <= 0.0:
        return math.inf
    ratio = power / error
    return 10.0 * math.log10(ratio) if ratio > 0.0 else -math.inf


UNGUIDED: Guidance[Any] = Guidance()


@attrs.frozen(eq=False, kw_only=True)
class Candidate(Generic[BiasT]):
    """A weight that is to be palettized.

    Parameters
    ----------
    weight
        The weight itself, by whose identity its guidance is looked up.
    name, shape, spec
        As the report has them, and the palette that it gets.
    value
        Returns its plain values.
    release
        Called when these are no longer needed.
    is_lookup
        Whether all that reads it looks up rows.
    bias
        The bias that can absorb its mean error; None: there is none, or biases are kept.
    method
        What its rule says; None: as the run.
    """

    weight: object
    name: str
    shape: tuple[int, ...]
    spec: PaletteSpec
    value: Callable[[], npt.NDArray[Any]]
    release: Callable[[], None] = lambda: None
    is_lookup: bool = False
    bias: BiasT | None = None
    method: Method | None = None


@attrs.frozen(eq=False)
class Guides(Generic[BiasT]):
    """The guidance of every weight that is to be palettized, and notes on the whole run."""

    by_weight: Mapping[int, Guidance[BiasT]] = attrs.Factory(dict)
    notes: tuple[str, ...] = ()

    def of(self, weight: object) -> Guidance[BiasT]:
        """The guidance of a weight; plain clustering if there is none."""
        return self.by_weight.get(id(weight), UNGUIDED)


def calibration_of(source: CalibrationSource) -> Calibration:
    """Return a calibration, loaded if it is the path of its file."""
    return source if isinstance(source, Calibration) else Calibration.load(source)


def guides_for(
    candidates: Iterable[Candidate[BiasT]],
    source: CalibrationSource | None,
    *,
    method: Method = "auto",
) -> Guides[BiasT]:
    """Match the statistics of a calibration with the weights that are to be palettized.

    Raises
    ------
    ConfigError
        A method that needs a calibration has none, or the calibration knows none of the weights.
    """
    if source is None:
        if method in ("guided", "hessian", "diagonal"):
            raise ConfigError(
                f"method {method!r} needs a calibration, got None; make one with "
                "mlopt.calibration.calibrate, or use method='plain'"
            )
        return Guides()
    calibration = calibration_of(source)
    guides: dict[int, Guidance[BiasT]] = {}
    unknown: list[str] = []
    changed: list[str] = []
    for candidate in candidates:
        asked = candidate.method or method
        if asked == "guided" and calibration.statistics != "guided":
            raise ConfigError(
                f"method 'guided' needs statistics 'guided', and the calibration has "
                f"{calibration.statistics!r}; calibrate with statistics='guided', or use "
                "method='auto'"
            )
        if candidate.spec.mode != "kmeans" or asked == "plain":
            continue
        content = content_of(candidate.value())
        candidate.release()
        match = calibration.find(candidate.name, candidate.shape, content)
        if match is None:
            unknown.append(candidate.name)
            continue
        if not match.is_exact:
            changed.append(candidate.name)
        guides[id(candidate.weight)] = _guidance(candidate, match, asked)
    if unknown and not guides:
        raise ConfigError(
            f"the calibration has no statistics of any of the {len(unknown)} weights to be "
            f"palettized, such as {shortlist(unknown)}; it was made of another model: calibrate "
            "this one"
        )
    return Guides(guides, (*calibration.notes, *_notes(unknown, changed)))


def _notes(unknown: list[str], changed: list[str]) -> list[str]:
    notes = []
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'weight')} without statistics in the calibration, clustered "
            f"by their values: {shortlist(unknown)}."
        )
    if changed:
        notes.append(
            f"The calibration was made with other values of {counted(len(changed), 'weight')} of "
            f"the same names and shapes ({shortlist(changed)}): of another version of the model."
        )
    return notes


def _guidance(candidate: Candidate[BiasT], match: Match, method: Method) -> Guidance[BiasT]:
    moments = match.moments
    if candidate.is_lookup:
        # how often rows are read: as if each had been read once more, since others will be
        return Guidance(
            "diagonal",
            attrs.evolve(moments, diagonal=moments.diagonal + np.float32(1 / moments.count)),
        )
    if moments.second is None or method == "diagonal":
        return Guidance("diagonal", attrs.evolve(moments, second=None))
    reason = can_refine(candidate.spec, moments)
    if reason is not None:
        notes = (f"clustered by the mean squares of its inputs alone: {reason}",)
        return Guidance("diagonal", attrs.evolve(moments, second=None), notes=notes)
    of_all = "guided" if match.is_guided else "hessian"
    return Guidance(of_all, moments, candidate.bias, candidate.bias is not None)
