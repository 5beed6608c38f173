"""Storms: everything that a guest can reach by ports, addresses and MSRs, at random, without end.

`guests/storm.c` does whatever the table says that is written to its memory.  A storm may end the
guest, reset it or crash it: it is put back and goes on.
"""

from __future__ import annotations

import gc
import struct
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm import Machine, Outcome
from pykvm._core import lib
from pykvm.bus import Space
from pykvm.devices import standard_devices
from pykvm.devices.pc import pc_devices
from pykvm.irqchip.user import UserIrqChip
from pykvm.kvm import System
from pykvm.kvm.constants import KVM_MP_STATE_UNINITIALIZED
from support.resources import descriptors, mappings, resident

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

    from pykvm.x86.state import CpuState

__all__ = ["Access", "Footprint", "Storm", "What", "alternating", "everything", "kernel_memory"]


TABLE = 0x200000
ROOM = 8000
_ACCESS = struct.Struct("<HBBIQQ")
_DONE, _FAULTED = 1, 2

# SDM 4, table 2-2, beside those that KVM lists.
APIC_BASE = 0x1B
TIME = (0x10, 0x3B, 0x6E0)
X2APIC = range(0x800, 0x900)
PARAVIRTUAL = (0x11, 0x12, *range(0x4B564D00, 0x4B564D06))
MTRRS = (0xFE, *range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x277, 0x2FF)


class What(IntEnum):
    """As in guests/storm.c."""

    IN = 0
    OUT = 1
    LOAD = 2
    STORE = 3
    RDMSR = 4
    WRMSR = 5


class Access(NamedTuple):
    """One line of the table."""

    what: What
    where: int
    value: int = 0
    size: int = 4
    times: int = 0  # of a string instruction

    def pack(self) -> bytes:
        """As the guest reads it."""
        return _ACCESS.pack(self.what, self.size, 0, self.times, self.where, self.value)


class Storm:
    """A PC with every device, in which storms blow."""

    def __init__(self, guests: Path, irqchip: str, **options: object) -> None:
        self.machine = Machine(
            guests / "storm.elf",
            memory="8M",
            irqchip=irqchip,
            devices=standard_devices() + pc_devices(),
            unclaimed="open-bus",
            **options,  # type: ignore[arg-type]
        )
        memory = self.machine.memory
        self._in_kernel = irqchip in ("split", "kernel")
        self._state = self.machine.vcpus[0].state
        cpus = self.machine.vcpus
        self._lapics = [cpu.kvm.get_lapic() for cpu in cpus] if self._in_kernel else []
        self._image = memory.read(0, TABLE)
        #: How each run ended, and how many did.
        self.endings: dict[Outcome, int] = {}

    def blow(self, accesses: Iterable[Access], timeout: float = 1) -> Outcome:
        """Have the guest carry out these accesses; how the last of the runs that takes ended.

        An access may end the guest, or make KVM write over its code: it is put back, and goes on
        with the next one.
        """
        rest = list(accesses)
        while True:
            now = rest[:ROOM]
            self.prepare(now)
            result = self.machine.run(timeout=timeout)
            assert result.exit_code in (None, 0), result
            outcome = result.outcome
            self.endings[outcome] = self.endings.get(outcome, 0) + 1
            done = len(now) if outcome is Outcome.EXITED else self._done(len(now)) + 1
            rest = rest[done:]
            if not rest:
                return outcome
            if outcome is not Outcome.EXITED:
                self._calm()

    def _calm(self) -> None:
        """Reset the local APICs: a timer that sends INIT would end every run from now on."""
        irqchip = self.machine._board.irqchip
        if self._in_kernel:
            for cpu, registers in zip(self.machine.vcpus, self._lapics, strict=True):
                cpu.kvm.set_lapic(registers)
        elif isinstance(irqchip, UserIrqChip) and irqchip.platform is not None:
            for lapic in irqchip.platform.lapics:
                lapic.init()

    def _done(self, count: int) -> int:
        """How many of so many accesses were carried out, by what stands in the table."""
        table = self.machine.memory.read(TABLE, count * _ACCESS.size)
        outcomes = [outcome for _, _, outcome, *_ in _ACCESS.iter_unpack(table)]
        # The last counts: an access may well have written over what came of one before.
        return next((at for at in range(count, 0, -1) if outcomes[at - 1]), 0)

    def prepare(self, accesses: Iterable[Access]) -> CpuState:
        """Put everything back for a run with these accesses, and return where it begins."""
        machine = self.machine
        machine.memory.write(0, self._image)
        table = b"".join(access.pack() for access in accesses)
        machine.memory.write(TABLE, table + bytes(_ACCESS.size))
        machine.vcpus[0].state = self._state
        # KVM is not to go on writing to where the last storm told it to.
        for index in PARAVIRTUAL:
            machine.vcpus[0].kvm.set_msrs({index: 0}, partial=True)
        for cpu in machine.vcpus[1:]:
            # A storm may have started it.
            if self._in_kernel:
                cpu.kvm.set_mp_state(KVM_MP_STATE_UNINITIALIZED)
            else:
                cpu.parked = True
        return machine.vcpus[0].state

    def ask(self, *accesses: Access) -> list[int | None]:
        """Have the guest carry out these: what each read, or wrote; None for one that faulted."""
        assert self.blow(accesses) is Outcome.EXITED
        table = self.machine.memory.read(TABLE, len(accesses) * _ACCESS.size)
        answers: list[int | None] = []
        for _, _, outcome, _, _, value in _ACCESS.iter_unpack(table):
            assert outcome in (_DONE, _FAULTED)
            answers.append(value if outcome == _DONE else None)
        return answers

    def registers(self) -> list[Access]:
        """A read of each register that there is: ports, addresses and MSRs."""
        found: list[Access] = []
        for range_ in self.machine.bus.ranges:
            if range_.name in ("debug-exit", "pvpanic"):
                continue  # a storm would not get far
            what = What.IN if range_.space is Space.PIO else What.LOAD
            step = 1 if what is What.IN else 4
            last = min(range_.last, range_.first + 0x3FF)
            found += [Access(what, at, size=step) for at in range(range_.first, last + 1, step)]
        found += [Access(What.IN, port, size=1) for port in (0x92, 0xCFC, 0x1F0, 0x3D4, 0xFFFF)]
        with System() as system:
            known = system.msr_index_list()
        indices = {*known, APIC_BASE, *TIME, *X2APIC, *MTRRS, 0xDEAD}
        return found + [Access(What.RDMSR, index) for index in sorted(indices)]


_INTERESTING = (0, 1, 0xFF, 0x80, 0xFFFF, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1, 0xFEE00000, 0x100000)


def _value(chance: Random) -> int:
    return chance.choice(
        (chance.choice(_INTERESTING), chance.getrandbits(64), 1 << chance.randrange(64))
    )


def everything(reads: list[Access], chance: Random) -> Iterator[Access]:
    """Accesses at random to the registers that `reads` read, reads and writes of any size."""
    while True:
        read = chance.choice(reads)
        what = What(read.what + (chance.random() < 0.6))
        sizes = (1, 2, 4) if read.what is What.IN else (1, 2, 4, 4, 8)
        count = chance.randrange(1, 60) if read.what is What.IN and chance.random() < 0.1 else 0
        yield Access(what, read.where, _value(chance), chance.choice(sizes), count)


def alternating(read: Access, chance: Random, times: int) -> list[Access]:
    """Two values, to and fro, written to the register that `read` reads."""
    values = _value(chance), _value(chance)
    what = What(read.what + 1)
    return [read._replace(what=what, value=values[turn % 2]) for turn in range(times)]


def kernel_memory() -> int:
    """What the host's kernel holds of memory that cannot be reclaimed, in KiB."""
    counted = ("SUnreclaim", "KernelStack", "PageTables", "VmallocUsed", "Percpu")
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(words[1]) for words in lines if words[0].rstrip(":") in counted)


class Footprint(NamedTuple):
    """What the process holds of the host."""

    memory: int  # KiB
    descriptors: int
    mappings: int
    maps: int

    @classmethod
    def now(cls) -> Footprint:
        """Measure it."""
        gc.collect()
        return cls(resident(), descriptors(), mappings(), lib.pykvm_maps())

    def assert_flat(self, since: Footprint, *, allow: int) -> None:
        """Fail unless no more than `allow` KiB were added, and nothing else."""
        assert self.memory - since.memory <= allow, f"{since} -> {self}"
        assert self.descriptors <= since.descriptors
        assert self.mappings <= since.mappings + 20, f"{since} -> {self}"
        assert self.maps <= since.maps + 2
