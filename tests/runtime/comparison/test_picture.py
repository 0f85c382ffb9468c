"""The picture of the layers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlopt.errors import ConfigError
from mlopt.runtime import Comparison, compare
from tests.runtime.comparison.small_models import (
    LAYERS,
    distance,
    layer,
    palettized,
)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from mlopt.runtime.comparison.picture import draw_layers, layers_figure

    model, small = palettized("encoder", 2)
    found = compare(model, small, random=1, layers=True)
    rows = found.layers
    (axes,) = layers_figure(found).axes
    bars = [bar.get_width() for bar in axes.patches]
    np.testing.assert_array_equal(bars, [row.entering.snr_db for row in rows])
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [row.so_far.snr_db for row in rows])
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        ", ".join(row.weights)[-60:] for row in rows
    ]
    assert "signal-to-noise ratio" in axes.get_xlabel()
    for ending, start in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        path = tmp_path / f"layers{ending}"
        draw_layers(found, path)
        assert path.read_bytes().startswith(start)
    with pytest.raises(ConfigError, match="layers=True"):
        draw_layers(compare(model, small, random=1), path)
    with pytest.raises(ConfigError, match=r"has the extension '.foo'; use one of .*\.png, \.svg"):
        draw_layers(found, tmp_path / "layers.foo")


def test_the_picture_marks_layers_that_are_broken():
    pytest.importorskip("matplotlib")
    from mlopt.runtime.comparison.picture import layers_figure

    (axes,) = layers_figure(Comparison(1, (), LAYERS)).axes
    drawn = [bar.get_width() for bar in axes.patches]
    assert [math.isnan(width) for width in drawn] == [False, True, True, False, True, True]
    _, crosses = axes.lines
    assert list(crosses.get_ydata()) == [2, 4, 5]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "not finite, or not comparable" in legend
    sound = (*LAYERS[:2], layer("dead", distance([0.0], [0.0])))
    (axes,) = layers_figure(Comparison(1, (), sound)).axes
    assert len(axes.lines) == 1
