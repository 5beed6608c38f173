"""What becomes of a VM exit that the fast path has left to Python."""

from __future__ import annotations

from pykvm.bus import Space
from pykvm.errors import GuestError
from pykvm.exits import (
    Debug,
    IoapicEoi,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    RdMsr,
    SetTpr,
    SystemEvent,
    WrMsr,
)
from pykvm.machine.crash import begins_anew, crash_of, located
from pykvm.machine.run import SENT_INIT
from pykvm.machine.workarounds import WORKAROUND_EXITS
from pykvm.result import Ending, Outcome
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.guest_debug import DR6_BS, debug_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.exits import Exit
    from pykvm.machine.board import Board
    from pykvm.machine.guest import Guest
    from pykvm.machine.workarounds import Workarounds
    from pykvm.vcpu import CPU

__all__ = ["Answers"]


class Answers:
    """Who answers an exit: a workaround, a device, the irqchip; or else how the run ends by it.

    `symbol_at` names a guest-virtual address, or gives the empty string.
    """

    def __init__(
        self,
        board: Board,
        workarounds: Workarounds,
        guest: Guest,
        symbol_at: Callable[[int], str],
    ) -> None:
        self._board = board
        self._workarounds = workarounds
        self._guest = guest
        self._symbol_at = symbol_at

    def take(self, cpu: CPU, exit: Exit) -> Ending | None:
        """Have an exit answered; returns how the run ends if that cannot be."""
        if getattr(exit, "reason", None) in WORKAROUND_EXITS:
            try:
                if self._workarounds.take(cpu, exit):
                    return None
            except GuestError as error:
                return self._sent_init(cpu, exit) or _crash(
                    located(error, cpu, exit, self._symbol_at), exit
                )
        if self._answer(cpu, exit):
            return None
        match exit:
            case Debug():
                return self._debug_event(cpu, exit)
            case SystemEvent(type=1):
                return Ending(Outcome.EXITED, "the guest shut down", exit_code=0, exit=exit)
            case SystemEvent(type=2):
                return Ending(Outcome.RESET, "the guest asked for a reset", exit=exit)
        ending = self._sent_init(cpu, exit)
        if ending is not None:
            return ending
        refusal = self._workarounds.refusal(cpu)
        limit = self._workarounds.limit(cpu, exit)
        return _crash(crash_of(cpu, exit, self._symbol_at, refusal, limit), exit)

    def by_device(self, exit: Exit) -> bool:
        """Let the devices answer an exit; False if it is for none of them."""
        bus = self._board.bus
        match exit:
            case IoOut(port=port, size=size, data=data):
                return bus.write_string(port, size, data)
            case IoIn(port=port, size=size, count=count):
                data_in = bus.read_string(port, size, count)
                if data_in is not None:
                    exit.answer(data_in)
                return data_in is not None
            case MmioWrite(address=address, data=data):
                return bus.write(Space.MMIO, address, len(data), exit.value)
            case MmioRead(address=address, size=size):
                value = bus.read(Space.MMIO, address, size)
                if value is not None:
                    exit.answer(value)
                return value is not None
        return False

    def stops(self, cpu: CPU, exit: Exit) -> bool:
        """Whether `Machine.exits` stops here: not at breakpoints that pykvm needs for itself."""
        if not isinstance(exit, Debug):
            return True
        past = exit.dr6 & DR6_BS and cpu.debug.stepped()
        return not (past or self._workarounds.take(cpu, exit))

    def _answer(self, cpu: CPU, exit: Exit) -> bool:
        """Let the devices or the irqchip answer an exit; False if it is for none of them."""
        irqchip = self._board.irqchip
        match exit:
            case IoIn() | IoOut() | MmioRead() | MmioWrite():
                with self._board.dispatch.lock:
                    return self.by_device(exit) or (self._guest.open_bus and self._drop(exit))
            case RdMsr() if irqchip is not None:
                irqchip.read_msr(cpu, exit)
            case WrMsr() if irqchip is not None:
                irqchip.write_msr(cpu, exit)
            case IoapicEoi(vector=vector) if irqchip is not None:
                irqchip.end_of_interrupt(vector)
        return isinstance(exit, (RdMsr, WrMsr, SetTpr, IoapicEoi))

    def _drop(self, exit: IoIn | IoOut | MmioRead | MmioWrite) -> bool:
        """Let an access that no device claims go nowhere."""
        drop = self._board.dispatch.collected.drop
        if isinstance(exit, IoIn):
            drop(pio=True, address=exit.port, size=exit.size, value=None, count=exit.count)
        elif isinstance(exit, IoOut):
            values = exit.values
            drop(pio=True, address=exit.port, size=exit.size, value=values[0], count=len(values))
        elif isinstance(exit, MmioWrite):
            drop(pio=False, address=exit.address, size=len(exit.data), value=exit.value)
        else:
            drop(pio=False, address=exit.address, size=exit.size, value=None)
        return True

    def _sent_init(self, cpu: CPU, exit: Exit) -> Ending | None:
        """The end of a guest whose first vCPU KVM has sent to a reset vector without firmware."""
        if cpu.index or self._guest.image is None or not begins_anew(cpu, exit):
            return None
        return Ending(Outcome.RESET, SENT_INIT, exit=exit)

    def _debug_event(self, cpu: CPU, exit: Debug) -> Ending | None:
        """A breakpoint or the like; None if it was the step past one."""
        if exit.dr6 & DR6_BS and cpu.debug.stepped():
            return None
        cpu.debug.ended(exit.pc)
        name = self._symbol_at(exit.pc)
        return Ending(
            Outcome.DEBUG,
            f"{debug_event(exit.exception, exit.dr6, exit.dr7)} stopped the guest at "
            f"{exit.pc:#x}" + (f" ({name})" if name else ""),
            exit=exit,
        )


def _crash(error: GuestError, exit: Exit) -> Ending:
    return Ending(Outcome.CRASHED, f"the guest crashed: {error.message}", exit=exit, error=error)
