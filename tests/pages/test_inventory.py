"""The page of an inventory."""

from __future__ import annotations

import attrs
import pytest

from mlopt.coreml.inspection import inspect_weights
from mlopt.pages import inventory_page
from tests.pages.reading import check, rows_of

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def inventory(digits):
    return inspect_weights(digits)


def facts(root):
    return {pair.one("dt").text: pair.all("dd")[0].text for pair in root.one("dl").children}


def test_the_page_of_an_inventory(inventory, digits):
    page = inventory_page(inventory, title="digits & more")
    assert page == inventory_page(inspect_weights(digits), title="digits & more")
    root = check(page)
    assert root.one("h1").text == "digits & more"
    found = facts(root)
    assert found["Weights"] == "8"
    assert found["Deployment target"] == "iOS15"
    assert found["Compressed"] == "0 weights"
    assert found["Bits of an element"] == "16.00"
    rows = rows_of(root.one("table"))
    assert [row[0] for row in rows] == [row.name for row in inventory.rows]
    hidden = next(row for row in rows if row[0] == "hidden_weight_to_fp16")
    assert hidden[1:5] == ["128x1024", "float16", "262.1 kB", "86.6 %"]
    assert hidden[-2:] == ["as it is", "linear(linear_0_cast_fp16)"]
    bars = {node.text for node in root.one("svg", class_="wide").all("text")}
    assert {"hidden_weight_to_fp16", "262.1 kB"} <= bars


def test_compressed_weights_and_what_is_left_out(digits):
    newer = digits.with_name("digits-iOS18.mlpackage")
    shown = inspect_weights(newer, min_size=3000, statistics=False)
    assert 0 < len(shown.rows) < shown.weights_in_all
    compressed = attrs.evolve(shown.rows[0], nbytes=1000, consumers=("a(b)", "c(d)", "e(f)"))
    root = check(inventory_page(attrs.evolve(shown, rows=(compressed, *shown.rows[1:]))))
    heads = [cell.text for cell in root.one("thead").all("th")]
    assert "Distinct" not in heads
    assert rows_of(root.one("table"))[0][-1] == "a(b), c(d) and 1 more"
    notes = [node.text for node in root.all("dd", class_="note")]
    left_out = shown.weights_in_all - len(shown.rows)
    assert f"{left_out} of them not on this page" in notes
    assert check(inventory_page(attrs.evolve(shown, rows=()))).all("section") == []
