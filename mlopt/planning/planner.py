"""``Planner``: measures losses where they decide, and chooses the form of every weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import attrs

from mlopt.choices import Costs
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.planning.candidates import WeightForms
from mlopt.planning.choice import Choice, Option, least_bytes, least_loss, useful_options
from mlopt.planning.losses import Pair
from mlopt.planning.recipe import Known, Point
from mlopt.text.words import human_bytes

Chosen: TypeAlias = tuple[int, ...]
"""The number of a form for each weight."""

_ROUNDS = 6
_SIZES = 4
_SLACK = 1024  # bytes by which sums of sizes are off, at most: a few for each reference to a blob
_QUALITIES = 8
_FRONT = 24
_LONGEST = 4.0
_HALVINGS = 6
_CLOSE = 0.02
"""A quality is met closely enough where the loss is this share below what is allowed."""


class Losses(Protocol):
    """What is known of losses; see :class:`mlopt.planning.losses.KnownLosses`."""

    def measure(self, pairs: Iterable[Pair], *, are_quick: bool = False) -> None:
        """Run the model with forms of weights, each alone."""

    def is_measured(self, pair: Pair) -> bool:
        """Whether that was done."""

    def loss(self, i: int, n: int) -> tuple[float, Known]:
        """Return the loss of a weight in a form, and how it is known."""

    def together(self, chosen: Sequence[int]) -> float:
        """Return the loss with a form of every weight, by running the model."""


@attrs.frozen(eq=False)
class Planned:
    """A package that was chosen: the forms, its bytes, the sum of losses, the loss as it ran.

    gap: see :class:`mlopt.planning.recipe.Recipe`; metric: what the user's metric says.
    """

    forms: Chosen
    nbytes: int
    expected: float
    measured: float | None
    gap: float
    metric: float | None = None

    def point(self, label: str) -> Point:
        """Return it as a point of a recipe."""
        return Point(
            label=label,
            nbytes=self.nbytes,
            expected=self.expected,
            measured=self.measured,
            metric=self.metric,
        )

    def is_better(self, other: Planned) -> bool:
        """Whether it is better than another package: by the metric, else by the loss as it ran."""
        if self.metric is not None and other.metric is not None and self.metric != other.metric:
            return self.metric > other.metric
        ours, theirs = self.measured, other.measured
        return ours is not None and theirs is not None and ours < theirs


@attrs.frozen(eq=False)
class _Uniform:
    """The choice of one form for all weights."""

    config: OpPalettizerConfig
    choice: Choice


@attrs.define(eq=False)
class Planner:
    """The choice of forms, for a size or for a loss.

    size_of: the exact bytes of the package with a form of each weight; costs: which losses are
    measured; judge: what the user's metric says of a package, None without; rivals: other packages
    that were run.
    """

    weights: Sequence[WeightForms]
    losses: Losses
    size_of: Callable[[Chosen], int]
    costs: Costs
    judge: Callable[[Chosen], float] | None = None
    rivals: list[Point] = attrs.Factory(list)
    _overhead: int | None = None

    def survey(self, bits: float) -> None:
        """Measure a form of every weight, near so many bits for each element; or all forms."""
        palettes = self._palettes()
        if self.costs == "measured":
            self.losses.measure((i, n) for i, numbers in palettes.items() for n in numbers)
            return
        nearest = [
            (i, min(numbers, key=lambda n: abs(self._bits(i, n) - bits)))
            for i, numbers in palettes.items()
        ]
        self.losses.measure(nearest, are_quick=self.costs == "predicted")

    def for_size(self, limit: int) -> Planned:
        """Return the package of least loss that has at most ``limit`` bytes.

        Raises
        ------
        ConfigError
            No package is as small.
        """
        best = self._settled(partial(self._fitting, limit))
        planned = self._planned(best)
        rival = self._uniform(limit) if self.costs != "predicted" or self.judge else None
        if rival is None:
            return planned
        other = self._planned(rival.choice)
        if not other.is_better(planned):
            self.rivals.append(other.point(f"{rival.config.summary}, every weight"))
            return planned
        # losses did not add up
        self.rivals.append(planned.point("choice by the sum of losses"))
        bound = planned.expected * (1 - planned.gap)
        gap = 1 - bound / other.expected if other.expected > 0 else 0.0
        return attrs.evolve(other, gap=max(gap, 0.0))

    def for_loss(self, most: float) -> Planned:
        """Return the smallest package whose loss, as it runs, is at most ``most``.

        Raises
        ------
        ConfigError
            No package has so small a loss.
        """
        allowed, tried = most, math.inf
        found: Planned | None = None
        for _ in range(_QUALITIES):
            planned = self._planned(self._settled(partial(self._sparing, allowed)))
            loss = planned.expected if planned.measured is None else planned.measured
            tried = min(tried, loss)
            if loss <= most and (found is None or planned.nbytes < found.nbytes):
                found = planned
            is_close = (1 - _CLOSE) * most <= loss <= most
            if is_close or planned.measured is None or (loss > most and allowed <= self._least()):
                break
            # losses do not quite add up: what they may sum to is corrected by what was measured
            step = most / loss if loss > 0 else _LONGEST
            allowed *= min(max(step, 1 / _LONGEST), _LONGEST) * (1 - _CLOSE / 2)
        if found is None:
            raise ConfigError(
                f"no package was found whose loss is at most {most:.4g}; the best of those that "
                f"were tried has {tried:.4g}. Ask for less, or allow wider forms (candidates)"
            )
        return found

    def for_metric(self, least: float) -> Planned:
        """Return the smallest package of those that are tried whose metric is at least a number.

        Sizes are halved, by their logarithms, between that of the smallest forms and that of the
        best forms, as if the metric rose with the size.

        Raises
        ------
        ConfigError
            Not even the package with the best form of every weight has it.
        """
        options = self.options()
        fronts = [useful_options(each) for each in options]
        low, high = (self.size_of(tuple(front[end] for front in fronts)) for end in (0, -1))
        found = self._planned(self._settled(partial(self._fitting, high)))
        if found.metric is None or found.metric < least:
            raise ConfigError(
                f"the metric is {found.metric} with the best forms of all weights, and is to be "
                f"at least {least:.6g}; ask for less, or allow wider forms (candidates)"
            )
        for _ in range(_HALVINGS):
            middle = round(math.sqrt(low * min(high, found.nbytes)))
            planned = self._planned(self._settled(partial(self._fitting, middle)))
            if planned.metric is not None and planned.metric >= least:
                self.rivals.append(found.point("larger than needed"))
                found, high = planned, planned.nbytes
            else:
                self.rivals.append(planned.point("not good enough"))
                low = middle
        return found

    def points(self, planned: Planned) -> list[Point]:
        """Return the package that was planned, others that were run, and some of the front."""
        return [planned.point("plan"), *self.rivals, *self.front(_FRONT)]

    def front(self, count: int) -> list[Point]:
        """Return packages from the smallest to the largest, by the losses that are known."""
        options = self.options()
        ends = [sum(f(option.nbytes for option in each) for each in options) for f in (min, max)]
        elements = sum(each.weight.size for each in self.weights)
        points = []
        for number in range(count):
            limit = round(ends[0] * (ends[1] / ends[0]) ** (number / (count - 1)))
            choice = least_loss(options, limit)
            nbytes = choice.nbytes + (self._overhead or 0)
            label = f"best at {8 * nbytes / elements:.2f} bits"
            points.append(Point(label=label, nbytes=nbytes, expected=choice.loss))
        return points

    def options(self) -> list[list[Option]]:
        """Return what each form of each weight takes and loses."""
        return [
            [Option(form.nbytes, self.losses.loss(i, n)[0]) for n, form in enumerate(each.forms)]
            for i, each in enumerate(self.weights)
        ]

    def _settled(self, solve: Callable[[], Choice]) -> Choice:
        """Solve, measure what was chosen, and solve again until all that is chosen is measured."""
        choice = solve()
        for _ in range(0 if self.costs == "predicted" else _ROUNDS):
            if all(self._is_known(pair) for pair in enumerate(choice.options)):
                break
            self.losses.measure(enumerate(choice.options))
            choice = solve()
        return choice

    def _fitting(self, limit: int) -> Choice:
        """Return the choice of least loss whose package has at most ``limit`` bytes."""
        best: Choice | None = None
        options = self.options()
        smallest = tuple(0 for _ in options)
        least = self.size_of(smallest)
        if least > limit:
            raise ConfigError(
                f"the package takes {human_bytes(least)} ({least} bytes) with the smallest form of "
                f"every weight, and may have {human_bytes(limit)} ({limit} bytes); allow more, or "
                "give narrower forms (candidates)"
            )
        if self._overhead is None:
            self._overhead = least - _bytes(options, smallest)
        for _ in range(_SIZES):
            # sizes of weights add up but for a few bytes of text
            choice = least_loss(options, max(limit - self._overhead, _bytes(options, smallest)))
            nbytes = self.size_of(choice.options)
            overhead = nbytes - choice.nbytes
            if nbytes <= limit and (best is None or choice.loss < best.loss):
                best = choice
            if overhead == self._overhead:
                break
            self._overhead = overhead
        if best is None:
            loss = math.fsum(each[0].loss for each in options)
            best = Choice(smallest, _bytes(options, smallest), loss, gap=1.0)
        return self._tightened(best, options, limit)

    def _tightened(self, best: Choice, options: Sequence[Sequence[Option]], limit: int) -> Choice:
        """Return a choice, or a better one that fits to the byte; its gap counts those, too.

        What takes up to ``_SLACK`` more by the sum of sizes may fit, since text is not counted to
        the byte there.
        """
        bound = 0.0
        for slack in (_SLACK, _SLACK // 4, _SLACK // 16):
            allowed = limit - (self._overhead or 0) + slack
            choice = least_loss(options, max(allowed, best.nbytes))
            bound = max(bound, choice.loss * (1 - choice.gap)) if slack == _SLACK else bound
            if choice.loss < best.loss and self.size_of(choice.options) <= limit:
                best = choice
                break
        gap = 1 - bound / best.loss if best.loss > 0 else 0.0
        return attrs.evolve(best, gap=min(max(gap, 0.0), 1.0))

    def _sparing(self, allowed: float) -> Choice:
        choice = least_bytes(self.options(), max(allowed, self._least()))
        self._overhead = self.size_of(choice.options) - choice.nbytes
        return choice

    def _least(self) -> float:
        """Return the sum of losses with the best form of every weight."""
        return math.fsum(min(option.loss for option in each) for each in self.options())

    def _uniform(self, limit: int) -> _Uniform | None:
        """Return the best form for all weights that have it, as far as the package allows."""
        options = self.options()
        found: list[_Uniform] = []
        # of each weight the numbers of its forms; a weight that lacks one has its last
        numbers = [{_alone(form.config): n for n, form in enumerate(w.forms)} for w in self.weights]
        configs = dict.fromkeys(itertools.chain.from_iterable(numbers))
        for config in configs:
            if config is None:
                continue
            chosen = tuple(
                of_weight.get(config, len(each.forms) - 1)
                for of_weight, each in zip(numbers, self.weights, strict=True)
            )
            loss = math.fsum(options[i][n].loss for i, n in enumerate(chosen))
            found.append(_Uniform(config, Choice(chosen, _bytes(options, chosen), loss, gap=1.0)))
        # the exact size is asked for only as often as needed
        for each in sorted(found, key=lambda each: each.choice.loss):
            if self.size_of(each.choice.options) <= limit:
                return each
        return None

    def _planned(self, choice: Choice) -> Planned:
        is_run = self.costs != "predicted"
        return Planned(
            forms=choice.options,
            nbytes=self.size_of(choice.options),
            expected=choice.loss,
            measured=self.losses.together(choice.options) if is_run else None,
            gap=choice.gap,
            metric=None if self.judge is None else self.judge(choice.options),
        )

    def _palettes(self) -> dict[int, list[int]]:
        """Return the numbers of the palettes of each weight that has some."""
        palettes = {
            i: [n for n, form in enumerate(each.forms) if form.config is not None]
            for i, each in enumerate(self.weights)
        }
        return {i: numbers for i, numbers in palettes.items() if numbers}

    def _is_known(self, pair: Pair) -> bool:
        i, n = pair
        return self.losses.is_measured(pair) or self.weights[i].forms[n].config is None

    def _bits(self, i: int, n: int) -> float:
        each = self.weights[i]
        return 8 * each.forms[n].nbytes / each.weight.size


def _bytes(options: Sequence[Sequence[Option]], chosen: Sequence[int]) -> int:
    return sum(options[i][n].nbytes for i, n in enumerate(chosen))


def _alone(config: OpPalettizerConfig | None) -> OpPalettizerConfig | None:
    """Return a config without what says which weights it is for."""
    return None if config is None else attrs.evolve(config, weight_threshold=0)
