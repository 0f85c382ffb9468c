"""A page as one HTML file that needs nothing else, and the way to a file."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from mlopt import __version__
from mlopt.errors import ConfigError
from mlopt.pages.drawing import check_drawing
from mlopt.pages.html import element, escaped, joined, link, section, unbroken
from mlopt.whole_files import write_whole_text

SUFFIXES = (".html", ".htm")
"""File extensions of pages."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""No script runs on a page, and nothing is loaded, whatever names from a model hold."""


@attrs.frozen
class Section:
    """A part of a page: its id, its heading, and what is in it; empty parts are left out."""

    key: str
    title: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, key: str, title: str, *parts: str) -> Section:
        """Return a section of these parts."""
        return cls(key, title, tuple(parts))


def document(title: str, lead: str, *, head: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a page.

    lead: its first sentence; head: what follows it, in front of the sections.
    """
    style = importlib.resources.files("mlopt.pages").joinpath("page.css").read_text("utf-8")
    links = joined(element("li", link(each.key, each.title)) for each in sections)
    body = joined(section(each.key, each.title, *each.parts) for each in sections)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n'
        "<head>\n"
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"{element('title', title)}\n"
        f"<style>\n{style}</style>\n"
        "</head>\n"
        "<body>\n"
        f"{element('a', 'Skip to the content', class_='skip', href='#content')}\n"
        "<header>\n"
        f"{element('h1', unbroken(title))}\n"
        f"{element('p', unbroken(lead), class_='lead')}\n"
        "</header>\n"
        '<main id="content" tabindex="-1">\n'
        f"{joined(filter(None, head))}\n"
        f'<nav aria-label="Sections">\n<ul>\n{links}\n</ul>\n</nav>\n'
        f"{body}\n"
        "</main>\n"
        f"<footer><p>Made by mlopt {escaped(__version__)}. This file is complete: nothing in it "
        "is loaded from elsewhere.</p></footer>\n"
        "</body>\n"
        "</html>\n"
    )


def check_page(path: Path) -> None:
    """Refuse a path that a page cannot be written to, before the work is done.

    Raises
    ------
    ConfigError
        The file's extension is not one of ``SUFFIXES``, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        ending = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise ConfigError(
            f"a page cannot be written to {path}: it has {ending}; use one of {', '.join(SUFFIXES)}"
        )
    check_drawing()


def write_page(path: str | os.PathLike[str], html: str) -> None:
    """Write a page to a file, complete or not at all; an earlier file there is replaced.

    Raises
    ------
    OSError
        It cannot be written.
    """
    write_whole_text(path, html)
