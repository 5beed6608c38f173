"""Local APICs in KVM: what the irqchips "kernel" and "split" share.

RTC, HPET and PM timer are in software in either.

Source: Documentation/virt/kvm/api.rst, 4.57 (KVM_GET_LAPIC) and 4.70 (KVM_SIGNAL_MSI).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pykvm import layout
from pykvm.bus import Area, Space
from pykvm.errors import ConfigError
from pykvm.irqchip.places import placements
from pykvm.irqchip.tsc_offset import follow_tsc_writes, set_kvmclock, show_tscs
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State
from pykvm.vcpu.msr_exits import MsrExits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.bus import Device, Placement
    from pykvm.clock import Clock
    from pykvm.devices.hpet import Hpet
    from pykvm.devices.line import InterruptLine
    from pykvm.exits import RdMsr, WrMsr
    from pykvm.irqchip.delivery import KernelInterrupts
    from pykvm.kvm import VM
    from pykvm.values.state import U64
    from pykvm.vcpu import CPU

__all__ = ["LOCAL_APIC", "KernelLapics", "StoppedTimer"]

LOCAL_APIC = Area("KVM's local APIC", Space.MMIO, layout.LOCAL_APIC, layout.LOCAL_APIC + 0xFFF)


IA32_TSC_DEADLINE = 0x6E0


# The timer's current count in KVM's copy of the registers (SDM 3A table 11-1).
_TMCCT = slice(0x390, 0x394)


class StoppedTimer(State):
    """The timer of a local APIC of KVM's, as guest time stopped: its count and its deadline."""

    count: bytes
    deadline: U64


class KernelLapics(ABC):
    """The half of `pykvm.irqchip.IrqChip` that is KVM's in both.

    A class made from it has `line`, `irqfd` and `_make_devices`.
    """

    areas: tuple[Area, ...] = (LOCAL_APIC,)

    def __init__(
        self, vm: VM, clock: Callable[[], Clock], msr_exits: MsrExits | None = None
    ) -> None:
        self._vm = vm
        self._make_clock = clock
        self._clock: Clock | None = None
        self._cpus: Sequence[CPU] = ()
        # While guest time stands still; KVM's timers run on.
        self._stopped: tuple[StoppedTimer, ...] = ()
        self._msr_exits = msr_exits
        self.interrupts: KernelInterrupts | None = None

    @abstractmethod
    def line(self, irq: int) -> InterruptLine:
        """A driver of ISA interrupt `irq`, or of that pin of the I/O APIC from 16 on."""

    @abstractmethod
    def _make_devices(self, clock: Clock) -> tuple[dict[str, Device], KernelInterrupts]:
        """What KVM has not: devices by name, and what a run asks."""

    def attach(self, cpus: Sequence[CPU], others: Sequence[Placement]) -> list[Placement]:
        """See `IrqChip`."""
        self._cpus = cpus
        for cpu in cpus:
            cpu.parked = False
        clock = self._clock = self._make_clock()
        devices, self.interrupts = self._make_devices(clock)
        clock.on_earlier(self._earlier)
        return placements(devices, others)

    def _make_hpet(self, clock: Clock) -> Hpet:
        from pykvm.devices.hpet import Hpet

        gsis = set(range(layout.IOAPIC_PINS)) - {layout.CASCADE_IRQ}
        return Hpet(clock, {gsi: self.line(gsi) for gsi in gsis})

    def _make_clocks(self, clock: Clock, hpet: Hpet) -> dict[str, Device]:
        from pykvm.devices.pm_timer import AcpiPmTimer
        from pykvm.devices.rtc import Rtc146818

        rtc = Rtc146818(clock, hpet.legacy_input(layout.RTC_IRQ))
        return {"rtc": rtc, "pm-timer": AcpiPmTimer(clock)}

    def _earlier(self, queue: int) -> None:
        if queue < len(self._cpus):
            self._cpus[queue].engine.attend()

    def make(self) -> KernelInterrupts:
        """See `IrqChip`."""
        assert self.interrupts is not None, "attach comes first"
        return self.interrupts

    def send_msi(self, address: int, data: int) -> bool:
        """See `IrqChip`."""
        return self._vm.signal_msi(address, data) > 0

    def pause(self) -> None:
        """Take the time out of the kernel's timers: the machine stands still."""
        if self._stopped:
            return
        stopped = []
        for cpu in self._cpus:
            cpu.engine.deliver_timers()
            deadline = cpu.kvm.get_msrs([IA32_TSC_DEADLINE], partial=True)
            count = cpu.kvm.get_lapic()[_TMCCT]
            stopped.append(StoppedTimer(count, deadline.get(IA32_TSC_DEADLINE, 0)))
        self._stop(tuple(stopped))

    def resume(self) -> None:
        """Let them go on from where they were, and kvmclock and TSC follow the clock."""
        if self._clock is not None:
            set_kvmclock(self._vm, self._clock)
            follow_tsc_writes(self._cpus, self._clock)
            # First: by them KVM knows when a deadline is.
            show_tscs(self._cpus, self._clock)
        for cpu, stopped in zip(self._cpus, self._stopped, strict=False):
            # Interrupts may have come from outside; what the timer has brought goes by this.
            registers = bytearray(cpu.engine.get_lapic())
            registers[_TMCCT] = stopped.count
            cpu.engine.set_lapic(registers)
            if stopped.deadline:
                cpu.kvm.set_msrs({IA32_TSC_DEADLINE: stopped.deadline})
        self._stop(())

    def _stop(self, stopped: tuple[StoppedTimer, ...]) -> None:
        self._stopped = stopped
        for cpu in self._cpus:
            cpu.engine.timers_stand = bool(stopped)

    def _restore_timers(self, stopped: tuple[StoppedTimer, ...]) -> None:
        """Let time stand where it did; the local APICs themselves are their vCPUs' state."""
        if len(stopped) not in (0, len(self._cpus)):
            raise ConfigError(
                f"the state has {len(stopped)} local APICs; this machine has {len(self._cpus)}"
            )
        for timer in stopped:
            if len(timer.count) != _TMCCT.stop - _TMCCT.start:
                raise ConfigError(f"the count of a local APIC's timer has {len(timer.count)} bytes")
        self._stop(stopped)

    @property
    def msr_exits(self) -> MsrExits:
        """See `IrqChip`."""
        if self._msr_exits is None:
            self._msr_exits = MsrExits(self._vm)
        return self._msr_exits

    def read_msr(self, cpu: CPU, exit: RdMsr) -> None:
        """KVM does not know it: #GP."""
        exit.fail()

    def write_msr(self, cpu: CPU, exit: WrMsr) -> None:
        """KVM does not know it: #GP."""
        exit.fail()
