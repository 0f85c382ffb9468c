"""The choice of one form for each weight: a multiple-choice knapsack, solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.text.words import human_bytes

_SECONDS = 30.0
"""The time that one choice may take; what is left of the gap then is told."""

_GAP = 1e-4
"""A choice counts as the best where no other can be better by more than this share."""

_ATTEMPTS = 4
_LARGEST = 1e9  # what is this much worse than usual is not taken, however much worse it is


@attrs.frozen
class Option:
    """A form of a weight, as the choice sees it.

    nbytes: what the package has more with it; loss: of the model's outputs, at least 0.
    """

    nbytes: int
    loss: float


@attrs.frozen
class Choice:
    """One option of each weight.

    options: their numbers; nbytes, loss: their sums; gap: by how much of the sum of losses (or of
    bytes, where these are minimised) a better choice can exist at most.
    """

    options: tuple[int, ...]
    nbytes: int
    loss: float
    gap: float


def least_loss(weights: Sequence[Sequence[Option]], limit: int) -> Choice:
    """Return the choice of least loss that has at most ``limit`` bytes.

    Raises
    ------
    ConfigError
        There is none; the message has the least bytes that are possible.
    """
    least = sum(min(option.nbytes for option in options) for options in weights)
    if least > limit:
        raise ConfigError(
            f"the weights take {human_bytes(least)} ({least} bytes) in their smallest forms, which "
            f"is more than the {human_bytes(limit)} ({limit} bytes) that are left for them; allow "
            "more, or narrower forms (candidates)"
        )
    return _solved(weights, "loss", limit)


def least_bytes(weights: Sequence[Sequence[Option]], most_loss: float) -> Choice:
    """Return the choice of fewest bytes whose sum of losses is at most ``most_loss``.

    Raises
    ------
    ConfigError
        There is none; the message has the least loss that is possible.
    """
    least = math.fsum(min(option.loss for option in options) for options in weights)
    if least > most_loss:
        raise ConfigError(
            f"the sum of losses is {least:.4g} with the best form of every weight, and at most "
            f"{most_loss:.4g} is asked for; ask for less, or allow wider forms (candidates)"
        )
    return _solved(weights, "nbytes", most_loss)


_Name: TypeAlias = Literal["nbytes", "loss"]


def _solved(weights: Sequence[Sequence[Option]], least: _Name, limit: float) -> Choice:
    """Minimise the sum of one attribute under a limit of the other's, which can be kept."""
    other: _Name = "nbytes" if least == "loss" else "loss"
    if not weights:
        return Choice((), 0, 0.0, 0.0)
    chosen: list[int] | None = None
    bound, allowed = 0.0, limit
    for _ in range(_ATTEMPTS):
        chosen, bound = _solution(weights, least, other, allowed)
        if chosen is None:
            break
        excess = _sum(weights, chosen, other) - limit
        if excess <= 0:
            break
        # the solver keeps limits up to a rounding error, and bytes are counted exactly
        allowed -= excess + 1e-6 * limit
        chosen = None
    if chosen is None:  # out of time: what certainly keeps the limit
        chosen = [_least(options, other) for options in weights]
    found = _sum(weights, chosen, least)
    return Choice(
        tuple(chosen),
        sum(weights[i][n].nbytes for i, n in enumerate(chosen)),
        _sum(weights, chosen, "loss"),
        max(0.0, 1.0 - bound / found) if found > 0 else 0.0,
    )


def _solution(
    weights: Sequence[Sequence[Option]], least: _Name, other: _Name, limit: float
) -> tuple[list[int] | None, float]:
    """Return what the solver found, None for nothing, and a lower bound of the least sum."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, vstack
    except ImportError as error:
        raise ConfigError(
            "planning needs scipy; install mlopt with its extra: pip install 'mlopt[plan]'"
        ) from error
    flat = [(i, n) for i, options in enumerate(weights) for n in useful_options(options)]
    costs = np.array([float(getattr(weights[i][n], least)) for i, n in flat])
    uses = np.array([float(getattr(weights[i][n], other)) for i, n in flat])
    # each form counted from the least of its weight, so that no number is far larger than others
    rows = np.array([i for i, _ in flat])
    base_cost, base_use = _least_of_each(costs, rows), _least_of_each(uses, rows)
    costs, uses, left = costs - base_cost[rows], uses - base_use[rows], limit - base_use.sum()
    unit, scale = _usual(costs), max(left, _usual(uses))
    choose_one = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))))
    count = len(weights)
    result = milp(
        np.minimum(costs / unit, _LARGEST),
        constraints=LinearConstraint(
            vstack([choose_one, csr_array(np.minimum(uses / scale, _LARGEST)[None])]),
            np.r_[np.ones(count), -np.inf],
            np.r_[np.ones(count), max(left, 0.0) / scale],
        ),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(flat)),
        # HiGHS prints lines of debugging (jump-dev/HiGHS.jl #312), fewer without presolve, which
        # does not make it faster here. The rest stays: they are written by C to the descriptor of
        # the process, behind a buffer of its own, and to turn that away would also lose what other
        # threads print for up to _SECONDS. No command that prints JSON solves.
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP, "presolve": False},
    )
    dual = getattr(result, "mip_dual_bound", None)
    bound = float(base_cost.sum()) + (0.0 if dual is None else float(dual) * unit)
    if result.x is None:
        return None, bound
    best: dict[int, tuple[float, int]] = {}
    for value, (i, number) in zip(result.x, flat, strict=True):
        best[i] = max(best.get(i, (-1.0, 0)), (float(value), number))
    return [best[i][1] for i in range(count)], bound


def _usual(values: npt.NDArray[np.float64]) -> float:
    """Return the median of what is positive and finite, 1 without any."""
    counted = values[(values > 0) & np.isfinite(values)]
    return float(np.median(counted)) if counted.size else 1.0


def _least_of_each(values: npt.NDArray[np.float64], rows: npt.NDArray[Any]) -> Any:
    least = np.full(rows.max() + 1, np.inf)
    np.minimum.at(least, rows, values)
    return least


def useful_options(options: Sequence[Option]) -> list[int]:
    """Return the numbers of the options that no other is at least as good as in both."""
    order = sorted(range(len(options)), key=lambda n: (options[n].nbytes, options[n].loss))
    kept: list[int] = []
    for number in order:
        if not kept or options[number].loss < options[kept[-1]].loss:
            kept.append(number)
    return kept


def _least(options: Sequence[Option], name: _Name) -> int:
    return min(range(len(options)), key=lambda number: getattr(options[number], name))


def _sum(weights: Sequence[Sequence[Option]], chosen: Sequence[int], name: _Name) -> float:
    return math.fsum(getattr(weights[i][n], name) for i, n in enumerate(chosen))
