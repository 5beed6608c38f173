"""A triple fault after which the registers are those of a reset.

They do not show what happened, so a crash report cannot either.  The exit itself is right, and
there is no workaround: the registers are gone when the exit comes.
"""

from __future__ import annotations

from pykvm.exits import Shutdown
from pykvm.quirks.probe_vm import KERNEL
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

# LIDT [RSP], which is all zeros, then an exception that finds no handler.
LIDT, UD2 = bytes.fromhex("0F011C24"), bytes.fromhex("0F0B")


def _registers_are_lost(vm: ProbeVM) -> bool:
    stop = vm.run(LIDT + UD2, 0)
    return isinstance(stop.exit, Shutdown) and stop.state.rip != KERNEL + len(LIDT)


QUIRK = Quirk(
    "triple-fault",
    "a triple fault resets the vCPU: its registers are lost, and with them the cause",
    _registers_are_lost,
)
