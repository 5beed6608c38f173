"""Bare guests that find a PC's devices and tables around them, as kernels do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine
from pykvm.devices import standard_devices
from pykvm.devices.pc import pc_devices
from pykvm.tables import build

__all__ = ["MakePc", "pc"]

#: `machine = pc(image)`; what else it is given goes to Machine.
MakePc = Callable[..., Machine]


@pytest.fixture
def pc(kvm: None) -> Iterator[MakePc]:
    """Make a PC that runs a bare guest; it is closed after the test."""
    with ExitStack() as stack:

        def make(image: Path | bytes, irqchip: str = "user", **options: Any) -> Machine:
            devices = standard_devices() + pc_devices()
            machine = Machine(image, irqchip=irqchip, devices=devices, **options)
            for piece in build(machine._board.hardware()).pieces:
                machine.memory.write(piece.address, piece.data)
            return stack.enter_context(machine)

        yield make
