"""The lint on what coremltools compressed: nothing of it breaks the rules of the format."""

import pytest

from mlopt.coreml import lint
from mlopt.coreml.lint import RULES
from tests import foreign

FORMAT_RULES = [
    name for name, rule in RULES.items() if rule.check.__module__.endswith("rules_form")
]


@pytest.mark.parametrize("form", foreign.FORMS)
def test_what_coremltools_compresses_keeps_to_the_format(form):
    target = foreign.FORMS[form].targets[-1]
    model = foreign.build(form, target)
    report = lint(model, select=[*FORMAT_RULES, "*newer-than-target"])
    assert list(report) == []
    assert "compression-newer-than-target" in lint(model, "iOS15").counts_by_rule


EXPECTED = {
    "lut scaled": {"float-scale-on-float-data", "table-per-block", "compressed-larger-than-plain"},
    "lut grouped, axis 1": {"table-along-other-axis"},
    "quantized, palettized": {"integer-table", "group-size"},
    "palettized, quantized": {"integer-table"},
    "sparse, palettized": set(),
    "sparse, quantized uint8": set(),
    "quantized int4 per block": set(),
}


@pytest.mark.parametrize("form", EXPECTED)
def test_the_rules_that_forms_run_into(form):
    assert set(lint(foreign.build(form, "iOS18")).counts_by_rule) == EXPECTED[form]
