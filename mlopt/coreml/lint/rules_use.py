"""Rules about the use of weights."""

from __future__ import annotations

from collections.abc import Iterator

from mlopt.coreml.elementwise import ElementwiseReaders
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import Subject, palettes_of, place_of_weight
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.weights import Weight
from mlopt.requests.report import rules_to_keep
from mlopt.requests.rules import Resolution
from mlopt.text.words import human_bytes

_GLOBAL_RULE = Resolution(OpPalettizerConfig(nbits=4), "global_config")


@rule(
    "elementwise-constant",
    severity="note",
    remedy="nothing, if the outputs are good enough (mlopt compare); to leave such a constant "
    "alone, palettize the original with the op_name_configs that its row shows, which in Python is "
    "op_name_configs={NAME: None}, or with --skip NAME",
)
def elementwise_constant(subject: Subject) -> Iterator[Hit]:
    """A constant that only elementwise operations read, and that is or would be palettized.

    Rotary and position tables, windows and offsets are used element by element: each error of a
    palette goes into an activation, while a matrix product would sum over many and average them
    out. palettize treats them like any other weight, as coremltools does.
    """
    readers = {
        id(program): ElementwiseReaders(nodes)
        for program, nodes in zip(subject.package.programs, subject.nodes, strict=True)
    }
    for compressed in subject.compressed:
        if palettes_of(compressed) and readers[id(compressed.program)].are_all(
            compressed.consumers
        ):
            size = human_bytes(compressed.plain_nbytes)
            yield Hit(
                f"palettized, {size} before; {_rule(compressed.name)}", place_of_weight(compressed)
            )
    for plain in subject.plain:
        if readers[id(plain.program)].are_all(plain.consumers) and _would_be_palettized(plain):
            yield Hit(
                f"{human_bytes(plain.nbytes)}, not palettized yet; {_rule(plain.name)}",
                place_of_weight(plain),
            )


def _rule(name: str) -> str:
    return rules_to_keep([name], on_one_line=True).strip()


def _would_be_palettized(weight: Weight) -> bool:
    """Whether a configuration that names no weight palettizes it, values considered."""
    from mlopt.coreml.guards import reason_to_keep  # with it come the kernels

    return reason_to_keep(weight, _GLOBAL_RULE, joint_compression=False) is None
