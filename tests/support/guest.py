"""Machines with a few instructions in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pykvm import Machine
from pykvm.x86.state import Mode
from support.listing import assemble

#: `machine = guest(listing)`; what else it is given goes to Machine.
MakeGuest = Callable[..., Machine]


@pytest.fixture
def guest(kvm: None) -> Iterator[MakeGuest]:
    """Make a machine that runs a real-mode listing at 0x7c00; it is closed after the test."""
    with ExitStack() as stack:

        def make(listing: str, mode: Mode = Mode.REAL, **options: Any) -> Machine:
            options.setdefault("memory", "1M" if mode is Mode.REAL else "4M")
            machine = Machine(assemble(listing), mode=mode, **options)
            return stack.enter_context(machine)

        yield make
