"""What the tests of the central room share: a model with a weight for each cell of the matrix.

A cell is one request: mode, bits, granularity, cluster_dim and scale. One model holds a weight for
every cell of a target, and a rule by name asks for each: so mlopt and coremltools run once a
target, and each cell is looked at by itself.
"""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import coremltools as ct
import coremltools.optimize.coreml as reference
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil.passes.defs.optimize_quantization import (
    canonicalize_quantized_lut_pattern,
)
from coremltools.optimize.coreml import _quantization_passes as compression
from coremltools.proto import MIL_pb2

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.coreml.constexpr.chains import chain_of
from mlopt.coreml.constexpr.evaluation import value_of
from mlopt.coreml.constexpr.operations import checked
from mlopt.coreml.constexpr.scaled import palette, scaled_lut
from mlopt.mil.opening import open_package
from mlopt.mil.program import Node
from mlopt.palette.value.palettized import Palettized
from tests import judges

NBITS = (1, 2, 3, 4, 6, 8)
MODES = ("kmeans", "uniform", "unique", "custom")
GROUP = 16
"""Channels in a group where a cell asks for groups."""


@attrs.frozen
class Cell:
    """One request; ``nbits`` of unique and custom come from the data and the function."""

    mode: str
    nbits: int
    grouped: bool = False
    d: int = 1
    scaled: bool = False

    @property
    def name(self) -> str:
        """The name of its weight in the model of the matrix."""
        form = "grouped" if self.grouped else "tensor"
        return f"{self.mode}_{self.nbits}_{form}_d{self.d}_{'scaled' if self.scaled else 'plain'}"

    @property
    def options(self) -> dict[str, Any]:
        """The parameters of its configuration, for mlopt and coremltools alike."""
        chooses = self.mode in ("unique", "custom")
        return {
            "mode": self.mode,
            "nbits": None if chooses else self.nbits,
            "lut_function": functools.partial(grid, self.nbits, self.d)
            if self.mode == "custom"
            else None,
            "granularity": "per_grouped_channel" if self.grouped else "per_tensor",
            "group_size": GROUP,
            "cluster_dim": self.d,
            "enable_per_channel_scale": self.scaled,
        }

    @property
    def config(self) -> OpPalettizerConfig:
        """Its configuration."""
        return OpPalettizerConfig(**self.options)

    @property
    def is_old_form(self) -> bool:
        """Whether iOS16 can express it (unique and custom at 3 bits: as 4 bits)."""
        given = self.mode in ("kmeans", "uniform") and self.nbits == 3
        return not (self.grouped or self.d > 1 or self.scaled or given)

    def weight(self, shape: tuple[int, int]) -> np.ndarray:
        """A float16 weight for it; for unique one with 2**nbits distinct values in its groups."""
        generator = np.random.default_rng([MODES.index(self.mode), self.nbits, self.d, *shape])
        generator = np.random.default_rng([*generator.integers(1 << 30, size=3), self.grouped])
        if self.scaled:
            generator = np.random.default_rng(generator.integers(1 << 30, size=4))
        if self.mode != "unique":
            return (generator.standard_normal(shape) / 8).astype(np.float16)
        rows, columns = shape
        groups = rows // GROUP if self.grouped else 1
        entries = 1 << self.nbits
        parts = []
        for _ in range(groups):
            table = _distinct_vectors(generator, entries, self.d)
            labels = generator.permutation(np.arange(rows // groups // self.d * columns) % entries)
            labels = labels.reshape(rows // groups // self.d, columns)
            if self.scaled:
                labels[:, 0] = 0
            vectors = np.moveaxis(table[labels], 2, 1)
            parts.append(vectors.reshape(rows // groups, columns))
        weight = np.concatenate(parts)
        if self.scaled:
            # Every row reaches 1 and has a scale that is a power of two: divided by it, the values
            # are the table's again.
            weight = weight * np.exp2(generator.integers(-4, 1, size=(rows, 1)))
        return weight.astype(np.float16)


def _distinct_vectors(generator: np.random.Generator, entries: int, d: int) -> np.ndarray:
    """[entries, d] in 1/512ths, all different; the first is 1 in every place."""
    numbers = generator.permutation(np.arange(-511, 512))[:entries]
    others = generator.integers(-511, 512, size=(entries, d - 1))
    vectors = np.column_stack([numbers, others])
    vectors[0] = 512
    return vectors / 512


def grid(nbits: int, d: int, group: Any) -> tuple[np.ndarray, np.ndarray]:
    """A lut_function: 2**nbits entries chosen by rank, each weight's nearest; in both libraries."""
    values = np.array(group)
    channels = values.shape[0]
    points = np.moveaxis(values.reshape(channels // d, d, -1), 1, 2).reshape(-1, d)
    order = np.argsort(points[:, 0].astype(np.float32), kind="stable")
    table = points[order[np.linspace(0, len(order) - 1, 1 << nbits).astype(int)]]
    wide = table.astype(np.float32)
    labels = np.empty(len(points), np.uint8)
    for start in range(0, len(points), 1024):
        part = points[start : start + 1024, None].astype(np.float32)
        labels[start : start + 1024] = np.square(part - wide[None]).sum(2).argmin(1)
    return (table[:, 0] if d == 1 else table), labels


def all_cells() -> list[Cell]:
    """Every request that a configuration can state: uniform has no vectors."""
    return [
        Cell(mode, nbits, grouped, d, scaled)
        for mode in MODES
        for nbits in NBITS
        for grouped in (False, True)
        for d in ((1,) if mode == "uniform" else (1, 2, 4))
        for scaled in (False, True)
    ]


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call coremltools without its warnings."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def converted(
    body: Callable[[Any], Any], shape: tuple[int, ...], target: str, *, dtype: str = "fp16"
) -> Any:
    """An MLModel of the MIL program ``out = body(x)``, computed in ``dtype`` from the start."""
    version = getattr(ct.target, target)

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=version)
    def program(x: Any) -> Any:
        out = body(mb.cast(x=x, dtype=dtype) if dtype != "fp32" else x)
        return mb.cast(x=out, dtype="fp32", name="out") if dtype != "fp32" else out

    return quietly(
        ct.convert,
        program,
        convert_to="mlprogram",
        minimum_deployment_target=version,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )


def chain(weights: dict[str, np.ndarray], target: str) -> Any:
    """A model in which each weight [out, in], in order, is the weight of a linear operation."""
    first = next(iter(weights.values()))
    dtype = {"float16": "fp16", "float32": "fp32"}[first.dtype.name]

    def body(x: Any) -> Any:
        for name, value in weights.items():
            x = mb.linear(x=x, weight=mb.const(val=value, name=name), name=f"{name}_linear")
        return mb.identity(x=x) if dtype == "fp16" else mb.identity(x=x, name="out")

    return converted(body, (1, first.shape[1]), target, dtype=dtype)


@functools.cache
def _template(target: str, shape: tuple[int, int], dtype: str) -> bytes:
    """A zipped package whose one weight ``w`` holds a ramp, to be overwritten."""
    ramp = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        package = saved(chain({"w": ramp}, target), Path(folder) / "template.mlpackage")
        return Path(shutil.make_archive(str(Path(folder) / "zip"), "zip", package)).read_bytes()


def package_of_weight(value: np.ndarray, target: str, path: Path) -> Path:
    """A package of one weight ``w`` [out, in] with the given values: ``chain`` without converting.

    Conversion takes a third of a second, so the values are written over those of a package that was
    converted before.
    """
    with zipfile.ZipFile(io.BytesIO(_template(target, value.shape, value.dtype.name))) as archive:
        archive.extractall(path)
    spec, folder = judges.spec_and_weights(path)
    (op,) = [
        op
        for op in judges.operations(spec.mlProgram.functions["main"])
        if op.outputs[0].name == "w"
    ]
    with (folder / "weight.bin").open("r+b") as file:
        file.seek(op.attributes["val"].blobFileValue.offset + 64)
        file.write(np.ascontiguousarray(value).tobytes())
    np.testing.assert_array_equal(judges.decompressed_constants(path)["w"], value)
    return path


def saved(model: Any, path: Path) -> Path:
    """Save a model; returns the path."""
    quietly(model.save, str(path))
    return path


@functools.lru_cache(maxsize=8)
def _read_package(path: Path, _changed: int) -> tuple[Any, Path | None]:
    return judges.spec_and_weights(path)


def spec_and_weights(source: Any) -> tuple[Any, Path | None]:
    """As the judge of that name, but a package is read once while it does not change."""
    if not isinstance(source, Path):
        return judges.spec_and_weights(source)
    model = source / "Data" / "com.apple.CoreML" / "model.mlmodel"
    return _read_package(source, model.stat().st_mtime_ns)


def operations_by_name(source: Any, function: str | None = None) -> dict[str, Any]:
    """Operation messages by what they write, in one function (None: the only one, or "main")."""
    spec, _ = spec_and_weights(source)
    functions = spec.mlProgram.functions
    name = function or (next(iter(functions)) if len(functions) == 1 else "main")
    return {op.outputs[0].name: op for op in judges.operations(functions[name]) if op.outputs}


def described(value: Any, folder: Path | None) -> dict[str, Any]:
    """What a Value message is but for its numbers: type, shape, where and how it is stored."""
    tensor = value.type.tensorType
    where: dict[str, Any] = {
        "dtype": MIL_pb2.DataType.Name(tensor.dataType),
        "rank": tensor.rank,
        "shape": [d.constant.size for d in tensor.dimensions],
        "storage": value.WhichOneof("value"),
    }
    if where["storage"] == "blobFileValue":
        blob_dtype, padding, data = judges.read_blob(folder, value.blobFileValue)
        where |= {"file": value.blobFileValue.fileName, "blob dtype": blob_dtype}
        where |= {"padding": padding, "bytes": len(data)}
    else:
        where["field"] = value.immediateValue.tensor.WhichOneof("value")
    return where


def form(op: Any, folder: Path | None) -> dict[str, Any]:
    """What an operation is but for names and numbers."""
    return {
        "type": op.type,
        "attributes": {
            key: described(value, folder) for key, value in op.attributes.items() if key != "name"
        },
        "inputs": {
            key: [
                described(binding.value, folder)
                if binding.WhichOneof("binding") == "value"
                else "name"
                for binding in argument.arguments
            ]
            for key, argument in op.inputs.items()
        },
        "outputs": [output.type.SerializeToString(deterministic=True) for output in op.outputs],
        "blocks": len(op.blocks),
    }


NUMPY = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "UINT32": np.uint32,
}


def raw(value: Any, folder: Path | None) -> bytes:
    """The stored bytes of a value that is a tensor of floats or integers."""
    if value.WhichOneof("value") == "blobFileValue":
        return judges.read_blob(folder, value.blobFileValue)[2]
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field == "bytes":
        return bytes(tensor.bytes.values)
    dtype = {"floats": np.float32, "ints": np.int32}[field]
    return np.array(getattr(tensor, field).values, dtype).tobytes()


@attrs.frozen(eq=False)
class Stored:
    """A palette as it stands in a package, read by this file alone.

    ``codes``, ``table_scale``, ``offset``: of a table in 8 bits, which ``table`` is what they mean.
    """

    indices: np.ndarray
    table: np.ndarray
    scale: np.ndarray | None
    vector_axis: int | None
    nbits: int
    nbytes: int
    shape: tuple[int, ...]
    codes: np.ndarray | None = None
    table_scale: np.ndarray | None = None
    offset: np.ndarray | None = None

    @property
    def dense(self) -> np.ndarray:
        """The weight, by the definition of the format; the scale's product is rounded once."""
        d, axis = self.table.shape[-1], self.vector_axis
        places = np.indices(self.indices.shape)
        groups = [
            place // (n // g)
            for place, n, g in zip(places, self.indices.shape, self.table.shape, strict=False)
        ]
        vectors = self.table[(*groups, self.indices)]
        if axis is not None:
            vectors = np.moveaxis(vectors, -1, axis + 1)
        result = vectors.reshape(self.shape)
        assert result.size == self.indices.size * d
        if self.scale is None:
            return result
        return (result.astype(np.float64) * self.scale.astype(np.float64)).astype(result.dtype)


def stored(source: Any, name: str, function: str | None = None) -> Stored:
    """The palette of the weight called ``name`` in a package or model."""
    _, folder = spec_and_weights(source)
    ops = operations_by_name(source, function)
    op, scale, size = ops[name], None, 0

    def array(value: Any) -> np.ndarray:
        nonlocal size
        data = raw(value, folder)
        size += len(data)
        dims = [d.constant.size for d in value.type.tensorType.dimensions]
        return np.frombuffer(data, _numpy(value)).reshape(dims)

    if op.type == "constexpr_blockwise_shift_scale":
        scale = array(op.inputs["scale"].arguments[0].value)
        op = ops[op.inputs["data"].arguments[0].name]
    assert op.type == "constexpr_lut_to_dense", op.type
    shape = tuple(d.constant.size for d in op.outputs[0].type.tensorType.dimensions)
    values = {key: a.arguments[0].value for key, a in op.inputs.items()} or dict(op.attributes)
    packed = raw(values["indices"], folder)
    quantized: dict[str, np.ndarray | None] = {}
    if op.inputs and op.inputs["lut"].arguments[0].WhichOneof("binding") == "name":
        of_table = ops[op.inputs["lut"].arguments[0].name]
        assert of_table.type == "constexpr_blockwise_shift_scale"
        parts = {key: array(a.arguments[0].value) for key, a in of_table.inputs.items()}
        steps = parts["data"].astype(np.float64) - parts.get("offset", np.zeros(1))
        table = (steps * parts["scale"].astype(np.float64)).astype(parts["scale"].dtype)
        quantized = {"codes": parts["data"], "table_scale": parts["scale"]}
        quantized["offset"] = parts.get("offset")
    else:
        table = array(values["lut"])
    axis = None
    if op.inputs:
        dims = [d.constant.size for d in values["indices"].type.tensorType.dimensions]
        kind = MIL_pb2.DataType.Name(values["indices"].type.tensorType.dataType)
        nbits = int(kind.removeprefix("UINT"))
        if "vector_axis" in values:
            axis = int(np.frombuffer(raw(values["vector_axis"], folder), np.int32)[0])
            axis %= len(shape)
    else:
        dims = list(shape)
        nbits = len(table).bit_length() - 1
        declared = np.frombuffer(raw(values["shape"], folder), np.uint32)
        assert tuple(declared) == shape
        table = table.reshape([1] * len(shape) + [-1, 1])
    count = int(np.prod(dims))
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    assert not bits[count * nbits :].any(), "the tail of the indices is not zero"
    places = 1 << np.arange(nbits)
    indices = (bits[: count * nbits].reshape(count, nbits) * places).sum(1).astype(np.uint8)
    size += len(packed)
    return Stored(indices.reshape(dims), table, scale, axis, nbits, size, shape, **quantized)


def _numpy(value: Any) -> Any:
    return NUMPY[MIL_pb2.DataType.Name(value.type.tensorType.dataType)]


def global_config(**options: Any) -> OptimizationConfig:
    """A configuration with one rule for everything; 4-bit kmeans unless told otherwise."""
    if options.get("mode", "kmeans") in ("kmeans", "uniform"):
        options.setdefault("nbits", 4)
    return OptimizationConfig(global_config=OpPalettizerConfig(**options))


def by_name(rules: dict[str, Any]) -> OptimizationConfig:
    """A configuration with rules for names only; values are configs or their parameters."""
    return OptimizationConfig(
        op_name_configs={
            name: OpPalettizerConfig(**rule) if isinstance(rule, dict) else rule
            for name, rule in rules.items()
        }
    )


def reference_config(rules: dict[str, dict[str, Any]]) -> Any:
    """The same for coremltools."""
    return reference.OptimizationConfig(
        op_name_configs={
            name: reference.OpPalettizerConfig(**options) for name, options in rules.items()
        }
    )


def reference_palettized(model: Any, rules: dict[str, dict[str, Any]]) -> Any:
    """The MLModel that coremltools makes; it may alter ``model``, so give it one of its own.

    Without the later pass that moves a scale from behind the table into it: that one fails for
    vectors, and repeats the tables for every channel.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonicalize_quantized_lut_pattern, "apply", lambda self, program: None)
        return quietly(reference.palettize_weights, model, reference_config(rules))


def squared_error(weight: np.ndarray, other: np.ndarray) -> float:
    """Sum of (w - v)**2 in float64."""
    return float(np.square(weight.astype(np.float64) - other.astype(np.float64)).sum())


def reference_dense(cell: Cell, weight: np.ndarray) -> np.ndarray:
    """What coremltools' own compression of one array gives, the scale along the right axis.

    Its whole pass cannot be asked for scaled weights: it takes the scale along another axis.
    """
    scale = np.ones((1, 1), weight.dtype)
    if cell.scaled:
        scale = np.abs(weight).max(axis=1, keepdims=True)
        scale[scale == 0] = 1
    compressed = quietly(
        compression.palettize_weights.blockwise_compress,
        weight / scale,
        cell.mode.upper(),
        None if cell.mode in ("unique", "custom") else cell.nbits,
        [GROUP if cell.grouped else 0, 0],
        lut_function=cell.options["lut_function"],
        cluster_dim=cell.d,
        channel_axis=0,
    )
    return compression.palettize_weights.decompress(compressed).astype(weight.dtype) * scale


def palette_of(node: Node) -> Palettized:
    """The palette that mlopt wrote as a weight, of which ``node`` is the last operation."""
    links = [checked(link, value_of) for link in chain_of(node)]
    table = scaled_lut(links)
    found = palette(links[-1], None) if table is None else palette(table, links[-1])
    assert found is not None
    return found


@attrs.frozen(eq=False)
class Matrix:
    """The cells that a target can express, and what both libraries made of them."""

    target: str
    cells: tuple[Cell, ...]
    weights: dict[str, np.ndarray]
    source: Path
    output: Path
    report: Any
    reference: Any
    refused_by_reference: frozenset[Cell]

    @functools.cached_property
    def decompressed(self) -> dict[str, np.ndarray]:
        """coremltools' own numbers for what mlopt wrote."""
        return judges.decompressed_constants(self.output)

    @functools.cached_property
    def reference_decompressed(self) -> dict[str, np.ndarray]:
        """coremltools' own numbers for what it wrote."""
        return judges.decompressed_constants(self.reference)

    @functools.cached_property
    def palettes(self) -> dict[str, Any]:
        """The ``Palettized`` that mlopt reads back from its own package, by weight."""
        (program,) = open_package(self.output).programs
        return {
            node.outputs[0].name: palette_of(node)
            for node in program.nodes()
            if node.op_type.startswith("constexpr_") and node.outputs[0].name in self.weights
        }

    @functools.cached_property
    def operations(self) -> dict[str, Any]:
        """The operations that mlopt wrote, by output."""
        return operations_by_name(self.output)

    @functools.cached_property
    def reference_operations(self) -> dict[str, Any]:
        """The operations that coremltools wrote, by output."""
        return operations_by_name(self.reference)


def expressible(target: str) -> list[Cell]:
    """The cells that a target can express; iOS15 by being raised to iOS16."""
    return [cell for cell in all_cells() if target == "iOS18" or cell.is_old_form]


def _beyond_reference(cell: Cell, target: str) -> bool:
    """Whether coremltools cannot serve a cell.

    Per-channel scale: it divides along the wrong axis, which leaves unique with too many values.
    Three bits before iOS18: it writes what iOS16 does not have.
    """
    return (cell.scaled and cell.mode == "unique") or (target != "iOS18" and cell.nbits == 3)


@pytest.fixture(scope="session")
def matrix_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Matrix]:
    """Return a function that gives the matrix of a target, made once a session."""
    folder = tmp_path_factory.mktemp("matrix")

    @functools.cache
    def make(target: str) -> Matrix:
        cells = expressible(target)
        # Not square, so that an axis cannot be mistaken for another.
        shapes = [(80, 64) if index % 2 == 0 else (64, 80) for index in range(len(cells))]
        weights = {c.name: c.weight(s) for c, s in zip(cells, shapes, strict=True)}
        source = saved(chain(weights, target), folder / f"{target}.mlpackage")
        result = palettize(
            source,
            by_name({cell.name: cell.config for cell in cells}),
            output=folder / f"{target}-palettized.mlpackage",
            strict=True,
        )
        theirs = [cell for cell in cells if not _beyond_reference(cell, target)]
        model = quietly(ct.models.MLModel, str(source), skip_model_load=True)
        return Matrix(
            target=target,
            cells=tuple(cells),
            weights=weights,
            source=source,
            output=result.path,
            report=result.report,
            reference=reference_palettized(model, {c.name: c.options for c in theirs}),
            refused_by_reference=frozenset(cells) - frozenset(theirs),
        )

    return make


def nothing_beside(folder: Path, allowed: Iterable[str] = ()) -> bool:
    """Whether a folder holds the allowed names and no others, hidden ones included."""
    return {path.name for path in folder.iterdir()} == set(allowed)
