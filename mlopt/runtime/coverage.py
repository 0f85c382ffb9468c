"""Table of the operations of Core ML that can be run, for the documentation."""

from __future__ import annotations

import inspect

import mlopt.runtime.ops  # noqa: F401  registers them
from mlopt.mil.targets import Target
from mlopt.runtime.registry import find_operation, registered_operations

_OPSETS = [target.opset for target in Target]
_NOT_IN_PROGRAMS = {
    "const": "read where it is used",
    "_const_symbolic": "coremltools' own, not written to programs",
}
_LEFT_OUT = {
    "conv_quantized": "called experimental by coremltools, which does not say what shapes its "
    "scale and bias have, nor how its `bias` in uint8 is to be read",
}
"""Operations that are not there, with the reason."""


def core_operations() -> dict[str, tuple[str, ...]]:
    """Return the core operations of the installed coremltools: the opsets that redefine each."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    operations = {}
    for op_type, by_target in sorted(SSAOpRegistry.core_ops.items()):
        definitions = {int(target): definition for target, definition in by_target.items()}
        opsets, last = [], None
        for target in Target:
            # definitions from before the first ML programs hold for them
            definition = definitions.get(target.specification_version, last)
            if definition is not None and definition is not last:
                opsets.append(target.opset)
            last = definition
        operations[op_type] = tuple(opsets)
    return operations


def missing_operations() -> list[str]:
    """Return the core operations that cannot be run in some opset that has them."""
    return [
        op_type
        for op_type, opsets in core_operations().items()
        if op_type not in _NOT_IN_PROGRAMS and not _runs_in(op_type, opsets)
    ]


def coverage_table() -> str:
    """Return Markdown: how many operations can be run, and a row for each."""
    known = core_operations()
    missing = missing_operations()
    ours = registered_operations()
    lines = [
        "# Operations",
        "",
        f"Of the {len(known)} core operations of coremltools, {len(known) - len(missing)} can be "
        "run in every opset that has them. Written by `python -m mlopt.runtime`.",
        "",
        "| operation | defined in | here | what it computes |",
        "|---|---|---|---|",
    ]
    for op_type in sorted({*known, *ours}):
        defined = ", ".join(known.get(op_type, ())) or "how programs write states"
        status, what = "yes", _NOT_IN_PROGRAMS.get(op_type, "")
        if op_type in ours:
            function = ours[op_type][-1].function
            what = (inspect.getdoc(function) or "").partition("\n")[0].replace("|", "\\|")
        if op_type in missing:
            status, what = "no", _LEFT_OUT.get(op_type, what)
        lines.append(f"| `{op_type}` | {defined} | {status} | {what} |")
    return "\n".join(lines)


def _runs_in(op_type: str, opsets: tuple[str, ...]) -> bool:
    first = _OPSETS.index(opsets[0])
    return all(find_operation(op_type, opset) is not None for opset in _OPSETS[first:])
