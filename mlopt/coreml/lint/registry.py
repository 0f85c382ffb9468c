"""The rules of the lint by name, and their selection."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

import attrs

from mlopt.coreml.lint.findings import Certainty, Finding, Place, Severity, how_sure, wrapped
from mlopt.coreml.lint.subject import Subject
from mlopt.errors import ConfigError


@attrs.frozen
class Hit:
    """A hit of a rule: what it found, where, and differences from the rule's own words.

    Parameters
    ----------
    what
        What was found, with its numbers.
    place
        Where.
    remedy, severity
        Instead of the rule's, if given.
    """

    what: str
    place: Place
    remedy: str | None = None
    severity: Severity | None = None


Check = Callable[[Subject], Iterator[Hit]]


@attrs.frozen(kw_only=True)
class Rule:
    """One rule. Its words are the docstring of its function.

    Parameters
    ----------
    name
        In lower case with hyphens.
    severity, certainty, source, remedy
        As of the findings that it makes.
    title
        What it looks for, in a line.
    why
        Why that matters.
    check
        Yields what it finds in a model.
    """

    name: str
    severity: Severity
    certainty: Certainty
    source: str | None
    remedy: str
    title: str
    why: str
    check: Check

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Yield what the rule finds in a model."""
        for hit in self.check(subject):
            yield Finding(
                rule=self.name,
                severity=hit.severity or self.severity,
                certainty=self.certainty,
                what=hit.what,
                place=hit.place,
                why=self.why,
                remedy=hit.remedy or self.remedy,
                source=self.source,
            )

    def explanation(self, width: int = 100) -> str:
        """The full explanation of the rule, in lines of `width` columns."""
        lines = (
            f"{self.name} ({self.severity}): {self.title}",
            f"Why: {self.why}",
            f"What to do: {self.remedy}",
            f"How sure: {how_sure(self.certainty, self.source)}",
        )
        return "\n".join(wrapped(line, width) for line in lines)


RULES: dict[str, Rule] = {}
"""Every rule by name, in the order in which they are applied and listed."""


def rule(
    name: str,
    *,
    severity: Severity,
    certainty: Certainty = "fact",
    source: str | None = None,
    remedy: str,
) -> Callable[[Check], Check]:
    """Register a function as a rule.

    The first line of its docstring is the rule's title; what follows says why it matters.
    """

    def register(check: Check) -> Check:
        title, _, why = inspect.cleandoc(check.__doc__ or "").partition("\n")
        if name in RULES or not why.strip():
            raise ValueError(f"rule {name!r} exists already, or its docstring gives no reason")
        RULES[name] = Rule(
            name=name,
            severity=severity,
            certainty=certainty,
            source=source,
            remedy=remedy,
            title=title.strip(),
            why=" ".join(why.split()),
            check=check,
        )
        return check

    return register


@attrs.frozen
class Silence:
    """An entry of `ignore`: rules, and the names of weights or operations, both as globs."""

    rule: str
    name: str | None

    @classmethod
    def parse(cls, entry: str) -> Silence:
        """Read ``"rule"`` or ``"rule:name"``."""
        rule, colon, name = entry.partition(":")
        return cls(rule, name if colon else None)

    def covers(self, finding: Finding) -> bool:
        """Whether it silences a finding by name."""
        return (
            self.name is not None
            and fnmatchcase(finding.rule, self.rule)
            and any(fnmatchcase(name, self.name) for name in finding.place.names)
        )

    def __str__(self) -> str:
        return self.rule if self.name is None else f"{self.rule}:{self.name}"


def rules_matching(patterns: Iterable[str], parameter: str) -> list[str]:
    """The names of the rules that globs match, in the order of ``RULES``.

    Raises
    ------
    ConfigError
        A glob matches no rule; `parameter` is named in the message.
    """
    matching: set[str] = set()
    for pattern in patterns:
        names = {name for name in RULES if fnmatchcase(name, pattern)}
        if not names:
            near = difflib.get_close_matches(pattern, RULES, n=3, cutoff=0.5)
            meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ConfigError(
                f"{parameter}: {pattern!r} matches no rule.{meant} Rules are: {', '.join(RULES)}"
            )
        matching |= names
    return [name for name in RULES if name in matching]
