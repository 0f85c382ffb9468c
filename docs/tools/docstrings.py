"""Docstrings as Markdown: an extension of griffe, which reads them for the API reference.

Docstrings are written in the form that ``help`` shows best: names in roles of reStructuredText
(``:func:`palettize```), examples after ``::``. Here roles become links and classes of attrs get the
signature that attrs gives them. A role that leads nowhere is an error.
"""

from __future__ import annotations

import enum
import html
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import attrs
import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`(?P<target>[\w.]+)`")
_LONE_COLONS = re.compile(r"^ *::$", flags=re.MULTILINE)
_COLONS = re.compile(r"::$", flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package once all of it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite every docstring, and give classes of attrs their parameters."""
        for thing in _things(pkg):
            if isinstance(thing, griffe.Class) and _is_attrs(thing):
                _add_init(thing)
            if thing.docstring is not None:
                thing.docstring.value = _markdown(thing.docstring.value, thing)


def _things(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from _things(member)


def _markdown(text: str, thing: griffe.Object) -> str:
    def link(match: re.Match[str]) -> str:
        target = match["target"]
        # Optional: not every object that a docstring names stands in the reference.
        path, shown = _path(target, thing), html.escape(target.rpartition(".")[2])
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    return _COLONS.sub(":", _LONE_COLONS.sub("", ROLE.sub(link, text)))


def _path(target: str, thing: griffe.Object) -> str:
    """The path of what a role names: seen from its object outwards, then in its room's exports."""
    package = thing.package
    if target.startswith(f"{package.name}."):
        return _canonical(package, target.partition(".")[2])
    scope: Any = thing
    while scope is not None:
        if target.partition(".")[0] in scope.all_members:
            return _canonical(scope, target)
        scope = scope.parent
    for room in reversed(list(_rooms(thing))):
        if target.partition(".")[0] in (room.exports or ()):
            return _canonical(room, target)
    raise LookupError(f"{thing.path}: the docstring names {target!r}, which is nowhere to be found")


def _rooms(thing: griffe.Object) -> Iterator[griffe.Module]:
    """The packages that hold an object, outermost first."""
    module: Any = thing.module
    holders = []
    while module is not None:
        holders.append(module)
        module = module.parent
    yield from reversed(holders)


def _canonical(scope: griffe.Object, target: str) -> str:
    first, _, rest = target.partition(".")
    member = scope.all_members[first]
    return str((member[rest] if rest else member).canonical_path)


def _is_attrs(thing: griffe.Class) -> bool:
    return any(d.callable_path.startswith("attrs.") for d in thing.decorators)


def _add_init(thing: griffe.Class) -> None:
    """The signature that attrs gives a class, annotated as its attributes are."""
    if "__init__" in thing.members:
        return
    cls = getattr(importlib.import_module(thing.module.canonical_path), thing.name)
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(cls).parameters.items():
        attribute = thing.all_members.get(name) or thing.all_members.get(f"_{name}")
        parameters.append(
            griffe.Parameter(
                name,
                annotation=getattr(attribute, "annotation", None),
                kind=griffe.ParameterKind(parameter.kind.description),
                default=_shown_default(parameter.default),
            )
        )
    thing.set_member(
        "__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
    )


def _shown_default(default: Any) -> str | None:
    if default is inspect.Parameter.empty:
        return None
    if default is attrs.NOTHING:
        return "..."  # made anew for each object
    return repr(default.value if isinstance(default, enum.Enum) else default)
