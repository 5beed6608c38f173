"""What an irqchip is to the machine around it: one protocol, three implementations.

The model is crosvm's `devices/src/irqchip/mod.rs`.  A run asks `Interrupts`, several times an
exit; everything else is in `IrqChip`.  They are two because a guest that touches no interrupt
controller has the first and not the second, and its run has nothing to ask.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pykvm.bus import Area, Placement
    from pykvm.devices.line import InterruptLine
    from pykvm.exits import RdMsr, WrMsr
    from pykvm.vcpu import CPU
    from pykvm.vcpu.msr_exits import MsrExits

__all__ = ["Interrupts", "IrqChip"]


class Interrupts(Protocol):
    """Timers and interrupts during a run, in the thread of the vCPU that is asked about."""

    #: Whether the guest can start parked vCPUs.
    can_start: bool

    def run_timers(self, cpu: CPU) -> None:
        """Run the timers of `cpu` that are due."""

    def set_alarm(self, cpu: CPU) -> None:
        """Before `cpu` enters the guest: have it come out when its next timer is due."""

    def reset_by_init(self, cpu: CPU) -> bool:
        """Whether an INIT came; all but the first vCPU are parked then."""

    def awake(self, cpu: CPU) -> bool:
        """Whether a halted or parked vCPU would go on."""

    def start(self, cpu: CPU) -> bool:
        """Let a vCPU that is awake go on; whether it needs attention first."""

    def serve(self, cpu: CPU) -> None:
        """Inject what can be injected."""

    def can_wake(self, cpus: Sequence[CPU]) -> bool:
        """Whether anything may still wake one of these vCPUs, all of them idle."""

    def warp(self, cpus: Sequence[CPU]) -> bool:
        """Skip to the next deadline, if the clock does so and it may wake one of these vCPUs."""

    def dead(self, cpu: CPU) -> bool:
        """Whether `cpu`, if it waits in the kernel, does so for good."""


class IrqChip(Protocol):
    """The interrupt controllers and clocks of a machine.

    It is made before the vCPUs, as KVM wants it, and gets them by `attach`.
    """

    @property
    def areas(self) -> tuple[Area, ...]:
        """Ports and addresses at which KVM answers itself, so that no device is ever asked."""

    @property
    def msr_exits(self) -> MsrExits:
        """Where to ask for exits by MSRs, beside those of the irqchip."""

    @property
    def interrupts(self) -> Interrupts | None:
        """What a run asks; None as long as the guest has touched nothing that could interrupt."""

    def attach(self, cpus: Sequence[CPU], others: Sequence[Placement]) -> list[Placement]:
        """Take the machine's vCPUs, and return what is to stand on the bus beside `others`.

        A place of which a device among the others has any part is left to that.
        """

    def make(self) -> Interrupts:
        """`interrupts`, made now if nothing was touched until now."""

    def line(self, irq: int) -> InterruptLine:
        """A driver of ISA interrupt `irq`: an input of the 8259 pair and of the I/O APIC."""

    def send_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt, and return whether a local APIC took it."""

    def irqfd(self, fd: int, irq: int) -> None:
        """Have KVM pulse `irq` when an eventfd is written to.  Raises ConfigError if it cannot."""

    def end_of_interrupt(self, vector: int) -> None:
        """KVM_EXIT_IOAPIC_EOI: a local APIC in the kernel is done with a level interrupt."""

    def read_msr(self, cpu: CPU, exit: RdMsr) -> None:
        """Answer a RDMSR that KVM has left to us, or let it be #GP."""

    def write_msr(self, cpu: CPU, exit: WrMsr) -> None:
        """Carry out a WRMSR that KVM has left to us, or let it be #GP."""

    def pause(self) -> None:
        """Guest time stops: so do the timers that KVM runs."""

    def resume(self) -> None:
        """Guest time goes on, or has been skipped: what KVM itself shows of it has to follow."""

    def state(self) -> object:
        """What it is now, beyond its devices on the bus, which say that themselves.

        None as long as the guest has touched nothing of it.
        """

    def restore(self, state: Any) -> None:
        """Be that again, after the devices and the levels of their lines; see `Stateful`."""
