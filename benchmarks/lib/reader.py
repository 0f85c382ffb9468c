"""Read the weights of a package as coremltools decodes them: the judge of both tools.

Walks the program message itself, reads blobs with coremltools' native reader, and expands tables
with a plain gather, one table at a time. Nothing of mlopt is used, and nothing of coremltools'
own decompression, which expands the table over the weight (8 GB for a 20 M weight at 8 bits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.quiet import import_coremltools

PROGRAM = Path("Data") / "com.apple.CoreML"
_SUFFIXES = ("_palettized_pcs", "_palettized")  # what coremltools appends to the constant's name
_FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32}


@dataclass(frozen=True)
class StoredWeight:
    """A weight: ``key`` the name of the original constant, ``read()`` its dense array."""

    key: str
    palettized: bool
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_package(package: Path) -> dict[str, StoredWeight]:
    """The floating-point constants of the package of rank 2 and more, by key."""
    return {weight.key: weight for weight in _Reader(package).weights()}


def original_name(name: str) -> str:
    """The name of the constant that became the compressed weight ``name``."""
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def expand(indices: np.ndarray, table: np.ndarray, vector_axis: int | None = None) -> np.ndarray:
    """Dense array of ``indices`` [n_0, .., n_v // d, ..] in ``table`` [g_0, .., g_K-1, 2**b, d].

    Each g_i divides n_i: blocks of n_i / g_i consecutive rows share an entry of that axis.
    """
    groups, size = table.shape[:-2], table.shape[-1]
    axis = indices.ndim - 1 if size == 1 else int(vector_axis or 0) % indices.ndim
    shape = list(indices.shape)
    shape[axis] *= size
    dense = np.empty(shape, table.dtype)
    for group in np.ndindex(*groups):
        picked = table[group][indices[_block(indices.shape, groups, group)]]  # [.., d]
        merged = np.moveaxis(picked, -1, axis + 1)
        block = _block(tuple(shape), groups, group)
        dense[block] = merged.reshape(dense[block].shape)
    return dense


def _block(
    shape: tuple[int, ...], groups: tuple[int, ...], group: tuple[int, ...]
) -> tuple[slice, ...]:
    """The slices of ``shape`` that ``group`` of ``groups`` covers."""
    return tuple(
        slice(n // g * i, n // g * (i + 1)) for n, g, i in zip(shape, groups, group, strict=True)
    )


class _Reader:
    def __init__(self, package: Path) -> None:
        import_coremltools()
        from coremltools.libmilstoragepython import _BlobStorageReader
        from coremltools.proto import MIL_pb2, Model_pb2

        model = Model_pb2.Model()
        model.ParseFromString((package / PROGRAM / "model.mlmodel").read_bytes())
        self._program = model.mlProgram
        self._dtype_name = MIL_pb2.DataType.Name
        self._blobs: Any = _BlobStorageReader(str(package / PROGRAM / "weights" / "weight.bin"))
        self._producers = {op.outputs[0].name: op for op in self._operations() if op.outputs}

    def weights(self) -> Iterator[StoredWeight]:
        inner = {
            argument.name
            for op in self._operations()
            if op.type.startswith("constexpr_")
            for each in op.inputs.values()
            for argument in each.arguments
            if argument.name
        }
        for op in self._operations():
            palettized = op.type.startswith("constexpr_")
            if (op.type != "const" and not palettized) or op.outputs[0].name in inner:
                continue
            kind = op.outputs[0].type if palettized else op.attributes["val"].type
            shape = self._shape(kind)
            if self._dtype_name(kind.tensorType.dataType) in _FLOATS and len(shape) >= 2:
                yield StoredWeight(self._key(op), palettized, shape, lambda o=op: self._dense(o))

    def _operations(self) -> Iterator[Any]:
        for function in self._program.functions.values():
            yield from self._walk(function.block_specializations[function.opset])

    def _walk(self, block: Any) -> Iterator[Any]:
        for op in block.operations:
            yield op
            for inner in op.blocks:
                yield from self._walk(inner)

    @staticmethod
    def _key(op: Any) -> str:
        return original_name(op.attributes["name"].immediateValue.tensor.strings.values[0])

    @staticmethod
    def _shape(kind: Any) -> tuple[int, ...]:
        return tuple(int(dim.constant.size) for dim in kind.tensorType.dimensions)

    def _dense(self, op: Any) -> np.ndarray:
        if op.type == "const":
            return self._value(op.attributes["val"])
        if op.type == "constexpr_lut_to_dense" and "indices" in op.inputs:
            return expand(
                self._argument(op, "indices"),
                self._argument(op, "lut"),
                int(self._argument(op, "vector_axis")) if "vector_axis" in op.inputs else None,
            )
        if op.type == "constexpr_lut_to_dense":
            return self._dense_ios16(op)
        if op.type == "constexpr_blockwise_shift_scale" and "offset" not in op.inputs:
            data, scale = self._argument(op, "data"), self._argument(op, "scale")
            return (data.astype(scale.dtype) * scale).astype(scale.dtype)
        raise NotImplementedError(f"the benchmark does not read {op.type}")

    def _dense_ios16(self, op: Any) -> np.ndarray:
        shape = tuple(int(n) for n in self._value(op.attributes["shape"]))
        table = self._value(op.attributes["lut"]).ravel()
        packed = self._value(op.attributes["indices"]).ravel()
        nbits = len(table).bit_length() - 1
        bits = np.unpackbits(packed, bitorder="little")[: nbits * int(np.prod(shape))]
        powers = (1 << np.arange(nbits)).astype(np.uint8)
        indices = (bits.reshape(-1, nbits) * powers).sum(axis=1, dtype=np.uint8)
        return np.asarray(table[indices]).reshape(shape)

    def _argument(self, op: Any, name: str) -> np.ndarray:
        argument = op.inputs[name].arguments[0]
        if argument.WhichOneof("binding") == "value":
            return self._value(argument.value)
        return self._dense(self._producers[argument.name])

    def _value(self, value: Any) -> np.ndarray:
        dtype = self._dtype_name(value.type.tensorType.dataType)
        shape = self._shape(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(dtype, value.blobFileValue.offset).reshape(shape)
        return _immediate(dtype, value.immediateValue.tensor, shape)

    def _blob(self, dtype: str, offset: int) -> np.ndarray:
        if dtype == "FLOAT16":
            return np.asarray(self._blobs.read_fp16_data(offset)).view(np.float16)
        if dtype == "FLOAT32":
            return np.asarray(self._blobs.read_float_data(offset))
        read = getattr(self._blobs, f"read_{dtype.lower()}_data")
        return np.asarray(read(offset))


def _immediate(dtype: str, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array written into the message itself."""
    field = tensor.WhichOneof("value")
    if field != "bytes":
        kind = _FLOATS.get(dtype, np.float32) if field == "floats" else np.int64
        return np.array(getattr(tensor, field).values, kind).reshape(shape)
    raw = np.frombuffer(tensor.bytes.values, np.uint8)
    nbits = int("".join(filter(str.isdigit, dtype)))
    if dtype.startswith("UINT") and nbits < 8:
        count = int(np.prod(shape))
        bits = np.unpackbits(raw, bitorder="little")[: nbits * count].reshape(count, nbits)
        powers = (1 << np.arange(nbits)).astype(np.uint8)
        return (bits * powers).sum(axis=1, dtype=np.uint8).reshape(shape)
    return raw.view(_FLOATS.get(dtype, np.dtype(dtype.lower()))).reshape(shape)
