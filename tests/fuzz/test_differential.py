"""A few seconds of the long form of the differential trials; that they can fail, and their list."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.errors import ModelFormatError
from mlopt.mil import blob, values
from mlopt.mil.messages import Model
from mlopt.mil.targets import Target
from mlopt.mil.values import file_value, immediate_value, string_value, tensor_type
from mlopt.mil.walk import file_values
from tests.fuzz import differential, driver, oddities
from tests.fuzz.seeds import MODEL, WEIGHTS, Files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials run in forked processes")
KIND = driver.Kind(differential.input_of, differential.run)


@pytest.fixture(scope="module")
def packages(seed_packages: dict[str, Files]) -> dict[str, Files]:
    return seed_packages


def test_what_coremltools_reads_is_read_and_equal(packages: dict[str, Files]) -> None:
    summary = driver.run(packages, inputs=100, seed=13, kind=KIND)
    assert not summary.failures, str(summary)
    assert summary.ends["blobs", "both"] > 80
    assert summary.ends["load", "both"] > 40
    assert summary.ends["decompress", "both"] > 20
    assert summary.ends["load", "neither"] > 5


def test_seeds_are_read_by_both(packages: dict[str, Files], tmp_path: Path) -> None:
    ends = {
        name: differential.run(files, tmp_path / "trial", random.Random(name))
        for name, files in packages.items()
    }
    apart = {name: end["load"] for name, end in ends.items() if end["load"] != "both"}
    # coremltools refuses values of the weight file that operations have bound
    assert apart == {"bound values file": "mlopt alone"}
    assert sum(end.get("decompress") == "both" for end in ends.values()) > 8


@pytest.mark.parametrize(
    ("module", "name", "spoilt"),
    [
        (blob, "_fits", lambda *a: False),
        (values, "_can_hold", lambda *a: False),
        (Target, "of_specification", None),
        (blob.Blob, "array", lambda self: np.zeros(self.size, self.dtype.numpy)),
    ],
)
def test_what_is_read_otherwise_is_found(
    packages: dict[str, Files], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, spoilt: Any
) -> None:
    """A check that is too strict, or another value, in the place of each part."""

    def refuse(*args: Any) -> Any:
        raise ModelFormatError("too strict")

    monkeypatch.setattr(module, name, spoilt or refuse)
    summary = driver.run(packages, inputs=16, seed=13, kind=KIND)
    assert summary.failures


def test_every_oddity_changes_something(packages: dict[str, Files]) -> None:
    files = packages["lut kmeans 4 iOS16"]
    for oddity in set(oddities._ODDITIES):
        results = []
        for number in range(10):
            changed = dict(files)
            oddity(changed, random.Random(number))
            results.append(changed != files)
        assert any(results), oddity.__name__


# --- each refusal that is listed: coremltools takes it, mlopt says why not ------------------------


def edited(change: Callable[[Any], None]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        model = Model.FromString(files[MODEL])
        change(model)
        files[MODEL] = model.SerializeToString()

    return edit


def function_of(model: Any) -> Any:
    return model.mlProgram.functions["main"]


def body_of(model: Any) -> Any:
    function = function_of(model)
    return function.block_specializations[function.opset]


def rename_opset(model: Any) -> None:
    function = function_of(model)
    function.block_specializations["CoreML99"].CopyFrom(body_of(model))
    function.opset = "CoreML99"


def add_const(model: Any, value: Any, name: str = "added") -> None:
    block = body_of(model)
    op = block.operations.add(type="const")
    op.attributes["name"].CopyFrom(string_value(name))
    op.attributes["val"].CopyFrom(value)
    op.outputs.add(name=name, type=value.type)


def rename_files(model: Any) -> None:
    for value in file_values(model.mlProgram):
        value.blobFileValue.fileName = "weights/weight.bin"


def fraction() -> Any:
    value = immediate_value(np.float32([1.25, 2]))
    value.type.CopyFrom(tensor_type("int32", (2,)))
    return value


def text() -> Any:
    value = immediate_value(np.array(["1.5", "2"]))
    value.type.CopyFrom(tensor_type("fp32", (2,)))
    return value


def missing_bits() -> Any:
    value = immediate_value(np.zeros(2, np.uint8), "uint3", (3,))
    value.immediateValue.tensor.bytes.values = b"\x88"
    return value


def other_path(files: Files) -> None:
    manifest = json.loads(files["Manifest.json"])
    entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    entry["path"] = "com.apple.CoreML/../" + entry["path"]
    files["Manifest.json"] = json.dumps(manifest).encode()


def long_manifest(files: Files) -> None:
    files["Manifest.json"] += b" " * (1 << 20)


def many_blobs(files: Files) -> None:
    raw = bytearray(files[WEIGHTS])
    raw += bytes(-len(raw) % 64)
    length = len(raw)
    model = Model.FromString(files[MODEL])
    for index in range(1, 40):
        offset = len(raw)
        raw += struct.pack("<IIQQ40x", blob.SENTINEL, 3, length - index, index)
        value = file_value("@model_path/weights/weight.bin", offset, "uint8", (length - index,))
        add_const(model, value, f"added_{index}")
    files[MODEL], files[WEIGHTS] = model.SerializeToString(), bytes(raw)


def other_type(model: Any) -> None:
    for op in body_of(model).operations:
        if op.type == "constexpr_lut_to_dense":
            op.outputs[0].type.tensorType.dimensions[0].constant.size += 1


CASES: dict[str, Callable[[Files], None]] = {
    "an opset that nobody knows": edited(rename_opset),
    "a name without @model_path": edited(rename_files),
    "a path that goes up": other_path,
    "blobs in one another": many_blobs,
    "a long manifest": long_manifest,
    "fractions in integers": edited(lambda m: add_const(m, fraction())),
    "text as numbers": edited(lambda m: add_const(m, text())),
    "missing bits": edited(lambda m: add_const(m, missing_bits())),
    "another type": edited(other_type),
    "dimensions": edited(
        lambda m: add_const(m, immediate_value(np.zeros(1, np.float32), "fp32", (1,) * 40))
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_that_are_listed(packages: dict[str, Files], tmp_path: Path, case: str) -> None:
    files = dict(packages["lut kmeans 4 iOS16"])
    CASES[case](files)
    ends = differential.run(files, tmp_path / "trial", random.Random(0))
    assert any(end.startswith("listed") for end in ends.values()), ends


def test_every_refusal_that_is_listed_has_a_case() -> None:
    """Names and paths are one; lists of another type come by chance alone."""
    assert len(CASES) - 1 == len(differential.LISTED) - 1
