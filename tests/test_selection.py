"""The short run holds every combination that it says."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest

from tests.selection import covering

pytest_plugins = ["pytester"]

PRODUCT = [
    {"a": a, "b": b, "c": c}
    for a, b, c in itertools.product("xyzw", (1, 2, 3), (False, True, None))
]


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_combination_is_held(strength: int) -> None:
    chosen = [PRODUCT[place] for place in covering(PRODUCT, strength)]
    for names in itertools.combinations("abc", strength):
        held = {tuple(case[name] for name in names) for case in chosen}
        assert held == {tuple(case[name] for name in names) for case in PRODUCT}


def test_few_cases_suffice() -> None:
    assert [len(covering(PRODUCT, strength)) for strength in (1, 3)] == [4, 36]
    assert 12 <= len(covering(PRODUCT, 2)) <= 15


def test_one_parameter_is_never_cut_and_equal_cases_are_one() -> None:
    assert covering([{"a": value} for value in (1, True, 1.0, "1", 1)], 2) == [0, 1, 2, 3]
    assert covering([{"a": [1]}, {"a": [1, 2]}, {"a": [1]}], 1) == [0, 1]
    assert covering([], 1) == []


def test_fields_and_elements_are_parameters() -> None:
    @attrs.frozen
    class Cell:
        mode: str
        size: tuple[int, int]

    cells = [Cell(mode, (i, j)) for mode in "ab" for i in range(3) for j in range(3)]
    assert len(covering([{"cell": cell} for cell in cells], 1)) == 3
    assert len(covering([{"cell": cell} for cell in cells], 2)) < len(cells)


def test_no_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        covering(PRODUCT, 0)


@pytest.fixture
def selecting(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose cases are marked by the selection."""
    pytester.makeini("[pytest]\nmarkers =\n    long: a\n    covering: b\n    short: c\n")
    pytester.makeconftest(
        "from tests.selection import mark_long\n"
        "def pytest_collection_modifyitems(items):\n"
        "    mark_long(items)\n"
    )
    pytester.syspathinsert(Path(__file__).parents[1])
    return pytester


def test_the_short_run_leaves_out_what_is_not_needed(selecting: pytest.Pytester) -> None:
    selecting.makepyfile(
        "import pytest\n"
        "@pytest.mark.parametrize('a', range(3))\n"
        "@pytest.mark.parametrize('b', range(3))\n"
        "@pytest.mark.covering(1)\n"
        "def test_product(a, b): pass\n"
        "@pytest.mark.long\n"
        "def test_long(): pass\n"
        "def test_other(): pass\n"
    )
    selecting.inline_run("-m", "not long", "-p", "no:xdist").assertoutcome(passed=4)
    selecting.inline_run("-p", "no:xdist").assertoutcome(passed=11)


def test_cases_are_chosen_by_name(selecting: pytest.Pytester) -> None:
    test = selecting.makepyfile(
        "import pytest\n"
        "@pytest.mark.parametrize('a', range(4))\n"
        "@pytest.mark.short('0', '2')\n"
        "def test_slow(a): assert a != 1\n"
    )
    selecting.inline_run("-m", "not long", "-p", "no:xdist").assertoutcome(passed=2)
    selecting.inline_run("-p", "no:xdist").assertoutcome(passed=3, failed=1)
    selecting.inline_run("-p", "no:xdist", f"{test}::test_slow[3]").assertoutcome(passed=1)
    test.write_text(test.read_text().replace("'2'", "'7'"))
    result = selecting.runpytest_inprocess("-p", "no:xdist")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_slow has no case [" in result.stdout.str() + result.stderr.str()
