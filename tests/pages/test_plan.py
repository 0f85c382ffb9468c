"""The page of a plan."""

from __future__ import annotations

import math
import sys

import attrs
import pytest

from mlopt.errors import ConfigError
from mlopt.pages import plan_page
from mlopt.pages.plan_facts import facts_of
from mlopt.pages.plan_front import front_chart
from mlopt.pages.plan_tables import points_table
from mlopt.pages.plan_values import edges_of, plain_bytes_of
from mlopt.planning import decibels
from mlopt.planning.recipe import Point
from tests.pages.reading import check, parsed, rows_of
from tests.pages.recipes import made_recipe

pytest.importorskip("matplotlib")

COMMANDS = ("mlopt plan m.mlpackage --bits 3 -o 'a & b.yaml'", "mlopt palettize m.mlpackage")


@pytest.fixture(scope="module")
def recipe():
    return made_recipe(40)


@pytest.fixture(scope="module")
def page(recipe):
    return plan_page(recipe, commands=COMMANDS)


@pytest.fixture(scope="module")
def root(page):
    return check(page)


def facts(recipe):
    return {fact.term: (fact.value, fact.note) for fact in facts_of(recipe)}


def test_the_same_recipe_gives_the_same_page(page, monkeypatch):
    import matplotlib

    # whatever settings a user has
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert plan_page(made_recipe(40), commands=COMMANDS) == page
    assert matplotlib.rcParams["font.size"] == 30.0


def test_the_facts(recipe, root):
    found = facts(recipe)
    assert found["Package"] == ("9.0 MB", "4.73 times smaller, from 42.4 MB")
    assert found["Bits of an element"][0] == f"{recipe.bits:.2f}"
    measured, expected = (decibels(loss) for loss in (recipe.measured, recipe.expected))
    assert found["Signal-to-noise ratio"] == (
        f"{measured:.1f} dB",
        f"measured; expected {expected:.1f} dB",
    )
    assert found["Weights"] == ("35 palettized", "5 left as they are")
    assert found["Samples"][0] == "32"
    assert found["Deployment target"][0] == "iOS18"
    assert found["Asked for"][0] == "at most 9.1 MB"
    assert found["Best choice?"][0] == "yes, proven"
    shown = [node.text for node in root.one("dl").all("dd")]
    assert shown == [words for pair in found.values() for words in pair]


def test_headings_notes_and_commands(recipe, root):
    assert root.one("h1").text == root.one("head").one("title").text == "Plan: 42.4 MB to 9.0 MB"
    assert root.one("code").text == " ".join(COMMANDS)
    assert [li.text for li in root.one("section", id="notes").all("li")] == list(recipe.notes)


def test_every_weight_is_in_the_table(recipe, root):
    rows = rows_of(root.one("table", id="weights-table"))
    assert [row[0] for row in rows] == [weight.name for weight in recipe.weights]
    losses = [weight.chosen.loss for weight in recipe.weights]
    shares = [float(row[-2].rstrip(" %")) for row in rows]
    assert shares == pytest.approx([100 * x / sum(losses) for x in losses], abs=0.06)
    assert rows[-1][-1] == "100.0 %"
    assert rows[0][1:6] == ["30522x384", "2-bit kmeans, groups of 16", "2.00", "23.4 MB", "2.9 MB"]
    kept = next(row for row, w in zip(rows, recipe.weights, strict=True) if w.reason)
    assert kept[2] == "as it is (1536 elements are too few)"
    assert kept[6] == "no loss"


def test_every_form_that_was_tried_is_in_a_table(recipe, root):
    section = root.one("section", id="tried")
    *tables, without = section.all("table")
    tried = [weight for weight in recipe.weights if weight.tried]
    assert len(tables) == len(tried) == 35
    for weight, table in zip(tried, tables, strict=True):
        rows = rows_of(table)
        assert weight.name in table.one("caption").text
        assert [row[0] for row in rows] == [each.words for each in weight.tried]
        assert [row[3] for row in rows] == [each.known for each in weight.tried]
        (chosen,) = [row[0] for row in rows if row[-1] == "chosen"]
        assert chosen == weight.chosen.words
    assert [row[0] for row in rows_of(without)] == [w.name for w in recipe.weights if w.reason]


def test_charts_show_every_package_and_every_weight(recipe, root):
    hovers = {}
    for key in ("front", "bits", "error"):
        wide, narrow = root.one("section", id=key).all("svg")
        hovers[key] = [title.text for title in wide.all("title")]
        assert not narrow.all("title")
    assert len(hovers["front"]) == len(recipe.points)
    (plan,) = [text for text in hovers["front"] if ": plan, " in text]
    assert f"measured {decibels(recipe.measured):.1f} dB" in plan
    assert len(hovers["bits"]) == len(recipe.weights)
    assert len(hovers["error"]) == 2 * len(recipe.weights)
    for weight, bits, error in zip(recipe.weights, hovers["bits"], hovers["error"], strict=False):
        assert bits.startswith(f"{weight.name}: {weight.chosen.words}, {weight.bits:.2f} bits")
        assert error.startswith(f"{weight.name}: ")
    words = {node.text for node in root.one("section", id="front").all("text")}
    assert {"plan", "bytes of the package, by ratios", "1", "13"} <= words
    largest = [node.text for node in root.one("section", id="bytes").all("text")]
    assert largest.count("23.4 MB to 2.9 MB") == 2  # on the wide and on the narrow drawing
    assert largest.count("28 other weights") == 2


def test_the_widths_of_the_strip_are_those_of_elements(recipe):
    edges = edges_of(recipe)
    assert edges[0] == 0.0
    assert edges[-1] == pytest.approx(1.0)
    total = sum(weight.size for weight in recipe.weights)
    for left, right, weight in zip(edges[:-1], edges[1:], recipe.weights, strict=True):
        assert right - left == pytest.approx(0.88 * weight.size / total + 0.12 / 40)


NAMES = (
    "<script>alert(1)</script>",
    "a\x1b[31m\nb",
    '"onload="x',
    "$\\frac{1}{2}$ [[0]]",
    "层 &amp;",
)


def test_names_may_hold_anything():
    named = made_recipe(9, name=lambda place, called: f"{NAMES[place % 5]}{called}")
    points = [attrs.evolve(named.points[0], label=name) for name in NAMES]
    odd = attrs.evolve(named, points=(*points, named.points[-1]), notes=NAMES)
    page = plan_page(odd, commands=NAMES, title=NAMES[0])
    root = check(page)
    shown = [name.replace("\x1b", "\\x1b").replace("\n", "\\n") for name in NAMES]
    assert root.one("h1").text == shown[0]
    notes = [f"{text[0].upper()}{text[1:]}." for text in shown]
    assert [li.text for li in root.one("section", id="notes").all("li")] == notes
    assert root.one("code").texts == ["\n".join(shown)]
    rows = rows_of(root.one("table", id="weights-table"))
    given = [weight.name.removeprefix(NAMES[n % 5]) for n, weight in enumerate(odd.weights)]
    names = [f"{shown[n % 5]}{name}" for n, name in enumerate(given)]
    assert [row[0] for row in rows] == names
    bars = root.one("section", id="bytes").one("svg", class_="wide")
    assert set(names) <= {node.text for node in bars.all("text")}
    assert {row[0] for row in rows_of(root.one("table", id="points-table"))} == {*shown, "plan"}


@pytest.mark.long
def test_a_large_plan_has_a_small_page():
    # names as long as those of real models
    large = made_recipe(600, name=lambda place, called: f"model_transformer_{called}")
    page = plan_page(large)
    assert len(page.encode()) < 2_000_000
    forms = sum(max(len(weight.tried), 1) for weight in large.weights)
    assert page.count('<th scope="row"') == 600 + forms + len(large.points)


def test_divergences_are_in_nats():
    recipe = made_recipe(9, loss="kl")
    value, note = facts(recipe)["Divergence"]
    assert value == f"{recipe.measured:.3g} nats"
    assert note == f"measured; expected {recipe.expected:.3g} nats"
    root = parsed(front_chart(recipe))
    ticks = [node.text for node in root.one("svg", class_="wide").all("text")]
    assert {"0.1", "0.01", "0.001"} <= set(ticks)
    # less is higher
    heights = [float(node.attributes["y"]) for node in root.one("svg", class_="wide").all("text")]
    assert heights[ticks.index("0.001")] < heights[ticks.index("0.1")]
    assert not any("dB" in words for words in ticks)


OTHER = "another choice can have at most"


@pytest.mark.parametrize(
    ("changes", "term", "words"),
    [
        (
            {"gap": 5e-5},
            "Best choice?",
            "another choice can have at most 0.005 % less expected loss",
        ),
        ({"gap": 0.031}, "Best choice?", "another choice can have at most 3 % less expected loss"),
        (
            {"gap": 0.02, "limit": None, "most_loss": 0.001},
            "Best choice?",
            "another choice can have at most 2 % less expected bytes",
        ),
        ({"gap": 1.0}, "Best choice?", "nor how much better another choice can be"),
        ({"limit": None, "most_loss": 0.001}, "Asked for", "in as few bytes as possible"),
        ({"limit": 100}, "Asked for", "8.0 kB too many"),
        ({"measured": None}, "Signal-to-noise ratio", "expected, not measured"),
        (
            {"calibration": "0123456789abcdef"},
            "Samples",
            "given; tables by calibration 0123456789ab",
        ),
        ({"are_random": True}, "Samples", "drawn at random"),
        ({"metric": 0.975}, "Metric", "of the package, by a measure of your own"),
        (
            {"limit": None, "metric": 0.975, "least_metric": 0.97},
            "Asked for",
            "at least, in as few bytes as possible",
        ),
    ],
)
def test_what_a_recipe_can_say(changes, term, words):
    small = made_recipe(1, **{"nbytes": 8_100, **changes})
    assert facts(small)[term][1] == words


def test_a_package_of_several_that_were_planned_together():
    assert "Asked for" not in facts(made_recipe(1, limit=None))


def test_metrics_of_packages():
    plain = made_recipe(3)
    points = [attrs.evolve(point, metric=0.9) for point in plain.points[:2]]
    recipe = attrs.evolve(plain, points=(*points, *plain.points[2:]), metric=0.5)
    found = parsed(points_table(recipe))
    assert [cell.text for cell in found.one("thead").all("th")][-1] == "Metric"
    assert sorted(row[-1] for row in rows_of(found))[-2:] == ["0.9", "0.9"]
    titles = [title.text for title in parsed(front_chart(recipe)).all("title")]
    assert sum("metric 0.9" in title for title in titles) == 2


def test_sizes_far_apart_are_shown_by_their_ratios():
    def texts(largest):
        points = [Point(label="front", nbytes=n, expected=1 / n) for n in (10, 20, largest)]
        recipe = attrs.evolve(made_recipe(1), points=tuple(points), nbytes=15, limit=None)
        return parsed(front_chart(recipe)).one("svg", class_="wide").all("text")

    assert "bytes of the package" in [node.text for node in texts(30)]
    assert "bytes of the package, by ratios" in [node.text for node in texts(50)]
    places = {node.text: float(node.attributes["x"]) for node in texts(50)}
    step = places["20 B"] - places["10 B"]
    assert places["50 B"] - places["20 B"] == pytest.approx(step * math.log2(2.5), abs=0.1)


def test_bytes_before_are_those_of_the_weight_as_it_is(recipe):
    weight = recipe.weights[1]
    assert plain_bytes_of(weight) == 2 * weight.size
    counted = attrs.evolve(weight.tried[-1], nbytes=1234)
    assert plain_bytes_of(attrs.evolve(weight, tried=(*weight.tried[:-1], counted))) == 1234
    assert plain_bytes_of(attrs.evolve(weight, tried=(), dtype="float32")) == 4 * weight.size


def test_losses_that_are_no_numbers():
    plain = made_recipe(9)
    weights = [
        attrs.evolve(weight, chosen=attrs.evolve(weight.chosen, loss=loss))
        for weight, loss in zip(plain.weights, [math.inf, math.nan, 0.0] * 3, strict=True)
    ]
    points = (
        Point(label="endless", nbytes=5, expected=math.inf, measured=math.nan),
        Point(label="lossless", nbytes=9, expected=0.0),
    )
    odd = attrs.evolve(
        plain, weights=tuple(weights), points=points, expected=math.nan, measured=None
    )
    root = check(plan_page(odd))
    assert not root.one("section", id="error").all("svg")
    first, second, _ = rows_of(root.one("table", id="points-table"))
    assert first[3:] == ["infinite", "not a number"]
    assert second[3:] == ["no loss", "not run"]
    assert "nan" not in "".join(node.attributes.get("d", "") for node in root.all("path"))
    assert "signal-to-noise ratio of not a number" in root.one("header").text


def test_a_recipe_without_loss_and_without_weights():
    changes = {"weights": (), "expected": 0.0, "measured": None, "points": (), "are_random": True}
    root = check(plan_page(attrs.evolve(made_recipe(1), **changes)))
    assert [node.attributes["id"] for node in root.all("section")] == ["front", "notes"]
    assert "its outputs stay as they are" in root.one("header").text
    assert "drawn at random" in root.one("p", class_="warning").text
    assert rows_of(root.one("table"))[0][0] == "plan"


def test_without_matplotlib(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'mlopt\[report\]'"):
        plan_page(recipe)
