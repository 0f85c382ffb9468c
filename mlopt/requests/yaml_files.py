"""Reader of configurations in YAML files, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import yaml

from mlopt.errors import ConfigError

T = TypeVar("T")

_DEEPEST = 50
# ten times as fast, where PyYAML was built with libyaml
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(yml: str | os.PathLike[str] | IO[Any], build: Callable[[Any], T]) -> T:
    """Read a YAML file and return what `build` makes of its plain values.

    Parameters
    ----------
    yml
        The path of a file, or an open stream.
    build
        Called once with the values of the document; None for an empty one.

    Raises
    ------
    ConfigError
        The file is not YAML, repeats a key, or `build` refuses it; the message names the file.
    OSError
        The file cannot be read.
    """
    if isinstance(yml, (str, os.PathLike)):
        # As bytes, so that the YAML reader detects the encoding.
        with open(yml, "rb") as file:
            return _read(file, os.fspath(yml), build)
    return _read(yml, str(getattr(yml, "name", "the YAML stream")), build)


def _read(stream: IO[Any], name: str, build: Callable[[Any], T]) -> T:
    try:
        return build(_values(stream.read()))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not readable as YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _values(text: str | bytes) -> Any:
    """Return the plain values of a document; None for an empty one."""
    _refuse_deep_nesting(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeated_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_deep_nesting(text: str | bytes) -> None:
    """Refuse what would end the process: what is nested is read by recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1
            raise ConfigError(f"line {line} is nested more than {_DEEPEST} levels deep; flatten it")


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    """Refuse repeated keys, of which YAML readers silently keep the last."""
    waiting, known = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            _refuse_equal_keys(node)
            inner = [value for _, value in node.value]
        # a node may occur several times, and within itself
        new = [each for each in inner if id(each) not in known]
        known.update(map(id, new))
        waiting.extend(new)


def _refuse_equal_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        # "<<" merges another mapping in, and may do so repeatedly.
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(
                    f"the key {key.value!r} is repeated in line {line}; remove one of them"
                )
            seen.add(key.value)
