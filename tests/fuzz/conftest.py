"""The seeds, built once."""

from __future__ import annotations

import pytest

from tests.fuzz import seeds
from tests.fuzz.seeds import Files


@pytest.fixture(scope="session")
def seed_packages() -> dict[str, Files]:
    return seeds.build()
