"""Palettes of what coremltools makes of the weights of recurrent modules, beside brute force."""

import numpy as np
import pytest
import torch
from torch import nn

from mlopt.palette import palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch.gates import ARRANGEMENTS, arranged

HIDDEN, INPUTS = 12, 16
SPECS = {
    "one table": PaletteSpec(nbits=2),
    "groups in gates": PaletteSpec(nbits=1, channel_axis=0, group_size=6),
    "groups of a gate": PaletteSpec(nbits=2, channel_axis=0, group_size=HIDDEN),
    "groups of inputs": PaletteSpec(nbits=2, channel_axis=1, group_size=4),
    "vectors": PaletteSpec(nbits=3, channel_axis=0, cluster_dim=2),
    "vectors in groups": PaletteSpec(nbits=1, channel_axis=0, group_size=6, cluster_dim=3),
    "vectors of inputs": PaletteSpec(nbits=3, channel_axis=1, cluster_dim=2),
    "scale": PaletteSpec(nbits=2, scale_axis=0),
    "scale of inputs": PaletteSpec(nbits=2, scale_axis=1),
    "codes": PaletteSpec(nbits=2, lut_dtype="uint8"),
    "codes in groups, scale": PaletteSpec(
        nbits=2, channel_axis=0, group_size=6, scale_axis=0, lut_dtype="int8"
    ),
}


def palette(spec, gates, dtype=np.float16):
    weight = np.random.default_rng(0).normal(size=(gates * HIDDEN, INPUTS)).astype(dtype)
    return palettize(weight, spec)[0]


@pytest.mark.parametrize("gates", ARRANGEMENTS)
@pytest.mark.parametrize("spec", SPECS)
def test_palettes_of_gates_stand_for_the_rows_of_gates(spec, gates):
    whole = palette(SPECS[spec], gates)
    parts = whole.dequantize().reshape(gates, HIDDEN, INPUTS)
    found = arranged(whole, gates)
    assert len(found) == len(ARRANGEMENTS[gates])
    for each, order in zip(found, ARRANGEMENTS[gates], strict=True):
        expected = np.concatenate([parts[gate] for gate in order])
        assert np.array_equal(each.dequantize(), expected)
        assert (each.quantized is None) == (whole.quantized is None)
        assert each.indices.flags.c_contiguous


@pytest.mark.parametrize(("gates", "group"), [(4, 8), (3, 9), (3, 18)])
def test_groups_across_gates_are_cut(gates, group):
    whole = palette(PaletteSpec(nbits=1, channel_axis=0, group_size=group), gates)
    parts = whole.dequantize().reshape(gates, HIDDEN, INPUTS)
    for each, order in zip(arranged(whole, gates), ARRANGEMENTS[gates], strict=True):
        assert np.array_equal(each.dequantize(), np.concatenate([parts[gate] for gate in order]))


def test_no_more_tables_than_needed_are_stored():
    for group, tables in ((6, 8), (HIDDEN, 4), (2 * HIDDEN, 2), (4 * HIDDEN, 1)):
        spec = PaletteSpec(nbits=1, channel_axis=0, group_size=group)
        (found,) = arranged(palette(spec, 4), 4)
        assert found.table_shape == (tables, 1)
    found = arranged(palette(SPECS["groups of a gate"], 3), 3)
    assert [each.table_shape for each in found] == [(1, 1)] * 3


def test_palettes_that_grow_beyond_the_weight_do_not_fit():
    spec = PaletteSpec(nbits=6, channel_axis=0, group_size=16)  # cut to groups of 4
    assert arranged(palette(spec, 4), 4) is None


def test_vectors_across_gates_do_not_fit():
    spec = PaletteSpec(nbits=2, channel_axis=0, cluster_dim=8)
    assert arranged(palette(spec, 4), 4) is None


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_gates_are_those_of_pytorch(cls):
    gates = {nn.LSTM: 4, nn.GRU: 3}[cls]
    weight = cls(INPUTS, HIDDEN).weight_ih_l0
    assert torch.Size((gates * HIDDEN, INPUTS)) == weight.shape
