"""Rules about deployment targets: features that the oldest system to run a model lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlopt.coreml.constexpr.parameters import is_constexpr
from mlopt.coreml.lint.findings import Place
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import Subject, palettes_of, place_of_node, place_of_weight
from mlopt.coreml.weights import Weight
from mlopt.mil.constexpr_forms import first_target
from mlopt.mil.messages import Model_pb2
from mlopt.mil.targets import Target
from mlopt.requests.forms import OLD_BITS
from mlopt.text.words import human_bytes

# The oldest target of each operation that iOS15 does not have, but for those of compressed weights.
_FIRST_TARGET = {
    "fill_like": Target.iOS16,
    "pixel_unshuffle": Target.iOS16,
    "reshape_like": Target.iOS16,
    "dequantize": Target.iOS17,
    "quantize": Target.iOS17,
    "resize": Target.iOS17,
    "read_state": Target.iOS18,
    "scaled_dot_product_attention": Target.iOS18,
    "slice_update": Target.iOS18,
    "write_state": Target.iOS18,
}

_ARRAY = Model_pb2.ArrayFeatureType
_ARRAY_TYPES = {
    _ARRAY.FLOAT16: ("float16", Target.iOS16),
    _ARRAY.INT8: ("int8", Target.iOS26),
}


@rule(
    "newer-than-target",
    severity="error",
    remedy="raise the minimum deployment target of the app, or convert the source again with an "
    "older minimum_deployment_target",
)
def newer_than_target(subject: Subject) -> Iterator[Hit]:
    """A model, or a function of it, for a newer system than the target.

    A system refuses to load a model whose specification version or opset it does not know.
    """
    target = subject.target
    for program, nodes in zip(subject.package.programs, subject.nodes, strict=True):
        version = max(m.specificationVersion for m in (program.model, *program.enclosing))
        if version > target.specification_version:
            yield Hit(
                f"specification version {version} is for {Target.of_specification(version)}, "
                f"{target} knows versions up to {target.specification_version}",
                Place(model=program.label),
            )
        for function in program.functions:
            known = [t.opset for t in Target if t <= target]
            if function.opset not in known:
                count = sum(node.function == function.name for node in nodes)
                yield Hit(
                    f"{count} operations of opset {function.opset}; {target} knows {known[-1]} "
                    "and older ones",
                    Place(model=program.label, functions=(function.name,)),
                )


@rule(
    "operation-newer-than-target",
    severity="error",
    remedy="write the source without the operation and convert it for the target, or raise the "
    "minimum deployment target",
)
def operation_newer_than_target(subject: Subject) -> Iterator[Hit]:
    """An operation that the target does not have at all.

    It cannot be expressed for the target: converting for an older target fails, or gives a
    different program.
    """
    for program, nodes in zip(subject.package.programs, subject.nodes, strict=True):
        for node in nodes:
            first = _FIRST_TARGET.get(node.op_type, subject.target)
            if not is_constexpr(node) and first > subject.target:
                yield Hit(
                    f"{node.op_type} is available from {first} on", place_of_node(program, node)
                )


@rule(
    "compression-newer-than-target",
    severity="error",
    remedy="convert the source for the target and compress that: up to iOS17 each weight has one "
    f"table, of {OLD_BITS}",
)
def compression_newer_than_target(subject: Subject) -> Iterator[Hit]:
    """A compressed weight in a form that the target does not have.

    Compressed weights came with iOS16; tables for groups, 3 bits, vectors, integer tables, scales,
    blocks and typed indices came with iOS18.
    """
    for weight in subject.compressed:
        needs, reason = _needs(weight)
        if needs > subject.target:
            yield Hit(f"needs {needs}: {reason}", place_of_weight(weight))


@rule(
    "interface-newer-than-target",
    severity="error",
    remedy="convert the source again for the target, with inputs and outputs of float32",
)
def interface_newer_than_target(subject: Subject) -> Iterator[Hit]:
    """Inputs, outputs or functions of a kind that the target does not have.

    Arrays of float16 came with iOS16, models of several functions with iOS18, arrays of int8 with
    iOS26.
    """
    for program in subject.package.programs:
        functions = [function.name for function in program.functions]
        if len(functions) > 1 and subject.target < Target.iOS18:
            yield Hit(
                f"{len(functions)} functions; several are available from iOS18 on",
                Place(model=program.label),
                remedy="save a model for each function",
            )
        described = [(program.model.description, "main")]
        described += [(d, d.name) for d in program.model.description.functions]
        for description, function in described:
            for kind, feature in _features(description):
                dtype, first = _ARRAY_TYPES.get(
                    feature.type.multiArrayType.dataType, ("", subject.target)
                )
                if first > subject.target:
                    yield Hit(
                        f"{kind} {feature.name!r} is an array of {dtype}, "
                        f"available from {first} on",
                        Place(
                            model=program.label,
                            functions=(function,),
                            names=frozenset({feature.name}),
                        ),
                    )


@rule(
    "decompressed-at-load",
    severity="note",
    certainty="documented",
    source="coremltools guide, What's New and Palettization: Performance",
    remedy="keep the compression for the size of the download; for less memory raise the minimum "
    "deployment target to iOS17 or later",
)
def decompressed_at_load(subject: Subject) -> Iterator[Hit]:
    """Weights that iOS16 decompresses when the model is loaded.

    On iOS16 compression saves bytes on disk but no memory, and loading takes longer; from iOS17 on
    weights can be decompressed just in time, mainly on the Neural Engine.
    """
    if subject.target >= Target.iOS17 or not subject.compressed:
        return
    stored = sum(weight.nbytes for weight in subject.compressed)
    plain = sum(weight.plain_nbytes for weight in subject.compressed)
    yield Hit(
        f"{human_bytes(stored)} of compressed weights take {human_bytes(plain)} of memory on iOS16",
        Place(),
    )


def _features(description: Any) -> Iterator[tuple[str, Any]]:
    for feature in description.input:
        yield "input", feature
    for feature in description.output:
        yield "output", feature


def _needs(weight: Weight) -> tuple[Target, str]:
    """The oldest target that can express a compressed weight, and what of it needs that."""
    needs, node = max(
        ((first_target(node), node) for node in reversed(weight.chain)), key=lambda n: n[0]
    )
    for palette in palettes_of(weight):
        if palette.node is node:
            return needs, palette.description
    return needs, node.op_type
