"""The board: memory, vCPUs, devices and a guest, put together."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Protocol

from pykvm.boot import Entry, Module, RealAddress, Setup, load, place, protocol_of, source_of
from pykvm.boot.placement import ram_ranges
from pykvm.bus import Bus, Placement, Space
from pykvm.chipset import UserChipset, check_chipset
from pykvm.devices.line import LineDriver, Unconnected
from pykvm.dispatch import Dispatch
from pykvm.errors import ClosedError, ConfigError, GuestError, StateError
from pykvm.host import Host
from pykvm.memory import GuestMemory
from pykvm.result import Ending, Outcome
from pykvm.run import Run
from pykvm.sizes import parse_size
from pykvm.tables import Hardware
from pykvm.vcpu import CPU
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from pykvm.boot import Image
    from pykvm.bus import Device
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.devices.uart import Uart16550
    from pykvm.emulate import Emulator
    from pykvm.exits import Exit
    from pykvm.kernel_chipset import KernelChipset
    from pykvm.kvm import VM
    from pykvm.oops import KernelWatch
    from pykvm.quirks.remedies import Remedies
    from pykvm.result import Result

    #: A file by its path, or its bytes.
    File = str | os.PathLike[str] | bytes

__all__ = ["Machine"]

GIB = 1 << 30
# Where a PC keeps its devices: RAM beyond the first 3 GiB goes on above 4 GiB.
HOLE_START = 3 * GIB
HOLE_END = 4 * GIB

UNCLAIMED = ("stop", "float")
QUIRKS = ("auto", "on", "off")
EMULATE = ("auto", "off")
ISA_IRQS = 16

# Debug, Shutdown, InternalError and WrMsr: what remedies are asked about.
_REMEDIABLE = (4, 8, 17, 30)
# Ends of a kernel that has said its last word, if it was one of a panic.
_MAY_BE_DEAD = frozenset({Outcome.RESET, Outcome.HALTED, Outcome.TIMEOUT, Outcome.CRASHED})
IA32_TSC_AUX = 0xC0000103


class Machine:
    """A virtual machine: a guest, its memory, its vCPUs and its devices.

    ::

        with Machine("kernel.elf", memory="64M") as machine:
            result = machine.run(timeout=5)
            assert result.exit_code == 0, result
            assert "ready" in machine.serial.text

    `image` is a path or the bytes of a guest file, or None for an empty machine whose vCPU is as
    after power-on.  `memory` is its RAM: bytes, a string as "64M", or a GuestMemory that was put
    together by hand (the machine then closes it).  RAM beyond 3 GiB lies from 4 GiB on.
    `boot` insists on a boot protocol by name (docs/boot.md); by default the file decides.
    `mode` ("real", "protected", "long") and `load_address` say how a flat binary is entered and
    where it lies, `entry` and `stack`, as "07C0:0000", where it starts in real mode with which
    stack.  `append` is a kernel's command line; a bare ELF guest finds its words, then
    `args`, in argv behind its own name.  `initrd` is a kernel's initial RAM disk, and `modules` are
    files, with a command line each, for kernels that take them: paths or bytes.  `kernel` is for
    firmware as `image`: a Linux kernel for it to boot, with `append` and `initrd`.  `fw_cfg` has
    files for firmware and kernels to read, by name, beside those that tell of the machine.
    A Linux kernel's command line gets words before `append` that spare it trouble on this host,
    which `Result.notes` tells; `append_only` leaves them out.
    `vcpus` counts the vCPUs; all but the first are parked until somebody sets their state and
    `parked = False`.  `devices` replaces the standard ones (`pykvm.devices.standard_devices`);
    `cpu` is the CPUID model, "baseline" or "host".  `unclaimed` says what happens when the guest
    touches a port or an address where nobody is: "stop" ends the run (the default for bare guests),
    "float" reads all ones and ignores writes (for kernels, which look for devices so).
    `irqchip` is where interrupt controllers and clocks are: "user" for software (the default, but
    for Linux), "kernel" for KVM's own (the default for Linux, unless `clock` is "warp"), "split"
    for KVM's local APICs and the rest in software, "none" for nowhere; `clock` is the policy of
    guest time, "realtime", "paused" or "warp" (`pykvm.clock`), and `tsc_khz` the frequency of the
    guest's TSC, where this host can scale it.
    `quirks` is "auto" to make good what this host's KVM gets wrong in the guest's sight, for
    kernels and for bare guests whose code shows that they may meet it, "on" for any guest (one that
    is put together by hand), "off" to see the host bare; `emulate` is "auto" to execute
    instructions that KVM refuses, or "off".

    Raises HostError (no usable KVM, too little memory), LoadError (the file), ConfigError (wrong
    values) and KVMError (KVM refused).

    A machine belongs to the thread that calls `run`.  `stop`, `serial.send` and `close` may be
    called from any thread at any time.
    """

    def __init__(
        self,
        image: str | os.PathLike[str] | bytes | None = None,
        *,
        memory: int | str | GuestMemory = "64M",
        vcpus: int = 1,
        boot: str | None = None,
        mode: Mode | str | None = None,
        load_address: int | None = None,
        entry: str | None = None,
        stack: str | None = None,
        append: str = "",
        append_only: bool = False,
        args: Sequence[str] = (),
        initrd: File | None = None,
        modules: Sequence[tuple[File, str]] = (),
        kernel: File | None = None,
        fw_cfg: Mapping[str, bytes] | None = None,
        devices: Iterable[Placement] | None = None,
        cpu: str = "baseline",
        unclaimed: str | None = None,
        irqchip: str | None = None,
        clock: str = "realtime",
        tsc_khz: int | None = None,
        quirks: str = "auto",
        emulate: str = "auto",
    ) -> None:
        check_chipset(irqchip or "user", clock)
        _one_of("unclaimed", unclaimed, (None, *UNCLAIMED))
        _one_of("quirks", quirks, QUIRKS)
        _one_of("emulate", emulate, EMULATE)
        self._closed = False
        self._run_lock = threading.Lock()
        self._run: Run | None = None
        self._idle = threading.Condition()
        self._vcpus: list[CPU] = []
        self.bus = Bus()
        #: The devices by name.
        self.devices: dict[str, Device] = {}
        self.entry: Entry | None = None

        self._vm: VM | None = None
        self._chipset: UserChipset | KernelChipset | None = None
        self._clock: Clock | None = None
        self._policy = clock
        self._tsc_khz = tsc_khz
        self._remedies: list[Remedy] = []
        self._quirks: Remedies | None = None
        self._image: Image | None = None
        self._kernel_watch: KernelWatch | None = None
        self._emulate = False
        self._emulator: Emulator | None = None
        #: Called after each instruction that was completed for KVM: the vCPU, the instruction's
        #: name, what became of it.
        self.on_emulated: Callable[[CPU, str, str], None] | None = None

        loaded = None
        if image is not None:
            loaded = load(
                image,
                mode=_mode(mode),
                address=load_address,
                protocol=boot,
                room=_size(memory),
                entry=_real_address(entry),
                stack=_real_address(stack),
            )
        elif any(
            (
                *(boot, mode, load_address is not None, entry, stack),
                *(append, args, initrd, modules, kernel),
            )
        ):
            raise ConfigError(
                "boot, mode, load_address, entry, stack, append, args, initrd, modules and kernel "
                "go with an image"
            )
        firmware = loaded is not None and loaded.protocol == "firmware"
        if kernel is not None and not firmware:
            raise ConfigError(
                "kernel= is for firmware to boot, and the image is none",
                hint="a kernel without firmware is the image itself",
            )
        self._image = loaded
        self._pc = loaded is not None and protocol_of(loaded).PC
        self._float = unclaimed == "float" or (unclaimed is None and self._pc)
        if irqchip is None:
            # Linux takes its interrupts where they cost least, unless time is to be skipped.
            irqchip = "kernel" if self._is_linux and clock != "warp" else "user"
        self._remarks: list[str] = []
        if self._is_linux and not append_only:
            from pykvm.quirks.kernel_options import spare

            append, remark = spare(append, vcpus)
            self._remarks += filter(None, [remark])
        setup = Setup(
            append=append,
            args=tuple(args),
            initrd=None if initrd is None else source_of(initrd, nameless="initrd"),
            modules=tuple(
                Module(source_of(file, nameless=f"module {number}"), line)
                for number, (file, line) in enumerate(modules)
            ),
            kernel=None if kernel is None else source_of(kernel, nameless="kernel"),
        )
        with closing(Host()) as host:
            host.check_vcpus(vcpus)
            self.memory = memory if isinstance(memory, GuestMemory) else _ram(memory)
            try:
                if devices is None:
                    devices = _devices(pc=self._pc, firmware=firmware)
                self._build(host, vcpus, cpu, devices, irqchip)
                self._add_remedies(loaded, quirks, emulate)
                if self._pc or "fw-cfg" in self.devices:
                    setup = setup._replace(hardware=self._hardware(irqchip))
                if loaded is not None:
                    self.entry = place(loaded, self.memory, setup)
                    self._remarks += self.entry.remarks
                    self._vcpus[0].state = self.entry.state
                self._tell(setup, fw_cfg or {})
            except BaseException:
                self._release()
                raise

    @property
    def _is_linux(self) -> bool:
        return self._image is not None and self._image.kind == "linux"

    # -- building ----------------------------------------------------------------------------

    def _build(
        self,
        host: Host,
        vcpus: int,
        model: str,
        devices: Iterable[Placement],
        irqchip: str,
    ) -> None:
        vm = self._vm = host.create_vm()
        self.memory.attach(vm)
        if irqchip in ("kernel", "split"):
            from pykvm.kernel_chipset import KernelChipset

            self._chipset = KernelChipset(
                vm, self.bus, lambda: self.clock, split=irqchip == "split"
            )
        # The ring is the VM's; vCPUs that share it could not keep their writes in order.
        alone = vcpus == 1
        for index in range(vcpus):
            cpuid = host.cpuid(model, index, vcpus, apic=irqchip != "none")
            vcpu = vm.create_vcpu(index)
            ring = host.coalescing_ring if alone else None
            self._vcpus.append(CPU(vcpu, self.memory, ring=ring))
            vcpu.set_cpuid2(cpuid)
            if index:
                # What RDTSCP and RDPID tell of the processor, until the guest sets it.
                vcpu.set_msrs({IA32_TSC_AUX: index}, partial=True)
        placements = list(devices)
        if irqchip == "user":
            self._chipset = UserChipset(
                vm, self.bus, lambda: self.clock, on_made=self._chipset_made
            )
            placements += self._chipset.placements(placements)
        self._place_all(placements)
        self._dispatch = Dispatch(self.bus, vm=vm if alone else None, shared=not alone)
        self.bus.on_change = self._bus_changed
        for cpu in self._vcpus:
            cpu.use(self._dispatch)
        if isinstance(self._chipset, UserChipset):
            self._chipset.attach(self._vcpus)
            if self._policy != "realtime":
                # A clock that stands still between runs has to be there from the first one on.
                self._chipset.make()
        elif self._chipset is not None:
            self.devices.update(self._chipset.attach(self._vcpus))
            self._wire(self._chipset)
        if self._tsc_khz is not None:
            # Not left to the guest's first look at a clock: the host may not be able to.
            _ = self.clock

    def _hardware(self, irqchip: str) -> Hardware:
        """What tables have to tell of this machine."""
        leaves = {leaf.function: leaf for leaf in self._vcpus[0].kvm.get_cpuid2()}
        return Hardware(
            len(self._vcpus),
            irqchip,
            frozenset(self.devices),
            tuple(ram_ranges(self.memory)),
            leaves[1].eax if 1 in leaves else 0,
            leaves[1].edx if 1 in leaves else 0,
        )

    def _add_remedies(self, image: Image | None, quirks: str, emulate: str) -> None:
        """Choose what makes good what this host's KVM gets wrong or refuses."""
        self._emulate = emulate == "auto"
        if quirks == "on" or (quirks == "auto" and image is not None and _may_meet_quirks(image)):
            self._add_quirks()

    def _add_quirks(self) -> None:
        from pykvm.quirks import found
        from pykvm.quirks.remedies import MADE_GOOD, Remedies

        here = found(MADE_GOOD)
        if not here:
            return
        assert self._vm is not None
        if isinstance(self._chipset, UserChipset):
            msr_exits = self._chipset.msr_exits
        else:
            from pykvm.msr_exits import MsrExits

            msr_exits = MsrExits(self._vm)
        self._quirks = Remedies(self._vcpus, self.memory, msr_exits, here)
        self._remedies.append(self._quirks)

    def make_good(self, cpu: CPU, exit: Exit) -> bool:
        """Do what KVM could not at `exit`: an instruction that it refused, for one.

        `run` does so by itself; this is for ``for exit in vcpu``.  False if nobody can.  Raises
        GuestError where the guest cannot go on, and what devices raise.
        """
        for remedy in self._remedies:
            if remedy.take(cpu, exit):
                return True
        return self._emulate and (self._emulator or self._instructions()).take(cpu, exit)

    def _instructions(self) -> Emulator:
        """What completes the instructions that KVM refuses; made for the first of them."""
        with self._dispatch.lock:
            if self._emulator is None:
                from pykvm.emulate import BusDevices, Emulator

                devices = BusDevices(self.bus, self._dispatch.lock, floating=self._float)
                self._emulator = Emulator(self.memory, devices)
                self._emulator.on_done = self._emulated
            return self._emulator

    def _emulated_so_far(self) -> tuple[Counter[str], float]:
        """The instructions completed in the life of this machine, and the seconds they took."""
        emulator = self._emulator
        return (emulator.counts, emulator.seconds) if emulator else (Counter(), 0.0)

    def _emulated(self, cpu: CPU, name: str, result: str) -> None:
        if self.on_emulated is not None:
            self.on_emulated(cpu, name, result)

    def _tell(self, setup: Setup, files: Mapping[str, bytes]) -> None:
        """Have fw_cfg tell of this machine, and of a kernel and files for the guest."""
        device = self.devices.get("fw-cfg")
        if device is not None:
            from pykvm.boot.fw_cfg_items import connect
            from pykvm.devices.fw_cfg import FwCfg

            if isinstance(device, FwCfg):
                connect(device, self.memory, setup, files)
                return
        if files or setup.kernel is not None:
            raise ConfigError(
                "this machine has no fw_cfg (a device named fw-cfg) to tell of files or a kernel",
                hint="kernels and firmware have one; for others, `pykvm.devices.pc.pc_devices`",
            )

    def _bus_changed(self) -> None:
        self._dispatch.rebuild()
        for cpu in self._vcpus:
            cpu.use(self._dispatch)
        if self._run is None:
            self._dispatch.forget_old_maps()

    def _place_all(self, placements: Sequence[Placement]) -> None:
        self.bus.add_all(placements)
        self.devices.update((placement.name, placement.device) for placement in placements)
        for placement in placements:
            if isinstance(placement.device, LineDriver):
                placement.device.connect_lines(self._isa_line)

    def _isa_line(self, irq: int) -> InterruptLine:
        return Unconnected() if self._chipset is None else self._chipset.line(irq)

    def _chipset_made(self, chipset: UserChipset) -> None:
        """The guest has touched an interrupt controller or a clock: now they exist."""
        platform = chipset.make()
        self.devices.update(
            (name, device) for name, device in platform.devices.items() if name in self.devices
        )
        self._wire(chipset)
        if self._run is not None:
            self._run.interrupts = chipset.timekeeper

    def _wire(self, chipset: UserChipset | KernelChipset) -> None:
        """Connect the devices on the ISA bus to their interrupts, and to the clock."""
        from pykvm.clock import Timed
        from pykvm.devices.line import Inlet, Interrupting
        from pykvm.tables.ports import ISA_IRQS

        for name, irq in ISA_IRQS.items():
            device: object = self.devices.get(name)
            if isinstance(device, Interrupting):
                device.connect(chipset.line(irq))
            if isinstance(device, Timed):
                device.follow(self.clock)
            if isinstance(device, Inlet):
                chipset.inlets.append(device)
        if "acpi-pm" in self.devices:
            self._furnish()

    def _furnish(self) -> None:
        """Write to the RAM behind the clock of a PC what its firmware does."""
        from pykvm.devices.rtc import Rtc146818
        from pykvm.tables.cmos import cmos

        rtc = self.devices.get("rtc")
        if isinstance(rtc, Rtc146818):
            for index, byte in cmos(ram_ranges(self.memory), len(self._vcpus)).items():
                rtc.nvram[index] = byte

    def add(
        self,
        device: Device,
        *,
        pio: int | None = None,
        mmio: int | None = None,
        length: int | None = None,
    ) -> None:
        """Put a device at a port (`pio`) or a physical address (`mmio`).

        `length` is how many ports or bytes it takes; a device that has a `length` of its own needs
        none.  Raises BusConflict if another device is there, ConfigError for anything that makes
        no sense.

        >>> class Echo:
        ...     name = "echo"
        ...     value = 0
        ...
        ...     def read(self, offset, size):
        ...         return self.value
        ...
        ...     def write(self, offset, size, value):
        ...         self.value = value
        >>> with Machine() as machine:  # needs /dev/kvm
        ...     machine.add(Echo(), pio=0x500, length=4)
        ...     "echo" in machine.devices
        True
        """
        if (pio is None) == (mmio is None):
            raise ConfigError(f"device {device.name}: give either pio= or mmio=")
        size = length if length is not None else getattr(device, "length", None)
        if size is None:
            raise ConfigError(
                f"device {device.name}: length= is missing",
                hint="say how many ports or bytes it takes, or give the device a `length`",
            )
        space, first = (Space.PIO, pio) if pio is not None else (Space.MMIO, mmio)
        assert first is not None
        known = self.devices.get(device.name)
        if known is not None and known is not device:
            raise ConfigError(
                f"there is a device named {device.name!r} already",
                hint="remove it first, or give the new one another name",
            )
        self._place_all([Placement(device, space, first, size)])

    def remove(self, device: Device | str) -> None:
        """Take a device away, by name or by itself.  Raises ConfigError if it is not there."""
        name = device if isinstance(device, str) else device.name
        self.bus.remove(device)
        self.devices.pop(name, None)

    def line(self, irq: int) -> InterruptLine:
        """A wire to ISA interrupt `irq` (0 to 15 but 2), for a device to drive: `line.set(True)`.

        Wires to the same input are ORed.  It may be driven from any thread, and is the same
        whichever irqchip the machine has.  A guest that halts with interrupts on is waited for once
        there is one: only `timeout`, `stop` or the guest end its run.  Raises ConfigError if the
        machine has no interrupt controller, or that no such input.
        """
        if irq not in range(ISA_IRQS) or irq == 2:
            raise ConfigError(f"irq={irq}: a PC's devices have 0 to 15 but 2")
        chipset = self._interrupts()
        chipset.has_outside_lines = True
        return chipset.line(irq)

    def send_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt: `data` written to `address` (SDM 3A 11.11).

        Returns whether a local APIC took it.  May be called from any thread.
        """
        return self._interrupts().send_msi(address, data)

    def irqfd(self, fd: int, irq: int) -> None:
        """Pulse ISA interrupt `irq` whenever the eventfd `fd` is written to, without pykvm.

        Only KVM itself can: raises ConfigError unless ``irqchip="kernel"``.
        """
        self._interrupts().irqfd(fd, irq)

    def _interrupts(self) -> UserChipset | KernelChipset:
        if self._chipset is None:
            raise ConfigError("this machine has no interrupt controller (irqchip='none')")
        return self._chipset

    def press_power_button(self) -> None:
        """Press the power button: the guest is told of it by ACPI, and may switch itself off.

        May be called from any thread.  Raises ConfigError if the machine has no such button: that
        of a bare guest has none.
        """
        from pykvm.devices.acpi_pm import AcpiPm

        power = self.devices.get("acpi-pm")
        if not isinstance(power, AcpiPm):
            raise ConfigError(
                "this machine has no power button",
                hint="those of kernels have; for others: devices=standard_devices() + pc_devices()",
            )
        power.press_power_button()

    # -- looking -----------------------------------------------------------------------------

    @property
    def vcpus(self) -> tuple[CPU, ...]:
        """The vCPUs; the first is the one that the guest starts on."""
        return tuple(self._vcpus)

    @property
    def clock(self) -> Clock:
        """Guest time: see `pykvm.clock`."""
        if self._clock is None:
            from pykvm.chipset import clock_of

            self._clock = clock_of(self._vcpus, self._policy, self._tsc_khz)
            if self._policy != "realtime":
                for cpu in self._vcpus:
                    cpu.timing = self._start_clock, self._stop_clock
        return self._clock

    @property
    def serial(self) -> Uart16550:
        """The first serial port, "com1".  Raises ConfigError if it was left out."""
        from pykvm.devices.uart import Uart16550

        device = self.devices.get("com1")
        if not isinstance(device, Uart16550):
            raise ConfigError("this machine has no serial port named com1")
        return device

    @property
    def symbols(self) -> Mapping[str, int]:
        """The guest's symbols: name to address.  Empty without an image, or if it has none."""
        return self.entry.symbols if self.entry is not None else {}

    def symbol_at(self, address: int) -> str:
        """The symbol that holds a guest-virtual address, as "main+0x12", or the empty string."""
        if self.entry is None or self.entry.symbols.find(address) is None:
            return ""
        return self.entry.symbols.describe(address)

    # -- running -----------------------------------------------------------------------------

    def run(
        self,
        timeout: float | None = None,
        until: str | bytes | Callable[[Machine], object] | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
    ) -> Result:
        """Run the guest until it is done, and tell how it ended.

        `timeout` is in seconds.  `until` is text to wait for on the first serial port, or a
        function of the machine that is called after every exit that Python sees, and 20 times a
        second beside that; the run ends when it returns something true.  `on_exit` sees every VM
        exit before a device answers it (and makes each of them cost some microseconds).

        The machine can run on after every outcome; what happens then is the guest's affair.

        What a device, `until` or `on_exit` raises comes out of here as it is, as does Ctrl-C in
        the main thread; the machine stays usable.  Otherwise raises ClosedError, StateError (it
        runs already) and KVMError.
        """
        if timeout is not None and timeout < 0:
            raise ConfigError(f"timeout={timeout}: seconds from now on, not negative")
        with self._running() as begin, self._condition(until) as check, self._kernel() as kernel:
            run = Run(
                self._vcpus,
                take=self._take_exit,
                timeout=timeout,
                check=check,
                on_exit=on_exit,
                interrupts=self._chipset.timekeeper if self._chipset else None,
                look=self._quirks.look if self._quirks else None,
            )
            before = self._counts()
            begin(run)
            emulated, emulated_seconds = self._emulated_so_far()
            self._start_clock()
            try:
                result = run()
            finally:
                self._stop_clock()
            counts, seconds = self._emulated_so_far()
            result.emulated = dict(counts - emulated)
            result.emulated_seconds = seconds - emulated_seconds
            if kernel is not None and result.outcome in _MAY_BE_DEAD:
                death = kernel.death()
                if death is not None:
                    result.end(self._vcpus[0].panicked(death))
            result.notes = self._notes()
            result.made_good = {
                what: count - before.get(what, 0)
                for what, count in self._counts().items()
                if count != before.get(what, 0)
            }
            return result

    def _counts(self) -> dict[str, int]:
        """How often what was made good so far."""
        return {what: count for remedy in self._remedies for what, count in remedy.counts().items()}

    def _notes(self) -> tuple[str, ...]:
        clock = self._clock
        if clock is None or clock.tsc_movable or self._policy == "realtime":
            return tuple(self._remarks)
        return (
            *self._remarks,
            f"clock={self._policy!r} does not reach RDTSC: this host's KVM ignores a TSC offset, "
            "and the guest's TSC is the host's",
        )

    def _start_clock(self) -> None:
        if self._clock is not None:
            self._clock.start()
            if self._chipset is not None:
                self._chipset.resume()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            if self._policy != "realtime" and self._chipset is not None and not self._closed:
                self._chipset.pause()

    @contextmanager
    def _running(self) -> Iterator[Callable[[Run], None]]:
        if self._closed:
            raise ClosedError("this machine is closed")
        if not self._run_lock.acquire(blocking=False):
            raise StateError("this machine is running already")
        try:
            yield self._begin
        finally:
            with self._idle:
                self._run = None
                self._run_lock.release()
                self._idle.notify_all()

    def _begin(self, run: Run) -> None:
        with self._idle:
            if self._closed:
                raise ClosedError("this machine is closed")
            self._run = run

    @contextmanager
    def _kernel(self) -> Iterator[KernelWatch | None]:
        """Listen, if a Linux kernel runs, to what it says on the first serial port."""
        if not self._is_linux or "com1" not in self.devices:
            yield None
            return
        if self._kernel_watch is None:
            from pykvm.oops import KernelWatch

            self._kernel_watch = KernelWatch()
        forget = self.serial.on_output(self._kernel_watch.output)
        try:
            yield self._kernel_watch
        finally:
            forget()

    @contextmanager
    def _condition(
        self, until: str | bytes | Callable[[Machine], object] | None
    ) -> Iterator[Callable[[], Ending | None] | None]:
        if until is None:
            yield None
        elif callable(until):
            name = getattr(until, "__name__", "the condition")
            done = Ending(Outcome.UNTIL, f"{name} holds")
            yield lambda: done if until(self) else None
        else:
            with _Watch(self.serial, until) as watch:
                done = Ending(Outcome.UNTIL, f"the guest said {until!r}")
                yield lambda: done if watch.seen else None

    def stop(self) -> bool:
        """From any thread: end the run in progress with Outcome.STOPPED.

        Returns False, and does nothing, if there is none.  If there is, that run ends, however
        busy the guest is; if it came to an end of its own at the same moment, that one counts.
        """
        run = self._run
        if run is None:
            return False
        run.stop()
        return True

    def handle(self, exit: Exit) -> bool:
        """Let the devices answer an exit from ``for exit in vcpu``; False if none is concerned.

        What devices raise passes, GuestExit and GuestReset included.
        """
        from pykvm.exits import IoIn, IoOut, MmioRead, MmioWrite

        match exit:
            case IoOut(port=port, size=size, data=data):
                return self.bus.write_string(port, size, data)
            case IoIn(port=port, size=size, count=count):
                data_in = self.bus.read_string(port, size, count)
                if data_in is not None:
                    exit.answer(data_in)
                return data_in is not None
            case MmioWrite(address=address, data=data):
                return self.bus.write(Space.MMIO, address, len(data), exit.value)
            case MmioRead(address=address, size=size):
                value = self.bus.read(Space.MMIO, address, size)
                if value is not None:
                    exit.answer(value)
                return value is not None
        return False

    def _take_exit(self, cpu: CPU, exit: Exit) -> Ending | None:
        """What becomes of an exit that the fast path left over."""
        if getattr(exit, "reason", None) in _REMEDIABLE:
            try:
                if self.make_good(cpu, exit):
                    return None
            except GuestError as error:
                from pykvm.crash import located

                return _crash(located(error, cpu, exit, self.symbol_at), exit)
        from pykvm.crash import crash_of
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

        match exit:
            case IoIn() | IoOut() | MmioRead() | MmioWrite():
                with self._dispatch.lock:
                    if self.handle(exit) or self._float:
                        return None
            case RdMsr():
                if self._chipset is not None:
                    self._chipset.read_msr(cpu, exit)
                return None
            case WrMsr():
                if self._chipset is not None:
                    self._chipset.write_msr(cpu, exit)
                return None
            case SetTpr():
                return None
            case IoapicEoi(vector=vector):
                if self._chipset is not None:
                    self._chipset.end_of_interrupt(vector)
                return None
            case Debug(pc=pc):
                return Ending(Outcome.STOPPED, f"stopped by a debug event at {pc:#x}", exit=exit)
            case SystemEvent(type=1):
                return Ending(Outcome.EXITED, "the guest shut down", exit_code=0, exit=exit)
            case SystemEvent(type=2):
                return Ending(Outcome.RESET, "the guest asked for a reset", exit=exit)
        refusal = self._emulator.refusal(cpu) if self._emulator else ("", "")
        return _crash(crash_of(cpu, exit, self.symbol_at, refusal), exit)

    # -- life --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give everything back: descriptors, memory, mappings.  Closing twice is harmless.

        A run in another thread is stopped first and returns its Result.  Raises StateError when
        called from inside the machine's own run (a device, `until`).
        """
        with self._idle:
            if self._run is not None and self._run.is_mine():
                raise StateError(
                    "a machine cannot be closed from inside its own run",
                    hint="call stop() here and close it where run() returns",
                )
            if self._closed:
                return
            self._closed = True
            while self._run_lock.locked():
                if self._run is not None:
                    self._run.stop()
                self._idle.wait(0.1)
        self._release()

    def _release(self) -> None:
        self._closed = True
        for cpu in self._vcpus:
            cpu.close()
        if self._emulator is not None:
            self._emulator.close()
        if self._quirks is not None:
            self._quirks.close()
        # The VM first: deleting its slots one by one would wait for each.
        if self._vm is not None:
            self._vm.close()
        self.memory.close()

    def __enter__(self) -> Machine:
        if self._closed:
            raise ClosedError("this machine is closed")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<Machine closed>"
        doing = "running" if self._run is not None else "stopped"
        return f"<Machine {doing}: {len(self._vcpus)} vCPU(s), {self.memory!r}>"


class Remedy(Protocol):
    """What makes good something that this host's KVM gets wrong or refuses."""

    def take(self, cpu: CPU, exit: Exit, /) -> bool:
        """Set the vCPU right after `exit`, so that the guest goes on.

        `exit` is a Debug, InternalError, Shutdown or WrMsr.  Returns False if it is not its affair.
        Raises GuestError where the guest cannot go on.
        """

    def counts(self) -> Mapping[str, int]:
        """What was made good so far, and how often."""


class _Watch:
    """Whether a text has appeared on a serial port since the watch began."""

    def __init__(self, serial: Uart16550, text: str | bytes) -> None:
        self._needle = text.encode() if isinstance(text, str) else bytes(text)
        if not self._needle:
            raise ConfigError("until: an empty text is always there")
        self._tail = b""
        self._serial = serial
        self.seen = False

    def _output(self, data: bytes) -> None:
        text = self._tail + data
        self.seen = self.seen or self._needle in text
        self._tail = text[-(len(self._needle) - 1) :] if len(self._needle) > 1 else b""

    def __enter__(self) -> _Watch:
        self._forget = self._serial.on_output(self._output)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()


def _crash(error: GuestError, exit: Exit) -> Ending:
    return Ending(Outcome.CRASHED, f"the guest crashed: {error.message}", exit=exit, error=error)


def _one_of(name: str, value: object, choice: Sequence[object]) -> None:
    if value not in choice:
        words = ", ".join(str(word) for word in choice if word is not None)
        raise ConfigError(f"{name} is one of {words}, not {value!r}")


def _devices(*, pc: bool, firmware: bool) -> list[Placement]:
    """The devices of a machine whose caller leaves them to it."""
    if firmware:
        from pykvm.devices.pc import firmware_devices

        return firmware_devices()
    from pykvm.devices import standard_devices

    if not pc:
        return standard_devices()
    from pykvm.devices.pc import pc_devices

    return [*standard_devices(), *pc_devices()]


# LIDT begins so (SDM 2A, LGDT/LIDT), and behind it stands a ModRM byte with 3 in its middle.
_LIDT = b"\x0f\x01"
_LIDT_EXTENSION = 3
# The number of the MSR IA32_LSTAR, as a constant in code.
_LSTAR = (0xC0000082).to_bytes(4, "little")


def _may_meet_quirks(image: Image) -> bool:
    """Whether a guest may come to have a ring 3: a kernel, or code that loads an IDT or LSTAR."""
    if protocol_of(image).PC:
        return True
    for segment in image.segments:
        if not segment.executable:
            continue
        code = bytes(segment.data)
        if _LSTAR in code:
            return True
        at = code.find(_LIDT)
        while at >= 0:
            modrm = code[at + 2] if at + 2 < len(code) else 0
            if modrm >> 3 & 7 == _LIDT_EXTENSION and modrm >> 6 != 3:
                return True
            at = code.find(_LIDT, at + 1)
    return False


def _mode(mode: Mode | str | None) -> Mode | None:
    if mode is None or isinstance(mode, Mode):
        return mode
    try:
        return Mode(mode)
    except ValueError:
        names = ", ".join(known.value for known in Mode)
        raise ConfigError(f"mode is one of {names}, not {mode!r}") from None


def _size(memory: int | str | GuestMemory) -> int:
    if isinstance(memory, GuestMemory):
        return sum(region.end - region.start for region in memory.regions)
    return parse_size(memory) if isinstance(memory, str) else memory


def _real_address(text: str | None) -> RealAddress | None:
    return None if text is None else RealAddress.parse(text)


def _ram(size: int | str) -> GuestMemory:
    amount = _size(size)
    memory = GuestMemory()
    try:
        memory.add_ram(0, min(amount, HOLE_START))
        if amount > HOLE_START:
            memory.add_ram(HOLE_END, amount - HOLE_START, name="ram above 4G")
    except BaseException:
        memory.close()
        raise
    return memory
