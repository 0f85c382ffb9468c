"""Metadata of the weights of a model: values, statistics, and the operations they feed.

Statistics are computed at their first use, and values are views of the mapped weight file, so
that listing the weights of a model costs no more than reading its description.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple
from weakref import ref

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import DEFAULT_WEIGHT_THRESHOLD
from mlopt.coreml.constexpr import CompressedForm
from mlopt.coreml.models import ModelSource
from mlopt.coreml.value_counts import zeros_and_distinct
from mlopt.coreml.weights import (
    Instance,
    Weight,
    name_of,
    node_of,
    ordinary_consumers,
    weights_of,
)
from mlopt.mil.opening import open_package
from mlopt.mil.program import Node, Variable

Array = npt.NDArray[Any]

#: Parameters in the order in which coremltools declares them, where that is not alphabetical.
#: All others come last, by name.
_PARAMETER_ORDER = (
    *("x", "data", "cond", "ls", "query", "key", "value", "mean", "variance", "weight"),
    *("initial_h", "initial_c", "weight_ih", "weight_hh", "bias", "peephole"),
    *("weight_ih_back", "weight_hh_back", "bias_back", "peephole_back", "input_bias"),
    *("gamma", "beta", "update", "data_mask", "nonzero_data", "mask"),
    *("quantized_data", "zero_point", "scale", "offset"),
)


@attrs.frozen
class CoreMLOpMetaData:
    """Operation that a weight feeds into.

    Parameters
    ----------
    op_type
        Its type, such as ``"conv"``.
    name
        Its name.
    params_name_mapping
        Parameter to name of the weight that is bound to it, for the parameters with listed weights.
        Each is also an attribute: ``op.weight`` is the name that is bound to ``"weight"``.
    """

    op_type: str = attrs.field(validator=attrs.validators.instance_of(str))
    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    params_name_mapping: dict[str, str] = attrs.field(validator=attrs.validators.instance_of(dict))

    def __getattr__(self, parameter: str) -> str:
        # The mapping itself is missing while a copy is being made.
        known = {} if parameter == "params_name_mapping" else self.params_name_mapping
        if parameter in known:
            return known[parameter]
        raise AttributeError(
            f"{type(self).__name__} has no attribute {parameter!r}, and no such parameter "
            "is bound to a listed weight"
        )

    def __str__(self) -> str:
        bound = "".join(f", {key}={name}" for key, name in self.params_name_mapping.items())
        return f"{self.op_type}(name={self.name}{bound}, ...)"


class CoreMLWeightMetaData:
    """Metadata of a weight: values, statistics, and the operations that it feeds into. Read-only.

    Parameters
    ----------
    val
        The values, an array of any shape and dtype.
    sparsity
        Share of the values whose magnitude is at most 1e-12. Computed at its first use if not
        given.
    unique_values
        Number of distinct values, as `numpy.unique` counts them: 0 and -0 are one value, and all
        NaNs are one. Computed at its first use if not given.
    child_ops
        The operations that the weight feeds into, or None where they are not known.
    compression
        How the weight is compressed in the model, None for a plain weight. ``val`` is decompressed
        when it is read, and kept for as long as other code holds it.

    Raises
    ------
    TypeError
        An argument is of the wrong type.
    """

    def __init__(
        self,
        val: Array,
        sparsity: float | None = None,
        unique_values: int | None = None,
        child_ops: list[CoreMLOpMetaData] | None = None,
        compression: CompressedForm | None = None,
    ) -> None:
        for name, given, wanted in (
            ("val", val, np.ndarray),
            ("sparsity", 0.0 if sparsity is None else sparsity, float),
            ("unique_values", 0 if unique_values is None else unique_values, int),
            ("child_ops", [] if child_ops is None else child_ops, list),
        ):
            if not isinstance(given, wanted):
                raise TypeError(
                    f"{name} must be {wanted.__name__}, got {given!r} ({type(given).__name__})"
                )
        self._val: Array | Callable[[], Array] = val
        self._child_ops = child_ops
        self._compression = compression
        # A cached_property looks here first.
        if sparsity is not None:
            self.__dict__["sparsity"] = sparsity
        if unique_values is not None:
            self.__dict__["unique_values"] = unique_values

    @classmethod
    def _deferred(
        cls,
        read: Callable[[], Array],
        child_ops: list[CoreMLOpMetaData],
        compression: CompressedForm | None,
    ) -> CoreMLWeightMetaData:
        """Return the metadata of a weight whose values are read at their first use."""
        deferred = cls.__new__(cls)
        deferred._val = read
        deferred._child_ops = child_ops
        deferred._compression = compression
        return deferred

    @property
    def val(self) -> Array:
        """The values."""
        if isinstance(self._val, np.ndarray):
            return self._val
        values = self._val()
        # Only plain values, which are views of the file, are kept; others would fill the memory.
        if self._compression is None:
            self._val = values
        return values

    @property
    def compression(self) -> CompressedForm | None:
        """How it is compressed in the model; None for a plain weight."""
        return self._compression

    @property
    def child_ops(self) -> list[CoreMLOpMetaData] | None:
        """The operations that the weight feeds into."""
        return self._child_ops

    @cached_property
    def sparsity(self) -> float:
        """Share of the values whose magnitude is at most 1e-12, 0 to 1."""
        return self._statistics[0]

    @cached_property
    def unique_values(self) -> int:
        """Number of distinct values."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[float, int]:
        zeros, distinct = zeros_and_distinct(self.val)
        return zeros / max(self.val.size, 1), distinct

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("val", "sparsity", "unique_values", "child_ops", "compression"):
            raise AttributeError(f"{name} cannot be set; make a new {type(self).__name__}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        # Without the statistics, which would need a computation.
        children = ", ".join(map(str, self.child_ops or ()))
        return f"{type(self).__name__}({_shown(self.val)}, child_ops=[{children}])"

    def __str__(self) -> str:
        lines = [
            "[  ",  # with the blanks that coremltools prints
            f"  val: {_shown(self.val)}",
            f"  sparsity: {self.sparsity}",
            f"  unique_values: {self.unique_values}",
        ]
        if self.compression is not None:
            lines.append(f"  compression: {self.compression}")
        if self.child_ops is not None:
            lines += ["  child_ops: [", *(f"    {op}" for op in self.child_ops), "  ]"]
        return "\n".join([*lines, "]"])


class WeightMetadataDict(OrderedDict[str, CoreMLWeightMetaData]):
    """Weight name to metadata, in program order; prints as a readable list.

    Parameters
    ----------
    mapping
        Initial content.
    str_prefix
        Printed before each name.
    """

    def __init__(
        self,
        mapping: Mapping[str, CoreMLWeightMetaData]
        | Iterable[tuple[str, CoreMLWeightMetaData]] = (),
        str_prefix: str = "",
    ) -> None:
        super().__init__(mapping)
        self._str_prefix = str_prefix

    def __str__(self) -> str:
        return "".join(f"{self._str_prefix}{name}\n{value}\n" for name, value in self.items())


def get_weights_metadata(
    mlmodel: ModelSource, weight_threshold: int = DEFAULT_WEIGHT_THRESHOLD
) -> WeightMetadataDict:
    """Return the weights of a model with the operations that they feed into.

    Parameters
    ----------
    mlmodel
        A coremltools ``MLModel`` that is an ML program, or the path of its package.
    weight_threshold
        Weights of **more** elements than this are listed, of any dtype but strings; of a compressed
        weight the elements of the plain one count.

    Returns
    -------
    WeightMetadataDict
        Name to metadata in program order, nested blocks and all functions included. A constant that
        functions share is listed once. Different constants of the same name are listed as
        ``"function/name"`` (in a pipeline ``"model/function/name"``). A value that is bound
        to an operation directly is called ``"<operation>_<parameter>_<index>"``, as in coremltools.
        ``val`` is a read-only view of the weight file; types below 8 bits are unpacked to a byte
        each.

        A compressed weight is listed under its name once decompressed, with its plain values in
        ``val``, the operations that read these, and its form in ``compression``. Its tables, masks
        and scales are not listed.

    Raises
    ------
    ModelFormatError
        The model is damaged or is not an ML program.
    """
    weights, nodes_of_programs = weights_of(open_package(mlmodel), smallest=weight_threshold + 1)
    nodes = (node for nodes in nodes_of_programs for node in nodes)
    position = {id(node): index for index, node in enumerate(nodes)}
    listed = [_Listed(weight, instance) for weight in weights for instance in weight.instances]
    listed.sort(key=lambda item: position[id(node_of(item.instance))])
    groups = _by_key(listed)
    keys = {id(item.instance): key for key, items in groups.items() for item in items}

    result = WeightMetadataDict()
    for key, items in groups.items():
        # Nodes are equal only to themselves: an operation that reads a weight twice is one child.
        readers = dict.fromkeys(
            use.node for item in items for use in ordinary_consumers(item.instance)
        )
        weight = items[0].weight
        result[key] = CoreMLWeightMetaData._deferred(
            _HeldWeakly(weight.value) if weight.is_compressed else partial(_values, weight),
            [_child(node, keys) for node in readers],
            weight.compression,
        )
    return result


class _Listed(NamedTuple):
    """A weight, and one of its instances."""

    weight: Weight
    instance: Instance

    @property
    def qualifier(self) -> str:
        """Prefix that distinguishes the instance from others of its name."""
        function = node_of(self.instance).function
        return "/".join(filter(None, (self.weight.program.label, function)))


def _by_key(listed: list[_Listed]) -> dict[str, list[_Listed]]:
    """Return key to the instances of one name and content; names in program order."""
    variants: dict[str, dict[Hashable, list[_Listed]]] = {}
    for item in listed:
        groups = variants.setdefault(name_of(item.instance), {})
        groups.setdefault(item.weight.content, []).append(item)
    keyed: dict[str, list[_Listed]] = {}
    for name, groups in variants.items():
        for number, group in enumerate(groups.values(), start=1):
            key = name if len(groups) == 1 else f"{group[0].qualifier}/{name}"
            if key in keyed:  # blocks of one function may use a name twice
                key = f"{key}#{number}"
            keyed[key] = group
    return keyed


class _HeldWeakly:
    """Values that are read again once no other code holds them."""

    def __init__(self, read: Callable[[], Array]) -> None:
        self._read = read
        self._last: Callable[[], Array | None] = lambda: None

    def __call__(self) -> Array:
        values = self._last()
        if values is None:
            values = self._read()
            self._last = ref(values)
        return values


def _values(weight: Weight) -> Array:
    """Return the values of a plain weight, read-only; types below 8 bits are unpacked."""
    values = weight.value()
    values.flags.writeable = False
    return values


def _child(node: Node, keys: dict[int, str]) -> CoreMLOpMetaData:
    mapping: dict[str, str] = {}
    for parameter in sorted(node.inputs, key=_declared):
        bound = node.inputs[parameter]
        for index, value in enumerate(bound):
            if isinstance(value, Variable) and value.constant is not None:
                value = value.constant
            if id(value) in keys:
                several = f"{parameter}[{index}]"
                mapping[several if len(bound) > 1 else parameter] = keys[id(value)]
    return CoreMLOpMetaData(node.op_type, node.name, mapping)


def _declared(parameter: str) -> tuple[int, str]:
    if parameter in _PARAMETER_ORDER:
        return (_PARAMETER_ORDER.index(parameter), parameter)
    return (len(_PARAMETER_ORDER), parameter)


def _shown(values: Array) -> str:
    return f"np.ndarray(shape={values.shape}, dtype={values.dtype})"
