"""From what a device raises when the guest ends itself to the end of the run."""

from __future__ import annotations

from pykvm.bus import GuestExit, GuestPanic, GuestPowerOff, GuestReset
from pykvm.errors import GuestError
from pykvm.result import Ending, Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.bus import GuestEnd
    from pykvm.vcpu import CPU

__all__ = ["ending_of"]


def ending_of(end: GuestEnd, cpu: CPU) -> Ending:
    """How a run ends in which the guest ended itself on this vCPU."""
    match end:
        case GuestExit(code=code):
            return Ending(Outcome.EXITED, f"the guest exited with code {code}", exit_code=code)
        case GuestPowerOff(how=how):
            return Ending(Outcome.EXITED, f"the guest powered itself off ({how})", exit_code=0)
        case GuestReset(how=how):
            return Ending(Outcome.RESET, f"the guest asked for a reset ({how})")
        case GuestPanic():
            registers = dict(cpu.regs)
            error = GuestError(end.kind, end.cause, registers=registers, console=end.console)
            return Ending(Outcome.CRASHED, f"the guest crashed: {error.message}", error=error)
    raise end
