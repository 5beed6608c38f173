"""Machines whose vCPU is saved, and those that it is loaded into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pykvm import CPU, Machine
from support.guest import MakeGuest
from support.saving import COUNTING, PORT, Log


@pytest.fixture
def logging(guest: MakeGuest) -> Callable[[str], tuple[Machine, Log]]:
    """Make a machine with a log at its port."""

    def make(listing: str, **options: Any) -> tuple[Machine, Log]:
        machine, log = guest(listing, **options), Log()
        machine.add(log, pio=PORT)
        return machine, log

    return make


@pytest.fixture(params=["itself", "twin"])
def again(request: pytest.FixtureRequest, guest: MakeGuest) -> Callable[..., Machine]:
    """The machine that a state is loaded into: the one that it is of, or one made alike."""

    def other(machine: Machine, listing: str, **options: Any) -> Machine:
        return machine if request.param == "itself" else guest(listing, **options)

    return other


@pytest.fixture
def cpu(guest: MakeGuest) -> CPU:
    """A vCPU that counts."""
    return guest(COUNTING).vcpus[0]
