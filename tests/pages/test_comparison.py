"""The page of a comparison."""

from __future__ import annotations

import pytest

from mlopt.pages import comparison_page
from mlopt.runtime import Comparison
from mlopt.runtime.comparison.measures import Agreement
from mlopt.runtime.comparison.rows import LabelRow, MetricRow, OutputRow
from tests.pages.reading import check, rows_of
from tests.runtime.comparison.small_models import LAYERS, distance

pytest.importorskip("matplotlib")

OUTPUTS = (
    OutputRow("scores <b>", distance([1.0, 2.0], [1.0, 2.1]), Agreement(4, 3, 4, 3.2)),
    OutputRow("worse", distance([1.0, 2.0], [1.5, 2.0]), None),
    OutputRow("dead", distance([0.0], [0.0]), None),
)
METRICS = (
    MetricRow("perplexity", reference=20.0, candidate=21.5, count=64),
    MetricRow("top-1 agreement", "scores", pair=0.75, unit="share", count=4),
    MetricRow("unknown", note="no labels"),
)


def facts(root):
    return {
        pair.one("dt").text: [n.text for n in pair.all("dd")] for pair in root.one("dl").children
    }


def test_outputs_and_metrics():
    compared = Comparison(4, OUTPUTS, labels=(LabelRow("label", 4, 3),), metrics=METRICS)
    root = check(comparison_page(compared, title="a & b"))
    assert root.one("h1").text == "a & b"
    found = facts(root)
    worst = OUTPUTS[1].distance.snr_db
    assert found["Lowest signal-to-noise ratio"] == [f"{worst:.1f} dB", "of worse"]
    assert found["Outputs"] == ["3", "1 with nothing to compare"]
    assert found["Perplexity"] == ["21.5", "20 of the reference"]
    assert found["Top-1 agreement"] == ["75.00%", "of scores"]
    rows = rows_of(root.one("table", id="outputs-table"))
    assert [row[0] for row in rows] == ["scores <b>", "worse", "dead"]
    assert rows[0][-2:] == ["75.0%", "80.0%"]
    assert rows[2][1:] == ["zero in both", "", "", "", "", ""]
    # the worst first, and none for an output without a ratio
    bars = [node.text for node in root.one("svg", class_="wide").all("text")]
    assert bars[::2] == ["worse", "scores <b>"]
    metrics = root.one("table", id="metrics-table")
    assert rows_of(metrics)[0] == ["perplexity", "", "20", "21.5", "", "64"]
    assert len(rows_of(metrics)) == 2
    notes = [node.text for node in root.one("section", id="notes").all("li")]
    assert "label: the same for 3 of 4 samples." in notes
    assert "unknown: no labels." in notes


def test_layers():
    compared = Comparison(1, OUTPUTS[:1], LAYERS, unmatched=("gone",))
    root = check(comparison_page(compared))
    assert comparison_page(compared) == comparison_page(compared)
    assert facts(root)["Most error enters at"] == ["-inf dB", "endless"]
    rows = rows_of(root.one("table", id="layers-table"))
    assert [row[0] for row in rows] == [layer.name for layer in LAYERS]
    assert rows[2][2:] == ["not finite", "not finite"]
    assert rows[-1][2:] == ["shapes differ [1, 16] / [1, 24]", ""]
    figure = root.one("section", id="layers").one("figure")
    assert "not finite, or not comparable" in [node.text for node in figure.all("li")]
    hovers = [title.text for title in figure.all("title")]
    assert [text.partition(" (")[0] for text in hovers] == [layer.name for layer in LAYERS]
    assert hovers[0].endswith(": 40.0 dB enters here, 40.0 dB so far")
    assert "Not in the candidate, so not compared: gone" in root.one("section", id="notes").text
    assert not root.one("section", id="outputs").all("svg")


def test_nothing_to_show():
    root = check(comparison_page(Comparison(0, ())))
    assert root.all("section") == []
