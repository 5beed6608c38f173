"""What a guest does from some moment on, to be compared: its exits, what it prints, how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm.exits import Hlt, Interrupted, IrqWindowOpen

if TYPE_CHECKING:
    from pykvm import Machine
    from pykvm.exits import Exit

__all__ = ["Trajectory", "rest"]

#: Exits that come by the host's time, and not by the guest's program.
_OF_TIME = (Hlt, Interrupted, IrqWindowOpen)


class Trajectory(NamedTuple):
    """The exits of a guest by its vCPUs, what it had printed at the end, and how it ended."""

    exits: tuple[str, ...]
    printed: str
    end: str


def shown(exit: Exit) -> str:
    """An exit with what came of it."""
    return f"{exit!r} {getattr(exit, 'answered', None)!r}"


def rest(machine: Machine, *, timed: bool, timeout: float = 60) -> Trajectory:
    """Run a machine to its end.

    With `timed`, its exits depend on the host's time, and only what it prints is compared.
    """
    if timed:
        result = machine.run(timeout=timeout)
        return Trajectory((), machine.serial.text, result.sentence)
    exits = machine.exits(timeout=timeout)
    seen = [repr(exit) for exit in exits if not isinstance(exit, _OF_TIME)]
    assert exits.result is not None
    return Trajectory(tuple(seen), machine.serial.text, exits.result.sentence)
