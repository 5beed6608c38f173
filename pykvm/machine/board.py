"""The hardware of a machine: memory, vCPUs, irqchip and devices, made and wired together."""

from __future__ import annotations

import time

from pykvm.boot.placement import ram_ranges
from pykvm.bus import Area, Bus, Space, check_device, check_free, check_placement
from pykvm.bus.dispatch import Dispatch
from pykvm.errors import ConfigError
from pykvm.irqchip import make_irqchip
from pykvm.machine.attachments import Attachments
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option
from pykvm.vcpu import CPU
from pykvm.vcpu.claim import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pykvm.boot import Setup
    from pykvm.bus import Device, Placement
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.host import Host
    from pykvm.irqchip.base import Interrupts, IrqChip
    from pykvm.kvm import VM
    from pykvm.machine.config import MachineConfig
    from pykvm.memory import GuestMemory
    from pykvm.tables import Hardware
    from pykvm.vcpu.msr_exits import MsrExits
    from pykvm.x86.cpuid import CpuidTable

__all__ = ["Board"]

IA32_TSC_AUX = 0xC0000103


class Board:
    """What a machine is made of; `build` makes what takes KVM, and `close` gives all of it back.

    `memory` is the board's from now on, and `irqchip` the one that the guest gets by this config.
    """

    def __init__(self, memory: GuestMemory, config: MachineConfig, *, irqchip: str) -> None:
        self.memory = memory
        self.bus = Bus()
        # What KVM answers itself, before any device of the bus.
        self._kernels: tuple[Area, ...] = ()
        #: The devices by name.
        self.devices: dict[str, Device] = {}
        self.vcpus: list[CPU] = []
        self.vm: VM | None = None
        self.irqchip: IrqChip | None = None
        #: The devices on the bus that are the irqchip's, by name.
        self.irqchip_names: frozenset[str] = frozenset()
        #: Whether it was put back to a snapshot.
        self.was_reset = False
        #: Whether the host has lines to the irqchip, and may drive them at any time.
        self.has_outside_lines = False
        #: The right to run it.
        self.claim = Claim()
        self.claim.on_fork(self, Board.forget)
        #: Called when the guest has touched what can interrupt it, and a run has to ask that.
        self.on_interrupts: Callable[[Interrupts], None] | None = None
        self._closed = False
        # While it is built, whether its contents are put back after that.
        self._cmos_comes = False
        self._irqchip_kind = irqchip
        self._config = config
        # Guest time begins here, whenever its clock is made.
        self._began = time.monotonic_ns()
        self._clock: Clock | None = None
        # Made before the irqchip, where it is.
        self._msr_exits: MsrExits | None = None

    def build(
        self,
        host: Host,
        devices: Iterable[Placement],
        watched: Sequence[int] = (),
        *,
        restored: bool = False,
    ) -> None:
        """Make the VM, its vCPUs and the irqchip, and place the devices.

        Writes of the MSRs in `watched` exit from the first run on, for the workarounds of quirks.
        With `restored`, the state of the devices is to be put back at once, the CMOS with it.

        Raises HostError, ConfigError and KVMError; what was made until then is for `close`.
        """
        placements = list(devices)
        for placement in placements:
            check_placement(placement)
        self._cmos_comes = restored
        # Not sooner: these are loops of references, and only `close` breaks them.
        self.attachments = Attachments(self.memory, lambda: self.clock)
        self.bus.fixed = self._fixed
        self.memory.on_add(self._check_memory)
        vm = self.vm = host.create_vm(hand_over=self._config.emulate == "auto")
        msr_exits = self._watch(watched) if watched else None
        self.memory.attach(vm)
        irqchip = self.irqchip = make_irqchip(
            self._irqchip_kind,
            vm,
            self.bus,
            lambda: self.clock,
            on_made=self._irqchip_made,
            on_put_away=self.devices.update,
            waits_for_host=self._waits_for_host,
            msr_exits=msr_exits,
        )
        if irqchip is not None and irqchip.areas:
            self._kernels = irqchip.areas
            for region in self.memory.regions:
                self._check_memory(region.name, region.start, region.size, region.readonly)
        self._add_vcpus(vm, host)
        if irqchip is not None:
            own = irqchip.attach(self.vcpus, placements)
            self.irqchip_names = frozenset(placement.name for placement in own)
            placements += own
            self.attachments.use(irqchip)
        self.place(placements)
        # The ring is the VM's; vCPUs that share it could not keep their writes in order.
        alone = len(self.vcpus) == 1
        self.dispatch = Dispatch(self.bus, vm=vm if alone else None, shared=not alone)
        self.dispatch.collected.on_urgent = self._hand_over
        if self._clock is not None:
            self.dispatch.collected.follow(self._clock)
        self.bus.on_change(self.follow_bus)
        for cpu in self.vcpus:
            cpu.loop.use(self.dispatch)
        if irqchip is not None and (
            irqchip.interrupts is not None or self._config.clock != "realtime"
        ):
            # A clock that stands still between runs has to be there from the first one on.
            irqchip.make()
            self._fill_cmos()
        if self._config.tsc_khz is not None or self._config.clock != "realtime":
            # Not left to the first look at it: this host may not be able to scale the TSC, and a
            # clock that stands still between runs has to be there in each of them.
            _ = self.clock
        self._cmos_comes = False

    def _add_vcpus(self, vm: VM, host: Host) -> None:
        count, model = self._config.vcpus, self._config.cpu
        hidden = self._unusable(model)
        for index in range(count):
            cpuid = host.cpuid(model, index, count, irqchip=self._irqchip_kind, hidden=hidden)
            vcpu = vm.create_vcpu(index)
            ring = host.coalescing_ring if count == 1 else None
            self.vcpus.append(CPU(vcpu, self.memory, ring=ring, claim=self.claim))
            vcpu.set_cpuid2(cpuid)
            if index:
                # What RDTSCP and RDPID return for the processor, until the guest sets it.
                vcpu.set_msrs({IA32_TSC_AUX: index}, partial=True)

    def _unusable(self, model: str) -> frozenset[str] | None:
        """Features that this host offers and would not give to this machine; None: not tried."""
        if model == "baseline":
            return None
        from pykvm.quirks.features import hidden

        return hidden(self._irqchip_kind, model)

    def _irqchip_made(self, devices: Mapping[str, Device]) -> None:
        """The guest has touched an interrupt controller or a clock: now they exist."""
        assert self.irqchip is not None
        self.devices.update(devices)
        self.attachments.irqchip_made(self.irqchip)
        self._fill_cmos()
        if self.on_interrupts is not None and self.irqchip.interrupts is not None:
            self.on_interrupts(self.irqchip.interrupts)

    def _waits_for_host(self) -> bool:
        return self.has_outside_lines or self.attachments.waits_for_host()

    def place(self, placements: Iterable[Placement]) -> None:
        """Put devices on the bus.  Raises BusConflict and ConfigError, and places none then."""
        placements = list(placements)
        known = dict(self.devices)
        for placement in placements:
            name = check_device(placement.device)
            if known.setdefault(name, placement.device) is not placement.device:
                raise ConfigError(
                    f"there is a device named {name!r} already",
                    hint="remove it first, or give the new one another name",
                )
        attached = self.attachments.names
        try:
            self.attachments.add(placements)
            self.bus.add_all(placements)
        except BaseException:
            self.attachments.keep(attached)
            raise
        self.devices.update((placement.name, placement.device) for placement in placements)

    def remove(self, device: Device | str) -> None:
        """Take a device off the bus, by name or by itself.  Raises ConfigError without it."""
        name = device if isinstance(device, str) else check_device(device)
        self.bus.remove(device)
        self.forget_device(name)

    def forget_device(self, name: str) -> None:
        """What `remove` does of a device that stands nowhere any more."""
        self.devices.pop(name, None)
        self.attachments.remove(name)

    def _fixed(self) -> Iterable[Area]:
        """What no device can stand over: memory, and what KVM answers itself."""
        regions = self.memory.regions
        return (
            *(
                Area(region.name, Space.MMIO, region.start, region.end - 1, region.readonly)
                for region in regions
            ),
            *self._kernels,
        )

    def _check_memory(self, name: str, start: int, size: int, readonly: bool) -> None:
        """Raise BusConflict if a device, or KVM itself, answers where there is to be memory."""
        area = Area(name, Space.MMIO, start, start + size - 1, readonly)
        check_free(area, (*self.bus.ranges, *self._kernels))

    def _fill_cmos(self) -> None:
        """Fill the CMOS as firmware would, if this is a PC and its clock exists."""
        if self._cmos_comes or "acpi-pm" not in self.devices:
            return
        from pykvm.devices.rtc import Rtc146818
        from pykvm.tables.cmos import cmos

        rtc = self.devices.get("rtc")
        if isinstance(rtc, Rtc146818):
            for index, byte in cmos(ram_ranges(self.memory), len(self.vcpus)).items():
                rtc.nvram[index] = byte

    def follow_bus(self) -> None:
        """Have the vCPUs answered by the devices that stand on the bus."""
        self.dispatch.rebuild()
        for cpu in self.vcpus:
            cpu.loop.use(self.dispatch)

    def _hand_over(self) -> None:
        """Collected accesses wait for a device that has to know of them now."""
        for cpu in self.vcpus:
            cpu.engine.attend()

    def host_line(self, irq: int) -> InterruptLine:
        """A line for the host to drive; its level is part of a snapshot."""
        irqchip = self.need_irqchip()
        self.has_outside_lines = True
        return self.attachments.host_line(irqchip.line(irq))

    def need_irqchip(self) -> IrqChip:
        """The irqchip.  Raises ConfigError if there is none."""
        if self.irqchip is None:
            raise ConfigError(
                f"this machine has no interrupt controller ({option('irqchip', 'none')})"
            )
        return self.irqchip

    def _watch(self, msrs: Sequence[int]) -> MsrExits:
        """Have writes of these exit.

        Before anything else is made: to change the filter KVM waits until no reader can see the old
        one (SRCU), which takes long where it has just waited so for memory or a controller.
        """
        from pykvm.quirks.signs import OWNER
        from pykvm.vcpu.msr_exits import MsrExits

        assert self.vm is not None
        self._msr_exits = MsrExits(self.vm, unknown=self._irqchip_kind == "user")
        self._msr_exits.ask(OWNER, writes=msrs)
        return self._msr_exits

    def msr_exits(self) -> MsrExits:
        """Where to ask for exits by MSRs, beside the irqchip."""
        if self.irqchip is not None:
            return self.irqchip.msr_exits
        if self._msr_exits is not None:
            return self._msr_exits
        from pykvm.vcpu.msr_exits import MsrExits

        assert self.vm is not None
        return MsrExits(self.vm)

    def hardware(self) -> Hardware:
        """What tables describe of it."""
        from pykvm.tables import Hardware

        leaf = self._cpuid().get(1)
        return Hardware(
            len(self.vcpus),
            self._irqchip_kind,
            frozenset(self.devices),
            tuple(ram_ranges(self.memory)),
            0 if leaf is None else leaf.eax,
            0 if leaf is None else leaf.edx,
        )

    def _cpuid(self) -> CpuidTable:
        """What the first processor shows."""
        from pykvm.x86.cpuid import CpuidTable

        return CpuidTable.of_packed(self.vcpus[0].kvm.get_cpuid2_packed())

    def set_memory_types(self) -> None:
        """Set every processor's MTRRs as firmware does, which a kernel counts on."""
        from pykvm.x86.mtrr import IA32_MTRRCAP, firmware_mtrrs

        first = self.vcpus[0].kvm
        table = self._cpuid()
        if "mtrr" not in table:
            return
        msrs = firmware_mtrrs(
            ram_ranges(self.memory),
            capabilities=first.get_msrs([IA32_MTRRCAP])[IA32_MTRRCAP],
            physical_bits=table.maxphyaddr,
        )
        for cpu in self.vcpus:
            cpu.kvm.set_msrs(msrs)

    def populate_fw_cfg(self, setup: Setup, files: Mapping[str, bytes]) -> None:
        """Put this machine's data, a kernel and files for the guest into fw_cfg.

        Raises ConfigError if there is no fw_cfg for them, and as `fw_cfg_items.connect` does.
        """
        device = self.devices.get("fw-cfg")
        if device is not None:
            from pykvm.boot.fw_cfg_items import connect
            from pykvm.devices.fw_cfg import FwCfg

            if isinstance(device, FwCfg):
                connect(device, self.memory, setup, files)
                return
        if files or setup.kernel is not None:
            raise ConfigError(
                "this machine has no fw_cfg (a device named fw-cfg) for files or a kernel",
                hint="kernels and firmware have one; for others, `pykvm.devices.pc.pc_devices`",
            )

    @property
    def clock(self) -> Clock:
        """Guest time.  Its clock, which few guests need, is made at the first look at it."""
        if self._clock is None:
            from pykvm.irqchip.tsc_offset import clock_of

            self._clock = clock_of(
                self.vcpus, self._config.clock, self._config.tsc_khz, began=self._began
            )
            self.attachments.clock_made(self._clock)
            if hasattr(self, "dispatch"):
                self.dispatch.collected.follow(self._clock)
            if self._config.clock != "realtime":
                for cpu in self.vcpus:
                    cpu.loop.timing = self.start_clock, self.stop_clock
        return self._clock

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what of guest time does not reach the guest."""
        clock, policy = self._clock, self._config.clock
        if clock is None or clock.tsc_movable:
            return ()
        whose = "kept by KVM" if clock.tsc_by_kvm else "the host's"
        why = f"this host's KVM ignores a TSC offset, and the guest's TSC is {whose}"
        notes = []
        if policy != "realtime":
            notes.append(f"{option('clock', policy)} does not reach RDTSC: {why}")
        if self.was_reset:
            notes.append(f"RDTSC did not go back to the snapshot: {why}")
        return tuple(notes)

    def start_clock(self) -> None:
        """The guest is about to run."""
        if self._clock is not None:
            self._clock.start()
            if self.irqchip is not None:
                self.irqchip.resume()
            else:
                from pykvm.irqchip.tsc_offset import follow_tsc_writes, show_tscs

                follow_tsc_writes(self.vcpus, self._clock)
                show_tscs(self.vcpus, self._clock)

    def stop_clock(self) -> None:
        """The guest runs no more."""
        if self._clock is not None:
            self._clock.stop()
            if self._config.clock != "realtime" and self.irqchip is not None and not self._closed:
                self.irqchip.pause()

    def forget(self) -> None:
        """In the child of a fork: VM and vCPUs are the parent's.  The memory stays, as a copy."""
        for cpu in self.vcpus:
            cpu.engine.forget()
        if self.vm is not None:
            self.vm.close()

    def close(self) -> None:
        """Give back the VM and the memory; the vCPUs must be closed."""
        # No loops of references: what a thousand machines had is not to wait for the collector.
        self.bus.fixed = tuple
        self.on_interrupts = None
        self._closed = True
        # The VM first: deleting its slots one by one would wait for each.
        if self.vm is not None:
            self.vm.close()
        self.memory.close()
