"""Columns of plain text."""

import pytest

from mlopt.text import tables
from mlopt.text.tables import Column, text_table, width_left

NAMES = Column("weight", ["[bold]a", "bb"])
BYTES = Column("bytes", ["1.0 kB", "12 B"], is_number=True)


def test_numbers_stand_at_the_right_and_nothing_is_markup():
    assert text_table([NAMES, BYTES]).splitlines() == [
        "weight    bytes",
        "---------------",
        "[bold]a  1.0 kB",
        "bb         12 B",
    ]


def test_a_column_that_wraps_takes_what_is_left():
    result = Column("result", ["kept: too small"] * 2, wraps=True)
    assert text_table([BYTES, result], width=17).splitlines() == [
        " bytes  result",
        "-----------------",
        "1.0 kB  kept: too",
        "        small",
        "  12 B  kept: too",
        "        small",
    ]


def test_lines_are_as_long_as_cells_take_without_a_width():
    long = "x" * 5000
    assert text_table([Column("a", [long]), Column("b", ["1"])]).endswith(f"{long}  1")


def test_titles_can_be_left_out():
    assert text_table([NAMES], has_titles=False) == "[bold]a\nbb"


def test_widths_add_up_to_that_of_the_table():
    name = Column("name", ["x" * width_left(40, [NAMES, BYTES])] * 2)
    lines = text_table([name, NAMES, BYTES]).splitlines()
    assert len(lines[1]) == 40


@pytest.mark.parametrize("has_titles", [True, False])
def test_lines_are_those_of_rich(has_titles, monkeypatch):
    names = Column("name", ["名前", "e\u0301", "", "plain, with spaces "])
    numbers = Column("number", ["1", "", "10,000,000", "2"], is_number=True)
    notes = Column("note", ["", "kept: too small", "", "x"], wraps=True)
    ours = text_table([names, numbers, notes], width=60, has_titles=has_titles)
    monkeypatch.setattr(tables, "_unbroken", lambda columns, **options: _rich(columns, **options))
    assert ours == text_table([names, numbers, notes], width=60, has_titles=has_titles)


def _rich(columns, *, has_titles):
    return tables._broken(columns, 60, has_titles=has_titles)
