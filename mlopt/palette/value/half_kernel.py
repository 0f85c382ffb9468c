"""The kernel of ``to_float16``."""

from __future__ import annotations

import numpy as np
from numba import njit

_SIGN = np.uint32(0x80000000)
_INFINITY = np.uint32(0x7F800000)
_BEYOND = np.uint32(0x47800000)  # 2**16, which rounds to infinity
_LEAST_NORMAL = np.uint32(0x38800000)  # 2**-14
_HALF = np.uint32(0x3F000000)  # 0.5
# What turns the exponent of one format into that of the other, and all but half a unit, to round.
_REBIAS = np.uint32(0xC8000FFF)


@njit(cache=True, nogil=True)
def fill_float16_codes(values, codes):  # type: ignore[no-untyped-def]
    """Write the float16 codes nearest to float32[n], of equally near ones the even, to uint16[n].

    Without branches, so that it is compiled to vector instructions.
    """
    for i in range(values.size):
        value = np.float32(values[i])
        bits = value.view(np.uint32)
        sign = np.uint32(bits & _SIGN)
        size = np.uint32(bits ^ sign)
        odd = np.uint32((size >> np.uint32(13)) & np.uint32(1))
        normal = np.uint32(np.uint32(size + _REBIAS + odd) >> np.uint32(13))
        # adding 0.5 leaves a number of subnormal steps in the last bits
        shifted = np.float32(abs(value) + np.float32(0.5))
        subnormal = np.uint32(shifted.view(np.uint32) - _HALF)
        code = subnormal if size < _LEAST_NORMAL else normal
        code = np.uint32(0x7C00) if size >= _BEYOND else code
        # not a number: the upper bits of what it carries, but some bit
        carried = np.uint32((size >> np.uint32(13)) & np.uint32(0x3FF))
        carried = np.uint32(1) if carried == np.uint32(0) else carried
        code = np.uint32(np.uint32(0x7C00) + carried) if size > _INFINITY else code
        codes[i] = np.uint16(np.uint32(code | np.uint32(sign >> np.uint32(16))))
