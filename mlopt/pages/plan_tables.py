"""The tables of a plan: packages, weights, and the forms that were tried for each weight."""

from __future__ import annotations

import numpy as np

from mlopt.pages.html import Column, Markup, details, table
from mlopt.pages.losses import Unit, share
from mlopt.pages.plan_values import PLAN, losses_of, plain_bytes_of, points_of
from mlopt.planning.recipe import Recipe, RecipeWeight
from mlopt.text.words import counted, human_bytes

_MANY = 12
"""Rows of a table that is shown at once; longer ones are folded away."""


def points_table(recipe: Recipe) -> Markup:
    """Return the packages that were considered, by their bytes."""
    unit, points = Unit(recipe.loss), points_of(recipe)
    has_metric = any(point.metric is not None for point in points)
    rows = [
        (
            point.label,
            str(number),
            human_bytes(point.nbytes),
            unit.words(point.expected),
            unit.words(point.measured) or "not run",
            *([] if not has_metric else ["" if point.metric is None else f"{point.metric:.6g}"]),
        )
        for number, point in enumerate(points, 1)
    ]
    columns = [
        Column("Package"),
        Column("Number", is_number=True),
        Column("Bytes", is_number=True),
        Column("Expected", is_number=True),
        Column("Measured", is_number=True),
        *([Column("Metric", is_number=True)] if has_metric else []),
    ]
    marked = frozenset(n for n, point in enumerate(points) if point.label == PLAN)
    caption = f"Packages by their bytes; {unit.title} of their outputs"
    made = table("points-table", caption, columns, rows, marked=marked)
    return _folded(made, counted(len(rows), "package"), is_long=len(rows) > _MANY)


def weights_table(recipe: Recipe) -> Markup:
    """Return all weights in program order: form, bits, bytes, and loss."""
    unit, losses = Unit(recipe.loss), losses_of(recipe)
    total, sums = float(losses.sum()), np.cumsum(losses)
    rows = [
        (
            weight.name,
            "x".join(map(str, weight.shape)) or "scalar",
            _form(weight),
            f"{weight.bits:.2f}" if weight.size else "",
            human_bytes(plain_bytes_of(weight)),
            human_bytes(weight.chosen.nbytes),
            unit.words(weight.chosen.loss),
            share(weight.chosen.loss, total),
            share(float(so_far), total),
        )
        for weight, so_far in zip(recipe.weights, sums, strict=True)
    ]
    columns = [
        Column("Weight"),
        Column("Shape"),
        Column("Form"),
        Column("Bits", is_number=True),
        Column("Before", is_number=True),
        Column("After", is_number=True),
        Column("Loss alone", is_number=True),
        Column("Of the sum", is_number=True),
        Column("So far", is_number=True),
    ]
    caption = (
        "Weights in program order. Loss: of the model's outputs if the weight alone has its form, "
        f"as a {unit.title}; its share of the sum of all losses, and the sum up to it"
    )
    made = table("weights-table", caption, columns, rows)
    return _folded(made, counted(len(rows), "weight"), is_long=len(rows) > _MANY)


def _folded(made: Markup, what: str, *, is_long: bool) -> Markup:
    return details(f"Show all {what}", made) if is_long else made


def tried_tables(recipe: Recipe) -> Markup:
    """Return for each weight the forms that were tried, folded away."""
    weights = [(n, weight) for n, weight in enumerate(recipe.weights, 1) if weight.tried]
    parts = [_tried_table(recipe, number, weight) for number, weight in weights]
    forms = sum(len(weight.tried) for _, weight in weights)
    without = len(recipe.weights) - len(weights)
    summary = f"Show {counted(forms, 'form')} of {counted(len(weights), 'weight')}"
    if without:
        parts.append(_left_out(recipe))
        summary += f", and why {counted(without, 'weight')} had no choice"
    return details(summary, *parts)


def _tried_table(recipe: Recipe, number: int, weight: RecipeWeight) -> Markup:
    unit = Unit(recipe.loss)
    rows = [
        (
            each.words,
            human_bytes(each.nbytes),
            unit.words(each.loss),
            each.known,
            "chosen" if each == weight.chosen else "",
        )
        for each in weight.tried
    ]
    columns = [
        Column("Form"),
        Column("Bytes", is_number=True),
        Column("Loss alone", is_number=True),
        Column("Known"),
        Column("Choice"),
    ]
    marked = frozenset(n for n, each in enumerate(weight.tried) if each == weight.chosen)
    made = table(f"tried-{number}", f"Forms of {weight.name}", columns, rows, marked=marked)
    return details(f"{weight.name}: {weight.chosen.words}", made)


def _left_out(recipe: Recipe) -> Markup:
    rows = [
        (weight.name, weight.chosen.words, weight.reason)
        for weight in recipe.weights
        if not weight.tried
    ]
    columns = [Column("Weight"), Column("Form"), Column("Reason")]
    return table("no-choice-table", "Weights without a choice", columns, rows)


def _form(weight: RecipeWeight) -> str:
    words = weight.chosen.words
    return f"{words} ({weight.reason})" if weight.reason else words
