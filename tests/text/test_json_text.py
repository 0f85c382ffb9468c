"""JSON, and the numbers that it does not have."""

import math

import pytest

from mlopt.text.json_text import finite_or_none, finite_or_text, json_text


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        json_text({"snr_db": math.inf})


def test_names_are_written_as_they_are_unless_ascii_is_asked_for():
    assert json_text(["µ"], indent=None) == '["µ"]'
    assert json_text(["µ"], indent=None, ensure_ascii=True) == r'["\u00b5"]'


def test_accounts_of_weights_write_none():
    assert list(map(finite_or_none, (1.5, math.inf, math.nan, None))) == [1.5, None, None, None]


def test_comparisons_write_text():
    values = (1.5, math.inf, -math.inf, math.nan, None, "x", 3)
    assert list(map(finite_or_text, values)) == [1.5, "inf", "-inf", "nan", None, "x", 3]
