"""The page of a plan: what it gives, what it costs, what else there was, how to get there again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlopt.pages.bars import Bytes, bytes_chart
from mlopt.pages.document import Section, document
from mlopt.pages.html import Markup, code, element, facts, figure, key, link, listed, sentence
from mlopt.pages.plan_facts import facts_of, lead_of
from mlopt.pages.plan_front import front_chart
from mlopt.pages.plan_tables import points_table, tried_tables, weights_table
from mlopt.pages.plan_values import front_of, plain_bytes_of, points_of, shade_of
from mlopt.pages.plan_weights import bits_chart, error_chart, has_losses
from mlopt.planning.recipe import Recipe
from mlopt.text.words import counted, human_bytes, percent

_ALL = link("weights-table", "The table of all weights")


def plan_page(recipe: Recipe, *, commands: Sequence[str] = (), title: str | None = None) -> str:
    """Return a page of HTML on a plan, complete in itself: no script, nothing from elsewhere.

    The same recipe gives the same page. For 40 weights of 9 forms each it has 0.2 MB and takes half
    a second of a processor, for 600 of them 1.8 MB and two seconds.

    Parameters
    ----------
    recipe
        The plan.
    commands
        What to type to get there again.
    title
        The heading; None: the sizes before and after.

    Raises
    ------
    ConfigError
        matplotlib, which draws the charts, is not installed.
    """
    sizes = f"{human_bytes(recipe.nbytes_before)} to {human_bytes(recipe.nbytes)}"
    return document(
        title or f"Plan: {sizes}",
        lead_of(recipe),
        head=[_warning(recipe), facts(list(facts_of(recipe)))],
        sections=list(_sections(recipe, commands)),
    )


def _warning(recipe: Recipe) -> Markup:
    if not recipe.are_random:
        return Markup()
    text = (
        "The samples were drawn at random: losses on inputs that the model is for may be others. "
        "Plan with samples of these before you rely on it."
    )
    return element("p", text, class_="warning")


def _sections(recipe: Recipe, commands: Sequence[str]) -> Iterator[Section]:
    yield _front(recipe)
    if recipe.weights:
        yield _bits(recipe)
        yield _error(recipe)
        yield _bytes(recipe)
    if commands:
        yield Section.of("commands", "To get there again", code(commands))
    if recipe.notes:
        yield Section.of("notes", "Notes", listed(map(sentence, recipe.notes)))
    if recipe.weights:
        yield Section.of("weights", "All weights", weights_table(recipe))
        yield Section.of("tried", "What was tried", tried_tables(recipe))


def _front(recipe: Recipe) -> Section:
    points = points_of(recipe)
    swatches = [("plan", "error", "dot"), ("measured", "accent", "dot")]
    if any(point.measured is None for point in points):
        swatches.append(("expected, not run", "accent", "hollow"))
    swatches.append(("the best for their size", "before", "line"))
    if recipe.limit is not None or recipe.most_loss is not None:
        swatches.append(("what was asked for", "error", "line"))
    text = (
        f"Packages that were considered: {len(points)}, of which {len(front_of(points))} are the "
        "best for their size. Up and to the left is better."
    )
    caption = (
        "Numbers are those of the table. A short line at a point is what it was expected to have, "
        "as the losses of its weights add up."
    )
    return Section.of(
        "front",
        "Size against quality",
        element("p", text),
        figure(front_chart(recipe), caption, legend=key(swatches)),
        points_table(recipe),
    )


def _bits(recipe: Recipe) -> Section:
    sizes: dict[int, int] = {}
    for weight in recipe.weights:
        shade = shade_of(weight)
        sizes[shade] = sizes.get(shade, 0) + weight.size
    total = max(sum(sizes.values()), 1)
    swatches = [
        (
            f"{counted(shade, 'bit') if shade else 'as it is'}: {_part(size / total)}",
            f"b{shade}",
            "",
        )
        for shade, size in sorted(sizes.items(), key=lambda item: item[0] or 99)
    ]
    caption = Markup(
        "Height: stored bits of an element, tables counted; what is left as it is reaches to the "
        "top. Width: elements, the narrowest wider than they are. Percent: of all elements. "
        f"{_ALL} has the same in numbers."
    )
    return Section.of(
        "bits", "Bits of every weight", figure(bits_chart(recipe), caption, legend=key(swatches))
    )


def _error(recipe: Recipe) -> Section:
    title = "Where the error comes from"
    if not has_losses(recipe):
        text = "The losses of the weights have no sum that they could be shares of."
        return Section.of("error", title, element("p", text))
    text = (
        "The loss of each weight is that of the outputs if it alone has its form. "
        "Their sum is what is expected of the package."
    )
    caption = Markup(f"{_ALL} has the same in numbers.")
    return Section.of("error", title, element("p", text), figure(error_chart(recipe), caption))


def _bytes(recipe: Recipe) -> Section:
    rows = [
        Bytes(weight.name, plain_bytes_of(weight), weight.chosen.nbytes)
        for weight in recipe.weights
    ]
    swatches = [("before, as they are", "before", ""), ("after", "accent", "")]
    caption = Markup(f"The largest weights. {_ALL} has all.")
    return Section.of(
        "bytes",
        "Where the bytes went",
        figure(bytes_chart("bytes-chart", rows), caption, legend=key(swatches)),
    )


def _part(share: float) -> str:
    return percent(share) if share >= 0.001 else "under 0.1 %"
