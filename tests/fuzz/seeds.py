"""Small packages of many forms, held in memory as their files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.mil.messages import Model
from mlopt.mil.walk import file_values
from tests import edited_models, foreign, models

_IDENTIFIER = re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

Files = dict[str, bytes]
"""A package: path in it -> content."""

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"

_FOREIGN = [
    ("lut kmeans 4", "iOS16"),
    ("quantized int8, shifted", "iOS16"),
    ("sparse threshold", "iOS16"),
    ("lut scaled", "iOS18"),
    ("quantized uint4 per block", "iOS18"),
    ("sparse, palettized", "iOS18"),
    ("sparse, quantized", "iOS18"),
    ("palettized, quantized", "iOS18"),
]
_OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "palettized": ("iOS16", {"nbits": 2}),
    "vectors": ("iOS18", {"nbits": 2, "cluster_dim": 2}),
    "groups": (
        "iOS18",
        {
            "nbits": 3,
            "granularity": "per_grouped_channel",
            "group_size": 8,
            "enable_per_channel_scale": True,
        },
    ),
}


def build() -> dict[str, Files]:
    """Return the seeds by name; the same ones each time."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(_seeds(Path(folder)))


def read(package: Path) -> Files:
    """Return the files of a package, with identifiers in its manifest that stay the same."""
    files = {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file()
    }
    if "Manifest.json" in files:
        manifest = files["Manifest.json"]
        for number, found in enumerate(
            sorted(set(_IDENTIFIER.findall(manifest)), key=manifest.find)
        ):
            manifest = manifest.replace(found, b"%08d-0000-0000-0000-000000000000" % number)
        files["Manifest.json"] = manifest
    return files


def _seeds(folder: Path) -> Iterator[tuple[str, Files]]:
    def saved(model: Any) -> Path:
        path = Path(tempfile.mkdtemp(dir=folder)) / "a.mlpackage"
        models.quietly(model.save, str(path))
        return path

    for target in ("iOS15", "iOS16", "iOS18"):
        yield f"plain {target}", read(saved(foreign.source(target, "float16")))
    yield "plain float32", read(saved(foreign.source("iOS17", "float32")))
    yield "redefined", read(saved(models.redefined("iOS15")))
    for name, target in _FOREIGN:
        yield f"{name} {target}", read(saved(foreign.build(name, target)))
    for name, (target, options) in _OURS.items():
        rule = OpPalettizerConfig(weight_threshold=100, on_indivisible="divisor", **options)
        output = Path(tempfile.mkdtemp(dir=folder)) / "a.mlpackage"
        source = saved(foreign.source(target, "float16"))
        palettize(source, OptimizationConfig(global_config=rule), output=output)
        yield f"{name} {target}", read(output)
    for target in ("iOS15", "iOS18"):
        yield f"blocks {target}", read(saved(_blocks(target)))
    for kind in ("redefined", "stateful"):
        yield f"{kind} iOS18", read(saved(models.build(kind, "iOS18")))
    for stored, source in (("file", models.redefined("iOS15")), ("inline", _blocks("iOS16"))):
        path = Path(tempfile.mkdtemp(dir=folder)) / "a.mlpackage"
        edited_models.edit(source, path, partial(edited_models.bind_values, stored=stored))
        yield f"bound values {stored}", read(path)
    plain = read(saved(foreign.source("iOS18", "float16")))
    yield "two functions", _edited(plain, _add_function)
    yield "pipeline", _pipeline(plain, read(saved(foreign.build("lut kmeans 4", "iOS16"))))


def _blocks(target: str) -> Any:
    """A model with constants inside blocks of cond and while_loop, lists and strings."""
    weights = models.Weights(seed=3, precision="float32")

    def body(x: Any) -> Any:
        many = mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0))

        def matmul() -> Any:
            return mb.matmul(x=x, y=mb.const(val=weights(16, 16), name="inner"))

        x = mb.cond(pred=many, _true_fn=matmul, _false_fn=lambda: mb.relu(x=x))
        _, x = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.int32(3)),
            _body=lambda i, y: (
                mb.add(x=i, y=np.int32(1)),
                mb.add(x=y, y=mb.const(val=weights(1, 16), name="step")),
            ),
            loop_vars=(np.int32(0), x),
        )
        parts = mb.split(x=x, num_splits=2, axis=1)
        return mb.concat(values=[parts[1], parts[0]], axis=1)

    return models.build_program(body, (1, 16), target=target, precision="float32")


def _edited(files: Files, change: Callable[[Any], None]) -> Files:
    model = Model.FromString(files[MODEL])
    change(model)
    return {**files, MODEL: model.SerializeToString()}


def _add_function(model: Any) -> None:
    """A second function that shares the weights of the first."""
    model.mlProgram.functions["second"].CopyFrom(model.mlProgram.functions["main"])
    model.description.defaultFunctionName = "main"
    for name in ("main", "second"):
        function = model.description.functions.add(name=name)
        function.input.extend(model.description.input)
        function.output.extend(model.description.output)


def _pipeline(first: Files, second: Files) -> Files:
    """A pipeline of two models, each with a weight file of its own."""
    spec = Model(specificationVersion=9)
    files = dict(first)
    for index, member in enumerate((first, second)):
        model = Model.FromString(member[MODEL])
        name = f"weights/{index}-weight.bin"
        for value in file_values(model.mlProgram):
            value.blobFileValue.fileName = f"@model_path/{name}"
        files[f"Data/com.apple.CoreML/{name}"] = member[WEIGHTS]
        spec.pipeline.models.add().CopyFrom(model)
        spec.pipeline.names.append(f"model{index}")
    spec.description.CopyFrom(spec.pipeline.models[0].description)
    del files[WEIGHTS]
    files[MODEL] = spec.SerializeToString()
    return files
