"""The inputs of several models that run one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from mlopt.runtime import load
from mlopt.runtime.features.described import Feature


@attrs.frozen
class InputsTogether:
    """What samples for several models have: the inputs by name."""

    inputs: dict[str, Feature]


def inputs_together(models: Sequence[Path]) -> InputsTogether:
    """Return the inputs of all models; those that an earlier model puts out are optional.

    Of inputs of one name, that of the first model counts.
    """
    inputs: dict[str, Feature] = {}
    outputs: set[str] = set()
    for path in models:
        model = load(path)
        for name, feature in model.inputs.items():
            is_optional = feature.is_optional or name in outputs
            inputs.setdefault(name, attrs.evolve(feature, is_optional=is_optional))
        outputs.update(model.outputs)
    return InputsTogether(inputs)
