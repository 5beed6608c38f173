"""What a Result says of a guest that did not end well: where it is, its last words."""

from __future__ import annotations

from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.bus import Device
    from pykvm.machine.board import Board
    from pykvm.machine.guest import Guest
    from pykvm.machine.run import Run
    from pykvm.result import Result

__all__ = ["complete"]

# Ends at which the guest is still somewhere.
_STILL_THERE = frozenset({Outcome.TIMEOUT, Outcome.STOPPED, Outcome.HALTED, Outcome.FAILED})


def complete(
    result: Result, run: Run, board: Board, guest: Guest, symbol_at: Callable[[int], str]
) -> None:
    """Add to a result where the vCPUs are, and what the guest said last."""
    if result.outcome in _STILL_THERE:
        result.places = tuple(run.place(cpu, symbol_at) for cpu in board.vcpus)
        result.notes += _astray(board, guest)
    if not (result.ok or result.console):
        result.console = _last_lines(board.devices)
        if result.error is not None:
            result.error.console = result.console


def _astray(board: Board, guest: Guest) -> tuple[str, ...]:
    """That a guest without a BIOS called it, and executes what lies at address 0."""
    image = guest.image
    if image is None or image.mode.value != "real" or image.protocol == "firmware":
        return ()
    from pykvm.machine.crash import NO_BIOS_HINT, through_a_zero_vector

    way = through_a_zero_vector(board.vcpus[0])
    return (f"{way}; {NO_BIOS_HINT}",) if way else ()


def _last_lines(devices: Mapping[str, Device]) -> str:
    """The last lines on the first serial port, or on the debug console where there are none."""
    for name in ("com1", "debugcon"):
        lines = getattr(devices.get(name), "last_lines", str)()
        if lines:
            return str(lines)
    return ""
