"""Configs of coremltools among the rules of a configuration, without loading coremltools.

``coremltools.optimize.coreml`` has a config for each kind of compressor. The one for palettes is
taken over as mlopt's own; those for quantization and pruning are kept as they are, for coremltools'
compressors. Nobody can have an object of coremltools before it was loaded: where it was not, there
is none.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

from mlopt.errors import ConfigError
from mlopt.requests.checked import listed, shown

_MODULE = "coremltools.optimize.coreml"

COMPRESSORS = {
    "OpLinearQuantizerConfig": "linear_quantize_weights",
    "OpMagnitudePrunerConfig": "prune_weights",
    "OpThresholdPrunerConfig": "prune_weights",
}
"""Names of configs that are not for palettes, to what takes them."""

CONFIG_TYPE = "OpPalettizerConfig"
"""The name of the config for palettes, mlopt's and coremltools'."""
_CONFIG_TYPES = (CONFIG_TYPE, *COMPRESSORS)


def checked_config_type(given: object, default: str) -> str:
    """The name of a config that plain values give for their ``config_type``; None: the default."""
    if given is None:
        return default
    if isinstance(given, str) and given in _CONFIG_TYPES:
        return given
    raise ConfigError(f"config_type must be {listed(_CONFIG_TYPES)}, got {shown(given)}")


def let_stand(ours: type, class_name: str) -> None:
    """Have coremltools, where it is loaded, take objects of a class for those of its own.

    Its compressors ask whether a rule is of their kind before they read its parameters.
    """
    theirs = getattr(sys.modules.get(_MODULE), class_name, None)
    if theirs is not None and not issubclass(ours, theirs):
        theirs.register(ours)


def is_configuration(value: object) -> bool:
    """Whether a value is an ``OptimizationConfig`` of coremltools."""
    return _is_instance(value, _MODULE, "OptimizationConfig")


def is_palettizer_config(value: object) -> bool:
    """Whether a value is an ``OpPalettizerConfig`` of coremltools."""
    return _is_instance(value, _MODULE, "OpPalettizerConfig")


def is_compressor_config(value: object) -> bool:
    """Whether a value is a config of coremltools for operations, of any kind."""
    return _is_instance(value, f"{_MODULE}._config", "OpCompressorConfig")


def parameters_of(config: Any) -> dict[str, Any]:
    """The parameters of a config of coremltools with their values."""
    return {
        field.name: getattr(config, field.name)
        for field in attrs.fields(type(config))
        if field.init
    }


def plain_values(config: Any) -> dict[str, Any]:
    """A config for coremltools' compressors as values that :func:`read_rule` reads back."""
    from coremltools.converters.mil.mil import types

    values: dict[str, Any] = {"config_type": type(config).__name__}
    for name, value in parameters_of(config).items():
        if isinstance(value, Enum):
            value = value.name.lower()
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, type):
            value = types.builtin_to_string(value)
        if value is not None:
            values[name] = value
    return values


def read_rule(values: Mapping[str, Any], config_type: str) -> Any:
    """The config of coremltools that a mapping of parameters describes; it is only read.

    Raises
    ------
    ConfigError
        A key or a value is not allowed there.
    """
    from coremltools.optimize.coreml import OptimizationConfig

    # its reader takes keys out of what it reads
    rule = {"config_type": config_type, "global_config": copy.deepcopy(dict(values))}
    try:
        return OptimizationConfig.from_dict(rule).global_config
    except Exception as error:
        # cattrs gives one error for each value, in a group
        causes = getattr(error, "exceptions", (error,))
        reasons = "; ".join(str(cause) for cause in causes)
        raise ConfigError(f"coremltools refuses it for an {config_type}: {reasons}") from error


def _is_instance(value: object, module_name: str, class_name: str) -> bool:
    module = sys.modules.get(module_name)
    kind = getattr(module, class_name, None)
    return isinstance(kind, type) and isinstance(value, kind)
