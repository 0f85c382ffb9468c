"""Elements narrower than a byte, against the stream bit by bit."""

import numpy as np
import pytest
import torch

from mlopt.runtime.weights.packed import unpacked


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (0,), (64,), (5, 13)])
def test_every_width(bits, is_signed, shape):
    count = int(np.prod(shape))
    data = np.random.default_rng(bits).integers(0, 256, -(-count * bits // 8), np.uint8)
    found = unpacked(torch.from_numpy(data), bits, shape, is_signed=is_signed)
    stream = int.from_bytes(data.tobytes(), "little")
    wanted = [stream >> (bits * i) & ((1 << bits) - 1) for i in range(count)]
    if is_signed:
        wanted = [n - (1 << bits) if n >> (bits - 1) else n for n in wanted]
    assert found.dtype == (torch.int8 if is_signed else torch.uint8)
    assert found.shape == shape
    assert found.reshape(-1).tolist() == wanted
