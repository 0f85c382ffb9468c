"""Lists of tensors (MIL, ``defs/*/control_flow.py``).

A list is a value like any other: an operation that writes gives a new one, and the old one stays as
it was. What has not been written is zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.registry import Ints, operation
from mlopt.runtime.sizes import check_elements


@attrs.frozen(eq=False)
class TensorList:
    """Tensors of one shape and dtype.

    elements: those that have been written, by index; shape: of each, None for lengths that are
    known only when a program runs; device: where zeros are made; is_dynamic: whether writing past
    the end makes it longer.
    """

    length: int
    elements: Mapping[int, Tensor]
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    device: torch.device
    is_dynamic: bool

    def element(self, index: int) -> Tensor:
        """Return the element at an index."""
        self._check(index)
        return self.elements[index] if index in self.elements else self.zeros(())

    def zeros(self, sizes: tuple[int, ...]) -> Tensor:
        """Return zeros for elements along axes of these sizes in front."""
        lengths = self.shape
        if None in lengths:
            if not self.elements:
                raise ValueError("nothing has been written to the list, whose shape is not known")
            lengths = tuple(next(iter(self.elements.values())).shape)
        whole = (*sizes, *(length for length in lengths if length is not None))
        check_elements(math.prod(whole))
        return torch.zeros(whole, dtype=self.dtype, device=self.device)

    def written(self, values: Mapping[int, Tensor]) -> TensorList:
        """Return a list with some elements replaced."""
        for index, value in values.items():
            if index < 0 or not self.is_dynamic:
                self._check(index)
            known = zip(self.shape, value.shape, strict=False)
            if value.dim() != len(self.shape) or not all(a in (None, b) for a, b in known):
                shown = ", ".join("?" if length is None else str(length) for length in self.shape)
                raise ValueError(
                    f"the list has elements of shape [{shown}], got one of {list(value.shape)}"
                )
        length = max((self.length, *(index + 1 for index in values)))
        return attrs.evolve(self, length=length, elements={**self.elements, **values})

    def _check(self, index: int) -> None:
        if not 0 <= index < self.length:
            raise ValueError(f"index {index} is not in the list, which has {self.length} elements")


@operation("make_list", in_half=True)
def make_list(
    call: Call,
    init_length: Tensor | None = None,
    dynamic_length: bool = True,
    elem_shape: Any = (),
    dtype: str = "fp32",
) -> TensorList:
    """A list of zeros, of 1 where no length is given.

    A name in ``elem_shape`` is a length that is not known before.
    """
    if not call.element_types.has(dtype):
        raise ValueError(f"dtype must be bool, fp16, fp32 or int32, got {dtype!r}")
    length = 1 if init_length is None else int(init_length.item())
    if length < 0:
        raise ValueError(f"init_length must be at least 0, got {length}")
    device = torch.device("cpu") if init_length is None else init_length.device
    shape = tuple(
        None if isinstance(size, str) else int(size)
        for size in (elem_shape if isinstance(elem_shape, tuple) else (elem_shape,))
    )
    kind = call.element_types.dtype(dtype)
    return TensorList(length, {}, shape, kind, device, dynamic_length)


@operation("list_length", in_half=True)
def list_length(ls: Any) -> Tensor:
    """How many elements a list has."""
    return torch.tensor(_list(ls).length, dtype=torch.int32, device=_list(ls).device)


@operation("list_read", in_half=True)
def list_read(ls: Any, index: int) -> Tensor:
    """The element at ``index``."""
    return _list(ls).element(index)


@operation("list_write", in_half=True)
def list_write(ls: Any, index: int, value: Tensor) -> TensorList:
    """A list with ``value`` at ``index``, longer if that lies beyond the end."""
    return _list(ls).written({index: value})


@operation("list_gather", in_half=True)
def list_gather(ls: Any, indices: Ints) -> Tensor:
    """The elements at ``indices``, stacked on a new first axis."""
    values = _list(ls)
    if not indices:
        return values.zeros((0,))
    return torch.stack([values.element(index) for index in indices])


@operation("list_scatter", in_half=True)
def list_scatter(ls: Any, indices: Ints, value: Tensor) -> TensorList:
    """A list with the rows of ``value`` at ``indices``; of equal indices the last one counts."""
    if value.dim() == 0 or value.shape[0] != len(indices):
        raise ValueError(
            f"there are {len(indices)} indices for values of shape {list(value.shape)}"
        )
    return _list(ls).written(dict(zip(indices, value.unbind(0), strict=True)))


def _list(value: Any) -> TensorList:
    if not isinstance(value, TensorList):
        raise TypeError(f"a list of tensors is needed, got {type(value).__name__}")
    return value
