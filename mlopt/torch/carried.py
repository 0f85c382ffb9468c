"""A palette that a module carries along in buffers beside its weight.

The weight of a palettized module is dense: the module computes, trains and is traced as before. Its
palette is in buffers, so it goes wherever the state of the module goes: ``state_dict``,
``deepcopy``, files, ``torch.jit.trace`` and ``torch.export``. For a parameter ``weight`` these are

- ``_COREML_/weight/...``: the table and its scales, where ``coremltools.convert`` looks for them
  from version 8 on. It has no field for indices, and searches for them.
- ``_MLOPT_/weight/indices``: the packed indices, uint8[ceil(indices * nbits / 8)], so that
  nobody who knows of them has to search; ``codes``: the table in 8 bits, where it is stored so.

With a table in 8 bits and a per-channel scale, coremltools has no way to say both; its
fields then hold the table in floats, which stands for the same weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import numpy as np
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette.bits import pack_bits, unpack_bits
from mlopt.palette.palettized import Palettized
from mlopt.palette.quantized import QuantizedTable
from mlopt.torch.tensors import as_array, as_tensor

COREML = "_COREML_"
_MLOPT = "_MLOPT_"
_VERSION = f"{COREML}/metadata_version"
# coremltools' numbers for the kinds of compression
_PALETTIZATION, QUANTIZATION = 2, 3


def attach(module: nn.Module, parameter_name: str, palettized: Palettized) -> None:
    """Let a module carry the palette of one of its parameters, in the place of an earlier one.

    The parameter itself is left alone; the buffers are made on its device.
    """
    detach(module, parameter_name)
    device = getattr(module, parameter_name).device
    for name, tensor in _buffers(palettized).items():
        prefix = COREML if name in _COREML_FIELDS else _MLOPT
        module.register_buffer(f"{prefix}/{parameter_name}/{name}", tensor.to(device))


def detach(module: nn.Module, parameter_name: str) -> None:
    """Remove the palette of a parameter from its module; nothing where there is none."""
    for prefix in (COREML, _MLOPT):
        start = f"{prefix}/{parameter_name}/"
        for name in [name for name in module._buffers if name.startswith(start)]:
            del module._buffers[name]


def mark(model: nn.Module) -> None:
    """Say of a model that modules of it carry palettes, and in which version of the fields."""
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
        """What the names of its fields for coremltools start with in the state."""
        module_name, _, parameter_name = self.name.rpartition(".")
        return f"{module_name}.{COREML}/{parameter_name}/".removeprefix(".")

    def palettized(self) -> Palettized:
        """The palette, in the dtype of the weight.

        Raises
        ------
        ConfigError
            Fields are missing or contradict each other, or the palette is not that of the weight.
        """
        try:
            palettized = self._read()
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{self.name}: the palette that the model carries is damaged ({error}); palettize "
                "the model again"
            ) from error
        if palettized.shape != tuple(self.weight.shape) or not self._agrees(palettized):
            raise ConfigError(
                f"{self.name}: the weight is not the one that the model's palette stands for; it "
                "was changed after it was palettized. Palettize the model again, or drop the "
                "palette with mlopt.torch.remove_palettes(model)"
            )
        return palettized

    def _read(self) -> Palettized:
        fields = self.fields
        table = as_array(fields["lut"])
        entries, d = table.shape[-2:]
        nbits = int(entries).bit_length() - 1
        vector_axis = int(fields["vector_axis"]) if "vector_axis" in fields else None
        shape = tuple(
            n // d if axis == vector_axis else n for axis, n in enumerate(self.weight.shape)
        )
        packed = as_array(fields["indices"])
        indices = unpack_bits(packed, nbits, int(np.prod(shape))).reshape(shape)
        scale = as_array(fields["palettization_scale"]) if "palettization_scale" in fields else None
        quantized = None
        if "codes" in fields:
            offset = as_array(fields["offset"]) if "offset" in fields else None
            quantized = QuantizedTable(
                as_array(fields["codes"]), as_array(fields["codes_scale"]), offset
            )
            table = quantized.decode()
        return Palettized(table, indices, vector_axis, scale, quantized)

    def _agrees(self, palettized: Palettized) -> bool:
        """Whether palette and weight are equal but for a rounding, as ``model.half()`` leaves."""
        weight = self.weight.detach()
        stored = as_tensor(palettized.dequantize()).to(weight.device)
        if torch.equal(stored, weight):
            return True
        limits = torch.finfo(weight.dtype)
        return torch.allclose(stored, weight, rtol=2 * limits.eps, atol=limits.tiny)


def carried_palettes(state: Mapping[str, torch.Tensor]) -> Iterator[CarriedPalette]:
    """The palettes in a state: that of a module, a TorchScript module or an exported program.

    Those of coremltools, which have no indices, are passed over.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        module_name, _, buffer = key.rpartition(".")
        prefix, _, rest = buffer.partition("/")
        parameter_name, _, field = rest.rpartition("/")
        if prefix in (COREML, _MLOPT) and parameter_name:
            name = f"{module_name}.{parameter_name}".removeprefix(".")
            found.setdefault(name, {})[field] = tensor
    for name, fields in found.items():
        if "indices" not in fields:
            continue
        if name not in state:
            raise ConfigError(
                f"{name}: the state has a palette for it but not the weight; give the whole state"
            )
        yield CarriedPalette(name, state[name], fields)


def remove_palettes(model: nn.Module) -> None:
    """Drop the palettes that a model carries; its weights stay as they are.

    Afterwards it is a plain model, to be trained further, say. Palettes of coremltools go as well.
    """
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


def _buffers(palettized: Palettized) -> dict[str, torch.Tensor]:
    """The fields of a palette."""
    kinds = [_PALETTIZATION]
    fields = {
        "lut": as_tensor(palettized.table),
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
        if palettized.scale is None:
            kinds.append(QUANTIZATION)
            fields["quantization_n_bits"] = torch.tensor(8)
            fields["quantization_scale"] = fields["codes_scale"].clone()
            if quantized.offset is not None:
                fields["zero_point"] = fields["offset"].clone()
    fields["compression_type"] = torch.tensor(kinds)
    return {name: tensor.clone() for name, tensor in fields.items()}
