"""Findings of a lint, each with its place, and the report that holds them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import attrs

from mlopt.text.json_text import json_text
from mlopt.text.names import elided_apart, printable
from mlopt.text.tables import GAP, Column, text_table
from mlopt.text.words import counted

Severity = Literal["error", "warning", "note"]
"""error: it cannot load, cannot be expressed, or aborts; warning: slower, off the Neural Engine, or
larger than needed; note: worth knowing."""

Certainty = Literal["fact", "documented", "reported"]
"""fact: it follows from the file and its format; documented: by Apple; reported: by users, about
devices."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_INDENT = 4  # blanks before the rows of a rule
_WHAT_WIDTH = 44  # characters of what was found before it wraps, at least
_NARROWEST = 10  # characters of a name, at least


@attrs.frozen(kw_only=True)
class Place:
    """Where something was found; all of it empty: the model as a whole.

    Parameters
    ----------
    model
        The model's name in a pipeline; "" without one.
    functions
        The functions that have it, in program order.
    operations
        The operations in question, for a weight those that read it, each as ``"type(name)"``.
    weight
        The name of the weight; None if it is not about a weight.
    names
        All names of weights and operations by which the finding can be silenced.
    """

    model: str = ""
    functions: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    weight: str | None = None
    names: frozenset[str] = frozenset()

    @property
    def scope(self) -> str:
        """The model of a pipeline and the functions; "" for the main function of the only model."""
        functions = "" if self.functions == ("main",) else ",".join(self.functions)
        return "/".join(filter(None, (self.model, functions)))

    @property
    def operation(self) -> str:
        """The first operation, and how many more there are; "" without any."""
        if len(self.operations) < 2:
            return "".join(self.operations)
        return f"{self.operations[0]} and {len(self.operations) - 1} more"

    def __str__(self) -> str:
        parts = (self.scope, self.weight, self.operation)
        return ": ".join(filter(None, parts)) or "the model"

    def as_dict(self) -> dict[str, Any]:
        """The place as JSON values."""
        return {
            "model": self.model,
            "functions": list(self.functions),
            "operations": list(self.operations),
            "weight": self.weight,
        }


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that a rule found.

    Parameters
    ----------
    rule
        The name of the rule.
    severity
        What it costs.
    certainty
        How sure that is.
    what
        What was found, with its numbers.
    place
        Where.
    why
        Why it matters.
    remedy
        What to do.
    source
        The public source of what is not a fact, None where there is none.
    """

    rule: str
    severity: Severity
    certainty: Certainty
    what: str
    place: Place
    why: str
    remedy: str
    source: str | None = None

    def __str__(self) -> str:
        return printable(f"{self.severity}: {self.rule}: {self.place}: {self.what}")

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "certainty": self.certainty,
            "what": self.what,
            "where": self.place.as_dict(),
            "why": self.why,
            "remedy": self.remedy,
            "source": self.source,
        }


def _findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(findings)


@attrs.frozen(kw_only=True)
class LintReport:
    """All findings about a model, errors first, then in the order of rules and of the program.

    Parameters
    ----------
    target
        The deployment target that the model was checked for, by name.
    model_target
        The one that it has.
    rules
        The names of the rules that were applied.
    findings
        What they found and nothing silenced.
    silenced
        How many findings were silenced by the name of a weight or an operation.
    unused_ignores
        Those entries ``"rule:name"`` of `ignore` that silenced nothing.
    """

    target: str
    model_target: str
    rules: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = attrs.field(default=(), converter=_findings)
    silenced: int = 0
    unused_ignores: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """A report is true even if it has no findings."""
        return True

    def of_rule(self, rule: str) -> tuple[Finding, ...]:
        """The findings of one rule."""
        return tuple(finding for finding in self.findings if finding.rule == rule)

    @property
    def counts_by_severity(self) -> dict[Severity, int]:
        """Severity to number of findings, zeros included."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    @property
    def counts_by_rule(self) -> dict[str, int]:
        """Rule to number of findings, for rules that have some."""
        return dict(Counter(finding.rule for finding in self.findings))

    def has(self, severity: Severity) -> bool:
        """Whether there is a finding of that severity or a worse one."""
        worse = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return any(finding.severity in worse for finding in self.findings)

    def summary(self) -> str:
        """The account in a few lines: how many findings, for which target, what was silenced."""
        counts = ", ".join(
            counted(count, severity) for severity, count in self.counts_by_severity.items() if count
        )
        own = "" if self.target == self.model_target else f" (the model's own: {self.model_target})"
        lines = [f"{counts or 'Nothing found'}. Target: {self.target}{own}."]
        if self.silenced:
            lines.append(f"Silenced: {self.silenced}.")
        lines += [f"Silences nothing: {entry}" for entry in self.unused_ignores]
        return "\n".join(map(printable, lines))

    def to_text(self, width: int = 120) -> str:
        """A block of plain text for each rule that found something, and the summary.

        A block says why it matters, what to do and how sure that is, and has a row for each
        finding; it is `width` columns wide at most, for which long names are elided.
        """
        blocks: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            blocks.setdefault((finding.severity, finding.rule), []).append(finding)
        texts = [_block(findings, width) for findings in blocks.values()]
        return "\n\n".join([*texts, self.summary()])

    def __str__(self) -> str:
        return self.to_text()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "target": self.target,
            "model_target": self.model_target,
            "totals": {
                "findings": len(self.findings),
                **self.counts_by_severity,
                "silenced": self.silenced,
                "by_rule": self.counts_by_rule,
            },
            "rules": list(self.rules),
            "unused_ignores": list(self.unused_ignores),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json_text(self.as_dict(), indent=indent)


def _block(findings: list[Finding], width: int) -> str:
    """What there is to say about the findings of one rule and severity."""
    first = findings[0]
    remedies = dict.fromkeys(finding.remedy for finding in findings)
    lines = [
        f"{first.severity}: {first.rule} ({len(findings)})",
        f"  {first.why}",
        *(f"  What to do: {remedy}" for remedy in remedies),
        f"  How sure: {how_sure(first.certainty, first.source)}",
    ]
    lines = [wrapped(printable(line), width) for line in lines]
    return "\n".join([*lines, _rows(findings, width)])


def _rows(findings: list[Finding], width: int) -> str:
    """A row for each finding: the columns of its place that say something, and what was found."""
    places = [finding.place for finding in findings]
    columns = {
        "in": [place.scope for place in places],
        "weight": [place.weight or "" for place in places],
        "operation": [place.operation for place in places],
    }
    columns = {title: list(map(printable, cells)) for title, cells in columns.items() if any(cells)}
    room = width - _INDENT - _WHAT_WIDTH
    name_width = max(room // max(len(columns), 1) - GAP, _NARROWEST)
    table = text_table(
        [
            *(Column(title, elided_apart(cells, name_width)) for title, cells in columns.items()),
            Column("found", [printable(finding.what) for finding in findings], wraps=True),
        ],
        width=width - _INDENT,
        has_titles=bool(columns),
    )
    return textwrap.indent(table, " " * _INDENT)


def wrapped(line: str, width: int) -> str:
    """A line broken into lines of `width` columns, those after the first indented."""
    return textwrap.fill(
        line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def how_sure(certainty: Certainty, source: str | None) -> str:
    """Certainty and source in words."""
    words = {
        "fact": "a fact of the file and its format",
        "documented": "documented by Apple",
        "reported": "reported by users about devices",
    }[certainty]
    return f"{words} ({source})" if source else words
