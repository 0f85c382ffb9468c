"""Names on a terminal: escaped, and shortened so that different ones stay different."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlopt.text.names import elided_apart, middle_elided, printable, printable_lines, shortlist

LONG = "model.transformer.decoder"


def test_what_moves_the_cursor_is_escaped():
    assert printable("a\x1b[31mb\r\n\x07\x9b2J\u202e") == r"a\x1b[31mb\r\n\x07\x9b2J\u202e"
    assert printable("größe µ 層") == "größe µ 層"
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


@pytest.mark.parametrize(
    "names",
    [
        [f"{LONG}.layers.{i}.attention.self.query.weight" for i in range(30)],
        [f"{i}.{LONG}.layers.attention.self.query.weight" for i in range(30)],
        [f"{LONG}.layers.attention.self.query.weight.{i}" for i in range(30)],
        [f"{LONG}.{i}.{'x' * 40}.{j}.{'y' * 40}" for i in range(5) for j in range(5)],
        ["a" * n for n in range(60, 90)],
        [f"{'a' * 30}{i}{'b' * 30}" for i in ("", "a", "ab", "b", "ba", "bb")],
    ],
    ids=["middle", "start", "end", "two places", "lengths", "runs"],
)
@pytest.mark.parametrize("width", [16, 24, 40])
def test_different_names_stay_different(names, width):
    shown = elided_apart(names, width)
    assert len(set(shown)) == len(names)
    assert all(len(text) <= width for text in shown)
    assert elided_apart([*names, *names], width) == [*shown, *shown]


def test_what_names_differ_in_is_shown():
    names = [f"{LONG}.layers.{i}.attention.self.query.weight" for i in (9, 10, 11)]
    shown = elided_apart(names, 30)
    assert [str(i) in text for i, text in zip((9, 10, 11), shown, strict=True)] == [True] * 3
    assert all(text.startswith("model.") and text.endswith("weight") for text in shown)


def test_a_name_alone_is_shown_by_its_ends():
    name = f"{LONG}.layers.9.attention.self.query.weight"
    short = middle_elided(name, 20)
    assert elided_apart([name, "short", name], 20) == [short, "short", short]


def test_a_short_name_that_looks_like_a_shortened_one_keeps_its_own():
    long = "a" * 30
    looks = middle_elided(long, 16)
    shown = elided_apart([long, looks], 16)
    assert shown[1] == looks
    assert shown[0] != looks
    assert len(shown[0]) == 16


few = st.text(alphabet="ab.", max_size=80)


@given(st.lists(few | st.text(max_size=60), unique=True, max_size=40), st.integers(12, 50))
@example(["a" * n for n in range(13, 60)], 12)
def test_any_names(names, width):
    shown = elided_apart(names, width)
    assert len(set(shown)) == len(names)
    for name, text in zip(names, shown, strict=True):
        assert len(text) <= width
        assert text == name or len(name) > width


@given(st.text(max_size=60), st.integers(5, 40))
def test_middle_elided(text, width):
    short = middle_elided(text, width)
    assert len(short) == min(len(text), width)
    assert short[0:1] == text[0:1]
    assert short[-1:] == text[-1:]


def test_middle_elided_shows_both_ends():
    assert middle_elided("abcdefghijkl", 8) == "abc..jkl"


def test_a_shortlist_counts_what_it_does_not_show():
    assert shortlist(["a", 1]) == "'a', 1"
    assert (
        shortlist("abcdefghijklm") == "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j' and 3 more"
    )
