"""The lint: rules about what targets cannot express, devices run badly, and files hold in vain."""

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
