"""Every difference between opsets that coremltools' registry shows has a rule or a reason.

The registry is asked for all of them, so that one of another version of coremltools turns red here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlopt.mil.raising.rules import RULES
from mlopt.mil.targets import Target
from tests.canonical import MIXED

STEPS = [("iOS15", "iOS16"), ("iOS16", "iOS17"), ("iOS17", "iOS18"), ("iOS18", "iOS26")]

_GUARDED = {"validate_indices added", "type_inference"}

#: All differences that may need something. Types that are only accepted in addition are none.
DIFFERENCES: dict[str, dict[str, set[str]]] = {
    "CoreML6": {
        "crop_resize": {"pad_value added"},
        "gather": {"batch_dims added", "type_inference", "value_inference"},
        "gather_nd": {"batch_dims added", "type_inference"},
        "resample": {"type_inference"},
        "topk": {"sort added", "return_indices added", "type_inference", "value_inference"},
        "upsample_bilinear": {"half_pixel_centers added"},
    },
    "CoreML7": {
        "clip": {"type_inference"},
        "crop_resize": {
            "roi removed",
            "boxes added",
            "boxes required",
            "box_indices added",
            "type_inference",
        },
        "gather": _GUARDED,
        "gather_along_axis": _GUARDED,
        "gather_nd": _GUARDED,
        "matmul": {"type_inference"},
        "non_maximum_suppression": {"score_threshold removed", "type_inference"},
        "reduce_argmax": {"output_dtype added", "type_inference"},
        "reduce_argmin": {"output_dtype added", "type_inference"},
        "scatter": _GUARDED,
        "scatter_along_axis": _GUARDED,
        "scatter_nd": _GUARDED,
        "topk": {"output_indices_dtype added", "type_inference"},
    },
    "CoreML8": {
        "constexpr_lut_to_dense": {
            "shape removed",
            "vector_axis added",
            "type_inference",
        },
        "constexpr_sparse_to_dense": {
            "shape removed",
            "mask takes no uint8",
            "type_inference",
        },
        "gru": {"reset_after added", "input_bias added"},
    },
    "CoreML9": {},
}

#: Differences that need no rule.
HARMLESS = {
    ("CoreML6", "resample"): "it calls the older inference",
    ("CoreML7", "matmul"): "operands may differ in type where one is constant; equal ones did not",
}

#: Rules where the registry shows no difference.
HIDDEN = {
    ("CoreML8", "constexpr_cast"): "redefined only to have inputs in place of attributes",
    ("CoreML8", "constexpr_affine_dequantize"): "not redefined, and replaced by coremltools",
}


def versions_of(op_type: str, older: Any, newer: Any) -> tuple[Any, Any]:
    """Return an operation's classes in two opsets; one without a registry is the one before."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    versions = SSAOpRegistry.core_ops[op_type]
    before = versions.get(older)
    return before, versions.get(newer, before if newer.name == "iOS26" else None)


def domain(operation: Any, parameter: str) -> set[str]:
    """Return the names of the types that a parameter takes; empty for what is no tensor."""
    from coremltools.converters.mil.mil import types

    kind = operation.input_spec.input_types[parameter]
    identifier = getattr(kind, "type_domain_id", None)
    found = operation.type_domains[identifier] if identifier else getattr(kind, "type_domain", ())
    return {types.builtin_to_string(t) for t in found or ()}


def differences(before: Any, after: Any) -> Iterator[str]:
    old, new = before.input_spec.input_types, after.input_spec.input_types
    for name in {**old, **new}:
        if name not in new:
            yield f"{name} removed"
            continue
        if name not in old:
            yield f"{name} added"
            if not new[name].optional:
                yield f"{name} required"
            continue
        if old[name].optional and not new[name].optional:
            yield f"{name} required"
        if new[name].const and not old[name].const:
            yield f"{name} constant"
        lost = domain(before, name) - domain(after, name)
        if lost:
            yield f"{name} takes no {', '.join(sorted(lost))}"
    identifiers = [
        {name: getattr(kind, "type_domain_id", None) for name, kind in spec.items()}
        for spec in (old, new)
    ]
    for first in old.keys() & new.keys():
        for second in old.keys() & new.keys():
            was, now = (i[first] == i[second] is not None for i in identifiers)
            one = domain(before, first) | domain(before, second)
            if first < second and now and not was and len(one) > 1:
                yield f"{first} and {second} of one type"
    for name in ("type_inference", "value_inference"):
        if getattr(before, name) is not getattr(after, name):
            yield name


@pytest.mark.parametrize(("older", "newer"), STEPS)
def test_every_difference_of_the_registry_is_known(ct: Any, older: str, newer: str) -> None:
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    opset = Target.parse(newer).opset
    found = {}
    for op_type in SSAOpRegistry.core_ops:
        before, after = versions_of(op_type, ct.target[older], ct.target[newer])
        if before is None or before is after:
            continue
        found[op_type] = {"gone"} if after is None else set(differences(before, after))
    assert {op: what for op, what in found.items() if what} == DIFFERENCES[opset]


@pytest.mark.parametrize("opset", DIFFERENCES)
def test_every_difference_has_a_rule_or_a_reason(opset: str) -> None:
    harmless = {op for of, op in HARMLESS if of == opset}
    hidden = {op for of, op in HIDDEN if of == opset}
    assert set(RULES[opset]) - hidden == set(DIFFERENCES[opset]) - harmless
    assert not hidden & set(DIFFERENCES[opset])


@pytest.mark.parametrize(("older", "newer"), STEPS)
def test_defaults_that_a_model_may_leave_out_stay(ct: Any, older: str, newer: str) -> None:
    """A model by another writer may lack optional parameters: they have to mean the same."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    for op_type in SSAOpRegistry.core_ops:
        before, after = versions_of(op_type, ct.target[older], ct.target[newer])
        if before is None or after is None or before is after:
            continue
        old, new = defaults_of(before), defaults_of(after)
        for name in old.keys() & new.keys():
            assert np.array_equal(old[name], new[name]), (op_type, name)


def defaults_of(operation: Any) -> dict[str, Any]:
    """Return the defaults of an operation on floats of shape [4, 4, 4, 4]."""
    from coremltools.converters.mil.mil import types

    instance = object.__new__(operation)
    given = SimpleNamespace(dtype=types.fp32, rank=4, shape=(4, 4, 4, 4), val=None)
    for name, kind in operation.input_spec.input_types.items():
        setattr(instance, name, None if kind.optional else given)
    return dict(instance.default_inputs().items())


def test_parameters_of_another_float_type_are_known_to_the_texts_of_programs(ct: Any) -> None:
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    mixed: dict[str, set[str]] = {}
    for op_type, by_target in SSAOpRegistry.core_ops.items():
        for target, definition in by_target.items():
            family = definition.__module__.rpartition(".")[2]
            if target != ct.target.iOS17 or family not in ("activation", "elementwise_unary"):
                continue
            inputs = definition.input_spec.input_types
            for name in inputs.keys() - {"x"}:
                domain = inputs[name].type_domain_id
                if domain != inputs["x"].type_domain_id and types.fp32 in (
                    definition.type_domains.get(domain, ())
                ):
                    mixed.setdefault(op_type, set()).add(name)
    assert mixed.keys() == MIXED.keys()
    for op_type, names in mixed.items():
        assert names <= set(MIXED[op_type])
