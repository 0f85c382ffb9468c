"""coremltools' configs among the rules of a configuration, without loading coremltools.

``coremltools.optimize.coreml`` has a config for each kind of compressor. The one for palettes is
converted to mlopt's own; those for quantization and pruning are kept as they are, for coremltools'
compressors. Objects of coremltools can only exist once it is loaded, so that its module is only
looked up among the loaded ones.
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
"""Names of configs that are not for palettes, and the function that takes each."""

CONFIG_TYPE = "OpPalettizerConfig"
"""The name of the config for palettes, mlopt's and coremltools'."""
_CONFIG_TYPES = (CONFIG_TYPE, *COMPRESSORS)


def checked_config_type(given: object, default: str) -> str:
    """Return the checked ``config_type`` of a config in plain values; of None, the default."""
    if given is None:
        return default
    if isinstance(given, str) and given in _CONFIG_TYPES:
        return given
    raise ConfigError(f"config_type must be {listed(_CONFIG_TYPES)}, got {shown(given)}")


def let_stand(ours: type, class_name: str) -> None:
    """Let coremltools, if it is loaded, accept objects of a class as instances of its own class.

    Its compressors check the class of a rule before they read its parameters.
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
    """Return the parameters of one of coremltools' configs with their values."""
    return {
        field.name: getattr(config, field.name)
        for field in attrs.fields(type(config))
        if field.init
    }


def plain_values(config: Any) -> dict[str, Any]:
    """Return a config for coremltools' compressors as values that :func:`read_rule` reads back."""
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
    """Return the coremltools config that a mapping of parameters describes; it is only read.

    Raises
    ------
    ConfigError
        coremltools does not allow a key or a value.
    """
    from coremltools.optimize.coreml import OptimizationConfig

    # coremltools removes keys from the mapping that it reads
    rule = {"config_type": config_type, "global_config": copy.deepcopy(dict(values))}
    try:
        return OptimizationConfig.from_dict(rule).global_config
    except Exception as error:
        # cattrs raises a group with one error per value
        causes = getattr(error, "exceptions", (error,))
        reasons = "; ".join(str(cause) for cause in causes)
        raise ConfigError(f"coremltools refuses an {config_type}: {reasons}") from error


def _is_instance(value: object, module_name: str, class_name: str) -> bool:
    module = sys.modules.get(module_name)
    kind = getattr(module, class_name, None)
    return isinstance(kind, type) and isinstance(value, kind)
