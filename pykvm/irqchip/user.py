"""``irqchip="user"``: interrupt controllers and clocks are all in software.

`pykvm.irqchip.wiring` has them.  It is made when the guest first touches any
of it: a guest that needs no interrupt and no clock does not pay for them.
"""

from __future__ import annotations

from _thread import RLock

from pykvm.bus import Placement, Space
from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError, KVMError
from pykvm.irqchip.places import PLACES, placements
from pykvm.kvm.run_page import APIC_BASE
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.spelling import option
from pykvm.values.state import State, expect
from pykvm.vcpu.msr_exits import MsrExits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.bus import Area, Bus, Device, Range
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.exits import RdMsr, WrMsr
    from pykvm.interrupts.lapic_core import LocalApicState
    from pykvm.irqchip.delivery import UserInterrupts
    from pykvm.irqchip.injector import Injector, InjectorState
    from pykvm.irqchip.wiring import ApicTraits, Platform, PlatformState
    from pykvm.kvm import VM
    from pykvm.values.state import Plain
    from pykvm.vcpu import CPU

__all__ = ["OnDemand", "UserIrqChip", "UserIrqChipState", "apic_traits"]

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


class UserIrqChipState(State):
    """The processors' ends of it.  The controllers and clocks on the bus are devices by name.

    `off_bus` are those that stand nowhere, because another device has their place; `kvmclock` is
    whether the guest may read KVM's clock.
    """

    lapics: tuple[LocalApicState, ...]
    injectors: tuple[InjectorState, ...]
    kvmclock: bool
    off_bus: tuple[tuple[str, Plain], ...]


class OnDemand(NamedDevice):
    """What stands on the bus for a device until the guest first touches it."""

    stateless = True

    def __init__(self, name: str, make: Callable[[str], Range]) -> None:
        self.name = name
        self._make = make

    def _summary(self) -> str:
        return "not touched yet"

    def read(self, offset: int, size: int) -> int:
        """Make the device and read it."""
        return self._make(self.name).read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Make the device and write it."""
        self._make(self.name).write(offset, size, value)


class UserIrqChip:
    """Interrupt controllers and clocks in software, over a VM that has none of its own."""

    #: KVM answers nothing itself.
    areas: tuple[Area, ...] = ()

    def __init__(
        self,
        vm: VM,
        bus: Bus,
        clock: Callable[[], Clock],
        *,
        on_made: Callable[[Mapping[str, Device]], None],
        on_put_away: Callable[[Mapping[str, Device]], None],
        waits_for_host: Callable[[], bool],
        msr_exits: MsrExits | None = None,
    ) -> None:
        """See `make_irqchip`."""
        self._waits_for_host = waits_for_host
        self._vm = vm
        self._bus = bus
        self._make_clock = clock
        self._on_made = on_made
        self._on_put_away = on_put_away
        self._lock = RLock()
        self._cpus: Sequence[CPU] = ()
        self.injectors: tuple[Injector, ...] = ()
        self.platform: Platform | None = None
        #: None as long as the guest has touched nothing.
        self.interrupts: UserInterrupts | None = None
        # Of the platform: what a run asks while it is in use, and its state when it was made.
        self._made_interrupts: UserInterrupts | None = None
        self._pristine: PlatformState | None = None
        # Whether the guest may read kvmclock: then KVM is told of every step of guest time.
        self._kvmclock = True
        # Whether guests see a TSC offset, which follows guest time.
        self._movable_tsc = True
        # x2APIC registers are MSRs that KVM does not know here: its #GP becomes an exit.
        self.msr_exits = msr_exits or MsrExits(vm, unknown=True)

    def attach(self, cpus: Sequence[CPU], others: Sequence[Placement]) -> list[Placement]:
        """See `IrqChip`: the devices, or what stands for them until the first touch."""
        self._cpus = cpus
        if len(cpus) > 1:
            self.platform = self._make()
            return placements(self.platform.devices, others)
        return placements({name: OnDemand(name, self._touch) for name in PLACES}, others)

    def _touch(self, name: str) -> Range:
        self.make()
        return next(range_ for range_ in self._bus.ranges if range_.name == name)

    def make(self) -> UserInterrupts:
        """See `IrqChip`."""
        with self._lock:
            self._platform()
            # A device that needs it as soon as it is attached comes before them.
            if self._placeholders():
                self._replace_placeholders()
        assert self.interrupts is not None
        return self.interrupts

    def _platform(self) -> Platform:
        """The platform, which is made now if there was none."""
        with self._lock:
            if self.platform is None:
                self.platform = self._make()
                self._replace_placeholders()
            elif self.interrupts is None:
                self._take_out(self.platform)
            return self.platform

    def _placeholders(self) -> list[str]:
        return [range_.name for range_ in self._bus.ranges if isinstance(range_.device, OnDemand)]

    def _replace_placeholders(self) -> None:
        assert self.platform is not None
        devices = {name: self.platform.devices[name] for name in self._placeholders()}
        self._bus.replace(devices)
        self._on_made(devices)

    def _make(self) -> Platform:
        from pykvm.irqchip.delivery import UserInterrupts
        from pykvm.irqchip.injector import Injector
        from pykvm.irqchip.tsc_offset import follow_tsc_writes
        from pykvm.irqchip.wiring import Platform

        clock = self._make_clock()
        # From here on we take those writes, not KVM.
        follow_tsc_writes(self._cpus, clock)
        self.injectors = tuple(Injector(cpu) for cpu in self._cpus)
        platform = Platform(
            clock,
            self.injectors,
            self._current,
            apic_traits(self._cpus[0]),
        )
        self._pristine = platform.state()
        for injector, lapic in zip(self.injectors, platform.lapics, strict=True):
            injector.lapic = lapic
        self._follow_bases()
        self.injectors[0].pic = platform.pic
        self.interrupts = self._made_interrupts = UserInterrupts(
            platform.clock,
            self.injectors,
            waits_for_host=self._waits_for_host,
            nmi_source=platform.has_nmi_source,
            on_warp=self.resume,
        )
        platform.clock.on_earlier(self._earlier)
        # Under "warp" guest time steps at every wait, and KVM_SET_CLOCK costs as much as an exit.
        self._kvmclock = platform.clock.policy != "warp"
        self._movable_tsc = platform.clock.tsc_movable
        self._filter_msrs()
        return platform

    def _follow_bases(self) -> None:
        """The guest may have moved its local APICs before there were any."""
        for injector in self.injectors:
            lapic = injector.lapic
            base = injector.cpu.engine.page.cast("Q")[APIC_BASE // 8]
            if lapic is not None and base and base != lapic.base:
                lapic.base = base

    def state(self) -> UserIrqChipState | None:
        """See `IrqChip`: None as long as the guest has touched nothing."""
        with self._lock:
            if self.platform is None or self.interrupts is None:
                return None
            for injector in self.injectors:
                injector.before_access()
            on_bus = {id(range_.device) for range_ in self._bus.ranges}
            return UserIrqChipState(
                tuple(lapic.state() for lapic in self.platform.lapics),
                tuple(injector.state() for injector in self.injectors),
                self._kvmclock,
                tuple(
                    (name, device.state())
                    for name, device in self.platform.stateful()
                    if id(device) not in on_bus
                ),
            )

    def restore(self, state: UserIrqChipState | None) -> None:
        """See `IrqChip`.  With None, what the guest has touched since is put away untouched."""
        with self._lock:
            if state is None:
                self._put_away()
                return
            expect(state, UserIrqChipState)
            vcpus = len(self._cpus)
            integer("local APICs", len(state.lapics), vcpus, vcpus)
            integer("processors", len(state.injectors), vcpus, vcpus)
            platform = self._platform()
            devices = dict(platform.stateful())
            for name, of_device in state.off_bus:
                if name not in devices:
                    raise ConfigError(f"this irqchip has no {name:.40}")
                devices[name].restore(of_device)
            for lapic, of_lapic in zip(platform.lapics, state.lapics, strict=True):
                lapic.restore(of_lapic)
            for injector, of_injector in zip(self.injectors, state.injectors, strict=True):
                injector.restore(of_injector)
                injector.after_access()
                # It has to look at what waits for it before it enters the guest.
                injector.cpu.engine.attend()
            if state.kvmclock != self._kvmclock:
                self._kvmclock = state.kvmclock
                self._filter_msrs()
            self._place_pages(platform)

    def _put_away(self) -> None:
        """Let placeholders stand on the bus again, and what they stand for wait for them."""
        platform = self.platform
        if platform is None or self.interrupts is None:
            return
        if len(self._cpus) > 1:
            raise ConfigError("a machine with several vCPUs always has interrupt controllers")
        assert self._pristine is not None
        from pykvm.irqchip.injector import InjectorState

        self.interrupts = None
        for injector in self.injectors:
            injector.restore(InjectorState())
        # So that no deadline of it comes.
        platform.power_on(self._pristine)
        self._place_pages(platform)
        ours = {id(device) for device in platform.devices.values()}
        placeholders = {
            range_.name: OnDemand(range_.name, self._touch)
            for range_ in self._bus.ranges
            if id(range_.device) in ours
        }
        self._bus.replace(placeholders)
        self._on_put_away(placeholders)

    def _take_out(self, platform: Platform) -> None:
        """The guest touches what was put away: it is as if it were made now."""
        assert self._pristine is not None
        platform.power_on(self._pristine)
        self._follow_bases()
        self.interrupts = self._made_interrupts
        self._replace_placeholders()

    def _filter_msrs(self) -> None:
        """Have the MSRs of time and of the APIC's place exit."""
        indices = [IA32_APIC_BASE, IA32_TSC_DEADLINE]
        if not self._make_clock().tsc_by_kvm:
            indices += IA32_TSC, IA32_TSC_ADJUST
        writes = indices if self._kvmclock else (*indices, *KVMCLOCK_MSRS)
        self.msr_exits.ask("irqchip", reads=indices, writes=writes)

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
        """See `IrqChip`."""
        return self._platform().line(irq)

    def send_msi(self, address: int, data: int) -> bool:
        """See `IrqChip`."""
        from pykvm.interrupts import Message

        return self._platform().apics.deliver(Message.from_msi(address, data))

    def irqfd(self, fd: int, irq: int) -> None:
        """Nothing listens to an eventfd here."""
        raise ConfigError(
            "an irqfd needs KVM's own interrupt controllers",
            hint=f"{option('irqchip', 'kernel')} has them",
        )

    def end_of_interrupt(self, vector: int) -> None:
        """Only in-kernel local APICs report one to us."""

    def pause(self) -> None:
        """Time stands still: nothing here runs without the clock."""

    def resume(self) -> None:
        """Time runs on, or was skipped: KVM's own clocks for the guest have to follow."""
        platform = self.platform
        if platform is None or not (self._kvmclock or self._movable_tsc):
            return
        from pykvm.irqchip.tsc_offset import set_kvmclock, show_tscs

        if self._kvmclock:
            set_kvmclock(self._vm, platform.clock)
        show_tscs(self._cpus, platform.clock)

    def read_msr(self, cpu: CPU, exit: RdMsr) -> None:
        """See `IrqChip`."""
        from pykvm.interrupts import GpFault

        clock = self._platform().clock
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
        """See `IrqChip`."""
        from pykvm.interrupts import GpFault

        platform = self._platform()
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
        from pykvm.irqchip.tsc_offset import show_tsc

        platform = self._platform()
        show_tsc(cpu, platform.clock)
        platform.lapics[cpu.index].timer.tsc_moved()

    def _start_kvmclock(self, cpu: CPU, exit: WrMsr) -> None:
        """The guest asks for kvmclock: have KVM do it, and follow guest time from now on."""
        from pykvm.irqchip.tsc_offset import set_kvmclock

        self._kvmclock = True
        self._filter_msrs()
        set_kvmclock(self._vm, self._platform().clock)
        try:
            cpu.kvm.set_msrs({exit.index: exit.value})
        except KVMError:
            exit.fail()

    def _rebase(self, cpu: CPU, base: int) -> None:
        """IA32_APIC_BASE was written: KVM has to know, and the bus where the page stands."""
        cpu.regs.apic_base = base
        self._place_pages(self._platform())

    def _place_pages(self, platform: Platform) -> None:
        """Let the page of registers stand where the local APICs say."""
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
