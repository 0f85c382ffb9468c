"""Palettes that modules carry in buffers next to their weights.

The weight of a palettized module is dense: the module computes, trains and is traced as before. Its
palette is in buffers, so it goes wherever the state of the module goes: ``state_dict``,
``deepcopy``, files, ``torch.jit.trace`` and ``torch.export``. For a parameter ``weight`` these are

- ``_COREML_/weight/...``: the table and its scales, where ``coremltools.convert`` looks for them
  from version 8 on. It has no field for indices, and searches for them.
- ``_MLOPT_/weight/indices``: the packed indices, uint8[ceil(indices * nbits / 8)], which make a
  search unnecessary; ``codes``: the table in 8 bits, where it is stored so;
  ``dtype``: the number of the weight's dtype when it was palettized, since ``model.half()`` and the
  like cast weights and tables each on their own.

For a table in 8 bits there are its scale and its offset too. One of vectors, or with a per-channel
scale, cannot be converted by coremltools: the kinds of compression then only say that there is a
table, and the table in floats is converted, which stands for the same weight.

A weight that coremltools splits into gates has all of them under ``_MLOPT_``, and ``gates`` with
their number, so that ``coremltools.convert`` finds no palette and takes the dense weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.mil.constexpr_forms import OLD_TABLE_SIZES, TYPED_SINCE
from mlopt.mil.targets import Target
from mlopt.palette.value.bits import pack_bits, unpack_bits
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.torch.gates import ARRANGEMENTS
from mlopt.torch.tensors import as_array, as_tensor

COREML = "_COREML_"
_MLOPT = "_MLOPT_"
_VERSION = f"{COREML}/metadata_version"
# coremltools' numbers for the kinds of compression
_PALETTIZATION, QUANTIZATION = 2, 3


def attach(
    module: nn.Module, parameter_name: str, palettized: Palettized, gates: int | None = None
) -> None:
    """Make a module carry the palette of one of its parameters, instead of an earlier one.

    The parameter itself is left alone; the buffers are made on its device. ``gates``: the number of
    gates into which coremltools splits the weight, in this module or in one that shares it.
    """
    detach(module, parameter_name)
    device = getattr(module, parameter_name).device
    fields = _buffers(palettized)
    if gates is not None:
        fields = {name: field for name, field in fields.items() if name not in _ONLY_COREML_FIELDS}
        fields["gates"] = torch.tensor(gates)
    for name, tensor in fields.items():
        prefix = COREML if name in _COREML_FIELDS and gates is None else _MLOPT
        module.register_buffer(f"{prefix}/{parameter_name}/{name}", tensor.to(device))


def detach(module: nn.Module, parameter_name: str) -> None:
    """Remove the palette of a parameter from its module; nothing where there is none."""
    for prefix in (COREML, _MLOPT):
        start = f"{prefix}/{parameter_name}/"
        for name in [name for name in module._buffers if name.startswith(start)]:
            del module._buffers[name]


def mark(model: nn.Module) -> None:
    """Mark a model whose modules carry palettes, with the version of the fields."""
    model.register_buffer(_VERSION, torch.tensor(1))


@attrs.frozen(eq=False)
class CarriedPalette:
    """The palette of one parameter as it stands in the state of a model.

    name: the parameter's qualified name; weight: its values; fields: the buffers by their names.
    """

    name: str
    weight: torch.Tensor
    fields: Mapping[str, torch.Tensor]

    @property
    def prefix(self) -> str:
        """Prefix of the names of its fields for coremltools in the state."""
        module_name, _, parameter_name = self.name.rpartition(".")
        return f"{module_name}.{COREML}/{parameter_name}/".removeprefix(".")

    @property
    def gates(self) -> int | None:
        """The number of gates into which coremltools splits the weight; None: it takes it whole.

        Raises
        ------
        ConfigError
            No module has weights of that many gates.
        """
        if "gates" not in self.fields:
            return None
        gates = self.fields["gates"]
        if gates.numel() != 1 or int(gates) not in ARRANGEMENTS:
            raise self._damaged(f"{gates.tolist()} gates")
        return int(gates)

    def palettized(self) -> Palettized:
        """Return the palette, in the dtype that the weight had when it was palettized.

        Where the model has since been cast to a narrower dtype, tables and scales are in that.

        Raises
        ------
        ConfigError
            Fields are missing or contradict each other, or the palette is not that of the weight.
        """
        try:
            first = _DTYPES[int(self.fields["dtype"])]
            palettized = self._read(first)
        except (IndexError, KeyError, ValueError) as error:
            raise self._damaged(error) from error
        if palettized.shape != tuple(self.weight.shape) or not self._agrees(palettized, first):
            raise ConfigError(
                f"{self.name}: the weight is not the one that the model's palette stands for; it "
                "was changed after it was palettized. Palettize the model again, or drop the "
                "palette with mlopt.torch.remove_palettes(model)"
            )
        return palettized

    def _damaged(self, reason: object) -> ConfigError:
        return ConfigError(
            f"{self.name}: the palette that the model carries is damaged ({reason}); palettize the "
            "model again"
        )

    def _read(self, dtype: torch.dtype) -> Palettized:
        fields = self.fields

        def floats(name: str) -> npt.NDArray[Any]:
            tensor = fields[name]
            # a cast to a wider dtype has left exactly the same numbers
            return as_array(tensor.to(dtype) if _holds(tensor.dtype, dtype) else tensor)

        table = floats("lut")
        entries, d = table.shape[-2:]
        nbits = int(entries).bit_length() - 1
        vector_axis = int(fields["vector_axis"]) if "vector_axis" in fields else None
        shape = tuple(
            n // d if axis == vector_axis else n for axis, n in enumerate(self.weight.shape)
        )
        packed = as_array(fields["indices"])
        indices = unpack_bits(packed, nbits, int(np.prod(shape))).reshape(shape)
        scale = floats("palettization_scale") if "palettization_scale" in fields else None
        quantized = None
        if "codes" in fields:
            offset = as_array(fields["offset"]) if "offset" in fields else None
            quantized = QuantizedTable(as_array(fields["codes"]), floats("codes_scale"), offset)
            table = quantized.decode()
        return Palettized(table, indices, vector_axis, scale, quantized)

    def _agrees(self, palettized: Palettized, first: torch.dtype) -> bool:
        """Whether palette and weight are equal, except for the rounding of narrowing casts."""
        weight = self.weight.detach().cpu()
        stored = as_tensor(palettized.dequantize())
        if _holds(weight.dtype, first):
            return torch.equal(stored.to(weight.dtype), weight)
        # two factors and their product are rounded on one side, the product on the other
        limits = torch.finfo(weight.dtype)
        return torch.allclose(
            stored.double(),
            weight.double(),
            rtol=4 * max(limits.eps, torch.finfo(first).eps),
            atol=4 * limits.smallest_normal * limits.eps,
        )


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes by the number that stands for them in a state. Only ever append."""


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype has all numbers of another."""
    return torch.promote_types(dtype, other) == dtype


def carried_palettes(state: Mapping[str, torch.Tensor]) -> Iterator[CarriedPalette]:
    """Return the palettes in a state of a module, a TorchScript module or an exported program.

    Those of coremltools, which have no indices, are skipped.
    """
    fields_of: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        module_name, _, buffer = key.rpartition(".")
        prefix, _, rest = buffer.partition("/")
        parameter_name, _, field = rest.rpartition("/")
        if prefix in (COREML, _MLOPT) and parameter_name:
            name = f"{module_name}.{parameter_name}".removeprefix(".")
            fields_of.setdefault(name, {})[field] = tensor
    for name, fields in fields_of.items():
        if "indices" not in fields:
            continue
        if name not in state:
            raise ConfigError(
                f"{name}: the state has a palette for it but not the weight; give the whole state"
            )
        yield CarriedPalette(name, state[name], fields)


def target_of_others(state: Mapping[str, torch.Tensor]) -> Target | None:
    """Return the target that weights described by coremltools' own optimizers need, if any.

    Below iOS16, its conversion skips them.
    """
    suffix = "/compression_type"
    newest: Target | None = None
    for key in state:
        if not (is_palette_field(key) and key.endswith(suffix)):
            continue
        start = key.removesuffix("compression_type")
        if start.replace(f"{COREML}/", f"{_MLOPT}/") + "indices" in state:
            continue
        lut = state.get(start + "lut")
        is_old = state[key].tolist() in ([1], [2]) and start + "palettization_scale" not in state
        if lut is not None:
            is_old &= lut.numel() == max(lut.shape[-2:]) and lut.numel() in OLD_TABLE_SIZES
        newest = max(newest or Target.iOS16, Target.iOS16 if is_old else TYPED_SINCE)
    return newest


def remove_palettes(model: nn.Module) -> None:
    """Drop the palettes that a model carries; its weights stay as they are.

    Afterwards it is a plain model, which can be trained further. Palettes of coremltools go too.

    Raises
    ------
    ConfigError
        It is not a module, or it is a traced one, whose buffers cannot be removed.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"palettes can be removed from a torch.nn.Module, got {type(model).__name__}; remove "
            "them before the model is traced or exported"
        )
    for module in model.modules():
        for name in [name for name in module._buffers if is_palette_field(name)]:
            del module._buffers[name]


def is_palette_field(key: str) -> bool:
    """Whether a key of a state belongs to a palette, mlopt's or coremltools'."""
    return key.rpartition(".")[2].startswith((f"{COREML}/", f"{_MLOPT}/"))


_COREML_FIELDS = frozenset(
    {
        "compression_type",
        "lut",
        "palettization_scale",
        "quantization_n_bits",
        "quantization_scale",
        "vector_axis",
        "zero_point",
    }
)


_ONLY_COREML_FIELDS = frozenset(
    {"compression_type", "quantization_n_bits", "quantization_scale", "zero_point"}
)


def _buffers(palettized: Palettized) -> dict[str, torch.Tensor]:
    """Return the fields of a palette."""
    kinds = [_PALETTIZATION]
    table = as_tensor(palettized.table)
    fields = {
        "lut": table,
        "dtype": torch.tensor(_DTYPES.index(table.dtype)),
        "indices": as_tensor(pack_bits(palettized.indices, palettized.nbits)),
    }
    if palettized.vector_axis is not None:
        fields["vector_axis"] = torch.tensor(palettized.vector_axis)
    if palettized.scale is not None:
        fields["palettization_scale"] = as_tensor(palettized.scale)
    quantized = palettized.quantized
    if quantized is not None:
        fields["codes"] = as_tensor(quantized.codes)
        fields["codes_scale"] = as_tensor(quantized.scale)
        if quantized.offset is not None:
            fields["offset"] = as_tensor(quantized.offset)
        fields["quantization_n_bits"] = torch.tensor(8)
        fields["quantization_scale"] = fields["codes_scale"].clone()
        if quantized.offset is not None:
            fields["zero_point"] = fields["offset"].clone()
        if palettized.scale is None and palettized.vector_axis is None:
            kinds.append(QUANTIZATION)
    fields["compression_type"] = torch.tensor(kinds)
    return fields
