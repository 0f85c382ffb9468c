"""Feeds of several programs, joined: those of the models of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mlopt.calibration.feeds import Feed, Feeds, Moments
from mlopt.statistics import WeightStatistics


def joined(parts: Sequence[Feeds]) -> Feeds:
    """Return the feeds of programs that are run one after the other.

    Weights of equal names and values cannot be told apart later: their moments are added. A weight
    without statistics whose name another model has too is called "model N/name".
    """
    joining = _Joining()
    for number, part in enumerate(parts):
        joining.add(part, number)
    joining.add_up_equal_weights()
    return joining.feeds()


class _Joining:
    def __init__(self) -> None:
        self.moments: list[Moments] = []
        self.by_operation: dict[int, list[Feed]] = {}
        self.weights: list[WeightStatistics] = []
        self.numbers: list[int] = []  # of the moments of each weight
        self.without: dict[str, str] = {}
        self.remarks: list[str] = []

    def add(self, part: Feeds, number: int) -> None:
        """Append the feeds of one program; number: its place among all."""
        start = len(self.moments)
        places = {each.key: start + i for i, each in enumerate(part.moments)}
        self.moments += part.moments
        self.weights += part.weights
        self.numbers += [places[weight.moments] for weight in part.weights]
        for node, feeds in part.by_operation.items():
            moved = [Feed(feed.reader, start + feed.moments, feed.times) for feed in feeds]
            self.by_operation[node] = moved
        for name, reason in part.without.items():
            self.without[f"model {number}/{name}" if name in self.without else name] = reason
        self.remarks += part.remarks

    def add_up_equal_weights(self) -> None:
        """Give weights of equal names and values the sum of their moments."""
        equal: dict[tuple[str, str], list[int]] = {}
        for i, weight in enumerate(self.weights):
            equal.setdefault((weight.name, weight.content), []).append(i)
        for (name, _), places in equal.items():
            if len(places) == 1:
                continue
            if len({self.weights[i].arrangement for i in places}) > 1:
                self.remarks.append(
                    f"several models read a weight {name!r} of equal values in different ways; it "
                    "has the statistics of the first"
                )
                continue
            self.remarks.append(
                f"weight {name!r} has the statistics of all {len(places)} models that read it"
            )
            self._add_up({self.numbers[i] for i in places})
            for i in places:
                self.numbers[i] = len(self.moments) - 1

    def _add_up(self, numbers: set[int]) -> None:
        """Append moments that are the sum of others."""
        number = len(self.moments)
        self.moments.append(self.moments[min(numbers)])
        for feeds in self.by_operation.values():
            feeds += [
                Feed(each.reader, number, each.times) for each in feeds if each.moments in numbers
            ]

    def feeds(self) -> Feeds:
        """Return all of them, without moments that no weight has any more."""
        used = sorted(set(self.numbers))
        places = {number: place for place, number in enumerate(used)}
        by_operation = {
            node: [Feed(f.reader, places[f.moments], f.times) for f in feeds if f.moments in places]
            for node, feeds in self.by_operation.items()
        }
        return Feeds(
            moments=tuple(
                attrs.evolve(self.moments[number], key=str(place))
                for number, place in places.items()
            ),
            by_operation=by_operation,
            weights=tuple(
                attrs.evolve(weight, moments=str(places[number]))
                for weight, number in zip(self.weights, self.numbers, strict=True)
            ),
            without=self.without,
            remarks=tuple(dict.fromkeys(self.remarks)),
        )
