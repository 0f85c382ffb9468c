"""Recipes as YAML or JSON files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import yaml

from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.planning.edited import with_edits
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried
from mlopt.requests.yaml_files import read_yaml
from mlopt.text.names import shortlist
from mlopt.whole_files import write_whole_text

T = TypeVar("T")

VERSION = 1
_KEY = "mlopt_recipe"


def save(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a recipe: JSON if the name ends in ``.json``, else YAML.

    Losses that are infinite or not numbers are written as YAML and Python's JSON write them.

    Raises
    ------
    ConfigError
        Two weights have the same name.
    OSError
        The file cannot be written.
    """
    values = as_dict(recipe)
    if Path(path).suffix == ".json":
        text = json.dumps(values, indent=1)
    else:
        options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
        text = yaml.dump(_with_short_lines(values), Dumper=_Dumper, **options)
    write_whole_text(path, text if text.endswith("\n") else text + "\n")


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Raises
    ------
    ConfigError
        The file is not YAML or JSON, or no recipe; the message names the file and what is wrong.
    OSError
        The file cannot be read.
    """
    # JSON as Python writes it is YAML, but for numbers such as Infinity
    if Path(path).suffix != ".json":
        return read_yaml(path, from_dict)
    try:
        values = json.loads(Path(path).read_bytes(), object_pairs_hook=_without_repeated_keys)
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)} is not readable as JSON: {error}") from error


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, which :func:`from_dict` reads to an equal one.

    Raises
    ------
    ConfigError
        Two weights have the same name.
    """
    counts = Counter(weight.name for weight in recipe.weights)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ConfigError(
            f"a recipe tells weights apart by name, and several are named {shortlist(repeated)}; "
            "give each weight one entry"
        )
    own = attrs.asdict(
        recipe, recurse=False, filter=attrs.filters.exclude("weights", "points", "notes")
    )
    return {
        _KEY: VERSION,
        **own,
        "notes": list(recipe.notes),
        "points": [attrs.asdict(point) for point in recipe.points],
        "weights": {weight.name: _weight_dict(weight) for weight in recipe.weights},
    }


def from_dict(values: Any) -> Recipe:
    """Return the recipe that plain values describe, what was edited completed.

    Raises
    ------
    ConfigError
        They describe none.
    """
    if not isinstance(values, Mapping) or values.get(_KEY) != VERSION:
        got = values.get(_KEY) if isinstance(values, Mapping) else type(values).__name__
        raise ConfigError(
            f"this is no recipe that can be read: it must be a mapping with {_KEY}: {VERSION}, got "
            f"{got!r}; `mlopt plan` writes recipes"
        )
    given = {name: value for name, value in values.items() if name != _KEY}
    try:
        weights = tuple(_weight(name, each) for name, each in dict(given.pop("weights")).items())
        points = tuple(_typed(Point, each) for each in given.pop("points", ()))
        notes = tuple(map(str, given.pop("notes", ())))
        read = _typed(Recipe, {**given, "weights": weights, "points": points, "notes": notes})
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"this recipe is damaged: {type(error).__name__}: {error}; write it anew with "
            "`mlopt plan`"
        ) from error
    return with_edits(read)


_PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "None": type(None),
    "LossName": str,
}


def _typed(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return an attrs object of plain values; TypeError where one has another type."""
    for field in attrs.fields(kind):  # type: ignore[arg-type]
        names = [name for name in str(field.type).split(" | ") if name in _PLAIN]
        value = values.get(field.name, field.default)
        if not names or value is attrs.NOTHING:
            continue
        # True counts as an int otherwise
        allowed = any(isinstance(value, _PLAIN[name]) for name in names)
        if not allowed or (isinstance(value, bool) and "bool" not in names):
            raise TypeError(f"{field.name} must be {field.type}, got {value!r}")
    return kind(**values)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; ConfigError where a key is repeated: the last one would count."""
    counts = Counter(key for key, _ in pairs)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise ConfigError(f"the key {shortlist(repeated)} is repeated; remove one of them")
    return dict(pairs)


def _weight_dict(weight: RecipeWeight) -> dict[str, Any]:
    return {
        "shape": list(weight.shape),
        "dtype": weight.dtype,
        "content": weight.content,
        **({"reason": weight.reason} if weight.reason else {}),
        "chosen": _tried_dict(weight.chosen),
        "tried": [_tried_dict(each) for each in weight.tried],
    }


def _weight(name: Any, values: Mapping[str, Any]) -> RecipeWeight:
    if not isinstance(name, str):
        raise TypeError(f"the name of a weight must be text, got {name!r}; put it in quotes")
    return RecipeWeight(
        name=name,
        shape=tuple(map(int, values["shape"])),
        dtype=str(values["dtype"]),
        content=str(values["content"]),
        chosen=_tried(values["chosen"]),
        tried=tuple(map(_tried, values.get("tried", ()))),
        reason=str(values.get("reason", "")),
    )


def _tried_dict(tried: Tried) -> dict[str, Any]:
    config = None if tried.config is None else _without_defaults(tried.config)
    return {
        "config": config,
        "nbytes": tried.nbytes,
        "loss": tried.loss,
        "known": tried.known,
    }


def _without_defaults(config: OpPalettizerConfig) -> dict[str, Any]:
    defaults = {field.name: field.default for field in attrs.fields(OpPalettizerConfig)}
    values = config.as_dict()
    return {
        name: value for name, value in values.items() if getattr(config, name) != defaults[name]
    }


def _tried(values: Mapping[str, Any]) -> Tried:
    config = values["config"]
    if values["known"] not in ("measured", "predicted"):
        raise ConfigError(f"known must be measured or predicted, got {values['known']!r}")
    return Tried(
        config=None if config is None else OpPalettizerConfig.from_dict(config),
        nbytes=int(values["nbytes"]),
        loss=float(values["loss"]),
        known=values["known"],
    )


def _with_short_lines(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, those that belong on one line of YAML marked."""
    weights = {
        name: {
            **weight,
            "shape": _Flow(weight["shape"]),
            "chosen": _FlowMap(weight["chosen"]),
            "tried": [_FlowMap(each) for each in weight["tried"]],
        }
        for name, weight in values["weights"].items()
    }
    points = [_FlowMap(point) for point in values["points"]]
    return {**values, "points": points, "weights": weights}


class _Flow(list[int]):
    """A list on one line of YAML."""


class _FlowMap(dict[str, Any]):
    """A mapping on one line of YAML."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    pass


_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)
_Dumper.add_representer(
    _FlowMap, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, True)
)
