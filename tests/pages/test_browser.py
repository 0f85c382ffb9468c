"""Pages in headless Chromium, in both themes, on a phone and on wide screens."""

from __future__ import annotations

import attrs
import pytest

from mlopt.coreml.inspection import inspect_weights
from mlopt.pages import comparison_page, inventory_page, plan_page
from mlopt.runtime import Comparison
from tests.pages.browser import BROWSERS, THEMES, WIDTHS, browser, measured
from tests.pages.recipes import made_recipe
from tests.pages.test_comparison import METRICS, OUTPUTS
from tests.runtime.comparison.small_models import LAYERS

pytest.importorskip("matplotlib")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(browser() is None, reason=f"no browser: {', '.join(BROWSERS)}"),
]


@pytest.fixture(scope="module")
def pages(digits):
    named = made_recipe(16, name=lambda place, called: called + "x" * (200 if place == 3 else 0))
    compared = Comparison(4, OUTPUTS, LAYERS, metrics=METRICS)
    return {
        "plan": plan_page(
            attrs.evolve(named, are_random=True), commands=(f"mlopt plan {'m' * 300}.mlpackage",)
        ),
        "comparison": comparison_page(compared, title="y" * 200),
        "inventory": inventory_page(inspect_weights(digits)),
    }


@pytest.mark.parametrize("theme", THEMES)
def test_pages_fit_and_can_be_read(pages, theme, tmp_path):
    rows, console = measured(pages, theme, tmp_path)
    assert console == []
    assert len(rows) == len(pages) * len(WIDTHS)
    for row in rows:
        for seen in (row["folded"], row["open"]):
            where = f"{row['name']} at {seen['width']}"
            assert seen["dark"] == (theme == "dark")
            assert seen["overflow"] == 0, where
            assert seen["outside"] == [], where
            assert seen["cut"] == [], where
            assert seen["faint"] == [], where
            assert seen["smallest"] >= 9.0, where
            assert set(seen["charts"]) == {"wide" if seen["width"] > 800 else "narrow"}
        if row["name"] == "plan":
            assert row["open"]["height"] > row["folded"]["height"]
            assert row["open"]["focusable"] > row["folded"]["focusable"] > 10
    assert [row["folded"]["width"] for row in rows] == list(WIDTHS) * len(pages)
