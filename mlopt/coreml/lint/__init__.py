"""The lint: rules about forms that targets lack or devices run badly, and about wasted bytes."""

from mlopt.coreml.lint.findings import Certainty, Finding, LintReport, Place, Severity
from mlopt.coreml.lint.registry import RULES, Rule
from mlopt.coreml.lint.run import lint

__all__ = [
    "RULES",
    "Certainty",
    "Finding",
    "LintReport",
    "Place",
    "Rule",
    "Severity",
    "lint",
]
