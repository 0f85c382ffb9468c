"""``Cache``: a folder of what was clustered and measured, by content."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.biases import BiasPlace, NewBias
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.execution import Computed
from mlopt.coreml.joint import Clustered
from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight
from mlopt.errors import DestinationError
from mlopt.palette.palettize import NoPaletteError
from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.statistics import content_of
from mlopt.statistics.guidance import Guidance

_FORMAT = "1"


class Cache:
    """What plans have clustered and measured, for later plans and for packages.

    Everything is found by a digest of what it depends on: the values of the weight, the palette,
    the statistics, and, for losses, the model and the samples. Another version of mlopt finds
    nothing. Forms with a ``lut_function`` are not found again, since nobody knows what it depends
    on. What cannot be read is made again. Nothing is ever removed: delete the folder when it
    is of no more use. A palette takes about its bytes in the package.

    Parameters
    ----------
    folder
        Created where it is missing.

    Raises
    ------
    DestinationError
        It cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DestinationError(f"{self.folder}: cannot be made a folder: {error}") from error
        self._contents: dict[int, tuple[Weight, str]] = {}
        self._statistics: dict[int, tuple[Any, str]] = {}
        self._functions: dict[int, tuple[Any, str]] = {}

    def key(self, decision: WeightDecision, guidance: Guidance[BiasPlace]) -> str:
        """Return the digest of a weight in a form, guided so."""
        weight = decision.weight
        if id(weight) not in self._contents:
            self._contents[id(weight)] = (weight, content_of(weight.value()))
            weight.release()
        bias = guidance.bias
        parts = [
            self._contents[id(weight)][1],
            repr(decision.result),
            self._token_of(decision),
            guidance.method,
            guidance.is_centred,
            self._digest_of(guidance),
            None if bias is None else bias.element_type,
            None if bias is None or bias.bias is None else content_of(bias.bias.value()),
        ]
        return digest(parts)

    def _token_of(self, decision: WeightDecision) -> str:
        """Return what no other function has, not even one that is written alike; "" for none.

        What a function computes is not known, so that only this object finds what is kept of it.
        """
        function = getattr(decision.result, "lut_function", None)
        if function is None:
            return ""
        return self._functions.setdefault(id(function), (function, secrets.token_hex(16)))[1]

    def loss(self, key: str) -> float | None:
        """Return a loss, None if it is not known."""
        try:
            (loss,) = json.loads((self.folder / f"{key}.json").read_bytes())
            return float(loss)
        except (OSError, ValueError, TypeError):
            return None

    def keep_loss(self, key: str, loss: float) -> None:
        """Keep a loss."""
        self._write(f"{key}.json", json.dumps([loss]).encode())

    def palette(self, key: str, guidance: Guidance[BiasPlace]) -> Computed | None:
        """Return what was clustered; None if it is not known."""
        try:
            file = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(file, allow_pickle=False) as arrays:
                return _clustered(dict(arrays), guidance.bias)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def keep_palette(self, key: str, computed: Computed) -> None:
        """Keep what was clustered."""
        file = io.BytesIO()
        np.savez(file, **_arrays(computed))  # type: ignore[arg-type]  # takes a flag, too
        self._write(f"{key}.npz", file.getbuffer())

    def _digest_of(self, guidance: Guidance[BiasPlace]) -> str:
        moments = guidance.moments
        if moments is None:
            return ""
        # the moments of a weight are made once for each form, of the same arrays
        first = moments.diagonal if moments.second is None else moments.second
        kept = self._statistics.get(id(first))
        if kept is None or kept[0] is not first:
            arrays = (moments.second, moments.diagonal, moments.mean, moments.shares)
            parts = ["" if array is None else content_of(array) for array in arrays]
            kept = first, digest([*parts, repr(moments.arrangement), moments.count])
            self._statistics[id(first)] = kept
        return kept[1]

    def _write(self, name: str, data: Any) -> None:
        """Write a file that is complete or not there."""
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(data)
            temporary.replace(self.folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DestinationError(f"{self.folder}: cannot be written to: {error}") from error


def digest(parts: Sequence[Any]) -> str:
    """Return the digest of values of JSON, different for each version of mlopt."""
    text = json.dumps([_FORMAT, _version(), *parts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


@functools.cache
def _version() -> str:
    try:
        return metadata.version("mlopt")
    except metadata.PackageNotFoundError:
        return ""  # not installed: the folder of its source is on the path


def _arrays(computed: Computed) -> dict[str, npt.NDArray[Any]]:
    """Return what was clustered as arrays by name; what is no array is JSON in one of them."""
    if isinstance(computed, NoPaletteError):
        return {"facts": np.array(json.dumps({"refused": str(computed)}))}
    palette, facts = computed.palette, {}
    for name in ("indices_shape", "nbits", "vector_axis", "shape", "nbytes"):
        facts[name] = getattr(palette, name)
    facts |= {
        "distortion": attrs.asdict(computed.distortion),
        "notes": computed.notes,
        "output_snr_db": computed.output_snr_db,
    }
    arrays: dict[str, npt.NDArray[Any] | None] = {
        "packed": palette.packed,
        "table": palette.table,
        "scale": palette.scale,
        "mask": palette.mask,
        "bias": None if computed.bias is None else computed.bias.values,
    }
    if palette.quantized is not None:
        arrays |= {f"quantized_{k}": v for k, v in _fields(palette.quantized).items()}
    found = {name: array for name, array in arrays.items() if array is not None}
    return found | {"facts": np.array(json.dumps(facts))}


def _clustered(arrays: Mapping[str, npt.NDArray[Any]], place: BiasPlace | None) -> Computed:
    facts = json.loads(str(arrays["facts"]))
    if "refused" in facts:
        return NoPaletteError(facts["refused"])
    quantized = None
    if "quantized_codes" in arrays:
        names = [field.name for field in attrs.fields(QuantizedTable)]
        quantized = QuantizedTable(**{n: arrays.get(f"quantized_{n}") for n in names})  # type: ignore[arg-type]  # offset alone may be None
    palette = PackedPalette(
        packed=arrays["packed"],
        indices_shape=tuple(facts["indices_shape"]),
        nbits=facts["nbits"],
        table=arrays["table"],
        scale=arrays.get("scale"),
        vector_axis=facts["vector_axis"],
        shape=tuple(facts["shape"]),
        nbytes=facts["nbytes"],
        quantized=quantized,
        mask=arrays.get("mask"),
    )
    bias = None
    if "bias" in arrays:
        if place is None:
            raise ValueError("a bias without its place")
        bias = NewBias(place, arrays["bias"])
    return Clustered(
        palette,
        Distortion(**facts["distortion"]),
        tuple(facts["notes"]),
        bias,
        facts["output_snr_db"],
    )


def _fields(table: QuantizedTable) -> dict[str, npt.NDArray[Any] | None]:
    return {"codes": table.codes, "scale": table.scale, "offset": table.offset}
