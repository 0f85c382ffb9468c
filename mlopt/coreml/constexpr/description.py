"""Description of a compressed weight's form in words and numbers, without decompressing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from mlopt.coreml.constexpr import lut
from mlopt.coreml.constexpr.operations import Checked, checked
from mlopt.coreml.constexpr.parameters import BYTES, FLOATS, Array, Operand, Parameters
from mlopt.mil.program import Node, Variable
from mlopt.text.words import counted

_LUTS = ("constexpr_lut_to_dense", "constexpr_lut_to_sparse")
_SCALES = ("constexpr_blockwise_shift_scale", "constexpr_sparse_blockwise_shift_scale")
_SPARSE = "constexpr_sparse_to_dense"
_AFFINE = "constexpr_affine_dequantize"
_CAST = "constexpr_cast"


@attrs.frozen(kw_only=True)
class CompressedForm:
    """How a weight is compressed.

    Parameters
    ----------
    form
        In words: "palettized", "quantized", "scaled" (floats with scales of their own), "sparse" or
        "cast", joined with " + " where more than one holds; with ", int8 table" or ", uint8 table"
        if the entries are stored in that type.
    operations
        The types of the operations that give it, in order.
    nbits
        Bits of an index, of a quantized number, or of a stored value; without tables and masks.
    tables
        Number of lookup tables, None without any.
    block
        Elements along each axis of the weight that share a table or a scale; None without either.
    cluster_dim
        Values that an entry of a table holds, None without a table.
    has_scale
        Whether scales, of channels or blocks, follow the tables.
    sparsity
        Share of the elements that the mask leaves out, 0 to 1; None without a mask.
    size
        Elements of the weight.
    nbytes
        Bytes of everything stored for it: indices, tables, masks, scales, offsets.
    """

    form: str
    operations: tuple[str, ...]
    nbits: int
    tables: int | None
    block: tuple[int, ...] | None
    cluster_dim: int | None
    has_scale: bool
    sparsity: float | None
    size: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, everything counted; 0 for a weight without elements."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields, and ``bits_per_weight``, as JSON values."""
        values = attrs.asdict(self)
        values["operations"] = list(self.operations)
        values["block"] = None if self.block is None else list(self.block)
        return values | {"bits_per_weight": self.bits_per_weight}

    @property
    def short(self) -> str:
        """Form, bits, and what shares a table or a scale: ``"palettized 4 bits, 2 of 16x8x3x3"``.

        The number of tables and the block are included if there are several.
        """
        words = f"{self.form} {counted(self.nbits, 'bit')}"
        if self.block is None or self._is_one_block:
            return words
        shared = "x".join(map(str, self.block))
        return (
            f"{words}, {shared}" if self.tables is None else f"{words}, {self.tables} of {shared}"
        )

    def __str__(self) -> str:
        words = [self.form, counted(self.nbits, "bit")]
        if self.tables is not None:
            words.append(counted(self.tables, "table"))
        if self.cluster_dim is not None and self.cluster_dim > 1:
            words.append(f"vectors of {self.cluster_dim}")
        if self.block is not None and not self._is_one_block:
            words.append(f"blocks of {'x'.join(map(str, self.block))}")
        if self.has_scale:
            words.append("scaled")
        if self.sparsity is not None:
            words.append(f"{100 * self.sparsity:.1f} % left out")
        return ", ".join([*words, f"{self.bits_per_weight:.2f} bits per weight"])

    @property
    def _is_one_block(self) -> bool:
        return self.block is not None and math.prod(self.block) == self.size


def describe(chain: Sequence[Node], size: int, nbytes: int) -> CompressedForm:
    """Describe the form of a compressed weight.

    ``chain``: the operations that give it, each after those that it reads; ``size``: its elements;
    ``nbytes``: bytes of everything stored for it.

    Raises
    ------
    ModelFormatError
        One of its operations violates its definition.
    """
    links = {id(node): checked(node, _never) for node in chain}
    table = _last(links.values(), *_LUTS)
    mask = _last(links.values(), _SPARSE)
    cast = _last(links.values(), _CAST)
    scales = [link for link in links.values() if link.node.op_type in _SCALES]
    follows = [s for s in scales if table is not None and _source(s, _DATA) is table.node]
    entries = next(
        (s for s in scales if table is not None and _source(table, ("lut",)) is s.node), None
    )
    numbers = next((s for s in scales if s not in follows and s is not entries), None)
    numbers = numbers or _last(links.values(), _AFFINE)

    entry_type = "" if table is None else _entry_type(table, entries)
    is_float = numbers is not None and _bulk(numbers.parameters).dtype in FLOATS
    kind = "scaled" if is_float else "quantized"
    words = {"palettized": table, kind: numbers, "sparse": mask, "cast": cast}
    form = " + ".join(word for word, link in words.items() if link is not None)
    stored = table or numbers or mask or cast or links[id(chain[-1])]
    return CompressedForm(
        form=form + (f", {entry_type} table" if entry_type in BYTES else ""),
        operations=tuple(node.op_type for node in chain),
        nbits=lut.nbits(stored.parameters) if stored is table else _bulk(stored.parameters).bits,
        tables=None if table is None else math.prod(_table_groups(table)),
        block=None if stored not in (table, numbers) else _block(stored),
        cluster_dim=None if table is None else lut.vector_length(table.parameters),
        has_scale=bool(follows),
        sparsity=None if mask is None else _share_left_out(mask),
        size=size,
        nbytes=nbytes,
    )


_DATA = ("data", "nonzero_data", "quantized_data", "indices", "indices_nonzero_data", "source_val")
"""Parameters that hold the bulk of a weight; each operation has one of them."""


def _never(variable: Variable) -> Array:
    raise AssertionError(f"{variable!r} is read for a description")


def _last(links: Iterable[Checked], *types: str) -> Checked | None:
    return next((link for link in reversed([*links]) if link.node.op_type in types), None)


def _bulk(p: Parameters) -> Operand:
    return next(p[name] for name in _DATA if name in p)


def _source(link: Checked, names: Iterable[str]) -> Node | None:
    """The constexpr operation that computes the first of the parameters that is present."""
    bound = next(link.node.inputs[name][0] for name in names if name in link.node.inputs)
    return bound.node if isinstance(bound, Variable) and bound.constant is None else None


def _entry_type(table: Checked, entries: Checked | None) -> str:
    if entries is None:
        return table.parameters["lut"].dtype
    return entries.parameters["data"].dtype if "data" in entries.parameters else ""


def _table_groups(table: Checked) -> tuple[int, ...]:
    """Number of tables along each axis."""
    groups = table.parameters["lut"].shape[:-2]
    return groups or (1,) * len(table.result_shape)


def _block(link: Checked) -> tuple[int, ...]:
    """Elements of the weight along each axis that share a table, or a scale."""
    shape = link.result_shape
    p = link.parameters
    if "lut" in p:
        counts = _table_groups(link)
    elif "axis" in p:
        axis = p.integer("axis") % len(shape)
        counts = tuple(p["scale"].size if i == axis else 1 for i in range(len(shape)))
    else:
        counts = p["scale"].shape
    return tuple(n // count for n, count in zip(shape, counts, strict=True))


def _share_left_out(mask: Checked) -> float:
    size = math.prod(mask.result_shape)
    return 1.0 - mask.parameters["nonzero_data"].size / size if size else 0.0
