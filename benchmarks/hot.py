"""Accesses to a PC's devices that guests make by the thousand, beside QEMU and the loop in C.

`guests/hot.c` measures them by its TSC and says so on the debug console, the same on every side;
each number is the least of some batches, which what else runs on the host seldom reaches.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import qemu
from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.freeze import freeze
from benchmarks.guest import RAM, Guest
from benchmarks.measure import Pair
from benchmarks.row import Row
from pykvm import Machine
from pykvm.devices import standard_devices
from pykvm.devices.pc import pc_devices

if TYPE_CHECKING:
    from typing_extensions import Self

    from benchmarks.rig import Rig

    #: By name: µs an access.
    Round = dict[str, float]

GUEST = Guest("hot.c")
END = b"end\n"
# What runs in the latter runs in the former, but not the other way round on every host.
PC, IRQCHIP_OFF = "pc", "pc,kernel-irqchip=off"


def parse(said: bytes, tsc_khz: int) -> Round:
    r"""The guest's lines, "name accesses ticks" each, in µs.

    >>> parse(b"uart-out 64 128000\nend\n", 2_000_000)
    {'uart-out': 1.0}
    """
    found = {}
    for line in said.decode().splitlines():
        name, *numbers = line.split()
        if numbers:
            accesses, ticks = map(int, numbers)
            found[name] = ticks / accesses * 1e3 / tsc_khz
    return found


class Process:
    """A program that runs the guest and passes on what it says; stopped between two rounds."""

    def __init__(self, command: list[str], *, ask: bytes = b"") -> None:
        """`ask` is what it wants to read before a round."""
        self._ask = ask
        # What was said of a round that had begun before the process was stopped.
        self._rest = b""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def round(self) -> bytes:
        """What the guest says in one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(self._ask)
        self._process.stdin.flush()
        said = self._rest
        while END not in said:
            data = os.read(self._process.stdout.fileno(), 1 << 12)
            if not data:
                raise CannotMeasureError(f"it ended with status {self._process.wait()}")
            said += data
        self._process.send_signal(signal.SIGSTOP)
        said, _, self._rest = said.partition(END)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def theirs(rig: Rig, machine: str) -> Process:
    """QEMU, with a serial port that leads nowhere."""
    program = shutil.which("qemu-system-x86_64")
    model = qemu.processor(IRQCHIP_OFF).model  # raises if there is no QEMU
    assert program is not None
    return Process(
        [
            *(program, "-M", machine, "-accel", "kvm", "-cpu", model, "-m", qemu.MEMORY),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-serial", "null"),
            *("-chardev", "stdio,id=said", "-device", "isa-debugcon,iobase=0xe9,chardev=said"),
            *("-kernel", str(rig.elf(GUEST))),
        ]
    )


def ours(rig: Rig, irqchip: str) -> Process:
    """pykvm, in a process of its own as the others."""
    return Process([sys.executable, "-m", "benchmarks.hot", str(rig.elf(GUEST)), irqchip])


def run(elf: str, irqchip: str) -> None:
    """Run the guest, and pass on what it says.

    The breakpoints that some hosts' quirks need would slow down every instruction.
    """
    with Machine(
        elf,
        memory=qemu.MEMORY,
        irqchip=irqchip,
        unclaimed="open-bus",
        quirks="off",
        devices=[*standard_devices(), *pc_devices()],
    ) as machine:
        console: Any = machine.devices["debugcon"]
        console.on_output(lambda data: os.write(1, data))
        machine.run()


def cloop(rig: Rig) -> Process:
    """The loop in C, which has no interrupt controllers."""
    image = rig.folder / "hot.image"
    with Machine(rig.elf(GUEST), memory=RAM, devices=(), args=["0"]) as machine:
        image.write_bytes(freeze(machine))
    return Process([str(rig.program("cloop")), str(image)], ask=b"talk\n")


class Sides(NamedTuple):
    """One round of each: pykvm with either irqchip, QEMU with either, and C."""

    user: Round
    kernel: Round
    qemu: Round
    qemu_user: Round
    c: Round


@cache
def _rounds(rig: Rig, count: int) -> list[Sides]:
    """One measurement for all rows."""
    with Machine() as machine:
        tsc_khz = machine.vcpus[0].kvm.get_tsc_khz()
    with ExitStack() as stack:
        order = [
            stack.enter_context(side)
            for side in (
                ours(rig, "user"),
                ours(rig, "kernel"),
                theirs(rig, PC),
                theirs(rig, IRQCHIP_OFF),
                cloop(rig),
            )
        ]
        taken = []
        for number in range(count + 1):
            turn = order if number % 2 else order[::-1]
            said = {id(side): parse(side.round(), tsc_khz) for side in turn}
            taken.append(Sides(*(said[id(side)] for side in order)))
        return taken[1:]


def _bench(
    name: str,
    title: str,
    limit: float | None,
    *,
    against: str = "qemu",
    ours: str = "user",
    key: str = "",
) -> Bench:
    beside = {"qemu": "QEMU", "qemu_user": "QEMU, irqchip off", "c": "C loop"}[against]
    row = Row(f"hot-{name}", title, beside, "ratio", limit, "µs", 0)

    def measure(rig: Rig, pairs: int) -> Measured:
        rounds = _rounds(rig, pairs)
        which = key or name
        pairs_ = tuple(
            Pair(getattr(sides, ours)[which], getattr(sides, against)[which]) for sides in rounds
        )
        return Measured(pairs_, qemu.processor(IRQCHIP_OFF).notes)

    return Bench(row, measure, pairs=20)


# (name in guests/hot.c, title): what C could answer by itself is measured beside C, too.
ANSWERED = (
    ("uart-out", "a byte to COM1"),
    ("uart-poll", "COM1 polled, and a byte, each"),
    ("port-read", "read of an unclaimed port"),
    ("port-write", "write to an unclaimed port"),
    ("mmio-read", "load from an unclaimed address"),
    ("mmio-write", "store to an unclaimed address"),
    ("pm-timer", "read of the PM timer"),
    ("hpet", "read of the HPET's counter"),
)
BENCHES = (
    *(
        bench
        for name, title in ANSWERED
        for bench in (
            _bench(name, title, 1.0),
            _bench(f"{name}-c", title, 1.1, against="c", key=name),
        )
    ),
    _bench("uart-status", "COM1 with its interrupt enabled: IIR, LSR, a byte", 1.0, ours="kernel"),
    _bench(
        *("uart-status-c", "COM1 with its interrupt enabled: IIR, LSR, a byte", 1.1),
        against="c",
        key="uart-status",
    ),
    _bench("uart-irq-burst", "a byte of 16 by COM1's interrupt", 1.0, ours="kernel"),
    _bench("uart-irq-byte", "a byte by COM1's interrupt, no FIFO", 1.0, ours="kernel"),
    _bench("cmos", "CMOS, index and data, each", 1.1),
    _bench("pit", "8254: latch and read, each", 1.1, against="qemu_user"),
    _bench("pic-mask", "8259: mask read, opened and closed, each", 1.1, against="qemu_user"),
    _bench("pic-eoi", "8259: end of interrupt", 1.1, against="qemu_user"),
)

if __name__ == "__main__":
    run(*sys.argv[1:])
