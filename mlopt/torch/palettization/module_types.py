"""Keys of a configuration that name classes of modules.

A key is the class itself, a qualified name (``"torch.nn.Linear"``), or the bare name of a class
(``"Linear"``) in any package. It stands for the class and for classes derived from it, so that a
rule for ``Linear`` applies to a parametrized one.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn

from mlopt.errors import ConfigError
from mlopt.requests.checked import shown

TypeKey: TypeAlias = "type[nn.Module] | str"


def checked_type_key(key: Any) -> TypeKey:
    """Return a valid `key`; the qualified name of a loaded class becomes that class.

    Raises
    ------
    ConfigError
        The key is neither a class of modules nor a name.
    """
    if isinstance(key, str) and key:
        return loaded_class(key) or key
    if isinstance(key, type) and issubclass(key, nn.Module):
        return key
    remedy = ""
    if isinstance(key, nn.Module):
        remedy = "; give its class, or name it in module_name_configs"
    raise ConfigError(
        "a key of module_type_configs must be a class of torch.nn.Module or the name of one, got "
        f"{shown(key)}{remedy}"
    )


def key_text(key: TypeKey) -> str:
    """Return a key as a string: a class by its qualified name."""
    return key if isinstance(key, str) else type_name(key)


def type_name(cls: type) -> str:
    """Return the shortest qualified name of `cls` that resolves: ``"torch.nn.Linear"``.

    Where its module does not offer it (a class that was defined in a function), the name that it
    gives itself, which no other class should have.
    """
    packages = cls.__module__.split(".")
    names = (".".join([*packages[:n], cls.__qualname__]) for n in range(1, len(packages) + 1))
    return next((name for name in names if loaded_class(name) is cls), _own_name(cls))


def loaded_class(name: str) -> type[nn.Module] | None:
    """Return the class with a qualified name, if its package is imported; imports nothing."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        value: object = sys.modules.get(".".join(parts[:n]))
        if value is None:
            continue
        for part in parts[n:]:
            # Not getattr, which may import or warn.
            value = vars(value).get(part) if isinstance(value, (ModuleType, type)) else None
        return value if isinstance(value, type) and issubclass(value, nn.Module) else None
    return None


def matching_type_key(keys: Collection[TypeKey], cls: type[nn.Module]) -> TypeKey | None:
    """Return the key for `cls`, the most specific of several; None where there is none.

    That is the one for the most derived class and, among those for one class, the class before a
    qualified name before the bare name.
    """
    qualified = {key: loaded_class(key) for key in keys if isinstance(key, str) and "." in key}
    for base in cls.__mro__:
        if base in keys:
            return base
        for key, key_class in qualified.items():
            if key_class is base or key == _own_name(base):
                return key
        if base.__name__ in keys:
            return base.__name__
    return None


def _own_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
