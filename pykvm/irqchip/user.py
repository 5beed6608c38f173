"""The machine's interrupt controllers and clocks, as `irqchip=` and `clock=` choose them.

``user`` is all in software (`pykvm.irqchip.wiring`).  It is made when the guest first touches any
of it: a guest that needs no interrupt and no clock does not pay for them.
"""

from __future__ import annotations

import threading

from pykvm.bus import Placement, Space
from pykvm.errors import ConfigError, KVMError
from pykvm.kvm.run_page import APIC_BASE
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.msr_exits import MsrExits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.bus import Bus, Range
    from pykvm.clock import Clock
    from pykvm.devices.line import Inlet, InterruptLine
    from pykvm.exits import RdMsr, WrMsr
    from pykvm.irqchip.injector import Injector
    from pykvm.irqchip.timekeeper import Timekeeper
    from pykvm.irqchip.wiring import ApicTraits, Platform
    from pykvm.kvm import VM
    from pykvm.vcpu import CPU

__all__ = ["IRQCHIPS", "PLACES", "OnDemand", "UserChipset"]

IRQCHIPS = ("user", "kernel", "split", "none")
POLICIES = ("realtime", "paused", "warp")  # of pykvm.clock, which few runs need

# Where everything stands, before anything of it exists: (name, space, address, length).
PLACES = (
    ("pic-master", Space.PIO, 0x20, 2),
    ("pit", Space.PIO, 0x40, 4),
    ("port61", Space.PIO, 0x61, 1),
    ("rtc", Space.PIO, 0x70, 2),
    ("pic-slave", Space.PIO, 0xA0, 2),
    ("pic-elcr", Space.PIO, 0x4D0, 2),
    ("pm-timer", Space.PIO, 0x608, 4),
    ("ioapic", Space.MMIO, 0xFEC00000, 0x1000),
    ("hpet", Space.MMIO, 0xFED00000, 0x400),
    ("lapic", Space.MMIO, 0xFEE00000, 0x1000),
)

PAGE = 0x1000

# SDM 4, table 2-2.
IA32_TSC = 0x10
IA32_APIC_BASE = 0x1B
IA32_TSC_ADJUST = 0x3B
IA32_MCG_CAP = 0x179
MCG_CMCI_P = 1 << 10
IA32_TSC_DEADLINE = 0x6E0

# Documentation/virt/kvm/x86/msr.rst: wall clock and system time, by their old and new numbers.
KVMCLOCK_MSRS = (0x11, 0x12, 0x4B56_4D00, 0x4B56_4D01)


class OnDemand:
    """What stands on the bus for a device until the guest first touches it."""

    def __init__(self, name: str, make: Callable[[str], Range]) -> None:
        self.name = name
        self._make = make

    def read(self, offset: int, size: int) -> int:
        """Make the device and read it."""
        return self._make(self.name).read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Make the device and write it."""
        self._make(self.name).write(offset, size, value)


class UserChipset:
    """Interrupt controllers and clocks in software, over a VM that has none of its own."""

    def __init__(
        self,
        vm: VM,
        bus: Bus,
        clock: Callable[[], Clock],
        *,
        on_made: Callable[[UserChipset], None],
    ) -> None:
        """`clock` makes the machine's clock; `on_made` is called once the platform exists."""
        self._vm = vm
        self._bus = bus
        self._make_clock = clock
        self._on_made = on_made
        self._lock = threading.RLock()
        self._cpus: Sequence[CPU] = ()
        self.injectors: tuple[Injector, ...] = ()
        self.platform: Platform | None = None
        self.timekeeper: Timekeeper | None = None
        #: What can interrupt the guest from outside.
        self.inlets: list[Inlet] = []
        #: Whether somebody outside the machine has wires to it, and may use them at any time.
        self.has_outside_lines = False
        # Whether the guest may read kvmclock: then KVM is told of every step of guest time.
        self._kvmclock = True
        # x2APIC registers are MSRs that KVM does not know here: its #GP becomes an exit.
        self.msr_exits = MsrExits(vm, unknown=True)

    def placements(self, others: Sequence[Placement]) -> list[Placement]:
        """What goes on the bus until the platform is made, beside `others`."""
        return [
            Placement(OnDemand(name, self._touch), space, address, length)
            for name, space, address, length in PLACES
            # Whoever put a device of their own there wants that one.
            if not any(
                other.space is space
                and other.address < address + length
                and address < other.address + other.length
                for other in others
            )
        ]

    def attach(self, cpus: Sequence[CPU]) -> None:
        """These are the machine's vCPUs."""
        self._cpus = cpus
        if len(cpus) > 1:
            self.make()

    def _touch(self, name: str) -> Range:
        self.make()
        return next(range_ for range_ in self._bus.ranges if range_.name == name)

    def make(self) -> Platform:
        """The platform, which is made now if there was none."""
        with self._lock:
            if self.platform is None:
                self._make()
            assert self.platform is not None
            return self.platform

    def _make(self) -> None:
        from pykvm.irqchip.injector import Injector
        from pykvm.irqchip.timekeeper import Timekeeper
        from pykvm.irqchip.wiring import Platform

        self.injectors = tuple(Injector(cpu) for cpu in self._cpus)
        platform = Platform(
            self._make_clock(),
            self.injectors,
            self._current,
            apic_traits(self._cpus[0]),
        )
        for injector, lapic in zip(self.injectors, platform.lapics, strict=True):
            injector.lapic = lapic
            base = injector.cpu.engine.page.cast("Q")[APIC_BASE // 8]
            if base and base != lapic.base:
                lapic.base = base
        self.injectors[0].pic = platform.pic
        self.timekeeper = Timekeeper(
            platform.clock,
            self.injectors,
            waits_for_host=self._waits_for_host,
            nmi_source=platform.has_nmi_source,
            on_warp=self.resume,
        )
        platform.clock.on_earlier = self._earlier
        # Under "warp" guest time steps at every wait, and KVM_SET_CLOCK costs as much as an exit.
        self._kvmclock = platform.clock.policy != "warp"
        self._filter_msrs()
        present = {
            range_.name for range_ in self._bus.ranges if isinstance(range_.device, OnDemand)
        }
        self._bus.replace({name: platform.devices[name] for name in present})
        self.platform = platform
        self._on_made(self)

    def _waits_for_host(self) -> bool:
        return self.has_outside_lines or any(inlet.receives for inlet in self.inlets)

    def _filter_msrs(self) -> None:
        """Have the MSRs of time and of the APIC's place exit."""
        indices = [IA32_APIC_BASE, IA32_TSC_DEADLINE]
        if not self._make_clock().tsc_by_kvm:
            indices += IA32_TSC, IA32_TSC_ADJUST
        writes = indices if self._kvmclock else (*indices, *KVMCLOCK_MSRS)
        self.msr_exits.ask("chipset", reads=indices, writes=writes)

    def _earlier(self, queue: int) -> None:
        if queue < len(self._cpus):
            self._cpus[queue].engine.attend()

    def _current(self) -> Injector:
        """The processor whose thread calls, else the first."""
        if len(self.injectors) == 1:
            return self.injectors[0]
        return next(
            (injector for injector in self.injectors if injector.cpu.engine.is_here),
            self.injectors[0],
        )

    def line(self, irq: int) -> InterruptLine:
        """Where a device's interrupt request goes."""
        return self.make().line(irq)

    def send_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt, and return whether a local APIC took it."""
        from pykvm.interrupts import Message

        return self.make().apics.deliver(Message.from_msi(address, data))

    def irqfd(self, fd: int, irq: int) -> None:
        """Nothing listens to an eventfd here."""
        raise ConfigError(
            "an irqfd needs KVM's own interrupt controllers", hint="Machine(irqchip='kernel')"
        )

    def end_of_interrupt(self, vector: int) -> None:
        """Only in-kernel local APICs report one to us."""

    def pause(self) -> None:
        """Time stands still: nothing here runs without the clock."""

    def resume(self) -> None:
        """Time goes on, or has been skipped: what KVM itself tells the guest has to follow."""
        if self.platform is not None:
            clock = self.platform.clock
            if self._kvmclock:
                set_kvmclock(self._vm, clock)
            set_tsc_offsets(self._cpus, clock)

    # -- MSRs --------------------------------------------------------------------------------

    def read_msr(self, cpu: CPU, exit: RdMsr) -> None:
        """Answer a RDMSR that KVM has left to us, or let it be #GP."""
        from pykvm.interrupts import GpFault

        clock = self.make().clock
        if exit.index == IA32_TSC:
            exit.answer(clock.tsc(cpu=cpu.index))
        elif exit.index == IA32_TSC_ADJUST:
            exit.answer(clock.tsc_adjust(cpu.index))
        else:
            injector = self.injectors[cpu.index]
            injector.before_access()
            try:
                exit.answer(injector.lapic.read_msr(exit.index) if injector.lapic else 0)
            except GpFault:
                exit.fail()

    def write_msr(self, cpu: CPU, exit: WrMsr) -> None:
        """Carry out a WRMSR that KVM has left to us, or let it be #GP."""
        from pykvm.interrupts import GpFault

        platform = self.make()
        exit.accept()
        if exit.index == IA32_TSC:
            platform.clock.write_tsc(cpu.index, exit.value)
            self._move_tsc(cpu)
        elif exit.index == IA32_TSC_ADJUST:
            platform.clock.write_tsc_adjust(cpu.index, exit.value)
            self._move_tsc(cpu)
        elif exit.index in KVMCLOCK_MSRS:
            self._start_kvmclock(cpu, exit)
        else:
            injector = self.injectors[cpu.index]
            lapic = platform.lapics[cpu.index]
            injector.before_access()
            try:
                lapic.write_msr(exit.index, exit.value)
            except GpFault:
                exit.fail()
                return
            injector.after_access()
            if exit.index == IA32_APIC_BASE:
                self._rebase(cpu, lapic.base)

    def _move_tsc(self, cpu: CPU) -> None:
        platform = self.make()
        if platform.clock.tsc_movable:
            set_tsc_offset(cpu, platform.clock.vcpu_tsc_offset(cpu.index))
        platform.lapics[cpu.index].timer.tsc_moved()

    def _start_kvmclock(self, cpu: CPU, exit: WrMsr) -> None:
        """The guest asks for kvmclock: have KVM do it, and follow guest time from now on."""
        self._kvmclock = True
        self._filter_msrs()
        set_kvmclock(self._vm, self.make().clock)
        try:
            cpu.kvm.set_msrs({exit.index: exit.value})
        except KVMError:
            exit.fail()

    def _rebase(self, cpu: CPU, base: int) -> None:
        """IA32_APIC_BASE was written: KVM has to know, and the bus where the page stands."""
        cpu.regs.apic_base = base
        platform = self.make()
        page = platform.devices["lapic"]
        # Two vCPUs may write theirs at once: the later look is the one that counts.
        with self._lock:
            wanted = {lapic.address for lapic in platform.lapics if lapic.enabled}
            present = {range_.first for range_ in self._bus.ranges if range_.device is page}
            if wanted != present:
                # Where another device stands, that one stays.
                self._bus.move(
                    page, [Placement(page, Space.MMIO, address, PAGE) for address in sorted(wanted)]
                )


def set_kvmclock(vm: VM, clock: Clock) -> None:
    """Set KVM's paravirtual clock to guest time."""
    vm.set_clock({"clock": clock.now()})


def set_tsc_offsets(cpus: Sequence[CPU], clock: Clock) -> None:
    """Set the TSC offsets to what guest time makes of them, where this host keeps them."""
    if clock.tsc_movable:
        for cpu in cpus:
            set_tsc_offset(cpu, clock.vcpu_tsc_offset(cpu.index))


# <asm/kvm.h>: the group KVM_VCPU_TSC_CTRL and its attribute KVM_VCPU_TSC_OFFSET
_TSC_CTRL = 0
_TSC_OFFSET = 0


def set_tsc_offset(cpu: CPU, offset: int) -> None:
    """Set what KVM adds to the host's TSC (signed)."""
    cpu.kvm.set_device_attr(_TSC_CTRL, _TSC_OFFSET, offset % (1 << 64))


def tsc_offset(cpu: CPU) -> int:
    """What KVM adds to the host's TSC (signed)."""
    value = cpu.kvm.get_device_attr(_TSC_CTRL, _TSC_OFFSET)
    return value - (1 << 64) if value >> 63 else value


def apic_traits(cpu: CPU) -> ApicTraits:
    """What this vCPU's CPUID, and MSRs of KVM's, promise of its local APIC."""
    from pykvm.irqchip.wiring import ApicTraits
    from pykvm.x86.cpuid import CpuidTable

    table = CpuidTable(cpu.kvm.get_cpuid2())
    machine_check = cpu.kvm.get_msrs([IA32_MCG_CAP], partial=True).get(IA32_MCG_CAP, 0)
    return ApicTraits(
        x2apic="x2apic" in table,
        tsc_deadline="tsc_deadline_timer" in table,
        cmci=bool(machine_check & MCG_CMCI_P),
        physical_bits=table.maxphyaddr,
    )


def check_chipset(irqchip: str, clock: str) -> None:
    """Raise ConfigError unless there is such an irqchip, and such a policy of time with it."""
    if irqchip not in IRQCHIPS:
        raise ConfigError(f"irqchip is one of {', '.join(IRQCHIPS)}, not {irqchip!r}")
    if clock not in POLICIES:
        raise ConfigError(f"clock is one of {', '.join(POLICIES)}, not {clock!r}")
    if clock == "warp" and irqchip in ("kernel", "split"):
        raise ConfigError(
            f"clock='warp' does not go with irqchip={irqchip!r}: the kernel's timers skip no time",
            hint="irqchip='user' has all of them in software",
        )


def clock_of(cpus: Sequence[CPU], policy: str, tsc_khz: int | None = None) -> Clock:
    """The clock of a machine with these vCPUs, whose TSC is to run at `tsc_khz` (else the host's).

    Raises ConfigError where this host shows guests its own TSC and cannot have it run otherwise.
    """
    from pykvm._core import lib
    from pykvm.clock import Clock
    from pykvm.clock.tsc import signed

    first = cpus[0]
    host_khz = first.kvm.get_tsc_khz()
    before = tsc_offset(first)
    movable = offset_is_kept(first, before)
    by_kvm = not movable and not _is_near(_tsc_of(first), lib.pykvm_cycles(), host_khz)
    clock = Clock(
        policy,
        host_tsc=lib.pykvm_cycles,
        host_tsc_khz=host_khz,
        tsc_khz=tsc_khz,
        tsc_movable=movable,
        tsc_of_kvm=(lambda index: _tsc_of(cpus[index])) if by_kvm else None,
    )
    if by_kvm:
        return clock
    # What the guest has seen so far: KVM started this vCPU's TSC at 0 when it was made, and has
    # kept the MSRs until now.
    adjusted = [cpu.kvm.get_msrs([IA32_TSC_ADJUST], partial=True) for cpu in cpus]
    for cpu, found in zip(cpus, adjusted, strict=True):
        if found.get(IA32_TSC_ADJUST):
            clock.write_tsc_adjust(cpu.index, found[IA32_TSC_ADJUST])
    if movable:
        clock.tsc_offset = before - signed(adjusted[0].get(IA32_TSC_ADJUST, 0))
        if clock.tsc_khz != host_khz:
            for cpu in cpus:
                cpu.kvm.set_tsc_khz(clock.tsc_khz)
    return clock


def _tsc_of(cpu: CPU) -> int:
    return cpu.kvm.get_msrs([IA32_TSC])[IA32_TSC]


def _is_near(one: int, other: int, khz: int) -> bool:
    """Whether two readings of a TSC are less than a tenth of a second apart."""
    return abs(one - other) < khz * 100


def offset_is_kept(cpu: CPU, offset: int) -> bool:
    """Probe: whether this host's KVM keeps a TSC offset it is given, and so shows it to guests."""
    moved = offset + (1 << 20)
    set_tsc_offset(cpu, moved)
    kept = tsc_offset(cpu) == moved
    set_tsc_offset(cpu, offset)
    return kept
