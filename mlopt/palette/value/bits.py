"""Indices of 1, 2, 3, 4, 6 or 8 bits as the bit stream that a weight file holds.

The stream is least significant bit first and in C order: index ``i`` occupies the bits
``[i * nbits, (i + 1) * nbits)``, so indices of 3 and 6 bits straddle bytes. The tail is zero.

Eight indices always make ``nbits`` whole bytes. Both directions therefore move one 64-bit word of
eight indices at a time, and fold or unfold neighbours in three steps (8 -> 16 -> 32 -> 64 bits wide
fields). Words are little-endian, as the format is. The kernels are loaded at the first use, since
descriptions of models need only the sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.errors import ConfigError

_WHOLE_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
"""Widths whose ``nbits`` bytes are one machine word, which is written and read in one access."""


def packed_nbytes(count: int, *, nbits: int) -> int:
    """Return the bytes that ``count`` indices of ``nbits`` bits occupy, the tail included."""
    return (count * nbits + 7) // 8


def pack_bits(indices: npt.NDArray[np.uint8], nbits: int) -> npt.NDArray[np.uint8]:
    """Pack indices into their bit stream.

    Parameters
    ----------
    indices
        uint8 of any shape, read in C order; each below ``2**nbits``.
    nbits
        1, 2, 3, 4, 6 or 8.

    Returns
    -------
    uint8[ceil(indices.size * nbits / 8)]; for 8 bits a view of ``indices`` where it is contiguous.

    Raises
    ------
    ConfigError
        ``nbits`` is not one of the six, ``indices`` are not uint8, or one of them needs more bits.
    """
    _check_nbits(nbits)
    if indices.dtype != np.uint8:
        raise ConfigError(f"indices to pack must be uint8, got {indices.dtype}; convert them")
    flat = np.ascontiguousarray(indices).reshape(-1)
    if nbits == 8:
        return flat
    # The shifts below would smear a large index over its neighbours.
    if flat.size and (largest := int(flat.max())) >> nbits:
        raise ConfigError(
            f"indices of {nbits} bits must be below {1 << nbits}, got {largest}; use more bits"
        )
    packed = np.zeros(packed_nbytes(flat.size, nbits=nbits), np.uint8)
    whole = flat.size // 8 * 8
    _pack_words(flat[:whole], packed[: whole // 8 * nbits], nbits)
    if whole < flat.size:
        tail, tail_bytes = np.zeros(8, np.uint8), np.empty(nbits, np.uint8)
        tail[: flat.size - whole] = flat[whole:]
        _pack_words(tail, tail_bytes, nbits)
        packed[whole // 8 * nbits :] = tail_bytes[: packed.size - whole // 8 * nbits]
    return packed


def unpack_bits(packed: npt.NDArray[np.uint8], nbits: int, count: int) -> npt.NDArray[np.uint8]:
    """Unpack the first ``count`` indices of a bit stream; the inverse of :func:`pack_bits`.

    Parameters
    ----------
    packed
        uint8, read in C order; ``ceil(count * nbits / 8)`` bytes or more.
    nbits
        1, 2, 3, 4, 6 or 8.
    count
        Number of indices, 0 or more.

    Returns
    -------
    uint8[count]; for 8 bits a view of ``packed`` where it is contiguous.

    Raises
    ------
    ConfigError
        ``nbits`` is not one of the six, ``packed`` is not uint8, or it is too short.
    """
    _check_nbits(nbits)
    if packed.dtype != np.uint8:
        raise ConfigError(f"packed indices must be uint8, got {packed.dtype}; view them as uint8")
    flat = np.ascontiguousarray(packed).reshape(-1)
    need = packed_nbytes(count, nbits=nbits)
    if count < 0 or flat.size < need:
        raise ConfigError(
            f"{count} indices of {nbits} bits take {need} bytes, got {flat.size}; "
            "check the shape against the data"
        )
    if nbits == 8:
        return flat[:count]
    indices = np.empty(count, np.uint8)
    whole = count // 8 * 8
    _unpack_words(flat[: whole // 8 * nbits], indices[:whole], nbits)
    if whole < count:
        tail_bytes, tail = np.zeros(nbits, np.uint8), np.empty(8, np.uint8)
        rest = flat[whole // 8 * nbits : need]
        tail_bytes[: rest.size] = rest
        _unpack_words(tail_bytes, tail, nbits)
        indices[whole:] = tail[: count - whole]
    return indices


def _check_nbits(nbits: int) -> None:
    if nbits not in NBITS:
        raise ConfigError(f"nbits must be one of {NBITS} to be stored, got {nbits!r}")


def _pack_words(indices: npt.NDArray[np.uint8], packed: npt.NDArray[np.uint8], nbits: int) -> None:
    """Fill ``packed[m * nbits]`` from ``indices[m * 8]``."""
    from mlopt.palette.value import bit_kernels as kernels

    words = indices.view(np.uint64)
    if nbits in _WHOLE_WORDS:
        kernels.fold_to_word(words, packed.view(_WHOLE_WORDS[nbits]), _folds(nbits))
    else:
        kernels.fold_to_bytes(words, packed.reshape(-1, nbits), _folds(nbits))


def _unpack_words(
    packed: npt.NDArray[np.uint8], indices: npt.NDArray[np.uint8], nbits: int
) -> None:
    """Fill ``indices[m * 8]`` from ``packed[m * nbits]``."""
    from mlopt.palette.value import bit_kernels as kernels

    words = indices.view(np.uint64)
    if nbits in _WHOLE_WORDS:
        kernels.unfold_from_word(packed.view(_WHOLE_WORDS[nbits]), words, _folds(nbits))
    else:
        kernels.unfold_from_bytes(packed.reshape(-1, nbits), words, _folds(nbits))


def _folds(nbits: int) -> tuple[np.uint64, ...]:
    """Return three shifts, each with the mask of the field that stays and of the one that moves.

    In step s the fields are ``2**s * nbits`` bits in slots of ``2**s * 8`` bits. Of two slots the
    lower field stays and the upper one moves down by the shift to touch it. The masks describe the
    fields after the move.
    """
    shifts = [(8 - nbits) << step for step in range(3)]
    stays = [
        sum(((1 << (nbits << step)) - 1) << slot for slot in range(0, 64, 16 << step))
        for step in range(3)
    ]
    moves = [mask << (nbits << step) for step, mask in enumerate(stays)]
    return tuple(np.uint64(value) for value in (*shifts, *stays, *moves))
