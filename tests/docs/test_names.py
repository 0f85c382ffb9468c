"""Names and paths in the documents and docstrings lead somewhere."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import mlopt
from tests.docs.pages import PAGES, ROOT, text_of

CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"(?:mlopt|tests|benchmarks)(?:\.\w+)+")
PATH = re.compile(
    r"(?:mlopt|tests|benchmarks|fixtures|docs|\.ci)/[\w./*-]+|\w+\.(?:md|toml|txt|yml)"
)
ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`([\w.]+)`")

EXAMPLES = {"rules.yaml", "report.json"}
"""What readers of the pages make themselves."""

ROOMS = sorted(
    module.name for module in pkgutil.iter_modules(mlopt.__path__) if module.name != "__main__"
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mlopt.__path__, "mlopt.")
    if not module.name.endswith("__main__")
)


@functools.cache
def named(name: str) -> Any:
    """What a dotted name stands for; LookupError where nothing does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        try:
            thing = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            continue
        for attribute in parts[length:]:
            thing = member(thing, attribute)
        return thing
    raise LookupError(name)


def member(thing: Any, name: str) -> Any:
    """An attribute, or a field of a class of attrs, which is none."""
    if name in {field.name for field in getattr(thing, "__attrs_attrs__", ())}:
        return None
    try:
        return getattr(thing, name)
    except AttributeError:
        raise LookupError(f"{thing} has no {name}") from None


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_resolve(page):
    for code in CODE.findall(text_of(page)):
        for name in DOTTED.findall(code):
            if not is_path(code, name):
                named(name)


def is_path(code: str, name: str) -> bool:
    return re.search(rf"{re.escape(name)}/|/{re.escape(name)}", code) is not None


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    for code in CODE.findall(text_of(page)):
        for path in PATH.findall(code):
            if path in EXAMPLES or f"/{path}`" in text_of(page):
                continue  # made by the reader, or written in full elsewhere on the page
            assert list(ROOT.glob(path.rstrip("/."))), f"{page}: {path}"


@pytest.mark.parametrize("name", MODULES)
def test_roles_in_docstrings_resolve(name):
    for thing, scopes in docstrings(importlib.import_module(name)):
        for target in ROLE.findall(thing):
            assert any(resolves(target, scope) for scope in scopes), f"{name}: {target}"


def docstrings(module: ModuleType) -> Iterator[tuple[str, list[Any]]]:
    """Each docstring of a module, and where its names are looked up, nearest first."""
    rooms = [sys.modules[".".join(module.__name__.split(".")[:n])] for n in (3, 2) if n > 1]
    outer = [module, *(Exports(room) for room in rooms)]
    yield module.__doc__ or "", outer
    for thing in vars(module).values():
        # aliases such as Base[Any] pass on what their class says of itself
        if getattr(thing, "__module__", None) != module.__name__ or typing.get_origin(thing):
            continue
        # not inspect.getdoc: what a class inherits is looked up where it was written
        yield getattr(thing, "__doc__", None) or "", [thing, *outer]
        if inspect.isclass(thing):
            for method in vars(thing).values():
                if not inspect.isclass(method):  # an attribute that is a class of another module
                    yield getattr(method, "__doc__", None) or "", [thing, *outer]


class Exports:
    """The public names of a package."""

    def __init__(self, package: ModuleType) -> None:
        for name in getattr(package, "__all__", ()):
            setattr(self, name, getattr(package, name))


def resolves(target: str, scope: Any) -> bool:
    try:
        if target.startswith("mlopt."):
            named(target)
            return True
        thing = scope
        for part in target.split("."):
            thing = member(thing, part)
    except LookupError:
        return False
    return True


def test_the_architecture_names_every_room():
    page = text_of("docs/architecture.md")
    for room in ROOMS:
        assert f"`mlopt.{room}`" in page, room


def test_public_rooms_have_a_page_of_reference():
    pages = "".join(text_of(page) for page in PAGES if "/reference/" in page)
    rooms = ("calibration", "coreml", "errors", "mil", "palette", "runtime", "torch")
    for room in (*rooms, "torch.palettization"):
        assert f"{{{{ room mlopt.{room} }}}}" in pages
