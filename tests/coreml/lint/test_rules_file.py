"""The rules about files: each finds what is odd, and is silent about what coremltools writes."""

from __future__ import annotations

import functools
import json
import re
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import lint, palettize
from mlopt.coreml.lint import RULES
from mlopt.mil.messages import Model
from mlopt.mil.values import file_value, immediate_value
from tests.coreml.conftest import converted, global_config, saved

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
FILE_RULES = [name for name, r in RULES.items() if r.check.__module__.endswith("rules_file")]


@functools.cache
def template() -> Path:
    """Two layers, each with a weight and a bias in the weight file, for iOS17."""
    rng = np.random.default_rng(5)

    def body(x: Any) -> Any:
        for name in ("first", "second"):
            weight = rng.standard_normal((32, 32)).astype(np.float16)
            x = mb.linear(x=x, weight=mb.const(val=weight, name=name))
        return x

    folder = Path(tempfile.mkdtemp())
    return saved(converted(body, (1, 32), "iOS17"), folder / "template.mlpackage")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(template(), tmp_path / "model.mlpackage"))


def message(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(package: Path) -> None:
        spec = Model.FromString((package / MODEL).read_bytes())
        change(spec)
        (package / MODEL).write_bytes(spec.SerializeToString())

    return edit


def manifest(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(package: Path) -> None:
        content = json.loads((package / "Manifest.json").read_text())
        change(content)
        (package / "Manifest.json").write_text(json.dumps(content))

    return edit


def weights(at: int, content: bytes) -> Callable[[Path], None]:
    def edit(package: Path) -> None:
        with open(package / WEIGHTS, "r+b") as file:
            file.seek(at)
            file.write(content)

    return edit


def link(package: Path) -> None:
    shared = package.with_name("shared.bin")
    (package / WEIGHTS).rename(shared)
    (package / WEIGHTS).symlink_to(shared)


def body_of(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def op_named(spec: Any, name: str) -> Any:
    return next(op for op in body_of(spec).operations if op.outputs[0].name.startswith(name))


def as_bool(spec: Any) -> None:
    op = body_of(spec).operations.add(type="const")
    op.attributes["name"].CopyFrom(op_named(spec, "first").attributes["name"])
    op.attributes["name"].immediateValue.tensor.strings.values[0] = "mask"
    value = file_value("@model_path/weights/weight.bin", 64, "bool", (2048,))
    op.attributes["val"].CopyFrom(value)
    op.outputs.add(name="mask", type=value.type)


def bool_blob(package: Path) -> None:
    message(as_bool)(package)
    # The blob that the boolean refers to becomes one of bytes, and so does the weight's type.
    weights(68, struct.pack("<I", 3))(package)

    def retype(spec: Any) -> None:
        value = op_named(spec, "first").attributes["val"]
        value.CopyFrom(file_value("@model_path/weights/weight.bin", 64, "uint8", (2048,)))

    message(retype)(package)


def in_ints(spec: Any) -> None:
    value = immediate_value(np.int8([1, 2, 3]))
    value.immediateValue.tensor.ints.values.extend([1, 2, 3])
    op = op_named(spec, "first")
    op.attributes["odd"].CopyFrom(value)


def spare_bytes(spec: Any) -> None:
    value = immediate_value(np.zeros(4, np.uint8), "uint4", (8,))
    value.immediateValue.tensor.bytes.values += b"\0"
    op_named(spec, "first").attributes["odd"].CopyFrom(value)


def add_body(spec: Any, *, sound: bool) -> None:
    bodies = spec.mlProgram.functions["main"].block_specializations
    bodies["CoreML5"].CopyFrom(body_of(spec))
    if not sound:
        for op in bodies["CoreML5"].operations:
            if op.attributes["val"].WhichOneof("value") == "blobFileValue":
                op.attributes["val"].blobFileValue.offset = 1 << 40


def repeat(package: Path) -> None:
    text = (package / "Manifest.json").read_text().lstrip()
    (package / "Manifest.json").write_text('{"fileFormatVersion": "0", ' + text[1:])


def without(key: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for entry in content["itemInfoEntries"].values():
            del entry[key]

    return change


CASES: list[tuple[str, Callable[[Path], None], str]] = [
    ("linked-file", link, "weights/weight.bin is .*shared.bin"),
    ("undefined-blob-headers", weights(64 + 24, b"\x90" * 40), "1 of 4 blobs of .*weight.bin"),
    ("blob-count", weights(0, struct.pack("<I", 1)), "claims 1 blobs, and .* refers to 4"),
    ("blob-layout", weights(64 + 16, struct.pack("<Q", 130)), "1 of 4 .* multiple of 64 .* 64"),
    (
        "blob-layout",
        weights(64 + 16, struct.pack("<Q", 192)),
        "do not have their data directly after",
    ),
    ("blob-layout", weights(64 + 8, struct.pack("<Q", 2049)), "bytes after their last element"),
    ("blob-layout", weights(64 + 16, struct.pack("<Q", 256)), "lie in one another, .* byte 2176"),
    ("type-in-weight-file", bool_blob, r"bool of shape \[2048\], stored as uint8"),
    ("value-in-another-field", message(in_ints), "1 values, the first here"),
    ("value-in-another-field", message(spare_bytes), "1 values, the first here"),
    ("unused-body", message(functools.partial(add_body, sound=True)), "a body for CoreML5, and"),
    ("unused-body", message(functools.partial(add_body, sound=False)), "is not written again"),
    (
        "version-below-opset",
        message(lambda spec: setattr(spec, "specificationVersion", 6)),
        "specification version 6, and opset CoreML7 belongs to 8",
    ),
    ("manifest-entries", manifest(without("author")), "has no author"),
    ("manifest-entries", manifest(lambda c: c.pop("fileFormatVersion")), "no fileFormatVersion"),
    (
        "manifest-entries",
        manifest(lambda c: c["itemInfoEntries"].update(x=3)),
        "entry 'x' is not an object",
    ),
    (
        "manifest-entries",
        manifest(
            lambda c: c["itemInfoEntries"].update(
                x=dict.fromkeys(("author", "description", "name", "path"), "absent")
            )
        ),
        "entry 'x' is for 'absent', which is not there",
    ),
    ("manifest-repeats-a-key", repeat, "'fileFormatVersion'"),
]


@pytest.mark.parametrize(("rule", "edit", "match"), CASES)
def test_what_is_odd_is_found_and_read(
    package: Path, rule: str, edit: Callable[[Path], None], match: str
) -> None:
    edit(package)
    report = lint(package, select=FILE_RULES)
    assert rule in report.counts_by_rule
    texts = [finding.what for finding in report.of_rule(rule)]
    assert any(re.search(match, text) for text in texts), texts


def test_what_coremltools_writes_is_not_odd(package: Path) -> None:
    assert len(lint(package, select=FILE_RULES)) == 0


def test_every_rule_about_files_has_a_case() -> None:
    assert {rule for rule, _, _ in CASES} | {"version-above-opset"} == set(FILE_RULES)


def test_older_forms_in_a_newer_model(package: Path, tmp_path: Path) -> None:
    """Written for iOS17, and called a model of iOS18 afterwards."""
    result = palettize(
        package, global_config(nbits=4, weight_threshold=0), output=tmp_path / "out.mlpackage"
    )
    assert not lint(result.path).of_rule("version-above-opset")
    message(lambda spec: setattr(spec, "specificationVersion", 9))(result.path)
    (finding,) = lint(result.path).of_rule("version-above-opset")
    assert "2 operations of CoreML7 in a model of specification version 9" in finding.what


@pytest.mark.parametrize(("rule", "edit", "match"), CASES[:7] + CASES[11:13])
def test_what_is_written_is_not_odd_any_more(
    package: Path, tmp_path: Path, rule: str, edit: Callable[[Path], None], match: str
) -> None:
    edit(package)
    config = global_config(nbits=4, weight_threshold=0)
    result = palettize(package, config, output=tmp_path / "out.mlpackage")
    assert rule not in lint(result.path, select=FILE_RULES).counts_by_rule, match
