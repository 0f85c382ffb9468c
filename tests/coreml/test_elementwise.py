"""Constants that only elementwise operations read: found, reported and left alone when asked."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import OptimizationConfig, lint, palettize, preview
from mlopt.coreml.elementwise import ELEMENTWISE, MOVES, ElementwiseReaders
from mlopt.coreml.lint import RULES
from mlopt.mil.opening import open_package
from mlopt.requests.report import Report, rules_to_keep
from mlopt.runtime.registry import registered_operations
from tests.coreml.conftest import global_config, saved
from tests.edited_models import bind_values, edit
from tests.requests.test_report import palettized
from tests.runtime.programs import convert

WIDTH, LENGTH = 64, 48


def table(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def attention(x: Any) -> Any:
    """[1, 48, 64]: tables that are added and multiplied, beside weights of every other kind."""

    def const(seed: int, name: str, *shape: int) -> Any:
        return mb.const(val=table(seed, *shape), name=name)

    # A long table of which the first rows are used, in another shape.
    rows = mb.slice_by_size(
        x=const(0, "cos", 1, 2 * LENGTH, WIDTH), begin=[0, 0, 0], size=[1, LENGTH, WIDTH]
    )
    x = mb.mul(x=x, y=rows, name="turned")
    x = mb.add(x=x, y=const(1, "positions", 1, LENGTH, WIDTH))
    x = mb.real_div(x=x, y=mb.square(x=const(2, "window", LENGTH, WIDTH)))
    # Read by an addition and by a matrix product: a weight.
    both = const(3, "both", WIDTH, WIDTH)
    x = mb.matmul(x=x, y=both)
    x = mb.add(x=x, y=mb.slice_by_size(x=both, begin=[0, 0], size=[LENGTH, WIDTH]))
    # Moved, and then multiplied as a matrix.
    turned = mb.transpose(x=const(4, "moved", WIDTH, WIDTH), perm=[1, 0])
    x = mb.matmul(x=x, y=turned)
    x = mb.linear(x=x, weight=const(5, "weight", WIDTH, WIDTH))
    ids = mb.cast(x=mb.reduce_argmax(x=x, axis=2, keep_dims=False), dtype="int32")
    x = mb.add(x=x, y=mb.gather(x=const(6, "embedding", WIDTH, WIDTH), indices=ids, axis=0))
    prefix = mb.concat(values=[const(7, "prefix", 1, LENGTH, WIDTH), x], axis=1)
    return mb.matmul(x=x, y=mb.matmul(x=x, y=prefix, transpose_y=True), transpose_x=True)


TABLES = {"cos", "positions", "window"}
WEIGHTS = {"both", "moved", "weight", "embedding", "prefix"}


@functools.cache
def model() -> Any:
    return as_written(attention, 1, LENGTH, WIDTH)


def as_written(body: Any, *shape: int) -> Any:
    """A model of ``body(x)`` in which no pass computes with constants ahead."""
    return convert(body, {"x": np.zeros(shape, np.float16)}, target="iOS16")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(model(), tmp_path / "source.mlpackage")


def test_the_report_lists_them_and_what_leaves_them_alone(source, tmp_path):
    report = palettize(source, global_config(), output=tmp_path / "output.mlpackage").report
    assert {row.name for row in report.palettized} == TABLES | WEIGHTS
    assert {row.name for row in report.elementwise} == TABLES
    assert not any(row.is_elementwise for row in report if row.name in WEIGHTS)

    found = json.loads(report.to_json())["elementwise"]
    assert (found["weights"], set(found["op_name_configs"])) == (3, TABLES)
    assert found["bytes_before"] == 2 * (2 + 1 + 1) * LENGTH * WIDTH
    assert yaml.safe_load(found["yaml"]) == {"op_name_configs": found["op_name_configs"]}

    lines = report.summary().splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("Only elementwise operations")]
    assert "3 palettized weights, 24.6 kB -> " in lines[at]
    rules = yaml.safe_load("\n".join(lines[at + 1 : at + 5]))
    assert set(rules["op_name_configs"]) == TABLES

    config = OptimizationConfig.from_dict({"global_config": {"nbits": 4}, **rules})
    again = palettize(source, config, strict=True).report
    assert {row.name for row in again.palettized} == WEIGHTS
    assert not again.elementwise
    assert "elementwise" not in again.summary()
    assert json.loads(again.to_json())["elementwise"]["yaml"] == ""


def test_a_preview_lists_them_too(source):
    report = preview(source, global_config())
    assert {row.name for row in report.elementwise} == TABLES
    assert "Only elementwise operations read 3 palettized weights" in str(report)


@pytest.mark.parametrize("is_output", [False, True])
def test_lint_lists_them(is_output, source, tmp_path):
    path = source
    if is_output:
        path = palettize(source, global_config(), output=tmp_path / "output.mlpackage").path
    report = lint(path, select=["elementwise-constant"])
    assert {finding.place.weight for finding in report} == TABLES
    assert {finding.severity for finding in report} == {"note"}
    for finding in report:
        state, _, rule = finding.what.partition("; ")
        assert yaml.safe_load(rule) == {"op_name_configs": {finding.place.weight: None}}
        assert state.startswith("palettized") is is_output
    text = report.to_text()
    assert text.count("elementwise-constant") == 1
    assert "--skip" in text
    silenced = lint(path, select=["elementwise-constant"], ignore=["elementwise-constant:cos"])
    assert {finding.place.weight for finding in silenced} == TABLES - {"cos"}
    assert "elementwise" in RULES["elementwise-constant"].explanation()


def test_lint_leaves_out_what_is_not_palettized_anyway(tmp_path):
    mask = np.where(np.tri(64, dtype=bool), 0, -10000).astype(np.float16)[None]
    infinite = table(0, 1, 64, 64)
    infinite[0, 0, 0] = np.inf

    def body(x: Any) -> Any:
        for value in (mask, infinite, table(1, 1, 1, 64), np.float16(table(2, 4096).reshape(-1))):
            wide = mb.const(val=value)
            x = mb.add(x=x, y=mb.reshape(x=wide, shape=[1, 64, 64]) if value.ndim == 1 else wide)
        return x

    path = saved(as_written(body, 1, 64, 64), tmp_path / "source.mlpackage")
    assert not lint(path, select=["elementwise-constant"]).findings
    assert not preview(path, global_config()).palettized


def test_bound_values_are_listed_by_a_name_that_works(tmp_path):
    path = tmp_path / "source.mlpackage"
    edit(model(), path, functools.partial(bind_values, stored="file"))
    report = preview(path, global_config())
    assert len(report.elementwise) == 3
    assert any(row.name.endswith("_x_0") for row in report.elementwise)
    rules = report.as_dict()["elementwise"]["op_name_configs"]
    config = OptimizationConfig.from_dict({"global_config": {"nbits": 4}, "op_name_configs": rules})
    assert not preview(path, config, strict=True).elementwise


def test_blocks_and_results_are_looked_into(tmp_path):
    """What a loop is given may be anything inside; what its operations read is known."""

    def body(x: Any) -> Any:
        inside = mb.const(val=table(0, 64, 64), name="inside")

        def step(i: Any, y: Any) -> Any:
            return mb.add(x=i, y=np.int32(1)), mb.mul(x=y, y=inside)

        start = mb.const(val=table(1, 64, 64), name="start")
        _, y = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.int32(2)),
            _body=step,
            loop_vars=(np.int32(0), start),
        )
        return mb.add(x=x, y=y)

    path = saved(as_written(body, 64, 64), tmp_path / "source.mlpackage")
    (program,) = open_package(path).programs
    nodes = program.nodes()
    readers = ElementwiseReaders(nodes)
    found = {c.name: readers.are_all(c.consumers) for c in program.constants(nodes)}
    assert found["inside"] is True
    assert found["start"] is False


def test_many_are_cut_short_in_the_summary_only():
    rows = [palettized(f"t{i}", is_elementwise=True) for i in range(40)]
    summary = Report(rows=rows).summary()
    assert "  # and 8 more: see elementwise of the report in JSON" in summary
    assert "t31: null" in summary
    assert "t32: null" not in summary
    assert len(Report(rows=rows).as_dict()["elementwise"]["op_name_configs"]) == 40


@pytest.mark.parametrize("on_one_line", [False, True])
def test_any_name_can_be_pasted(on_one_line):
    names = ["a: b", "\x1b[31m", "ü\U0001f600", "*x", "null", "0", "x" * 300, "a\nb", "a, b", "'"]
    text = rules_to_keep(names, on_one_line=on_one_line)
    assert text.isascii()
    assert "\x1b" not in text
    assert yaml.safe_load(text) == {"op_name_configs": dict.fromkeys(names)}


FAMILIES = ("activations", "elementwise_binary", "elementwise_unary", "reshaping", "slicing")
"""Modules of operations that are mostly elementwise or moves."""

NEITHER = {
    "softmax": "it sums over an axis",
    "sliding_windows": "an element occurs in several windows",
    "reverse_sequence": "it moves elements, and has not been counted as a move so far",
    "slice_update": "it holds elements of two tensors",
}
"""Operations of these modules that are not elementwise and do not count as moves."""


def test_operations_of_elementwise_families_are_of_a_sort():
    of_families = {
        op_type
        for op_type, definitions in registered_operations().items()
        if definitions[-1].function.__module__.rpartition(".")[2] in FAMILIES
    }
    unsorted = of_families - ELEMENTWISE - MOVES
    assert unsorted == set(NEITHER), "add it to ELEMENTWISE, MOVES or, with a reason, NEITHER"


def test_the_operations_exist_and_are_of_one_sort():
    assert set(registered_operations()) >= ELEMENTWISE | MOVES
    assert not ELEMENTWISE & MOVES
    readers = {"conv", "conv_transpose", "linear", "matmul", "einsum", "gather", "lstm", "gru"}
    readers |= {"rnn", "scaled_dot_product_attention", "gather_nd", "gather_along_axis"}
    assert not readers & (ELEMENTWISE | MOVES)
