"""``KnownLosses``: what is known of the loss of each weight in each form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import attrs

from mlopt.calibration.sequential.sites import Site
from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.execution import Computed, compute
from mlopt.coreml.joint import Clustered
from mlopt.palette.value.spec import PaletteSpec
from mlopt.planning.cache import Cache, digest
from mlopt.planning.candidates import Form, WeightForms
from mlopt.planning.quick_errors import quick_errors
from mlopt.planning.recipe import Known
from mlopt.planning.trials import Palettized, Trials
from mlopt.statistics.guidance import UNGUIDED, Guidance

PlanProgress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; a stage is a few words, with a total of its own."""

Pair: TypeAlias = tuple[int, int]
"""The numbers of a weight and of one of its forms."""


@attrs.define(eq=False)
class KnownLosses:
    """The losses of the forms of all weights: measured one by one, others predicted from those.

    A form is predicted to lose what a measured form of the weight loses, times the ratio of their
    errors in the outputs of the operation, as tables by mean squares alone have them: all forms
    gain about equally from better ones. Between two measured forms the factor is interpolated.

    clustered: what has been clustered, by weight and form; measured: losses with that; quick: those
    with what mean squares alone give; progress: see ``PlanProgress``; cache: of
    both, None for none.
    """

    weights: Sequence[WeightForms]
    sites: Sequence[Site | None]
    trials: Trials
    workers: int
    progress: PlanProgress
    cache: Cache | None = None
    clustered: dict[Pair, Computed] = attrs.Factory(dict)
    measured: dict[Pair, float] = attrs.Factory(dict)
    quick: dict[Pair, float] = attrs.Factory(dict)
    _errors: dict[Pair, float] = attrs.Factory(dict)

    def measure(self, pairs: Iterable[Pair], *, are_quick: bool = False) -> None:
        """Cluster forms and run the model with each of them, as far as that was not done.

        are_quick: cluster by mean squares alone, for predictions.
        """
        found = self.quick if are_quick else self.measured
        wanted: dict[int, list[int]] = {}
        for i, n in pairs:
            if (i, n) not in found and self.weights[i].forms[n].config is not None:
                wanted.setdefault(i, []).append(n)
        numbers = {id(self.sites[i]): i for i in wanted}
        total, done = sum(map(len, wanted.values())), 0

        def visit(site: Site, measure: Callable[[Clustered], float]) -> None:
            nonlocal done
            i = numbers[id(site)]
            for n in wanted[i]:
                found[i, n] = self._measured(i, n, measure, is_quick=are_quick)
                done += 1
                self.progress("measuring", done, total)

        sites = [site for i in wanted if (site := self.sites[i]) is not None]
        self.trials.one_at_a_time(sites, visit)

    def computed(self, i: int, n: int) -> Computed:
        """Return what is clustered for a weight in a form, once."""
        if (i, n) in self.clustered:
            return self.clustered[i, n]
        form = self.weights[i].forms[n]
        computed = self._computed(form, form.guidance)
        if self.cache is None:  # else it is read from there again
            self.clustered[i, n] = computed
        return computed

    def _computed(self, form: Form, guidance: Guidance[BiasPlace]) -> Computed:
        decision, spec = form.decision, form.decision.result
        assert isinstance(spec, PaletteSpec)
        if self.cache is None:
            return compute(decision.weight, spec, self.workers, guidance)
        key = self.cache.key(decision, guidance)
        computed = self.cache.palette(key, guidance)
        if computed is None:
            computed = compute(decision.weight, spec, self.workers, guidance)
            self.cache.keep_palette(key, computed)
        return computed

    def _measured(
        self, i: int, n: int, measure: Callable[[Clustered], float], *, is_quick: bool
    ) -> float:
        """Return the loss of a weight in a form, from the cache or by ``measure``."""
        form = self.weights[i].forms[n]
        guidance = _diagonal(form) if is_quick else form.guidance
        key = None
        if self.cache is not None:
            name = self.weights[i].weight.name
            key = digest([self.trials.identity, name, self.cache.key(form.decision, guidance)])
            known = self.cache.loss(key)
            if known is not None:
                return known
        clustered = self._computed(form, guidance) if is_quick else self.computed(i, n)
        loss = measure(clustered) if isinstance(clustered, Clustered) else math.inf
        if self.cache is not None and key is not None:
            self.cache.keep_loss(key, loss)
        return loss

    def is_measured(self, pair: Pair) -> bool:
        """Whether the model was run with a form of a weight."""
        return pair in self.measured

    def together(self, chosen: Sequence[int]) -> float:
        """Return the loss of the model with a form of every weight."""
        replaced = []
        for i, n in enumerate(chosen):
            site = self.sites[i]
            if self.weights[i].forms[n].config is None or site is None:
                continue
            clustered = self.computed(i, n)
            if isinstance(clustered, Clustered):
                replaced.append(Palettized(site, clustered))
        return self.trials.together(replaced)

    def loss(self, i: int, n: int) -> tuple[float, Known]:
        """Return the loss of a weight in a form, and how it is known.

        At least one form of the weight has to be measured.
        """
        forms = self.weights[i].forms
        if forms[n].config is None:
            return 0.0, "measured"
        if len(forms) == 1 and self.measured.get((i, n)) == math.inf:
            return 0.0, "measured"  # pinned to a form that it cannot have, and so left as it is
        if (i, n) in self.measured:
            return self.measured[i, n], "measured"
        known = self._finite(self.measured, i) or self._finite(self.quick, i)
        if not known:
            return math.inf, "predicted"
        return _predicted(self._error(i, n), known), "predicted"

    def _finite(self, losses: Mapping[Pair, float], i: int) -> list[tuple[float, float]]:
        """Return the errors of forms of a weight and their losses, as far as these are known."""
        known = ((n, losses[i, n]) for n in range(len(self.weights[i].forms)) if (i, n) in losses)
        return sorted((self._error(i, n), loss) for n, loss in known if math.isfinite(loss))

    def _error(self, i: int, n: int) -> float:
        if (i, n) not in self._errors:
            total = sum(len(each.forms) for each in self.weights)
            self.progress("predicting", len(self._errors), total)
            palettes = {
                m: form for m, form in enumerate(self.weights[i].forms) if form.config is not None
            }
            errors = quick_errors([*palettes.values()], workers=self.workers)
            self._errors |= {(i, m): error for m, error in zip(palettes, errors, strict=True)}
        return self._errors[i, n]


def _diagonal(form: Form) -> Guidance[BiasPlace]:
    """Return what guides a form by the mean squares of the inputs alone."""
    moments = form.guidance.moments
    if moments is None:
        return UNGUIDED
    return Guidance("diagonal", attrs.evolve(moments, second=None))


def _predicted(error: float, known: Sequence[tuple[float, float]]) -> float:
    """Return the loss for an error from measured ones, [(error, loss)] by error.

    The factor of a loss over its error is interpolated between logarithms.
    """
    if not math.isfinite(error):
        return math.inf
    if error <= 0.0:
        return 0.0
    factors = [(e, loss / e) for e, loss in known if e > 0.0]
    if not factors:
        return 0.0
    below = [each for each in factors if each[0] <= error]
    above = [each for each in factors if each[0] >= error]
    if not below or not above or min(below[-1][1], above[0][1]) <= 0.0:
        return error * (below[-1] if below else above[0])[1]
    (low, first), (high, second) = below[-1], above[0]
    share = 0.0 if high == low else math.log(error / low) / math.log(high / low)
    return error * math.exp((1 - share) * math.log(first) + share * math.log(second))
