"""A device and what it has published, as C has it in a machine: no guest, no KVM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.bus import Bus
from pykvm.bus.dispatch import Dispatch

if TYPE_CHECKING:
    from pykvm.bus import Device
    from pykvm.bus.published import Published


class Front:
    """Accesses to `device` that C answers where it can, and Python otherwise.

    `answered` counts the former.
    """

    def __init__(self, device: Device, length: int, *, offset: int = 0) -> None:
        self.bus = Bus()
        self.range = self.bus.add_pio(0x100, length, device, offset=offset)
        self.dispatch = Dispatch(self.bus)
        self.device = device
        self.answered = 0
        self.urgent = False
        self.dispatch.collected.on_urgent = self._hurry

    def _hurry(self) -> None:
        self.urgent = True

    @property
    def published(self) -> Published:
        """What the device has published."""
        (_, published) = self.dispatch._published[id(self.device)]
        return published

    def read(self, at: int, size: int = 1) -> int:
        """As a vCPU reads: `at` counts from the start of the range."""
        value = self.published.read(self.range.offset + at, size)
        if value is not None:
            self.answered += 1
            return value
        self.dispatch.deliver()
        return self.range.read(at, size) & (1 << 8 * size) - 1

    def write(self, at: int, value: int, size: int = 1) -> None:
        """As a vCPU writes."""
        if self.published.write(self.range.offset + at, size, value):
            self.answered += 1
            return
        self.dispatch.deliver()
        self.range.write(at, size, value)

    def settle(self) -> None:
        """What the run loop does soon where the device asked for it."""
        if self.urgent:
            self.urgent = False
            self.dispatch.deliver()
