"""Choice among several configurations of a module, by the number of elements of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from torch import nn

from mlopt.requests.keep import Keep
from mlopt.torch.adapters import weights_of
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig


def config_by_size(
    configs: Sequence[ModuleDKMPalettizerConfig], module: nn.Module
) -> ModuleDKMPalettizerConfig | Keep:
    """Return the config with the largest `weight_threshold` that all weights of a module exceed.

    Its `n_bits` is the one for that module, no longer None. A module without weights exceeds every
    threshold. Keep, with the thresholds, if none is exceeded.

    Parameters
    ----------
    configs
        At least one, in any order, with different thresholds.
    module
        The module to palettize. Its weights are those that have an adapter.
    """
    name, size = _smallest_weight(module)
    exceeded = [config for config in configs if size > config.weight_threshold]
    if exceeded:
        config = max(exceeded, key=_threshold)
        return attrs.evolve(config, n_bits=config.nbits_for(module))
    thresholds = " or ".join(str(_threshold(config)) for config in sorted(configs, key=_threshold))
    return Keep(
        f"its {name} has {size} elements, no more than weight_threshold {thresholds}",
        "no more elements than weight_threshold",
    )


def _threshold(config: ModuleDKMPalettizerConfig) -> int:
    return config.weight_threshold


def _smallest_weight(module: nn.Module) -> tuple[str, float]:
    """Return the name of the smallest weight and its number of elements; infinite if none."""
    sizes = [(weight.numel(), name) for name, weight in weights_of(module)]
    size, name = min(sizes, default=(math.inf, ""))
    return name, size
