"""Sites: where in a function the weights that are to be palettized are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from mlopt.calibration.feeds import Place, places_by_operation, places_of
from mlopt.calibration.readers import NoStatisticsError, Reader, Use, reader_of
from mlopt.calibration.sequential.streams import Streams
from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.plans import WeightDecision
from mlopt.mil.program import Node
from mlopt.palette.value.spec import PaletteSpec
from mlopt.runtime.plan import Body, Source, Step
from mlopt.runtime.program import Program
from mlopt.statistics.guidance import Guides


@attrs.frozen(eq=False, kw_only=True)
class Site:
    """Where a weight is read.

    first, last: numbers of the steps of the function's body that read it, or have blocks that do;
    sources: what these steps read it from; reader: how the one step that reads it multiplies
    inputs, None where it cannot be fitted to those of the compressed model; stream: the slot of
    the tensor that the result is added to, None for none; activation: the elementwise operation
    that alone reads the result, None for another.
    """

    decision: WeightDecision
    first: int
    last: int
    sources: tuple[Source, ...]
    widens: bool
    reader: Reader | None = None
    stream: int | None = None
    activation: Step | None = None


def sites_of(
    program: Program,
    nodes: Iterable[Node],
    decisions: Iterable[WeightDecision],
    guides: Guides[BiasPlace],
) -> list[Site]:
    """Return the sites of the weights that a function reads, in the order of its steps.

    nodes, decisions: of another opening of the package.
    """
    body = program.plan.body
    places = places_by_operation(program, nodes)
    numbers = dict(_numbers(body))
    streams = Streams(body, tuple(program.plan.inputs.values()))
    sites = []
    for decision in decisions:
        if isinstance(decision.result, PaletteSpec):
            site = _site(decision, guides, places, numbers, streams)
            if site is not None:
                sites.append(site)
    # those that are fitted in sequence have the step taken
    return sorted(sites, key=lambda site: (site.first, site.reader is not None))


def _site(
    decision: WeightDecision,
    guides: Guides[BiasPlace],
    places: Mapping[int, Place],
    numbers: Mapping[int, int],
    streams: Streams,
) -> Site | None:
    weight = decision.weight
    uses: list[Use] = []
    sources: list[Source] = []
    for consumer in weight.consumers:
        place = places.get(id(consumer.node.op))
        if place is None:
            continue  # of another function
        use = Use(weight.shape, place.step, consumer.parameter, consumer.index)
        uses.append(use)
        # what is not a tensor argument was read when the program was planned
        sources += use.sources(consumer.parameter)[consumer.index : consumer.index + 1]
    if not uses:
        return None
    steps = [use.step for use in uses]
    readers = [numbers[id(step)] for step in steps]
    site = Site(
        decision=decision,
        first=min(readers),
        last=max(readers),
        sources=tuple(dict.fromkeys(sources)),
        widens=all(step.widens for step in steps),
    )
    is_read_once = len(weight.consumers) == 1 and not weight.is_block_output
    if not is_read_once or guides.of(weight).method not in ("hessian", "guided"):
        return site
    if places[id(weight.consumers[0].node.op)].body is not streams.body:
        return site
    reader = _reader(uses[0])
    if reader is None or not streams.is_read(steps[0]):
        return site
    return attrs.evolve(
        site,
        reader=reader,
        stream=streams.added_to(steps[0]),
        activation=streams.read_by(steps[0]),
    )


def _reader(use: Use) -> Reader | None:
    """Return how a step multiplies inputs, if they and its result are tensors of the body."""
    try:
        reader = reader_of(use)
    except NoStatisticsError:
        return None
    return reader if reader.inputs is not None and reader.outputs is not None else None


def _numbers(body: Body) -> Iterator[tuple[int, int]]:
    """Yield the identities of steps, nested ones included, and the numbers in the body."""
    for number, step in enumerate(body.steps):
        yield id(step), number
        for nested in step.blocks:
            for place in places_of(nested):
                yield id(place.step), number
