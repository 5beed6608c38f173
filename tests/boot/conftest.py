"""What tests of boot protocols load guests into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """RAM of 4 MiB at address 0."""
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, 4 << 20)
        yield memory
