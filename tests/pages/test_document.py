"""Files of pages, and the parts that all pages are made of."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

import pytest

from mlopt.errors import ConfigError
from mlopt.pages import check_page, write_page
from mlopt.pages.document import Section, document
from mlopt.pages.html import Column, Markup, code, element, escaped, joined, table, unbroken
from mlopt.pages.svg import COLOURS
from tests.pages.reading import check, rows_of


def test_text_is_escaped_once():
    assert escaped("a < b & 'c'") == "a &lt; b &amp; &#x27;c&#x27;"
    assert escaped(escaped("<")) == "&lt;"
    assert element("p", "<", title='"') == '<p title="&quot;">&lt;</p>'
    assert joined(["<", Markup("<br>")]) == "&lt;\n<br>"
    assert escaped("a\r\x1b[0m") == "a\\r\\x1b[0m"


def test_numbers_stay_with_their_units():
    assert (
        unbroken("8.7 MB, 3 dB, 4 weights")
        == "8.7\N{NO-BREAK SPACE}MB, 3\N{NO-BREAK SPACE}dB, 4 weights"
    )


def test_a_page_of_parts():
    columns = [Column("<name>"), Column("bytes", is_number=True)]
    made = table("t", "A & B", columns, [("a", "1"), ("b", "2")], marked=frozenset({1}))
    sections = [Section.of("one", "One", made, ""), Section.of("two", "Two", code(["x > y", "z"]))]
    root = check(document("T < U", "Lead.", head=[], sections=sections))
    assert rows_of(root.one("table")) == [["a", "1"], ["b", "2"]]
    assert root.one("table").attributes["class"] == "n2"
    assert root.one("tr", class_="marked").text == "b 2"
    assert [link.text for link in root.one("nav").all("a")] == ["One", "Two"]
    assert root.one("code").texts == ["x > y\nz"]


def test_files_of_pages(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to(path)
    write_page(link, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    assert link.is_symlink()
    folder = tmp_path / "folder.html"
    folder.mkdir()
    with pytest.raises(OSError, match=r"folder\.html"):
        write_page(folder, "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "folder.html",
        "link.html",
        "page.html",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("page.txt", "page.txt: it has the extension '.txt'; use one of .html, .htm"),
        ("page", "page: it has no extension; use one of .html, .htm"),
    ],
)
def test_names_that_are_no_pages(name, words):
    with pytest.raises(ConfigError, match=words):
        check_page(Path(name))
    check_page(Path("page.HTML"))


def luminance(colour):
    """The relative luminance of ``#rrggbb``, as WCAG 2 defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(
        factor * value for factor, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_what_is_behind_them(theme):
    style = importlib.resources.files("mlopt.pages").joinpath("page.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", blocks[theme == "dark"]))
    for paper in ("paper", "page", "mark"):
        for name in ("ink", "muted", "accent", "error"):
            assert contrast(colours[name], colours[paper]) >= 4.5, (name, paper)
    shades = [f"b{bits}" for bits in (1, 2, 3, 4, 6, 8)]
    for name in ("b0", *shades):
        assert contrast(colours[name], colours["paper"]) >= 3.0, name
    # more bits are further from the paper
    seen = [contrast(colours[name], colours["paper"]) for name in shades]
    assert seen == sorted(seen)
    # every colour that charts are drawn in has a value
    assert set(COLOURS) <= set(colours)
