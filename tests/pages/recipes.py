"""Recipes made by hand: shapes of a small transformer, losses by a rule, no model that runs."""

from __future__ import annotations

import math

import attrs

from mlopt.coreml import OpPalettizerConfig
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried

GROUPED = {"granularity": "per_grouped_channel", "group_size": 16}
FORMS = (
    OpPalettizerConfig(nbits=1),
    OpPalettizerConfig(nbits=2),
    OpPalettizerConfig(nbits=2, **GROUPED),
    OpPalettizerConfig(nbits=3),
    OpPalettizerConfig(nbits=3, **GROUPED),
    OpPalettizerConfig(nbits=4),
    OpPalettizerConfig(nbits=6),
    OpPalettizerConfig(nbits=8),
    None,
)
WIDTH = 384
"""Of the rows of the embedding, and of the layers."""

OTHERS = 90_000
"""Bytes of a package that are of no weight."""

_PARTS = {
    "attention_query": (WIDTH, WIDTH),
    "attention_key": (WIDTH, WIDTH),
    "attention_value": (WIDTH, WIDTH),
    "attention_output": (WIDTH, WIDTH),
    "intermediate": (4 * WIDTH, WIDTH),
    "intermediate_bias": (4 * WIDTH,),
    "output": (WIDTH, 4 * WIDTH),
}
_DIFFICULTY = {"query": 0.3, "key": 0.3, "value": 1.5, "output": 2.0, "intermediate": 0.8}


def made_recipe(count=40, *, forms=FORMS, loss="squared", name=None, **changes):
    """A recipe of `count` weights that has 3.4 bits of an element; name: what a weight is called.

    The forms are those of least loss for what a byte costs, so that the recipe is on the front.
    """
    weights = [_weight(place, count, forms, name) for place in range(count)]
    total = sum(weight.size for weight in weights)
    price = 1e-4
    while _nbytes(_chosen(weights, price)) > 3.4 * total / 8:
        price *= 1.1
    plan = _chosen(weights, price)
    points = [_point(_uniform(weights, form), form.summary) for form in forms if form is not None]
    points += [
        _point(_chosen(weights, factor * price), f"other plan at price {factor:g}", is_run=False)
        for factor in (20.0, 4.0, 0.25, 0.04)
    ]
    points.append(_point(plan, "plan"))
    values = {
        "weights": tuple(plan),
        "target": "iOS18",
        "loss": loss,
        "samples": 32,
        "are_random": False,
        "nbytes": points[-1].nbytes,
        "nbytes_before": 2 * total + OTHERS,
        "limit": int(1.01 * points[-1].nbytes),
        "expected": points[-1].expected,
        "measured": points[-1].measured,
        "points": tuple(points),
        "notes": ("Additivity was checked on 4 mixed packages: within 0.6 dB.",),
    }
    return Recipe(**values | changes)


def _weight(place, count, forms, name):
    layer, part = divmod(place - 1, len(_PARTS))
    kind, shape = ("word", (30_522, WIDTH)) if place == 0 else list(_PARTS.items())[part]
    called = "embeddings_word" if place == 0 else f"encoder_layer_{layer}_{kind}"
    called = f"{called}_weight_to_fp16" if name is None else name(place, called)
    size = math.prod(shape)
    given = {"name": called, "shape": shape, "dtype": "float16", "content": ""}
    if size <= 2048:
        kept = Tried(config=None, nbytes=2 * size, loss=0.0, known="measured")
        return RecipeWeight(**given, chosen=kept, reason=f"{size} elements are too few")
    hard = next((each for key, each in _DIFFICULTY.items() if kind.endswith(key)), 1.0)
    hard *= {-1: 1.5, 0: 2.0}.get(layer, 1.0) * 2.0 ** math.sin(2.0 * place) / count
    tried = tuple(_tried(size, form, hard, place) for form in forms)
    return RecipeWeight(**given, chosen=tried[0], tried=tried)


def _tried(size, form, hard, place):
    if form is None:
        return Tried(config=None, nbytes=2 * size, loss=0.0, known="measured")
    nbytes = size * form.nbits // 8 + 2 * 2**form.nbits * (24 if form.is_grouped else 1)
    loss = hard * 0.9 * 4.0**-form.nbits * (0.8 if form.is_grouped else 1.0)
    return Tried(config=form, nbytes=nbytes, loss=loss, known=("measured", "predicted")[place % 2])


def _chosen(weights, price):
    """The weights in the forms that are best where the elements of all cost so much loss."""
    total = sum(weight.size for weight in weights)
    return [
        attrs.evolve(w, chosen=min(w.tried, key=lambda t: t.loss + price * t.nbytes / total / 100))
        if w.tried
        else w
        for w in weights
    ]


def _uniform(weights, form):
    return [
        attrs.evolve(
            weight,
            chosen=next((each for each in weight.tried if each.config == form), weight.chosen),
        )
        for weight in weights
    ]


def _nbytes(weights):
    return OTHERS + sum(weight.chosen.nbytes for weight in weights)


def _point(weights, label, *, is_run=True):
    expected = math.fsum(weight.chosen.loss for weight in weights)
    measured = 1.1 * expected if is_run else None
    return Point(label=label, nbytes=_nbytes(weights), expected=expected, measured=measured)
