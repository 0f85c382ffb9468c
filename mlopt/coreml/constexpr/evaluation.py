"""The values of constexpr operations."""

from __future__ import annotations

import numpy as np

from mlopt.coreml.constexpr.chains import chain_of, producers
from mlopt.coreml.constexpr.operations import checked
from mlopt.coreml.constexpr.parameters import Array
from mlopt.coreml.constexpr.scaled import palette, scaled_lut
from mlopt.mil.program import Node, Variable


def evaluate(node: Node) -> tuple[Array, ...]:
    """The values of the outputs of a constexpr operation, which may read other such operations.

    They equal coremltools' own decompression to the last bit. Everything is checked before anything
    is computed, and no more memory is allocated than the stored bytes justify.

    Returns
    -------
    A read-only array for each output, of its declared shape and type. Elements narrower than a byte
    take one byte: int8 for int4, uint8 for the others.

    Raises
    ------
    ModelFormatError
        One of the operations violates its definition, or is damaged.
    """
    chain = chain_of(node)
    values: dict[int, tuple[Array, ...]] = {}

    def computed(variable: Variable) -> Array:
        assert variable.node is not None
        return values[id(variable.node)][output_index(variable)]

    links = [checked(link, computed) for link in chain]
    scaled = scaled_lut(links)
    last_reader = {id(source): reader for reader in chain for source in producers(reader)}
    for link in links:
        if link is scaled:
            continue  # together with the last one
        together = palette(scaled, link) if scaled is not None and link is links[-1] else None
        # A product may leave the range of its type; what comes out then is what the file says.
        with np.errstate(all="ignore"):
            values[id(link.node)] = link.compute() if together is None else (together.dequantize(),)
        for source in {id(s) for s in producers(link.node)}:
            if last_reader[source] is link.node:
                values.pop(source, None)
    result = values[id(node)]
    for array in result:
        array.flags.writeable = False
    return result


def value_of(variable: Variable) -> Array:
    """The values of an output of a constexpr operation; see ``evaluate``."""
    assert variable.node is not None
    return evaluate(variable.node)[output_index(variable)]


def output_index(variable: Variable) -> int:
    """The position of a variable among its operation's outputs."""
    assert variable.node is not None
    return [id(output) for output in variable.node.outputs].index(id(variable))
