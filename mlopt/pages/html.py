"""Parts of a page: text that is escaped, tables, facts, sections, commands.

Whatever is no :class:`Markup` is escaped where it enters a page, so that names from models can hold
any characters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

import attrs

from mlopt.text.names import printable

_UNIT = re.compile(r"(\d) (dB|nats|%|[kMGT]?B)\b")


_LONG = 48
"""Characters of a cell that has more than one line if need be."""


class Markup(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Return text as HTML: what it has of markup, and characters that do not show, escaped."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text)))


def unbroken(text: str) -> Markup:
    """Return text as HTML, in which a number and its unit stay on one line."""
    return Markup(_UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", escaped(text)))


def sentence(text: str) -> str:
    """Return a note as a sentence: with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def joined(parts: Iterable[str]) -> Markup:
    """Return parts after each other, on lines of their own."""
    return Markup("\n".join(map(escaped, parts)))


def element(name: str, content: str, **attributes: str) -> Markup:
    """Return an element; ``class_`` stands for the attribute ``class``, ``aria_x`` for aria-x."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return Markup(f"<{name}{given}>{escaped(content)}</{name}>")


@attrs.frozen
class Fact:
    """A number at the head of a page: what it is, its value, and a line on it."""

    term: str
    value: str
    note: str = ""


def facts(rows: Sequence[Fact]) -> Markup:
    """Return a list of facts."""
    items = []
    for row in rows:
        note = element("dd", unbroken(row.note), class_="note") if row.note else ""
        pair = f"{element('dt', row.term)}{element('dd', unbroken(row.value))}{note}"
        items.append(Markup(f"<div>{pair}</div>"))
    return Markup(f'<dl class="facts">\n{joined(items)}\n</dl>')


@attrs.frozen
class Column:
    """The head of a column of a table."""

    title: str
    is_number: bool = False


def table(
    key: str,
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    marked: frozenset[int] = frozenset(),
) -> Markup:
    """Return a table that scrolls in a frame of its own, which the keyboard reaches.

    key: its id, unlike all others of the page; rows: the first cell of each is its head; marked:
    the positions of rows that stand out.
    """
    numbers = " ".join(f"n{place}" for place, each in enumerate(columns, 1) if each.is_number)
    head = "".join(element("th", each.title, scope="col") for each in columns)
    body = []
    for place, (first, *others) in enumerate(rows):
        cells = [_cell("th", first, ' scope="row"'), *(_cell("td", cell) for cell in others)]
        start = '<tr class="marked">' if place in marked else "<tr>"
        body.append(Markup(f"{start}{''.join(cells)}</tr>"))
    return Markup(
        f'<div class="scroll" role="region" aria-labelledby="{key}-caption" tabindex="0">\n'
        f'<table id="{key}" class="{numbers}">\n'
        f'<caption id="{key}-caption"><span>{escaped(caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{joined(body)}\n</tbody>\n</table>\n</div>"
    )


def _cell(name: str, text: str, given: str = "") -> str:
    kind = ' class="long"' if len(text) > _LONG else ""
    return f"<{name}{given}{kind}>{escaped(text)}</{name}>"


def section(key: str, title: str, *parts: str) -> Markup:
    """Return a section with a heading; empty parts are left out."""
    inner = joined([element("h2", title, id=f"{key}-title"), *filter(None, parts)])
    return Markup(f'<section id="{key}" aria-labelledby="{key}-title">\n{inner}\n</section>')


def details(summary: str, *parts: str) -> Markup:
    """Return parts that are folded away under a summary."""
    return Markup(
        f"<details>\n{element('summary', summary)}\n{joined(filter(None, parts))}\n</details>"
    )


def listed(items: Iterable[str]) -> Markup:
    """Return a list of sentences, nothing for none."""
    rows = [element("li", item) for item in items]
    return Markup(f"<ul>\n{joined(rows)}\n</ul>") if rows else Markup()


def code(commands: Sequence[str]) -> Markup:
    """Return commands as they are typed, one on a line; long ones scroll."""
    lines = Markup("\n".join(map(escaped, commands)))
    inner = element("code", lines)
    return Markup(
        f'<pre class="scroll" role="region" aria-label="Commands" tabindex="0">{inner}</pre>'
    )


def link(key: str, text: str) -> Markup:
    """Return a link to a part of the page."""
    return element("a", text, href=f"#{key}")


def key(swatches: Iterable[tuple[str, str, str]]) -> Markup:
    """Return what the colours of a chart mean.

    swatches: words, the name of a colour, and "", "dot", "hollow", "cross" or "line".
    """
    rows = [
        element("li", words, class_=kind, style=f"--swatch: var(--{name})")
        for words, name, kind in swatches
    ]
    return Markup(f'<ul class="key">\n{joined(rows)}\n</ul>')


def figure(chart: Markup, caption: str, *, legend: str = "") -> Markup:
    """Return a chart with its legend above and a caption below."""
    inner = joined(filter(None, [legend, chart, element("figcaption", caption)]))
    return Markup(f"<figure>\n{inner}\n</figure>")
