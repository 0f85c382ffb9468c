"""Which cases of a parametrized test the short run takes.

``make test`` leaves out what has the marker ``long``, ``make test LONG=1`` runs all. A test
whose parameters form a product carries ``@pytest.mark.covering(strength)``: the short run takes
cases that hold every combination of values of ``strength`` parameters, so each value at 1, each
pair of values at 2, and the others get the marker ``long``. Most defects show where two choices
meet, and a defect that needs three is what the long run is for.

Where cases are slow one by one, ``@pytest.mark.short("id", ...)`` names those that the short run
takes; the other cases of the test get the marker ``long``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import pytest


def covering(cases: Sequence[Mapping[str, Any]], strength: int) -> list[int]:
    """Return the places of cases that together hold every combination of ``strength`` values.

    ``cases``: name -> value of each parameter. The values of an attrs object count as parameters
    of their own, and so do the elements of a tuple. Values are the same if they are equal, or if
    they print alike where they cannot be compared. Not the fewest cases that do: always the one
    that adds most, the earliest of equal ones.
    """
    if strength < 1:
        raise ValueError(f"strength is at least 1, got {strength}")
    held = [set(_combinations(case, strength)) for case in cases]
    uncovered = set().union(*held)
    # What a case adds only shrinks, so the first whose count is up to date adds most.
    heap = [(-len(combinations), place) for place, combinations in enumerate(held)]
    heapq.heapify(heap)
    chosen = []
    while uncovered:
        count, place = heapq.heappop(heap)
        added = len(held[place] & uncovered)
        if added == -count:
            chosen.append(place)
            uncovered -= held[place]
        elif added:
            heapq.heappush(heap, (-added, place))
    return sorted(chosen)


def _combinations(case: Mapping[str, Any], strength: int) -> Iterator[tuple[Any, ...]]:
    values = list(itertools.chain(*(_parts(name, value) for name, value in case.items())))
    return itertools.combinations(values, min(strength, len(values)))


def _parts(name: str, value: Any) -> Iterator[tuple[str, Hashable]]:
    if attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from _parts(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple):
        for place, element in enumerate(value):
            yield from _parts(f"{name}[{place}]", element)
    else:
        # With its type, since 1 == True == 1.0.
        yield name, (type(value), value if isinstance(value, Hashable) else repr(value))


def mark_long(items: Iterable[pytest.Item]) -> None:
    """Give the marker ``long`` to the cases that the short run leaves out.

    Raises
    ------
    UsageError
        ``short`` names a case that its test does not have.
    """
    functions = [item for item in items if isinstance(item, pytest.Function)]
    _mark_covering(functions)
    _mark_short(functions)


def _marked(
    items: Iterable[pytest.Function], marker: str
) -> Iterator[tuple[tuple[Any, ...], list[pytest.Function]]]:
    """Yield the arguments of the marker and the cases of each test that has it."""
    tests: dict[tuple[Any, ...], list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker(marker):
            tests.setdefault((item.parent, item.originalname), []).append(item)
    for cases in tests.values():
        mark = cases[0].get_closest_marker(marker)
        assert mark is not None
        yield mark.args, cases


def _mark_covering(items: Iterable[pytest.Function]) -> None:
    for (strength,), cases in _marked(items, "covering"):
        short = set(covering([case.callspec.params for case in cases], strength))
        for place, case in enumerate(cases):
            if place not in short:
                case.add_marker(pytest.mark.long)


def _mark_short(items: Iterable[pytest.Function]) -> None:
    for names, cases in _marked(items, "short"):
        unknown = set(names) - {case.callspec.id for case in cases}
        # Fewer cases than names: some were asked for by their ids.
        if unknown and len(cases) > len(names):
            raise pytest.UsageError(
                f"{cases[0].originalname} has no case {sorted(unknown)}; mend its marker `short`"
            )
        for case in cases:
            if case.callspec.id not in names:
                case.add_marker(pytest.mark.long)
