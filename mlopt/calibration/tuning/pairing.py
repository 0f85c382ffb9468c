"""Whether a compressed model was made from the original that is given with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlopt.calibration.answers.losses import Outputs
from mlopt.coreml.weights import Weight
from mlopt.errors import ConfigError
from mlopt.runtime.program import Program
from mlopt.text.names import shortlist

_LEAST_COSINE = 0.25
"""Of a compressed weight and its original: 1 bit leaves 0.8, and unrelated weights have about 0."""
_COMPARED = 1 << 20
"""Elements of a weight that are compared, at most."""
_OTHER = "give the float model that the compressed one was made from"


def check_interfaces(compressed: Program, original: Program) -> None:
    """Refuse an original with other inputs or outputs.

    Raises
    ------
    ConfigError
        With the difference.
    """
    ours, theirs = compressed.plan, original.plan
    for what, one, other in (
        ("inputs", tuple(compressed.inputs), tuple(original.inputs)),
        ("outputs", ours.outputs, theirs.outputs),
        ("states", tuple(ours.state_types), tuple(theirs.state_types)),
    ):
        if set(one) != set(other):
            raise ConfigError(
                f"the original has the {what} {shortlist(list(other)) or 'none'}, the compressed "
                f"model {shortlist(list(one)) or 'none'}; {_OTHER}"
            )
    for name, kind in ours.input_types.items():
        shape, wanted = theirs.input_types[name].known_shape, kind.known_shape
        if shape is not None and wanted is not None and shape != wanted:
            raise ConfigError(
                f"input {name!r} has shape {list(shape)} in the original, and {list(wanted)} in "
                f"the compressed model; {_OTHER}"
            )


def check_outputs(outputs: Outputs, originals: Outputs) -> None:
    """Refuse outputs of other shapes, or of which only one model's are floats."""
    for name in {*outputs, *originals}:
        shapes = [
            list(given[name].shape) if name in given else "no floats"
            for given in (originals, outputs)
        ]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"output {name!r} has shape {shapes[0]} in the original, and {shapes[1]} in the "
                f"compressed model; {_OTHER}"
            )


def check_weights(compressed: Sequence[Weight], original: Sequence[Weight]) -> tuple[str, ...]:
    """Refuse an original with other weights; return remarks.

    Weights are compared under their names: those of another model are not similar to the compressed
    ones.

    Raises
    ------
    ConfigError
        Shapes differ, or most weights are not similar.
    """
    cosines = dict(_cosines(compressed, original))
    if not cosines:
        return (
            "no weight of the original has the name of a compressed one, so that it is not known "
            "whether it is the model that was compressed",
        )
    others = [name for name, cosine in cosines.items() if cosine < _LEAST_COSINE]
    if 2 * len(others) > len(cosines):
        raise ConfigError(
            f"{len(others)} of {len(cosines)} compressed weights are not similar to those of the "
            f"original: {shortlist(others)}; {_OTHER}"
        )
    return ()


def _cosines(
    compressed: Sequence[Weight], original: Sequence[Weight]
) -> Iterator[tuple[str, float]]:
    named = {name: weight for weight in original for name in weight.names}
    for weight in compressed:
        other = next((named[name] for name in weight.names if name in named), None)
        if not weight.is_compressed or other is None:
            continue
        if weight.shape != other.shape:
            raise ConfigError(
                f"weight {weight.name!r} has shape {list(other.shape)} in the original, and "
                f"{list(weight.shape)} in the compressed model; {_OTHER}"
            )
        cosine = _cosine(_some(weight), _some(other))
        weight.release()
        other.release()
        if np.isfinite(cosine):
            yield weight.name, cosine


def _some(weight: Weight) -> Any:
    flat = weight.value().reshape(-1)
    return flat[:: -(-flat.size // _COMPARED) or 1].astype(np.float64)


def _cosine(one: Any, other: Any) -> float:
    with np.errstate(all="ignore"):  # masks have infinite elements, and weights may be all 0
        return float(one @ other / np.sqrt((one @ one) * (other @ other)))
