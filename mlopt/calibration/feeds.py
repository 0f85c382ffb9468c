"""Feeds: which moments a calibration sums, of which inputs, and for which weights.

Weights that read the same input have the same moments, which are summed once. Guided ones have
moments of their own, since the gradients at their outputs differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeAlias

import attrs

from mlopt.calibration.choice import chosen_readers
from mlopt.calibration.readers import NoStatisticsError, Reader, Use, reader_of
from mlopt.choices import Statistics
from mlopt.coreml.weights import Weight
from mlopt.mil.program import Node
from mlopt.runtime.plan import Body, Step
from mlopt.runtime.program import Program
from mlopt.statistics import WeightStatistics, content_of

_Input: TypeAlias = tuple[Hashable, ...]
"""Equal for readers whose inputs are the same and are read equally often."""


@attrs.frozen(eq=False, kw_only=True)
class Moments:
    """Moments to be summed: their key in the file, and the shape of their matrices.

    is_guided: whether positions are weighted, by the gradients at the outputs.
    """

    key: str
    blocks: int
    columns: int
    has_second: bool
    is_guided: bool = False


@attrs.frozen(eq=False)
class Feed:
    """An input that is added to moments, ``times`` times: once for each reader of the weight."""

    reader: Reader
    moments: int
    times: int


@attrs.frozen(eq=False, kw_only=True)
class Feeds:
    """What a calibration does.

    moments: the sums; by_operation: what is summed after an operation, by the identity of its node
    or module; weights, without, remarks: as a calibration has them.
    """

    moments: tuple[Moments, ...]
    by_operation: dict[int, list[Feed]]
    weights: tuple[WeightStatistics, ...]
    without: dict[str, str]
    remarks: tuple[str, ...]


def feeds_of(
    program: Program, weights: Sequence[Weight], nodes: Sequence[Node], statistics: Statistics
) -> Feeds:
    """Return what the calibration of a function does.

    weights, nodes: those of the model, from another opening of it.
    """
    return _Feeding(program, nodes, statistics).feeds(weights)


@attrs.frozen(eq=False)
class Place:
    """A step, and the body that it is in."""

    step: Step
    body: Body


class _Feeding:
    def __init__(self, program: Program, nodes: Sequence[Node], statistics: Statistics) -> None:
        self.function = program.function
        self.has_second, self.is_guided = statistics != "diagonal", statistics == "guided"
        self.places = places_by_operation(program, nodes)
        self.moments: dict[Hashable, int] = {}
        self.described: list[Moments] = []
        self.owners: dict[_Input, Reader] = {}
        self.owner_nodes: dict[_Input, int] = {}
        self.feeds_by_node: dict[int, list[Feed]] = {}
        self.remarks: list[str] = []

    def feeds(self, weights: Sequence[Weight]) -> Feeds:
        known: list[WeightStatistics] = []
        without: dict[str, str] = {}
        for weight in weights:
            readers, reasons = self._readers(weight)
            if not readers:
                without[weight.name] = reasons[0] if reasons else self._unread(weight)
                continue
            chosen = self._chosen(weight, readers, reasons)
            value = weight.value()
            known.append(
                WeightStatistics(
                    name=weight.name,
                    names=weight.names,
                    shape=weight.shape,
                    content=content_of(value),
                    moments=self.described[self._moments_of(chosen)].key,
                    arrangement=chosen[0][1].arrangement,
                )
            )
            del value
            weight.release()
        return Feeds(
            moments=tuple(self.described),
            by_operation=self.feeds_by_node,
            weights=tuple(known),
            without=without,
            remarks=tuple(self.remarks),
        )

    def _readers(self, weight: Weight) -> tuple[list[tuple[Place, Reader]], list[str]]:
        """Return the operations that multiply inputs by a weight, and why others do not."""
        readers, reasons = [], []
        for consumer in weight.consumers:
            place = self.places.get(id(consumer.node.op))
            if place is None:
                continue  # of another function
            use = Use(weight.shape, place.step, consumer.parameter, consumer.index)
            try:
                readers.append((place, reader_of(use)))
            except NoStatisticsError as error:
                reasons.append(str(error))
        return readers, list(dict.fromkeys(reasons))

    def _chosen(
        self, weight: Weight, readers: list[tuple[Place, Reader]], reasons: list[str]
    ) -> list[tuple[Place, Reader]]:
        """Return the readers whose moments are added: those that have second ones, if any do."""
        titled = [(place.step.title, reader) for place, reader in readers]
        numbers, remark = chosen_readers(weight.name, titled, reasons)
        if remark is not None:
            self.remarks.append(remark)
        return [readers[number] for number in numbers]

    def _moments_of(self, chosen: list[tuple[Place, Reader]]) -> int:
        """Return the number of the moments that are the sum of those of the readers' inputs."""
        inputs: Counter[_Input] = Counter()
        for place, reader in chosen:
            given: _Input = (id(place.body), reader.sources, reader.geometry)
            if self.is_guided:
                given = (*given, id(place.step))  # equal inputs have gradients of their own
            inputs[given] += 1
            self.owners.setdefault(given, reader)
            self.owner_nodes.setdefault(given, id(place.step.node))
        arrangement = chosen[0][1].arrangement
        key = frozenset(inputs.items())
        if key not in self.moments:
            number = self.moments[key] = len(self.described)
            self.described.append(
                Moments(
                    key=str(number),
                    blocks=arrangement.blocks,
                    columns=arrangement.columns,
                    has_second=self.has_second and not chosen[0][1].is_lookup,
                    is_guided=self.is_guided,
                )
            )
            for given, times in inputs.items():
                feeds = self.feeds_by_node.setdefault(self.owner_nodes[given], [])
                feeds.append(Feed(self.owners[given], number, times))
        return self.moments[key]

    def _unread(self, weight: Weight) -> str:
        functions = [name for name in weight.functions if name != self.function]
        if functions and self.function not in weight.functions:
            return f"only function {functions[0]!r} has it, and {self.function!r} was calibrated"
        return "no operation reads it"


def places_by_operation(program: Program, nodes: Iterable[Node]) -> dict[int, Place]:
    """Return the steps of a program by the operations of another opening of its package.

    nodes: all of that opening; the keys are the identities of their messages.
    """
    # nodes and steps are in the same order, constants and decompressions apart
    run = [node for node in nodes if node.function == program.function and _is_run(node)]
    places = list(places_of(program.plan.body))
    return {id(node.op): place for node, place in zip(run, places, strict=True)}


def _is_run(node: Node) -> bool:
    return node.op_type != "const" and not node.op_type.startswith("constexpr_")


def places_of(body: Body) -> Iterator[Place]:
    """Yield the steps of a body and its blocks, in program order."""
    for step in body.steps:
        yield Place(step, body)
        for nested in step.blocks:
            yield from places_of(nested)
