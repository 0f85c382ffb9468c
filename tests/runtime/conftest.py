"""Random numbers that do not depend on which tests ran before, in which process."""

import zlib

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _own_random_numbers(request: pytest.FixtureRequest) -> None:
    """Set the generators of the test's module to a state that its name decides."""
    seed = zlib.crc32(request.node.nodeid.encode())
    for value in vars(request.module).values():
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = np.random.default_rng(seed).bit_generator.state
