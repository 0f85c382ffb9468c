"""Choice of the parameters that sensitivities are computed for, and their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import attrs
from torch import Tensor
from torch.nn.parameter import is_lazy

from mlopt.errors import ConfigError


@attrs.frozen(eq=False)
class Choice:
    """The requested parameters, each once.

    Attributes
    ----------
    parameters
        First name of a parameter -> the parameter: floating point, with data, able to have a
        gradient.
    impossible
        First name of a parameter that was asked for and cannot have a gradient -> why.
    reported
        First name -> the names that the result has the parameter under, at least one.
    aliases
        Any other name -> the first of the names that the result has.
    """

    parameters: dict[str, Tensor]
    impossible: dict[str, str]
    reported: dict[str, tuple[str, ...]]
    aliases: dict[str, str]


def choose(
    named: Iterable[tuple[str, Tensor]], names: Iterable[str] | None, *, prefix: str = ""
) -> Choice:
    """Find the parameters of these names.

    Parameters
    ----------
    named
        All names of all parameters with the parameter: a tied one is there several times.
    names
        The ones requested; None for all of floating point.
    prefix
        An additional prefix that names may have, as in a wrapped model.

    Raises
    ------
    ConfigError
        No parameter has a name, or a parameter has no data.
    """
    table = dict(named)
    first: dict[int, str] = {}
    for name, parameter in table.items():
        first.setdefault(id(parameter), name)
    primary = {name: first[id(parameter)] for name, parameter in table.items()}

    if names is None:
        asked = {name: name for name in first.values() if table[name].is_floating_point()}
    else:
        asked = {name: primary[_known(name, table, prefix)] for name in _checked(names)}
    reported: dict[str, tuple[str, ...]] = {}
    for name, target in asked.items():
        reported[target] = (*reported.get(target, ()), name)
    aliases = {
        name: reported[target][0]
        for name, target in primary.items()
        if target in reported and name not in reported[target]
    }

    chosen, impossible = {}, {}
    for target in reported:
        reason = _obstacle(target, table[target])
        if reason is None:
            chosen[target] = table[target]
        else:
            impossible[target] = reason
    return Choice(chosen, impossible, reported, aliases)


def _checked(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigError(
            f"names must be a collection of parameter names, got the string {names!r}: "
            f"write [{names!r}]"
        )
    return tuple(names)


def _known(name: str, table: Mapping[str, Tensor], prefix: str) -> str:
    if name in table:
        return name
    if prefix and name.startswith(prefix) and name[len(prefix) :] in table:
        return name[len(prefix) :]
    near = difflib.get_close_matches(str(name), table, n=3)
    hint = f"near it: {', '.join(near)}" if near else "the names are those of named_parameters()"
    raise ConfigError(f"the model has no parameter named {name!r}; {hint}")


def _obstacle(name: str, parameter: Tensor) -> str | None:
    """Return why a parameter cannot have a gradient; None if it can."""
    if is_lazy(parameter) or parameter.device.type == "meta":
        raise ConfigError(
            f"the parameter {name!r} has no data yet, so there is no loss to compute: load the "
            f"model's weights, and run a lazy model once, before computing sensitivities"
        )
    if not parameter.is_floating_point():
        return f"it is of {parameter.dtype}, and only floating point tensors have a gradient"
    if parameter.is_inference():
        return "it cannot have a gradient (an inference tensor: made under torch.inference_mode)"
    if not parameter.numel():
        return "it has no elements"
    return None
