"""What is tuned in a function of a package, and why the rest is left."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.calibration.tuning.kinds import FLOATS, is_elementwise, kind_of, makes_tables
from mlopt.choices import Tuned
from mlopt.coreml.constexpr import is_constexpr
from mlopt.coreml.elementwise import ElementwiseReaders
from mlopt.mil.program import Constant, Node, Variable


@attrs.frozen(eq=False, kw_only=True)
class Tunable:
    """A value that is stored once and can be tuned.

    key: see :func:`key_of`; constants: all that have it, in all functions of the package.
    """

    key: Hashable
    kind: Tuned
    constants: tuple[Constant, ...]

    @property
    def name(self) -> str:
        """That of the first constant."""
        return self.constants[0].name

    def value(self) -> npt.NDArray[np.floating]:
        """Return its numbers as they are stored, float16 or float32, in an array of their own."""
        dtype = FLOATS[self.constants[0].dtype]
        return np.array(self.constants[0].value(), dtype)


@attrs.frozen(eq=False)
class _Use:
    node: Node
    parameter: str
    constant: Constant
    kind: Tuned | None


def key_of(constant: Constant) -> Hashable:
    """Equal for constants that are tuned as one, also in two openings of a package.

    Those share a blob of the weight file, or they are equal values in the message under one name,
    in functions that have the same operations.
    """
    if constant.storage is not None:
        return constant.storage, constant.dtype, constant.shape
    content = constant.message.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).digest(), constant.name


def bound_constant(bound: Variable | Constant | None) -> Constant | None:
    """Return the constant that an input is bound to, if it is one."""
    return bound.constant if isinstance(bound, Variable) else bound


def tunables_of(
    nodes: Sequence[Node], function: str, what: Collection[Tuned]
) -> tuple[list[Tunable], dict[str, str]]:
    """Return what can be tuned in a function, and the reason for each constant that is left.

    nodes: of all functions. A value that is read in another way as well, in any function, is left.
    """
    readers = ElementwiseReaders(nodes)
    uses: dict[Hashable, list[_Use]] = {}
    left: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "const":
            continue
        for parameter, bindings in node.inputs.items():
            for bound in bindings:
                constant = bound_constant(bound)
                if constant is not None:
                    kind = kind_of(node, parameter, constant)
                    use = _Use(node, parameter, constant, kind)
                    uses.setdefault(key_of(constant), []).append(use)
    found = []
    for key, own in uses.items():
        kinds = [use.kind for use in own if use.kind is not None and use.kind in what]
        if not kinds:
            if "tables" in what and any(_is_integer_table(use) for use in own):
                left[own[0].constant.name] = f"a table in {own[0].constant.dtype}"
            continue
        reason = _reason(own, function, readers)
        if reason:
            left[own[0].constant.name] = reason
            continue
        constants = {id(use.constant): use.constant for use in own}
        found.append(Tunable(key=key, kind=kinds[0], constants=tuple(constants.values())))
    return found, left


def _is_integer_table(use: _Use) -> bool:
    return use.parameter == "data" and is_constexpr(use.node) and makes_tables(use.node)


def _reason(uses: Sequence[_Use], function: str, readers: ElementwiseReaders) -> str:
    """Return why a value is left; "" if it is not."""
    first = uses[0].constant
    if first.dtype not in FLOATS:
        return f"its numbers are {first.dtype}"
    functions = [use.node.function for use in uses]
    if function not in functions:
        return f"only function {functions[0]!r} has it"
    for use in uses:
        if use.kind is None:
            return f"{use.node.op_type} {use.node.name!r} reads it too, as its {use.parameter}"
        if use.constant.is_block_output:
            return "it is an output as well"
        if is_constexpr(use.node) and is_elementwise(use.node, readers):
            return "only elementwise operations read the weight"
    if not np.isfinite(np.asarray(first.value(), np.float32)).all():
        return "it has NaN or infinite elements"
    return "" if first.size else "it has no elements"
