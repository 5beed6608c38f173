"""A machine as its user sees it: put together by options, run, stopped, looked at and closed."""

from __future__ import annotations

import os
import warnings
from contextlib import closing
from functools import partial

from pykvm import layout
from pykvm.boot.symbols import Symbols
from pykvm.bus import check_irq, placed
from pykvm.errors import ConfigError, StateError, exhausted
from pykvm.host import Host
from pykvm.machine.board import Board
from pykvm.machine.config import MachineConfig
from pykvm.machine.guest import memory_of, read_guest
from pykvm.machine.runs import Runs
from pykvm.machine.workarounds import Workarounds, wanted_by
from pykvm.printable import printable
from pykvm.typed import TYPE_CHECKING
from pykvm.values import checks
from pykvm.values.frozen import SignatureOf, with_fields_of
from pykvm.values.spelling import in_python

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from typing import Any

    from pykvm.boot import Entry
    from pykvm.bus import Device, Placement
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.exits import Exit
    from pykvm.machine.call import Argument
    from pykvm.machine.config import File
    from pykvm.machine.console import Console
    from pykvm.machine.exits import Exits
    from pykvm.machine.guest import Guest
    from pykvm.machine.snapshot import Snapshot
    from pykvm.machine.snapshots import Snapshots
    from pykvm.machine.until import Awaited
    from pykvm.memory import GuestMemory
    from pykvm.result import Result
    from pykvm.vcpu import CPU
    from pykvm.vcpu.saved import VcpuState

    class ConfigOrFields(MachineConfig):
        """For type checkers: what `Machine` takes."""

        image: File | MachineConfig | None = None  # type: ignore[assignment]

else:
    ConfigOrFields = MachineConfig

__all__ = ["Machine"]


class Machine:
    """A virtual machine: a guest, its memory, its vCPUs and its devices.

    ::

        with Machine("kernel.elf", memory="64M") as machine:
            result = machine.run(timeout=5)
            assert result.exit_code == 0, result
            assert "ready" in machine.serial.text

    `run` runs it, `exits` too, with a stop at each VM exit.  `vcpus`, `memory` (guest-physical),
    `bus`, `devices` (by name), `serial` (the first port) and `clock` are its parts; `add` places a
    device of yours, `line` is an interrupt for it to drive.  `entry` says where the guest was put
    and entered, `symbols` what its addresses are called.

    The keywords are the fields of a `MachineConfig`; ``Machine(config)`` takes one, and
    `machine.config` is the one of this machine.

    The machine:

    - `memory`: its RAM, in bytes or as "64M", or a GuestMemory, which the machine then closes.
      RAM beyond 3 GiB starts at 4 GiB.
    - `vcpus`: the number of vCPUs.  All but the first are parked until the guest starts them, or
      until you set their state and ``parked = False``.
    - `cpu`: the CPUID model, "baseline", "host" or "x86-64-v1" to "x86-64-v4", with features added
      or removed: "baseline,+cx16" (docs/quirks.md).
    - `devices`: replaces the standard devices (`pykvm.devices.standard_devices`).
    - `irqchip`: interrupt controllers and clocks: "user" for those in software (the default, except
      for Linux), "kernel" for KVM's own (the default for Linux, unless `clock` is "warp"), "split"
      for KVM's local APICs and the rest in software, or "none".
    - `clock`: the policy of guest time, "realtime", "paused" or "warp" (docs/time.md).
    - `tsc_khz`: the frequency of the guest's TSC, where this host can scale it.
    - `unclaimed`: an access to a port or address without a device ends the run ("stop", the default
      for bare guests), or reads all ones and ignores writes ("open-bus", the default for kernels,
      which probe for devices).
    - `quirks`: work around what this host's KVM gets wrong: "auto" for kernels and for bare guests
      whose code shows that they may meet it, "on" for any guest, "off" for none (docs/quirks.md).
    - `emulate`: "auto" to execute instructions that KVM refuses, or "off" (docs/emulation.md).

    The guest:

    - `image`: the path or the bytes of the guest file.  None makes an empty machine, whose vCPU is
      as after power-on.
    - `boot`: the name of the boot protocol (docs/boot.md).  By default the file decides.
    - `mode` ("real", "protected", "long") and `load_address`: how and where a flat binary starts;
      `entry` and `stack`, as "07C0:0000", are CS:IP and SS:SP in real mode.
    - `append`: a kernel's command line.  A bare ELF guest gets its words in argv, then `args`.
    - `append_only`: do not prepend words for Linux on this host to `append` (`Result.notes` has
      them).
    - `initrd`: a kernel's initial RAM disk, a path or bytes.
    - `modules`: (file, command line) pairs, for kernels that take modules.
    - `kernel`: a Linux kernel that the firmware in `image` boots, with `append` and `initrd`.
    - `fw_cfg`: files for firmware and kernels, by name.
    - `symbols`: an ELF file or a System.map with the guest's symbols, if the guest file has none;
      `symbols_offset` is how far above these addresses the guest is loaded.

    Raises HostError (no usable KVM, too little memory), LoadError (the file), ConfigError (wrong
    values) and KVMError (KVM refused).

    A machine belongs to the thread that calls `run`.  `stop`, `serial.send` and `close` may be
    called from any thread at any time.
    """

    __signature__ = SignatureOf(MachineConfig)

    _snapshots_made: Snapshots | None = None

    @with_fields_of(ConfigOrFields)
    def __init__(self, image: Any = None, **fields: Any) -> None:
        config = _config_of(image, fields)
        self._make(config, read_guest(config), partial(memory_of, config))

    @classmethod
    def from_snapshot(
        cls,
        saved: Snapshot | str | os.PathLike[str],
        *,
        devices: Iterable[Placement] = (),
        wall: str = "keep",
    ) -> Machine:
        """Make a machine that goes on from a snapshot, or from one in a file.

        See `Snapshot.fork` and `Snapshot.load`.  One from a file raises HostError, too, if the
        guest would miss something on this host: all of it is named.
        """
        from pykvm.machine.saving import clones
        from pykvm.machine.snapshot import Snapshot
        from pykvm.machine.snapshots import check_snapshot, check_wall

        if isinstance(saved, (str, os.PathLike)):
            saved = Snapshot.load(saved)
        check_snapshot(saved)
        check_wall(wall)
        machine = cls.__new__(cls)
        machine._make(
            saved.config,
            saved.guest,
            saved.memory.attach,
            devices=partial(clones, saved, given=list(devices)),
            begin=(saved, wall),
        )
        return machine

    def _make(
        self,
        config: MachineConfig,
        guest: Guest,
        memory: Callable[[], GuestMemory],
        devices: Callable[[Iterable[Placement]], Iterable[Placement]] | None = None,
        begin: tuple[Snapshot, str] | None = None,
    ) -> None:
        """Put the machine together.

        `devices` gets those that the guest has by its config, and returns the ones to place.  With
        `begin` the guest is in memory already, and the machine begins by that reset.
        """
        self.config, self._guest = config, guest
        self._consoles: dict[str, Console] = {}
        self._called_from: dict[int, VcpuState] = {}
        # What an exception finds half made is released, also one that comes out of this `with`.
        try:
            with exhausted("this machine could not be made"), closing(Host()) as host:
                host.check_vcpus(config.vcpus)
                board = self._board = Board(memory(), config, irqchip=guest.irqchip)
                self._workarounds = Workarounds(
                    board, emulate=config.emulate == "auto", open_bus=guest.open_bus
                )
                self.memory, self.bus = board.memory, board.bus
                #: The devices by name.
                self.devices = board.devices
                placements = guest.devices()
                wanted = guest.wants_workarounds
                watched: Sequence[int] = ()
                if wanted and begin is not None:
                    wanted, watched = wanted_by(begin[0].state.cpus)
                if devices is not None:
                    placements = list(devices(placements))
                board.build(host, placements, watched, restored=begin is not None)
                board.dispatch.collected.open_bus = guest.open_bus
                if wanted:
                    self._workarounds.add_quirk_workarounds(watched=bool(watched))
                self.entry: Entry | None
                if begin is None:
                    self.entry = guest.place_on(board)
                else:
                    self.entry = guest.stand_on(board, begin[0].entry)
                if begin is not None and begin[0].origin is not None:
                    from pykvm.machine.origin import fit

                    self._guest = guest = fit(begin[0], guest, host.system, board)
                self._runs = Runs(board, self._workarounds, guest, self.entry, self.notes)
                if begin is not None:
                    self._snapshots.begin(*begin)
        except BaseException:
            self._release()
            raise

    def add(
        self,
        device: Device,
        *,
        pio: int | None = None,
        mmio: int | None = None,
        length: int | None = None,
        irq: int | None = None,
    ) -> None:
        """Put a device at a port (`pio`) or a physical address (`mmio`).

        `length` is the number of ports or bytes; by default the device's own `length`.  `irq` is
        the ISA interrupt (0 to 15, except 2) of a device that has ``attach(lines, memory, clock)``
        and drives `lines.own` (docs/devices.md).

        Raises BusConflict if another device or memory is there, ConfigError for invalid values.

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
        self._board.claim.check_open()
        placement = placed(device, pio=pio, mmio=mmio, length=length, irq=irq)
        if irq is not None:
            self._board.need_irqchip()
        self._board.place([placement])

    def remove(self, device: Device | str) -> None:
        """Remove a device, given by name or itself.  Raises ConfigError if it is not there."""
        self._board.claim.check_open()
        self._board.remove(device)

    def line(self, irq: int) -> InterruptLine:
        """Return a line to ISA interrupt `irq` (0 to 15, except 2): a device drives it by `set`.

        Lines to the same input are ORed.  Any thread may drive one, with any irqchip.  Once there
        is a line, a run waits for a guest that halts with interrupts on: only `timeout`, `stop` or
        the guest end it.  Raises ConfigError if the machine has no interrupt controller, or that
        no such input.
        """
        self._board.claim.check_open()
        irq = check_irq("irq", irq)
        return self._board.host_line(irq)

    def send_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt: `data` written to `address` (SDM 3A 11.11).

        Returns whether a local APIC took it.  May be called from any thread.
        """
        self._board.claim.check_open()
        address = checks.unsigned("address", address, 64)
        data = checks.unsigned("data", data, 32)
        return self._board.need_irqchip().send_msi(address, data)

    def irqfd(self, fd: int, irq: int) -> None:
        """Let KVM pulse ISA interrupt `irq` whenever the eventfd `fd` is written to.

        Raises ConfigError unless ``irqchip="kernel"``.
        """
        self._board.claim.check_open()
        fd = checks.integer("fd", fd, 0, 0x7FFF_FFFF)
        irq = checks.integer("irq", irq, 0, layout.ISA_IRQS - 1)
        self._board.need_irqchip().irqfd(fd, irq)

    def ioeventfd(
        self,
        fd: int,
        *,
        pio: int | None = None,
        mmio: int | None = None,
        length: int,
        value: int | None = None,
    ) -> Callable[[], None]:
        """Let KVM write to the eventfd `fd` when the guest writes to a port or physical address.

        Such writes make no exit, and no device sees them: those of `length` bytes (1, 2, 4 or, for
        `mmio`, 8) that begin at `pio` or `mmio`, with `value` only those of this value.  Returns a
        function that ends it; keep `fd` open until then.

        Raises ConfigError for invalid values, KVMError (EEXIST) if these writes go to an eventfd.
        """
        self._board.claim.check_open()
        from pykvm.machine.doorbell import ring

        return ring(self._board, fd, pio=pio, mmio=mmio, length=length, value=value)

    def press_power_button(self) -> None:
        """Press the power button: ACPI reports it to the guest, which may switch itself off.

        May be called from any thread.  Raises ConfigError if the machine has no such button, as
        that of a bare guest.
        """
        self._board.claim.check_open()
        from pykvm.machine.known_devices import power_button

        power_button(self.devices).press_power_button()

    @property
    def is_linux(self) -> bool:
        """Whether the guest is a Linux kernel."""
        return self._guest.is_linux

    @property
    def notes(self) -> tuple[str, ...]:
        """What the machine does differently from what was asked: sentences, also in each Result."""
        remarks = self._guest.remarks
        return remarks if self.entry is None else remarks + self.entry.remarks

    @property
    def vcpus(self) -> tuple[CPU, ...]:
        """The vCPUs; the first is the one that the guest starts on."""
        return tuple(self._board.vcpus)

    @property
    def clock(self) -> Clock:
        """Guest time: see `pykvm.clock`."""
        return self._board.clock

    @property
    def open_bus(self) -> bool:
        """Whether unclaimed accesses find an open bus (`Result.unclaimed` then counts them)."""
        return self._guest.open_bus

    @property
    def serial(self) -> Console:
        """The console on the first serial port.  Raises ConfigError if "com1" was left out."""
        return self.console("com1")

    def console(self, name: str) -> Console:
        """The console on a device that prints: "com1" to "com4", "debugcon", or one of your own.

        Raises ConfigError if there is none of that name.
        """
        from pykvm.machine.console import Console
        from pykvm.machine.known_devices import console

        port = console(self.devices, checks.text("name", name))
        there = self._consoles.get(name)
        if there is None or there.port is not port:
            there = self._consoles[name] = Console(name, port, self._runs, self.clock)
        return there

    @property
    def symbols(self) -> Mapping[str, int]:
        """The guest's symbols: name to address.  Empty without an image, or if it has none.

        One that it has not is UnknownSymbol: a ConfigError, and a KeyError as in any mapping.
        """
        return self.entry.symbols if self.entry is not None else Symbols()

    def symbol_at(self, address: int) -> str:
        """The symbol that holds a guest-virtual address, as "main+0x12", or the empty string."""
        address = checks.unsigned("address", address, 64)
        return "" if self.entry is None else self.entry.symbols.name_at(address)

    def run(
        self,
        timeout: float | None = None,
        until: Awaited | Sequence[Awaited] | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
        fail: Awaited | Sequence[Awaited] | None = None,
        on_answer: Callable[[CPU, Exit], None] | None = None,
    ) -> Result:
        r"""Run the guest until it ends or is stopped, and return how.

        ::

            machine.run(timeout=5, until="login: ").check()
            result = machine.run(timeout=60, until=re.compile(r"(\d+) passed"), fail="PANIC")
            passed = int(result.check().match[1])

        `timeout` is in seconds.  `until` is text to wait for on the first serial port: str, bytes
        or a compiled regular expression of either.  It is searched in everything that the guest has
        printed since the last match, in this run or before, and the guest stops at its last byte.
        Or it is a function of the machine, called after every exit that Python sees and 20 times a
        second; the run ends when it returns a true value.  Or it is a list or tuple of these:
        `Result.matched` is then the one that ended the run.  `fail` takes the same, for what must
        not happen: the run then ends as FAILED.

        A match of a regular expression may be 1,024 bytes long.  Of the output before the run the
        last 64 KiB count (if `serial.output` still has them).  ``^`` is where the last match ended;
        use re.MULTILINE for the beginning of a line.

        `on_exit` sees every VM exit before a device answers it, and `on_answer` those that wait for
        an answer, mostly reads, once they have it: `exit.answered` is what the guest gets.  Either
        makes each exit some microseconds slower.

        You may call `run` again after every outcome; what happens then is up to the guest.

        What a device or one of these functions raises comes out of `run` unchanged, as does Ctrl-C
        in the main thread; the machine stays usable.  Also raises ClosedError, StateError (it is
        running), KVMError, and HostError if there is no VM for the probes of quirks.
        """
        if timeout is not None:
            timeout = checks.seconds("timeout", timeout)
        if on_exit is not None:
            checks.callback("on_exit", on_exit)
        if on_answer is not None:
            checks.callback("on_answer", on_answer)
        return self._runs.run(self, timeout, until, fail, on_exit=on_exit, on_answer=on_answer)

    def arun(
        self,
        timeout: float | None = None,
        until: Awaited | Sequence[Awaited] | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
        fail: Awaited | Sequence[Awaited] | None = None,
        on_answer: Callable[[CPU, Exit], None] | None = None,
    ) -> Coroutine[Any, Any, Result]:
        """`run` for coroutines: in a thread of its own.  To cancel it stops the run.

        ::

            running = asyncio.create_task(machine.arun())
            await machine.serial.aexpect("login: ")
            machine.stop()
            result = await running

        The functions are called in that thread.  A console that runs the machine while it waits
        (`Console.expect`) comes first.
        """
        self._board.claim.check_open()
        from pykvm.machine.in_thread import in_thread

        def run() -> Result:
            return self.run(timeout, until, on_exit, fail, on_answer)

        return in_thread(lambda: self._runs.run_after_waits(run), self.stop)

    def exits(
        self,
        timeout: float | None = None,
        until: Awaited | Sequence[Awaited] | None = None,
        fail: Awaited | Sequence[Awaited] | None = None,
    ) -> Exits:
        """Run the guest, and stop at every VM exit of every vCPU.

        ::

            exits = machine.exits(timeout=5)
            for exit in exits:
                match exit:
                    case IoIn(port=0x60):
                        exit.answer(0x1C)
                    case IoOut(port=0x80):
                        exit.take()
            print(exits.result)

        When you ask for the next exit, one that you neither answered nor took (`take`) is handled
        as in `run`: by its device, the interrupt controllers or the emulator; a HLT waits for an
        interrupt.  Timers and interrupts come as in `run`, and the iteration ends as a run does:
        `exits.result` says how.  `exits.cpu` is the vCPU of the last exit.

        Between two exits no vCPU runs: read and change what you like.  Setting a register first
        completes the instruction of the exit, so answer a read before that.  You may leave the loop
        at any time; the next `run` or `exits` continues from there.  A breakpoint is an exit, too.
        `until` and `fail` are as for `run`, and checked at each exit.  `timeout` counts only the
        time that the guest runs.

        Raises what `run` does.
        """
        if timeout is not None:
            timeout = checks.seconds("timeout", timeout)
        self._board.claim.check_open()
        return self._runs.exits(self, timeout, until, fail)

    def on_emulated(self, callback: Callable[[CPU, str, str], object]) -> Callable[[], None]:
        """Call ``callback(cpu, name, result)`` after each instruction that pykvm executed for KVM.

        `name` is the instruction's, `result` a few words.  Returns a function that unsubscribes.
        The callback runs in the thread of the vCPU, and what it raises comes out of `run`.  While
        there is a subscriber, C executes none of them by itself; one that subscribes during a run
        may miss some of that run.
        """
        self._board.claim.check_open()
        return self._workarounds.on_emulated(callback)

    def stop(self) -> bool:
        """From any thread: end the run in progress with Outcome.STOPPED.

        Returns False, and does nothing, if there is none.  The run ends however busy the guest is;
        if the guest ends itself at the same moment, that end counts.
        """
        return self._runs.stop()

    def call(
        self,
        function: str | int,
        *arguments: Argument,
        returns: str | int | None = "int",
        timeout: float | None = 5.0,
        vcpu: int = 0,
        reset: bool = False,
    ) -> int | bytes | None:
        """Call a function of the guest's, between two runs, and return what it returns.

        ::

            assert machine.call("checksum", b"abc", 3) == 0x126
            assert machine.call("name_of", 7, returns="cstring") == b"seven"

        `function` is a symbol or a guest-virtual address of 64-bit code in ring 0.  Arguments are
        integers, and str (with a NUL at its end), bytes and bytearray, of which the function gets
        the address: a bytearray has afterwards what was written there.  They are passed by the
        System V ABI for x86-64, six in registers and the others on the stack of the vCPU, below
        what it uses.  `returns` is "int" (as "u64" and "pointer"), "signed" ("s64"), "u8" to "s32",
        "cstring" for the text that is pointed to, a number for so many bytes there, or None.

        Afterwards all registers are what they were; what the function wrote to memory and devices
        stays, unless `reset` is true.  The vCPU's interrupts are off meanwhile, timers wait, and
        other vCPUs stand.  `timeout` is in seconds.

        Raises GuestError if the function crashes, GuestFailed if it ends the guest or halts,
        RunTimeout, RunStopped; UnknownSymbol; StateError for a vCPU that is not in such code or has
        no stack; ConfigError for other arguments.  The registers are put back then, too.
        """
        self._board.claim.check_open()
        from pykvm.machine.call import call, check_returns

        check_returns(returns)
        cpu = self.vcpus[checks.integer("vcpu", vcpu, 0, len(self.vcpus) - 1)]
        saved = self._snapshots.take() if reset else None
        self._snapshots.prepare()
        address = self.symbols[function] if isinstance(function, str) else function
        name = function if isinstance(function, str) else self.symbol_at(address) or f"{address:#x}"
        try:
            answers, states = self._runs.answers, self._called_from
            return call(
                cpu, self.memory, answers, states, address, name, arguments, timeout, returns
            )
        finally:
            if saved is not None:
                self.reset(saved)

    def handle(self, exit: Exit) -> bool:
        """Let the devices answer an exit of `CPU.raw_exits`; False if it is none for a device.

        Raises what devices raise, GuestExit and GuestReset included.
        """
        self._board.claim.check_open()
        return self._runs.answers.by_device(exit)

    def work_around(self, cpu: CPU, exit: Exit) -> bool:
        """Apply the workaround for `exit`: execute an instruction that KVM refused, for one.

        `run` does so by itself; this is for `CPU.raw_exits`.  False if there is no workaround.
        Raises GuestError if the guest cannot resume, and what devices raise.
        """
        self._board.claim.check_open()
        return self._workarounds.take(cpu, exit)

    def snapshot(self) -> Snapshot:
        """Take a snapshot: everything that the guest could ever notice.

        ::

            machine.run(until="login: ").check()
            ready = machine.snapshot()
            for user in users:
                machine.reset(ready)
                ...

        The machine goes on as if nothing had been.  An exit at which it stands (`exits`) is handled
        first, as the next turn of the loop would.

        Raises StateError, with the reason: for a device of yours without `state` (docs/devices.md),
        for a machine that is running, be it in another thread or around the function that asks, and
        at an exit that ends the guest.  Also ResourceError and KVMError; the machine is then as it
        was.
        """
        self._board.claim.check_open()
        return self._snapshots.take()

    def reset(self, saved: Snapshot | None = None, *, wall: str = "keep") -> None:
        """Put the machine back to a snapshot of it, or of a machine that it was forked from.

        Without `saved`, back to the one that it was in last.  It costs a copy of the memory that
        has changed since.  `wall` says what guest time does: it goes on from where it was ("keep"),
        or jumps ahead by what has passed on the host since the snapshot was taken ("host").

        If an exception interrupts it (Ctrl-C), the machine refuses to run until it is reset again.

        Raises StateError (no snapshot yet, or the machine is running), ConfigError (a snapshot of
        another machine), KVMError.
        """
        self._board.claim.check_open()
        self._snapshots.reset(saved, wall)

    @property
    def _snapshots(self) -> Snapshots:
        """Made for the first snapshot: few machines have one."""
        if self._snapshots_made is None:
            from pykvm.machine.snapshots import Snapshots

            self._snapshots_made = Snapshots(self._board, self._guest, self.entry, self._runs)
        return self._snapshots_made

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._board.claim.closed

    def close(self) -> None:
        """Free everything: descriptors, memory, mappings.  Closing twice is harmless.

        A run in another thread is stopped first and returns its Result.  Raises StateError when
        called from inside the machine's own run (a device, `until`).
        """
        claim = self._board.claim
        if claim.is_mine:
            raise StateError(
                "a machine cannot be closed from inside its own run",
                hint="call stop() here and close it where run() returns",
            )
        claim.closed = True
        busy = claim.shut()
        while busy:
            self.stop()
            busy = claim.shut(wait=True)
        # Every part of it may be closed twice: after an exception in here the next call goes on.
        self._release()

    def _release(self) -> None:
        """Free what there is: a machine that could not be made may have none of it."""
        board: Board | None = getattr(self, "_board", None)
        workarounds: Workarounds | None = getattr(self, "_workarounds", None)
        if board is None:
            return
        board.claim.closed = True
        for cpu in board.vcpus:
            cpu.close()
        if workarounds is not None:
            workarounds.close()
        board.close()

    def __enter__(self) -> Machine:
        self._board.claim.check_open()
        return self

    def __del__(self) -> None:
        board = getattr(self, "_board", None)
        if board is not None and not (board.claim.closed or board.claim.forked):
            # Its parts free themselves, in any order: some of them may be gone by now.
            message = f"Machine {self.config.name!r} was not closed"
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        image = self.config.image
        of_file = not isinstance(image, (bytes, bytearray, memoryview, type(None)))
        name = f"Machine {printable(self.config.name)}" if of_file else "Machine"
        if self.closed:
            return f"<{name} closed>"
        doing = "running" if self._runs.under_way else "stopped"
        count = len(self._board.vcpus)
        return f"<{name} {doing}: {count} vCPU{'s' * (count != 1)}, {self.memory!r}>"


def _config_of(image: Any, fields: dict[str, Any]) -> MachineConfig:
    """The config that a machine is made from, given whole or by its fields."""
    if not isinstance(image, MachineConfig):
        return MachineConfig(image, **fields)
    if fields:
        raise ConfigError(
            f"{', '.join(fields)} cannot stand beside a MachineConfig, which has every option",
            hint=in_python("change it: Machine(config.replace(vcpus=2))"),
        )
    return image
