"""Hooks of mkdocs: the parts of the reference that are listed by the program itself.

``{{ room mlopt.coreml }}`` on a line of a page stands for the public names of a room, in the order
of its ``__all__``; ``{{ commands }}`` for the help of every command.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

_ROOM = re.compile(r"^\{\{ room ([\w.]+) \}\}$", flags=re.MULTILINE)
_COMMANDS = "{{ commands }}"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Fill in what stands for names or commands."""
    markdown = _ROOM.sub(lambda match: _room(match[1]), markdown)
    return markdown.replace(_COMMANDS, _commands()) if _COMMANDS in markdown else markdown


def _room(name: str) -> str:
    """The docstring of a room; a heading and the docstring of every public name."""
    room = importlib.import_module(name)
    options = "{members: false, show_root_heading: false, show_root_toc_entry: false}"
    head = f"::: {name}\n    options: {options}\n"
    public = getattr(room, "__all__", None) or [
        key for key, thing in vars(room).items() if inspect.isclass(thing)
    ]
    return "\n".join([head, *(_entry(name, key) for key in public)])


def _entry(room: str, name: str) -> str:
    thing = getattr(importlib.import_module(room), name)
    if inspect.ismodule(thing):
        return f"## `{room}.{name}`\n\nA room of its own: see its page.\n"
    if thing.__name__ != name:
        return f"## `{name}`\n\nAnother name of `{thing.__name__}`, which coremltools gives it.\n"
    path = f"{thing.__module__}.{thing.__qualname__}"
    anchor = "" if path == f"{room}.{name}" else f"[](){{#{room}.{name}}}\n\n"
    options = f"    options:\n      heading: {name}\n      toc_label: {name}\n"
    return f"{anchor}::: {path}\n{options}"


def _commands() -> str:
    """A section for each command, with what ``--help`` prints."""
    import typer.main

    from mlopt.cli import app

    program = typer.main.get_command(app)
    context = program.make_context("mlopt", [], resilient_parsing=True)
    sections = []
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        sections.append(f"## `mlopt {name}`\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(sections)
