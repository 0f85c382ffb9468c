"""The report of a compression run: what happened to every weight of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import attrs
import yaml

from mlopt.requests.forms import PaletteForm
from mlopt.requests.rules import UnmatchedRule
from mlopt.text.json_text import finite_or_none, json_text
from mlopt.text.names import elided_apart, middle_elided, printable
from mlopt.text.tables import Column, text_table, width_left
from mlopt.text.words import counted, human_bytes, percent, sizes_compared

Outcome = Literal["palettized", "kept"]

_USER_WIDTH = 14  # characters of the operations that use a weight, and of its shape, at most
_NAME_WIDTH = 16  # characters of a name, at least
_RESULT_WIDTH = 28  # characters of a result before it wraps, at least
# From this share of the bytes on, the summary names the largest weights that were kept.
_NOTEWORTHY_SHARE = 0.1
# Weights that the summary names one below the other, at most; JSON has all.
_MOST_NAMED = 32


@attrs.frozen(kw_only=True)
class WeightRow:
    """The account of one stored weight.

    Parameters
    ----------
    name
        The name of the constant.
    model
        The model of a pipeline that it belongs to, "" without a pipeline.
    functions
        The functions that use it, in program order.
    shape, dtype
        Of the dense weight; dtype by its numpy-like name (``"float16"``).
    consumers
        The operations that read it, each as ``"type(name)"``.
    outcome
        ``"palettized"`` or ``"kept"`` (unchanged, bit for bit).
    reason
        The rule that decided, or why the weight stays as it is.
    category
        The reason without what is particular to this weight, by which the summary counts;
        `reason` itself if not given.
    note
        What else a reader should know (a group size other than requested, consumers with different
        rules), or None.
    nbits, granularity, group_size, cluster_dim, per_channel_scale, lut_dtype
        The form that was stored. `nbits` and `granularity` are None for a kept weight,
        `group_size` is None without groups, `lut_dtype` is None for tables in the weight's dtype.
    mode
        How the table was made, None for a kept weight.
    bits_per_weight
        Stored bits divided by the number of weights: indices, tables and scales counted.
    bytes_before, bytes_after
        Bytes of stored data.
    is_elementwise
        Whether only elementwise operations read it, so that no sum averages its errors out; see
        `Report.elementwise`.
    snr_db
        ``10 log10(sum w^2 / sum (w - stored)^2)``; infinity if the stored weight is equal, None if
        nothing was measured.
    method
        What the table was fitted to: ``"plain"``, the values; ``"diagonal"`` or ``"hessian"``, the
        outputs of the operation that reads the weight, by the mean squares of its inputs or all
        their second moments; ``"guided"``, the outputs of the model, by second moments weighted by
        gradients; ``"sequential"``, the outputs of the float model, for the inputs that compressed
        operations give. None for a kept weight.
    output_snr_db
        ``10 log10(sum (W x)^2 / sum ((W - stored) x)^2)`` over the inputs of a calibration, after
        the correction of a bias; None without statistics. For ``"sequential"`` the ratio of what
        the operation computes in the float model and in the compressed one, over the samples.
    has_corrected_bias
        Whether the mean error of the outputs went into the bias.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    outcome: Outcome = attrs.field(validator=attrs.validators.in_(("palettized", "kept")))
    reason: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    model: str = ""
    functions: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    category: str = attrs.field(default=attrs.Factory(lambda self: self.reason, takes_self=True))
    note: str | None = None
    mode: str | None = None
    nbits: int | None = None
    granularity: str | None = None
    group_size: int | None = None
    cluster_dim: int = 1
    per_channel_scale: bool = False
    lut_dtype: str | None = None
    is_elementwise: bool = False
    snr_db: float | None = None
    method: str | None = None
    output_snr_db: float | None = None
    has_corrected_bias: bool = False

    @property
    def is_palettized(self) -> bool:
        """Whether the weight was palettized, and not kept."""
        return self.outcome == "palettized"

    @property
    def is_lossless(self) -> bool:
        """Whether the stored weight equals the original."""
        return not self.is_palettized or self.snr_db == math.inf

    @property
    def full_name(self) -> str:
        """The name, prefixed with the model's in a pipeline: ``"first/conv_weight"``."""
        return f"{self.model}/{self.name}" if self.model else self.name

    @property
    def form(self) -> str:
        """The stored form in a few words, ``"4-bit kmeans, per tensor"``; "" for a kept weight."""
        if not self.is_palettized:
            return ""
        form = PaletteForm(
            nbits=self.nbits,
            group_size=self.group_size,
            cluster_dim=self.cluster_dim,
            has_scale=self.per_channel_scale,
            lut_dtype=self.lut_dtype,
        )
        return form.words(self.mode or "")

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON values: an infinite ratio is None with ``lossless`` true."""
        values = attrs.asdict(self)
        values["shape"] = list(self.shape)
        values["functions"] = list(self.functions)
        values["consumers"] = list(self.consumers)
        values["form"] = self.form
        values["lossless"] = self.is_lossless
        values["bits_per_weight"] = finite_or_none(self.bits_per_weight)
        values["snr_db"] = finite_or_none(self.snr_db)
        values["output_snr_db"] = finite_or_none(self.output_snr_db)
        return values


def _rows(rows: Iterable[WeightRow]) -> tuple[WeightRow, ...]:
    return tuple(rows)


def _rules(rules: Iterable[UnmatchedRule]) -> tuple[UnmatchedRule, ...]:
    return tuple(rules)


def _notes(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(notes)


@attrs.frozen(kw_only=True)
class Report:
    """The account of a run: one row per weight in program order, and notes on the whole model.

    Parameters
    ----------
    rows
        One for each stored weight; a weight that several functions share has one.
    target_before, target_after
        Deployment targets by name (``"iOS15"``), None where unknown.
    target_reason
        Why the target was raised; None if it was not.
    unmatched_rules
        Rules of the configuration that apply to no weight.
    notes
        What else a reader should know, one sentence each.
    """

    rows: tuple[WeightRow, ...] = attrs.field(default=(), converter=_rows)
    target_before: str | None = None
    target_after: str | None = None
    target_reason: str | None = None
    unmatched_rules: tuple[UnmatchedRule, ...] = attrs.field(default=(), converter=_rules)
    notes: tuple[str, ...] = attrs.field(default=(), converter=_notes)

    def __iter__(self) -> Iterator[WeightRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> WeightRow:
        """The row of the weight called `name`; raises KeyError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def palettized(self) -> tuple[WeightRow, ...]:
        """The rows of the palettized weights."""
        return tuple(row for row in self.rows if row.is_palettized)

    @property
    def kept(self) -> tuple[WeightRow, ...]:
        """The rows of the weights that were kept unchanged."""
        return tuple(row for row in self.rows if not row.is_palettized)

    @property
    def elementwise(self) -> tuple[WeightRow, ...]:
        """The rows of palettized weights that only elementwise operations read.

        Rotary and position tables, windows and the like: no sum over many of them averages their
        errors out. They may be worth a rule that leaves them alone.
        """
        return tuple(row for row in self.palettized if row.is_elementwise)

    @property
    def bytes_before(self) -> int:
        """Bytes of all the weights before the run."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all the weights after the run."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def ratio(self) -> float:
        """Bytes before over bytes after; 1 for a model without weights."""
        return self.bytes_before / self.bytes_after if self.bytes_after else 1.0

    @property
    def kept_share(self) -> float:
        """The share of the original bytes in weights that were kept, 0 to 1."""
        before = self.bytes_before
        return sum(row.bytes_before for row in self.kept) / before if before else 0.0

    @property
    def kept_categories(self) -> dict[str, tuple[int, int]]:
        """Category of reason to (weights, bytes) of the kept weights, most bytes first."""
        categories: dict[str, tuple[int, int]] = {}
        for row in self.kept:
            weights, size = categories.get(row.category, (0, 0))
            categories[row.category] = (weights + 1, size + row.bytes_before)
        return dict(sorted(categories.items(), key=lambda item: -item[1][1]))

    def summary(self) -> str:
        """A summary in a few lines: sizes, what was kept and why, the target, unused rules."""
        if not self.rows:
            lines = ["The model has no weights.", *self._closing_lines()]
            return "\n".join(map(printable, lines))
        lines = [
            f"Palettized {counted(len(self.palettized), 'weight')} of {len(self.rows)}: "
            f"{sizes_compared(self.bytes_before, self.bytes_after)}."
        ]
        if any(row.output_snr_db is not None for row in self.rows):
            lines.append(self._fitted())
        if self.kept:
            reasons = ", ".join(
                f"{category}: {weights} ({human_bytes(size)})"
                for category, (weights, size) in self.kept_categories.items()
            )
            lines.append(
                f"Kept {len(self.kept)} of {counted(len(self.rows), 'weight')}, "
                f"{percent(self.kept_share)} of the bytes. By reason: {reasons}."
            )
        if self.kept_share >= _NOTEWORTHY_SHARE:
            noteworthy = _NOTEWORTHY_SHARE * self.bytes_before / 3
            largest = sorted(self.kept, key=lambda row: -row.bytes_before)[:3]
            largest = [row for row in largest if row.bytes_before >= noteworthy]
            named = "; ".join(
                f"{row.full_name}, {human_bytes(row.bytes_before)}: {row.reason}" for row in largest
            )
            lines += [f"Largest kept: {named}."] if named else []
        grown = [row for row in self.palettized if row.bytes_after > row.bytes_before]
        if grown:
            before, after = (
                sum(getattr(row, f"bytes_{when}") for row in grown) for when in ("before", "after")
            )
            lines.append(
                f"Larger than before: {counted(len(grown), 'palettized weight')}, "
                f"{human_bytes(before)} -> {human_bytes(after)}."
            )
        lines += self._elementwise_lines()
        return "\n".join(map(printable, lines + self._closing_lines()))

    def _elementwise_lines(self) -> list[str]:
        """Lines on weights that only elementwise operations read, and how to leave them alone."""
        rows = self.elementwise
        if not rows:
            return []
        names = list(dict.fromkeys(row.name for row in rows))
        sizes = [sum(getattr(row, f"bytes_{when}") for row in rows) for when in ("before", "after")]
        more = len(names) - _MOST_NAMED
        return [
            f"Only elementwise operations read {counted(len(rows), 'palettized weight')}, "
            f"{' -> '.join(map(human_bytes, sizes))}: rotary or position tables, windows and the "
            "like, whose errors no sum averages out. To leave them alone, use --skip NAME for "
            "each, op_name_configs={NAME: None, ...}, or in a YAML file:",
            *(f"  {line}" for line in rules_to_keep(names[:_MOST_NAMED]).splitlines()),
            *([f"  # and {more} more: see elementwise of the report in JSON"] if more > 0 else []),
        ]

    def _closing_lines(self) -> list[str]:
        """Lines on the target, unused rules, and notes."""
        lines = [] if self.target_after is None else [self._target_line()]
        lines += [f"Unused rule: {rule}" for rule in self.unmatched_rules]
        return lines + [f"Note: {note}" for note in self.notes]

    def _target_line(self) -> str:
        if self.target_before in (None, self.target_after):
            return f"Target: {self.target_after}."
        why = f": {self.target_reason}" if self.target_reason else ""
        return f"Target: raised from {self.target_before} to {self.target_after}{why}."

    def to_table(self, width: int = 120) -> str:
        """A plain text table of the rows, at most `width` columns wide.

        Long names are elided so that different names stay different.
        """
        columns = [
            Column("used by", [_elided(_used_by(row.consumers)) for row in self.rows]),
            Column(
                "shape", [_elided("x".join(map(str, row.shape)) or "scalar") for row in self.rows]
            ),
            Column("bits", [f"{row.bits_per_weight:.2f}" for row in self.rows], is_number=True),
            Column("before", [human_bytes(row.bytes_before) for row in self.rows], is_number=True),
            Column("after", [human_bytes(row.bytes_after) for row in self.rows], is_number=True),
            Column("SNR", [_decibels(row.snr_db) for row in self.rows], is_number=True),
        ]
        if any(row.output_snr_db is not None for row in self.rows):
            outputs = [_decibels(row.output_snr_db) for row in self.rows]
            columns.append(Column("outputs", outputs, is_number=True))
        name_width = max(_NAME_WIDTH, width_left(width, columns, more=2) - _RESULT_WIDTH)
        names = elided_apart((printable(row.full_name) for row in self.rows), name_width)
        results = Column("result", [printable(_result(row)) for row in self.rows], wraps=True)
        return text_table([Column("weight", names), *columns, results], width=width)

    def __str__(self) -> str:
        return f"{self.to_table()}\n\n{self.summary()}" if self.rows else self.summary()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; see :meth:`WeightRow.as_dict` for the rows."""
        return {
            "target_before": self.target_before,
            "target_after": self.target_after,
            "target_reason": self.target_reason,
            "totals": {
                "weights": len(self.rows),
                "palettized": len(self.palettized),
                "kept": len(self.kept),
                "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after,
                "ratio": self.ratio,
                "kept_share": self.kept_share,
                "kept_categories": {
                    category: {"weights": weights, "bytes": size}
                    for category, (weights, size) in self.kept_categories.items()
                },
            },
            "elementwise": self._elementwise_as_dict(),
            "unmatched_rules": [rule.as_dict() for rule in self.unmatched_rules],
            "notes": list(self.notes),
            "rows": [row.as_dict() for row in self.rows],
        }

    def _fitted(self) -> str:
        """How many weights a calibration served, and how."""
        methods = Counter(row.method for row in self.palettized)
        better = [method for method in ("sequential", "guided") if methods[method]]
        fitted = (*better, "hessian", "diagonal")
        by = ", ".join(f"{method} {methods[method]}" for method in fitted)
        biases = sum(row.has_corrected_bias for row in self.palettized)
        return (
            f"Fitted to outputs by the calibration: {by}; to the values alone: "
            f"{methods['plain']}. Biases corrected: {biases}."
        )

    def _elementwise_as_dict(self) -> dict[str, Any]:
        rows = self.elementwise
        names = list(dict.fromkeys(row.name for row in rows))
        return {
            "weights": len(rows),
            "bytes_before": sum(row.bytes_before for row in rows),
            "bytes_after": sum(row.bytes_after for row in rows),
            "op_name_configs": dict.fromkeys(names),
            "yaml": rules_to_keep(names) if names else "",
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text without NaN or infinities."""
        return json_text(self.as_dict(), indent=indent)


def rules_to_keep(names: Iterable[str], *, on_one_line: bool = False) -> str:
    """The YAML of rules that leave weights alone, with any characters in their names."""
    rules: dict[str, None] = dict.fromkeys(names)
    text: str = yaml.safe_dump(
        rules, sort_keys=False, width=math.inf, default_flow_style=on_one_line
    )
    if on_one_line:
        return f"op_name_configs: {text}"
    return "op_name_configs:\n" + "".join(f"  {line}\n" for line in text.splitlines())


def _used_by(consumers: tuple[str, ...]) -> str:
    """The types of the consumers, with a count for repeated ones."""
    types = [consumer.partition("(")[0] for consumer in consumers]
    counted = {kind: types.count(kind) for kind in types}
    return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in counted.items())


def _elided(text: str) -> str:
    return middle_elided(printable(text), _USER_WIDTH)


def _result(row: WeightRow) -> str:
    """The form of a palettized weight or the reason to keep it, and its note."""
    result = row.form if row.is_palettized else f"kept: {row.reason}"
    return f"{result} ({row.note})" if row.note else result


def _decibels(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return "equal" if ratio == math.inf else f"{ratio:.1f} dB"
