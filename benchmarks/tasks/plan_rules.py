"""Rules of others that choose a form for each weight, to compare plans with.

Each rule knows what the plan knows: the forms of every weight, with their bytes and the loss of the
model's outputs if this weight alone has the form. It returns the number of a form for each weight,
or None where nothing that it can choose has at most ``budget`` bytes.

The rules are written from what their authors say of them (``benchmarks/README.md`` has the
sources). Theirs go by PSNR, which falls where the loss rises. Those that go by a threshold name
none for a size, so each gets the threshold with which its bytes come nearest to the budget. Widths
are those of one table for a whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.planning.choice import Option, least_loss, useful_options

AS_IT_IS = 16
"""What stands for the width of a weight that is left alone."""

NEURAL_ENGINE = (1, 2, 4, 6, 8)
"""The widths that ml-stable-diffusion chooses from."""

MOST_KEPT = 3
"""So many weights at most does argmaxtools leave alone for each width, those of highest loss."""

Numbers: TypeAlias = tuple[int, ...]
"""The number of an option for each weight."""

Rule: TypeAlias = "Callable[[Sequence[Weight], int], Numbers | None]"


@attrs.frozen
class Weight:
    """The options of a weight, and their widths: ``AS_IT_IS``, None for more than one table."""

    options: tuple[Option, ...]
    widths: tuple[int | None, ...]

    def at(self, width: int) -> int:
        """The number of the option of ``width``, or else of the next wider one, or the largest."""
        wider = [
            (found, number)
            for number, found in enumerate(self.widths)
            if found is not None and found >= width
        ]
        if wider:
            return min(wider)[1]
        return max(range(len(self.options)), key=lambda number: self.options[number].nbytes)


def nbytes(weights: Sequence[Weight], numbers: Sequence[int]) -> int:
    """The bytes of a choice."""
    return sum(
        weight.options[number].nbytes for weight, number in zip(weights, numbers, strict=True)
    )


def loss(weights: Sequence[Weight], numbers: Sequence[int]) -> float:
    """The sum of the losses of a choice."""
    return sum(weight.options[number].loss for weight, number in zip(weights, numbers, strict=True))


def uniform(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """The widest width for all weights that fits in the budget."""
    for width in (AS_IT_IS, *reversed(NBITS)):
        numbers = tuple(weight.at(width) for weight in weights)
        if nbytes(weights, numbers) <= budget:
            return numbers
    return None


def greedy(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """Step down from the widest forms where it costs least loss for each byte that it saves.

    One weight at a time, to its next narrower form, as long as all are too much; then back up where
    a byte gains most, as long as that fits. Forms that another of the same weight betters in bytes
    and loss are no steps.
    """
    fronts = [useful_options(weight.options) for weight in weights]
    at = [len(front) - 1 for front in fronts]  # the places in the fronts, widest last

    def step(index: int, place: int) -> tuple[float, int]:
        """The loss for each byte of the step from a place to the next wider one, and its bytes."""
        options, front = weights[index].options, fronts[index]
        narrow, wide = options[front[place]], options[front[place + 1]]
        return (narrow.loss - wide.loss) / (
            wide.nbytes - narrow.nbytes
        ), wide.nbytes - narrow.nbytes

    left = budget - nbytes(weights, [front[-1] for front in fronts])
    while left < 0:
        down = [(*step(index, place - 1), index) for index, place in enumerate(at) if place]
        if not down:
            return None
        _, saved, index = min(down)
        at[index] -= 1
        left += saved
    while True:
        below = [index for index, place in enumerate(at) if place + 1 < len(fronts[index])]
        up = [(*step(index, at[index]), index) for index in below]
        up = [each for each in up if each[1] <= left]
        if not up:
            return tuple(front[place] for front, place in zip(fronts, at, strict=True))
        _, spent, index = max(up)
        at[index] += 1
        left -= spent


def isolated_threshold(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """Of each weight the lowest width whose loss passes the threshold; ml-stable-diffusion."""
    return _nearest(weights, _Table(weights, NEURAL_ENGINE).choices(), budget)


def cumulative_threshold(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """The same by cumulative losses, as the script of ml-stable-diffusion computes them.

    That of a weight at a width is the loss if all weights that lose no more at this width have it
    as well: here, the sum of theirs.
    """
    table = _Table(weights, NEURAL_ENGINE)
    order = np.argsort(table.losses, axis=0, kind="stable")
    sums = np.cumsum(np.take_along_axis(table.losses, order, axis=0), axis=0)
    np.put_along_axis(table.losses, order, sums, axis=0)
    return _nearest(weights, table.choices(), budget)


def threshold_but_worst(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """Of each weight the lowest width whose loss passes the threshold; argmaxtools.

    The weights of highest loss at any of the widths are left alone, three for each width. The user
    can change their number: here it is what gives the least sum of losses, of 0 to 3.
    """
    found = [
        _nearest(weights, _Table(weights, NBITS).without_worst(count).choices(), budget)
        for count in range(MOST_KEPT + 1)
    ]
    return min(
        (numbers for numbers in found if numbers is not None),
        key=lambda numbers: loss(weights, numbers),
        default=None,
    )


def walk(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """All pairs of a weight and a width by loss, each taken in turn until the bytes fit.

    coreai-opt's "simple greedy approach": a later pair of a weight replaces an earlier one, and
    weights of which none is reached are left alone.
    """
    numbers = [weight.at(AS_IT_IS) for weight in weights]
    left = nbytes(weights, numbers) - budget
    pairs = sorted(
        (weight.options[number].loss, -width, index, number)
        for index, weight in enumerate(weights)
        for number, width in enumerate(weight.widths)
        if width is not None and width != AS_IT_IS
    )
    for _, _, index, number in pairs:
        if left <= 0:
            break
        options = weights[index].options
        left -= options[numbers[index]].nbytes - options[number].nbytes
        numbers[index] = number
    return tuple(numbers) if left <= 0 else None


def best_widths(weights: Sequence[Weight], budget: int) -> Numbers | None:
    """The choice of least loss, as in a plan, but of widths of one table alone."""
    plain = [
        [number for number, width in enumerate(weight.widths) if width is not None]
        for weight in weights
    ]
    options = [
        [weight.options[number] for number in numbers]
        for weight, numbers in zip(weights, plain, strict=True)
    ]
    try:
        chosen = least_loss(options, budget).options
    except ConfigError:
        return None
    return tuple(numbers[each] for numbers, each in zip(plain, chosen, strict=True))


class _Table:
    """What thresholds choose from.

    losses [weights, widths]: infinite where a weight lacks a width; numbers: those of the options,
    and of weights that are left alone in one column more.
    """

    def __init__(self, weights: Sequence[Weight], widths: Collection[int]) -> None:
        shape = len(weights), len(widths)
        self.losses: npt.NDArray[np.float64] = np.full(shape, np.inf)
        self.numbers: npt.NDArray[np.int64] = np.zeros((shape[0], shape[1] + 1), np.int64)
        for row, weight in enumerate(weights):
            self.numbers[row, -1] = weight.at(AS_IT_IS)
            for column, width in enumerate(sorted(widths)):
                if width in weight.widths:
                    number = weight.widths.index(width)
                    self.numbers[row, column] = number
                    self.losses[row, column] = weight.options[number].loss

    def without_worst(self, count: int) -> _Table:
        """The same where the ``count`` weights of highest loss at any width have no width."""
        known = np.where(np.isfinite(self.losses), self.losses, -np.inf)
        worst = np.argsort(-known, axis=0, kind="stable")[:count]
        self.losses[np.unique(worst)] = np.inf
        return self

    def choices(self) -> Iterator[Numbers]:
        """What each threshold chooses: the narrowest width that passes, by rising thresholds."""
        rows = np.arange(len(self.losses))
        limits = np.unique(self.losses[np.isfinite(self.losses)])
        for limit in (-np.inf, *limits):
            passes = np.column_stack([self.losses <= limit, np.full(len(rows), True)])
            yield tuple(self.numbers[rows, passes.argmax(axis=1)].tolist())


def _nearest(weights: Sequence[Weight], choices: Iterable[Numbers], budget: int) -> Numbers | None:
    """The choice of most bytes within the budget; of equal ones the first."""
    best, most = None, -1
    for numbers in choices:
        size = nbytes(weights, numbers)
        if most < size <= budget:
            best, most = numbers, size
    return best


RULES: dict[str, Rule] = {
    "plan, one table": best_widths,
    "uniform": uniform,
    "greedy": greedy,
    "ml-stable-diffusion": isolated_threshold,
    "ml-stable-diffusion, cumulative": cumulative_threshold,
    "argmaxtools": threshold_but_worst,
    "coreai-opt": walk,
}
"""By the names of the methods."""
