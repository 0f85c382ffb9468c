"""The lint of a model: all rules applied to it."""

from __future__ import annotations

from collections.abc import Sequence

# Importing them registers the rules.
from mlopt.coreml.lint import (  # noqa: F401
    rules_device,
    rules_file,
    rules_float16,
    rules_form,
    rules_int16,
    rules_size,
    rules_target,
    rules_use,
)
from mlopt.coreml.lint.findings import SEVERITIES, Finding, LintReport
from mlopt.coreml.lint.registry import RULES, Silence, rules_matching
from mlopt.coreml.lint.subject import Subject
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.mil.opening import open_package


def lint(
    model: ModelSource,
    target: TargetName | None = None,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> LintReport:
    """Report what a target cannot express, what devices run badly, and what takes needless space.

    Nothing is changed or run: the model is read, one weight at a time.

    Parameters
    ----------
    model
        The path of an ``.mlpackage``, or an ``MLModel`` that is an ML program or a pipeline.
    target
        The oldest system that must run it: ``"iOS16"``, ``"macOS13"``, a member of
        ``coremltools.target``. None: the model's own.
    select
        The rules to apply, globs over their names. None: all.
    ignore
        What to leave out: a rule's name (``"group-size"``), or one for some weights or operations
        (``"group-size:decoder*"``, ``"*:lm_head"``), both parts globs.

    Raises
    ------
    ConfigError
        An entry of `select` or `ignore` matches no rule; the message has near matches.
    TargetError
        The target is unknown.
    ModelFormatError
        The model is damaged or not an ML program.
    """
    applied = rules_matching(["*"] if select is None else select, "select")
    silences = [Silence.parse(entry) for entry in ignore or ()]
    for silence in silences:
        silenced_rules = rules_matching([silence.rule], "ignore")
        if silence.name is None:
            applied = [name for name in applied if name not in silenced_rules]

    subject = Subject.of(open_package(model), target)
    findings: list[Finding] = []
    used: set[Silence] = set()
    silenced = 0
    for name in applied:
        for finding in RULES[name].findings(subject):
            covering = [silence for silence in silences if silence.covers(finding)]
            used.update(covering)
            silenced += bool(covering)
            if not covering:
                findings.append(finding)
    return LintReport(
        target=str(subject.target),
        model_target=str(subject.model_target),
        rules=tuple(applied),
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
        silenced=silenced,
        unused_ignores=tuple(
            str(silence) for silence in silences if silence.name is not None and silence not in used
        ),
    )
