"""QEMU's pc-testdev: what kernels that test a hypervisor find beside a PC's own devices.

kvm-unit-tests drives it: interrupt lines that the guest itself raises and lowers, ports and memory
that keep what is written to them, so that instructions which access devices can be tested.

Source: QEMU, hw/misc/pc-testdev.c (layout and widths), facts only.
"""

from __future__ import annotations

from pykvm import layout
from pykvm.bus import Placement, Space
from pykvm.bus.device import NamedDevice
from pykvm.devices.line import Output
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.clock import TimeSource
    from pykvm.devices.line import InterruptLine, Lines
    from pykvm.memory import GuestMemory
    from pykvm.values.state import U16

__all__ = ["KeptMemory", "KeptPorts", "KeptState", "LinePorts", "LinePortsState", "pc_testdev"]

MEMORY_SIZE = 0x10000
FLUSH, BYTES = 4, 8


def pc_testdev() -> list[Placement]:
    """New devices in their places.

    Port 0xe9 stays the debug console's; the byte that would be there is at 0xe1 as well.

    >>> for placement in pc_testdev():
    ...     print(placement.name, hex(placement.address))
    pc-testdev 0xe0
    pc-testdev 0xea
    pc-testdev-irq 0x2000
    pc-testdev-memory 0xff000000
    """
    ports = KeptPorts()
    return [
        Placement(ports, Space.PIO, layout.PC_TESTDEV, 9),
        Placement(ports, Space.PIO, layout.PC_TESTDEV_AGAIN, 2, offset=10),
        Placement(LinePorts(), Space.PIO, layout.PC_TESTDEV_IRQS, 24),
        Placement(KeptMemory(), Space.MMIO, layout.PC_TESTDEV_MEMORY, MEMORY_SIZE),
    ]


class KeptState(State):
    """The bytes, without the zeros at their end."""

    data: bytes


class LinePortsState(State):
    """The ISA interrupts whose lines are high, as bits."""

    high: U16


def _kept(data: bytearray) -> KeptState:
    return KeptState(bytes(data).rstrip(b"\0"))


def _restore(data: bytearray, state: KeptState) -> None:
    integer("bytes of pc-testdev", len(state.data), 0, len(data))
    data[:] = state.data.ljust(len(data), b"\0")


class KeptPorts(NamedDevice):
    """Four bytes at offset 0, read and written in any width, and the same ones at offset 8.

    What is written to offset 4 is the address of a page that KVM is to forget and to map anew: the
    guest sees nothing of that, and nothing is done.
    """

    def __init__(self, name: str = "pc-testdev") -> None:
        self.name = name
        self._data = bytearray(4)

    def state(self) -> KeptState:
        """See `pykvm.values.state.Stateful`."""
        return _kept(self._data)

    def restore(self, state: KeptState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, KeptState)
        _restore(self._data, state)

    def read(self, offset: int, size: int) -> int:
        """The bytes, 0 for the page's address."""
        if FLUSH <= offset < BYTES:
            return 0
        return int.from_bytes(self._data[offset % 4 : offset % 4 + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes."""
        if not FLUSH <= offset < BYTES:
            for at in range(offset % 4, min(offset % 4 + size, 4)):
                self._data[at] = value & 0xFF
                value >>= 8


class LinePorts(NamedDevice):
    """A byte for each ISA interrupt: other than 0 raises its line, 0 lowers it.  Reads give 0.

    There are places for 24 lines, of which 16 and up lead nowhere, as does 2, the wire between the
    two 8259s.
    """

    #: The guest alone drives them.
    receives = False

    def __init__(self, name: str = "pc-testdev-irq") -> None:
        self.name = name
        self._isa: Callable[[int], InterruptLine] | None = None
        self._lines: dict[int, Output] = {}

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`: each line is taken when the guest first drives it."""
        self._isa = lines.isa
        self._lines = {}

    def state(self) -> LinePortsState:
        """See `pykvm.values.state.Stateful`."""
        return LinePortsState(sum(line.level << irq for irq, line in self._lines.items()))

    def restore(self, state: LinePortsState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, LinePortsState)
        for irq in layout.DEVICE_IRQS:
            high = bool(state.high >> irq & 1)
            if irq in self._lines or high:
                self._line(irq).restore(high)

    def _line(self, irq: int) -> Output:
        if irq not in self._lines:
            self._lines[irq] = Output(None if self._isa is None else self._isa(irq))
        return self._lines[irq]

    def read(self, offset: int, size: int) -> int:
        """Nothing."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Drive a line.  Only single bytes do."""
        if size == 1 and offset in layout.DEVICE_IRQS and self._isa is not None:
            self._line(offset).set(value != 0)


class KeptMemory(NamedDevice):
    """64 KiB that behave as RAM and are none: every access is an MMIO exit."""

    def __init__(self, name: str = "pc-testdev-memory") -> None:
        self.name = name
        self._data = bytearray(MEMORY_SIZE)

    def state(self) -> KeptState:
        """See `pykvm.values.state.Stateful`."""
        return _kept(self._data)

    def restore(self, state: KeptState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, KeptState)
        _restore(self._data, state)

    def read(self, offset: int, size: int) -> int:
        """The bytes there."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes that lie in it."""
        for at in range(offset, min(offset + size, MEMORY_SIZE)):
            self._data[at] = value & 0xFF
            value >>= 8
