"""Reader of configurations in YAML files, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import yaml

from mlopt.errors import ConfigError

T = TypeVar("T")


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
        text = stream.read()
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return build(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not readable as YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    """Refuse repeated keys, of which YAML readers silently keep the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            # "<<" merges another mapping in, and may do so repeatedly.
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(
                        f"the key {key.value!r} is repeated in line {line}; remove one of them"
                    )
                seen.add(key.value)
            _refuse_repeated_keys(value)
