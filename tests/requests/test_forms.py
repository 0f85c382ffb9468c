import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.mil.constexpr_forms import INDEX_BITS, OLD_INDEX_BITS, OLD_TABLE_SIZES, index_bits
from mlopt.mil.targets import Target
from mlopt.palette.palettize import palettize
from mlopt.palette.value import bits, spec
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import BEFORE_IOS18, PaletteForm, palette_nbytes

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "coreml.md"

# Every part of a request that the table of the guide names, as a form that has it and no other.
PARTS: dict[str, dict[str, Any]] = {
    "one table per weight": {},
    "1, 2, 4, 6 or 8 bits": {"nbits": 8},
    "3 bits": {"nbits": 3},
    "a table for each group of channels": {"group_size": 8},
    "vectors (`cluster_dim`)": {"cluster_dim": 2},
    "per-channel scale": {"has_scale": True},
    "tables in 8 bits (`lut_dtype`)": {"lut_dtype": "int8"},
    "joint compression of sparse or quantized weights": {"is_joint": True},
}
SPECS = [
    PaletteSpec(nbits=4),
    PaletteSpec(nbits=3),
    PaletteSpec(nbits=2, channel_axis=1, group_size=4),
    PaletteSpec(nbits=2, channel_axis=0, cluster_dim=2),
    PaletteSpec(nbits=2, channel_axis=0, cluster_dim=2, group_size=8, lut_dtype="uint8"),
    PaletteSpec(nbits=4, scale_axis=1, lut_dtype="int8"),
]


def form(**parts):
    return PaletteForm(**({"nbits": 4} | parts))


def test_the_guide_says_what_needs_which_target():
    text = GUIDE.read_text(encoding="utf-8")
    section = text.partition("## Deployment targets")[2].partition("\n## ")[0]
    section = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", section)  # links
    rows = re.findall(r"^\| (.+?) \| (iOS\d+), (macOS\d+) \|$", section, flags=re.MULTILINE)
    named = []
    for parts, ios, macos in rows:
        for part in parts.split("; "):
            named.append(part)
            needed = form(**PARTS[part]).needed_target
            assert (needed.ios, needed.macos) == (ios, macos), part
    assert sorted(named) == sorted(PARTS)


@pytest.mark.parametrize("nbits", INDEX_BITS)
def test_bits_and_the_target_that_they_need(nbits):
    needed = form(nbits=nbits).needed_target
    assert needed == (Target.iOS18 if nbits == 3 else Target.iOS16)
    assert [nbits in index_bits(target) for target in (Target.iOS16, Target.iOS18)] == [
        needed == Target.iOS16,
        True,
    ]


def test_bits_are_those_of_palettes():
    assert INDEX_BITS == bits.NBITS == spec.NBITS
    assert OLD_TABLE_SIZES == (2, 4, 16, 64, 256)
    assert form(nbits=None).needed_target == Target.iOS16


def test_new_parts():
    everything = {name: value for parts in PARTS.values() for name, value in parts.items()}
    parts = form(**everything | {"nbits": 3}).new_parts
    assert parts == ("group_size", "cluster_dim", "has_scale", "nbits", "lut_dtype", "is_joint")
    assert form().new_parts == ()


def test_words():
    assert form().words() == "4-bit, per tensor"
    assert form().words("kmeans") == "4-bit kmeans, per tensor"
    assert form(nbits=None).words("unique") == "unique, per tensor"
    many = form(group_size=16, cluster_dim=2, has_scale=True, lut_dtype="int8").words("kmeans")
    assert many == "4-bit kmeans, groups of 16, vectors of 2, per-channel scale, int8 table"
    assert BEFORE_IOS18 == (
        "one scalar table of floats for a weight at 1, 2, 4, 6 or 8 bits, without scale"
    )
    assert all(f"{nbits}" in BEFORE_IOS18 for nbits in OLD_INDEX_BITS)


@pytest.mark.parametrize("wanted", SPECS, ids=str)
def test_a_palette_has_the_form_and_the_bytes_that_were_wanted(wanted):
    weight = np.random.default_rng(0).normal(size=(16, 8, 3)).astype(np.float16)
    palettized, _ = palettize(weight, wanted)
    assert PaletteForm.of_palettized(palettized) == PaletteForm.of_spec(wanted)
    assert wanted.nbits is not None
    assert palettized.nbytes == palette_nbytes(
        wanted, weight.shape, nbits=wanted.nbits, itemsize=weight.itemsize
    )
