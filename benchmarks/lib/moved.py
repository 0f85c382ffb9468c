"""What became faster or slower between two stored runs of the benchmarks, beyond their noise."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.lib.output import print_table
from benchmarks.lib.row import LIMIT, PROJECT, REFERENCE

LEAST = 0.05
"""A change below this share is noise, however little samples differ from each other."""

Where = tuple[str, ...]
"""The keys that lead to a result, and of rows in a list what they are told apart by."""

_TOLD_APART_BY = ("name", "kind", "dtype", "n", "nbits", "scale", "tool")
_IN_THE_MACHINE = ("system", "machine", "processors")


@attrs.frozen
class Moved:
    """One of our results in both runs: how often it is faster than the reference, or its seconds.

    Each of ``before`` and ``after`` is the lowest, the median and the highest; of ratios these are
    of the slowest of one and the fastest of the other.
    """

    where: str
    is_ratio: bool
    before: tuple[float, float, float]
    after: tuple[float, float, float]

    @property
    def gain(self) -> float:
        """How many times faster it became; below 1 slower."""
        gain = self.after[1] / self.before[1]
        return gain if self.is_ratio else 1 / gain

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the two ranges are apart, and the medians by more than ``LEAST``."""
        apart = self.before[2] < self.after[0] or self.after[2] < self.before[0]
        return apart and not 1 - LEAST < self.gain < 1 / (1 - LEAST)


def compare(before: Path, after: Path) -> list[Moved]:
    """Our results that both files have, in the order of the second.

    Where coremltools was timed in the same row of both, ratios are compared: they say more of the
    code and less of what else the machine did.
    """
    old, new = (dict(_samples(json.loads(path.read_text()))) for path in (before, after))
    found = []
    for where, ours in new.items():
        if where not in old or any(part.startswith((REFERENCE, LIMIT)) for part in where):
            continue
        place = tuple(REFERENCE if part.startswith(PROJECT) else part for part in where)
        is_ratio = place != where and place in old and place in new
        ranges = [
            _ratios(runs[place], samples) if is_ratio else _range(samples)
            for runs, samples in ((old, old[where]), (new, ours))
        ]
        found.append(Moved(" / ".join(where), is_ratio, ranges[0], ranges[1]))
    return found


def print_moved(before: Path, after: Path) -> None:
    """Print what moved beyond its noise, the largest change first, and how many did not."""
    every = compare(before, after)
    moved = sorted((each for each in every if each.is_beyond_noise), key=lambda each: each.gain)
    lines = [
        (each.where, "faster" if each.gain > 1 else "slower", *map(_shown, _cells(each)))
        for each in moved
    ]
    columns = ("result", "is", "times", "before", "after", "lowest..highest before", "after")
    print_table(f"moved since {before.name}", columns, lines)
    print(f"{len(every) - len(moved)} of {len(every)} results moved within their noise, if at all.")
    machines = [_machine(json.loads(path.read_text())) for path in (before, after)]
    if machines[0] != machines[1]:
        print(f"The machines differ: {machines[0]}, and now {machines[1]}.")


def _cells(each: Moved) -> Iterator[float | tuple[float, float]]:
    yield max(each.gain, 1 / each.gain)
    yield each.before[1]
    yield each.after[1]
    yield each.before[0], each.before[2]
    yield each.after[0], each.after[2]


def _shown(value: float | tuple[float, float]) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value[0]:.3g}..{value[1]:.3g}"


def _machine(result: Mapping[str, Any]) -> str:
    known = result.get("environment", {})
    return ", ".join(str(known.get(key)) for key in _IN_THE_MACHINE)


def _samples(node: Any, where: Where = ()) -> Iterator[tuple[Where, Sequence[float]]]:
    """Yield the samples of wall time in a result, at any depth."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            if isinstance(each, dict | list):
                yield from _samples(each, (*where, *_label(each, number)))
    elif isinstance(node, dict):
        samples = node.get("wall_s")
        if isinstance(samples, list) and samples and min(samples) > 0:
            yield where, samples
        for key, value in node.items():
            if key not in ("rows", "variants"):
                yield from _samples(value, (*where, key))
            else:
                yield from _samples(value, where)


def _label(each: Any, number: int) -> Where:
    known = tuple(str(each[key]) for key in _TOLD_APART_BY if key in each) if each else ()
    return known or (str(number),)


def _range(samples: Sequence[float]) -> tuple[float, float, float]:
    return min(samples), statistics.median(samples), max(samples)


def _ratios(reference: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    theirs, own = _range(reference), _range(ours)
    return theirs[0] / own[2], theirs[1] / own[1], theirs[2] / own[0]
