"""What ``mlopt plan`` prints of recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mlopt.choices import LossName
from mlopt.cli.terminal import reasons
from mlopt.planning import Recipe, loss_in_words
from mlopt.text.names import printable
from mlopt.text.tables import Column, text_table
from mlopt.text.words import counted, human_bytes, sizes_compared


def described(recipe: Recipe, output: Path) -> str:
    """Return what was chosen: a line for each weight, sizes, and what the answers lose."""
    chosen = [weight for weight in recipe.weights if weight.chosen.config is not None]
    lost = [_lost(weight.chosen.loss, recipe.loss) for weight in chosen]
    columns = [
        Column("weight", [printable(weight.name) for weight in chosen]),
        Column("form", [weight.chosen.words for weight in chosen]),
        Column("bits", [f"{weight.bits:.2f}" for weight in chosen], is_number=True),
        Column("alone", lost, is_number=True),
        Column("", ["" if w.chosen.known == "measured" else "predicted" for w in chosen]),
    ]
    left = {w.name: w.reason or "better so" for w in recipe.weights if w.chosen.config is None}
    lines = [
        text_table(columns) if chosen else "Nothing is palettized.",
        "",
        *reasons(f"Left as they are: {counted(len(left), 'weight')}", left),
        f"Package: {sizes_compared(recipe.nbytes_before, recipe.nbytes)} "
        f"({recipe.nbytes} bytes), {recipe.bits:.2f} bits for each element, for {recipe.target}.",
        f"Answers on {_samples(recipe)}: {_lost(recipe.measured, recipe.loss)}; by the sum of "
        f"losses {_lost(recipe.expected, recipe.loss)}.",
    ]
    if recipe.metric is not None:
        lines.append(f"Metric: {recipe.metric:.6g}.")
    for point in recipe.points:
        if point.measured is not None and point.label != "plan":
            size = f"{point.nbytes} bytes"
            size += "" if point.metric is None else f", metric {point.metric:.6g}"
            lost_there = _lost(point.measured, recipe.loss)
            lines.append(f"In comparison, {point.label}: {lost_there}, {size}.")
    lines += [f"Note: {note}" for note in recipe.notes]
    return "\n".join([*lines, f"Recipe: {output}"])


def described_together(
    models: Sequence[Path], recipes: Sequence[Recipe], outputs: Sequence[Path]
) -> str:
    """Return a line for each of several models, and what all take and lose together."""
    first = recipes[0]
    columns = [
        Column("package", [printable(str(model)) for model in models]),
        Column("before", [human_bytes(each.nbytes_before) for each in recipes], is_number=True),
        Column("after", [human_bytes(each.nbytes) for each in recipes], is_number=True),
        Column("bits", [f"{each.bits:.2f}" for each in recipes], is_number=True),
        Column("answers", [_answers(each) for each in recipes], is_number=True),
        Column("recipe", [printable(str(output)) for output in outputs]),
    ]
    before = sum(each.nbytes_before for each in recipes)
    after = sum(each.nbytes for each in recipes)
    elements = sum(weight.size for each in recipes for weight in each.weights)
    measured = [each.measured for each in recipes if each.measured is not None]
    total = math.fsum(measured) if len(measured) == len(recipes) else None
    expected = math.fsum(each.expected for each in recipes)
    by_note: dict[str, list[Path]] = {}
    for model, each in zip(models, recipes, strict=True):
        for note in each.notes:
            by_note.setdefault(note, []).append(model)
    lines = [
        text_table(columns),
        "",
        f"Together: {sizes_compared(before, after)} ({after} bytes), "
        f"{8 * after / max(elements, 1):.2f} bits for each element.",
        f"Answers of all packages on {_samples(first)}: {_lost(total, first.loss)}; by the sum of "
        f"losses {_lost(expected, first.loss)}.",
    ]
    for note, of in by_note.items():
        whose = "" if len(of) == len(models) else ", ".join(map(str, of)) + ": "
        lines.append(f"Note: {whose}{note}")
    return "\n".join(lines)


def _answers(recipe: Recipe) -> str:
    if recipe.measured is None:
        return f"{_lost(recipe.expected, recipe.loss)} (sum of losses)"
    return _lost(recipe.measured, recipe.loss)


def _samples(recipe: Recipe) -> str:
    return counted(recipe.samples, "random input" if recipe.are_random else "sample")


def _lost(loss: float | None, kind: LossName) -> str:
    return "not measured" if loss is None else loss_in_words(loss, kind)
