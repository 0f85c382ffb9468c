"""What a plan gives, in words: the first sentence of its page, and the facts below it."""

from __future__ import annotations

from collections.abc import Iterator

from mlopt.pages.html import Fact
from mlopt.pages.losses import Unit
from mlopt.planning.recipe import Recipe
from mlopt.text.words import counted, human_bytes, percent, size_change

_DIGEST = 12
"""Characters of what identifies a calibration, enough to tell files apart."""


def lead_of(recipe: Recipe) -> str:
    """Return the first sentence of a page on a recipe."""
    unit = Unit(recipe.loss)
    known, how = (
        (recipe.expected, "as the losses of its weights add up")
        if recipe.measured is None
        else (recipe.measured, f"measured on {counted(recipe.samples, 'sample')}")
    )
    return (
        f"A form for each of {counted(len(recipe.weights), 'weight')}, so that the package has "
        f"{human_bytes(recipe.nbytes)} instead of {human_bytes(recipe.nbytes_before)}, and its "
        f"outputs {_of_outputs(unit, known)}, {how}."
    )


def facts_of(recipe: Recipe) -> Iterator[Fact]:
    """Yield the numbers at the head of a page on a recipe."""
    unit = Unit(recipe.loss)
    change = size_change(recipe.nbytes_before, recipe.nbytes)
    yield Fact(
        "Package",
        human_bytes(recipe.nbytes),
        f"{change}, from {human_bytes(recipe.nbytes_before)}",
    )
    yield Fact("Bits of an element", f"{recipe.bits:.2f}", "everything in the package counted")
    is_run = recipe.measured is not None
    yield Fact(
        unit.title.capitalize(),
        unit.words(recipe.measured if is_run else recipe.expected),
        f"measured; expected {unit.words(recipe.expected)}" if is_run else "expected, not measured",
    )
    if recipe.metric is not None:
        yield Fact("Metric", f"{recipe.metric:.6g}", "of the package, by a measure of your own")
    kept = sum(weight.chosen.config is None for weight in recipe.weights)
    done = len(recipe.weights) - kept
    yield Fact("Weights", f"{done} palettized", f"{kept} left as they are" if kept else "all")
    source = "drawn at random" if recipe.are_random else "given"
    if recipe.calibration is not None:
        source += f"; tables by calibration {recipe.calibration[:_DIGEST]}"
    yield Fact("Samples", str(recipe.samples), source)
    yield Fact("Deployment target", recipe.target, "the oldest that loads the package")
    asked = _asked(recipe, unit)
    if asked is not None:
        yield Fact("Asked for", *asked)
    yield Fact("Best choice?", *_proof(recipe))


def _asked(recipe: Recipe, unit: Unit) -> tuple[str, str] | None:
    """Return what was asked for, None where that is not of this package alone."""
    if recipe.limit is not None:
        left = recipe.limit - recipe.nbytes
        note = f"{human_bytes(left)} left" if left >= 0 else f"{human_bytes(-left)} too many"
        return f"at most {human_bytes(recipe.limit)}", note
    if recipe.least_metric is not None:
        return f"a metric of {recipe.least_metric:.6g}", "at least, in as few bytes as possible"
    if recipe.most_loss is not None:
        sign = "at least" if recipe.loss == "squared" else "at most"
        return f"{sign} {unit.words(recipe.most_loss)}", "in as few bytes as possible"
    return None


def _proof(recipe: Recipe) -> tuple[str, str]:
    """Return what is known of better choices, in words."""
    what = "bytes" if recipe.most_loss is not None else "loss"
    if recipe.gap <= 0.0:
        return "yes, proven", f"no choice of these forms has less expected {what}"
    if not recipe.gap < 1.0:
        return "not known", "nor how much better another choice can be"
    gap = f"{100 * recipe.gap:.2g} %" if recipe.gap < 0.01 else percent(recipe.gap)
    head = "yes, nearly" if recipe.gap < 0.001 else "not proven"
    return head, f"another choice can have at most {gap} less expected {what}"


def _of_outputs(unit: Unit, loss: float) -> str:
    words = unit.words(loss)
    if words == "no loss":
        return "stay as they are"
    return f"a {unit.title} of {words}"
