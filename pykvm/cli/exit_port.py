"""The port of debug-exit: where `--debug-exit` puts it, and who looked for it elsewhere."""

from __future__ import annotations

from pykvm.devices.debug_exit import DebugExit
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.result import Result

__all__ = ["MissedExit", "hint", "move", "watch"]

NAME = "debug-exit"
_LENGTH = 4
_PORTS = 0x10000

#: QEMU's own default for isa-debug-exit.
QEMU_PORT = 0x501


def move(machine: Machine, port: int) -> None:
    """Put debug-exit at `port`.  Raises BusConflict if that is taken."""
    if NAME in machine.devices:
        machine.remove(NAME)
    machine.add(DebugExit(), pio=port, length=min(_LENGTH, _PORTS - port))


class MissedExit:
    """Notes whether the guest wants to exit by a port where debug-exit is not."""

    name = "debug-exit-elsewhere"

    def __init__(self) -> None:
        #: What it wrote first, or None.
        self.value: int | None = None

    def write(self, offset: int, size: int, value: int) -> None:
        """Note the first."""
        if self.value is None:
            self.value = value


def watch(machine: Machine) -> MissedExit | None:
    """Watch QEMU's port, where unclaimed writes are dropped and there is no device."""
    from pykvm.bus import Space

    ports = range(QEMU_PORT, QEMU_PORT + _LENGTH)
    if not machine.open_bus or any(machine.bus.find(Space.PIO, port) for port in ports):
        return None
    missed = MissedExit()
    machine.add(missed, pio=QEMU_PORT, length=_LENGTH)
    return missed


def hint(result: Result, missed: MissedExit | None) -> str:
    """What to say of a guest that wrote to QEMU's port; empty if it did not.

    >>> from pykvm.result import Ending, Outcome, Result
    >>> ending = Ending(Outcome.EXITED, "the guest powered off", exit_code=0)
    >>> result = Result(ending, exits={}, seconds=0, guest_seconds=0, outside_seconds=0)
    >>> missed = MissedExit()
    >>> hint(result, missed)
    ''
    >>> missed.write(0, 1, 16)
    >>> hint(result, missed)[:35]
    'the guest wrote 0x10 to port 0x501,'
    """
    value = None if missed is None else missed.value
    if result.error is not None:
        from pykvm.exits import IoOut

        match result.exit:
            case IoOut(port=port, data=data) if port == QEMU_PORT:
                value = int.from_bytes(data, "little")
    if value is None:
        return ""
    return (
        f"the guest wrote {value:#x} to port {QEMU_PORT:#x}, where QEMU has its isa-debug-exit: "
        f"with --debug-exit {QEMU_PORT:#x} it ends the run with that code"
    )
