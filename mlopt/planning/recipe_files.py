"""Recipes as YAML or JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml

from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried
from mlopt.requests.yaml_files import read_yaml

VERSION = 1
_KEY = "mlopt_recipe"


def save(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a recipe: JSON if the name ends in ``.json``, else YAML.

    Losses that are infinite or not numbers are written as YAML and Python's JSON write them.
    """
    values = as_dict(recipe)
    if Path(path).suffix == ".json":
        text = json.dumps(values, indent=1)
    else:
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    Path(path).write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")


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
        return from_dict(json.loads(Path(path).read_bytes()))
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)} is not readable as JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, which :func:`from_dict` reads to an equal one."""
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
    """Return the recipe that plain values describe.

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
        points = tuple(Point(**each) for each in given.pop("points", ()))
        notes = tuple(map(str, given.pop("notes", ())))
        return Recipe(weights=weights, points=points, notes=notes, **given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"this recipe is damaged: {type(error).__name__}: {error}; write it anew with "
            "`mlopt plan`"
        ) from error


def _weight_dict(weight: RecipeWeight) -> dict[str, Any]:
    return {
        "shape": _Flow(weight.shape),
        "dtype": weight.dtype,
        "content": weight.content,
        **({"reason": weight.reason} if weight.reason else {}),
        "chosen": _tried_dict(weight.chosen),
        "tried": [_tried_dict(each) for each in weight.tried],
    }


def _weight(name: str, values: Mapping[str, Any]) -> RecipeWeight:
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
    return _FlowMap(config=config, nbytes=tried.nbytes, loss=tried.loss, known=tried.known)


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
