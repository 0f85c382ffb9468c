"""``Goal``: what a plan is for, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import attrs

from mlopt.choices import LossName
from mlopt.errors import ConfigError
from mlopt.planning.limits import Budget, Quality, budget_in_bytes, most_loss
from mlopt.planning.planner import Planned, Planner

_USUAL = 4.0  # bits of an element, where nothing says how many there will be


class Measured(Protocol):
    """A model as goals see it; see :class:`mlopt.planning.subjects.Subject`."""

    @property
    def before(self) -> int:
        """The bytes of its package."""

    @property
    def elements(self) -> int:
        """The elements of its weights."""


@attrs.frozen(kw_only=True)
class Goal:
    """One of them: the most bytes, the most loss, or the least metric. bits: about what to expect.

    limit, most_loss, least_metric: as in :class:`mlopt.planning.recipe.Recipe`.
    """

    limit: int | None = None
    most_loss: float | None = None
    least_metric: float | None = None
    bits: float = _USUAL

    @classmethod
    def of(
        cls,
        budget: Budget | None,
        quality: Quality | None,
        models: Iterable[Measured],
        *,
        loss: LossName,
        has_metric: bool = False,
    ) -> Goal:
        """Return what is asked for of the packages of some models together.

        Raises
        ------
        ConfigError
            It is no budget or quality.
        """
        models = list(models)
        if budget is not None:
            elements = sum(each.elements for each in models)
            before = sum(each.before for each in models)
            limit = budget_in_bytes(budget, before=before, elements=elements)
            return cls(limit=limit, bits=8 * limit / elements)
        assert quality is not None
        if not has_metric:
            return cls(most_loss=most_loss(quality, loss))
        if isinstance(quality, bool | str):
            raise ConfigError(f"with a metric, a quality is a number that it has, got {quality!r}")
        return cls(least_metric=float(quality))

    def planned(self, planner: Planner) -> Planned:
        """Measure what is needed, and return the package that meets the goal."""
        planner.survey(self.bits)
        if self.limit is not None:
            return planner.for_size(self.limit)
        if self.least_metric is not None:
            return planner.for_metric(self.least_metric)
        assert self.most_loss is not None
        return planner.for_loss(self.most_loss)


def check_goal(budget: Budget | None, quality: Quality | None) -> None:
    """Refuse anything but one of the two.

    Raises
    ------
    ConfigError
        Neither is given, or both.
    """
    if (budget is None) == (quality is None):
        given = "neither" if budget is None else "both"
        raise ConfigError(f"give either a budget or a quality, got {given}")
