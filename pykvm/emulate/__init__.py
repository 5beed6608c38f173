"""Instructions that KVM refuses, executed and handed back.

KVM_EXIT_INTERNAL_ERROR with suberror 1 says that KVM had to emulate an instruction and does not
know it (api.rst 5): on every host where a vector register meets a device, on hosts without VMX or
SVM for most of what a kernel does beyond moving integers.  The vCPU stands on the instruction, and
nothing is pending: once it is executed, the guest can resume.  `Emulator` does: by a table of
small functions (`pykvm.emulate.table`), by this processor (`native`).  Exceptions that the
instruction raises become the guest's own.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import cached_property

from pykvm._core import ffi, lib
from pykvm.emulate.events import inject, inject_step
from pykvm.emulate.fault import GP, UD, Fault, UnsupportedError
from pykvm.emulate.fpu import PLAIN
from pykvm.emulate.memory import PAGE, BusDevices, Devices, LinearMemory
from pykvm.emulate.refused import Refused, code_bits
from pykvm.emulate.table import Method, method_of
from pykvm.errors import GuestError, MemoryRangeError
from pykvm.exits import InternalError
from pykvm.kvm.constants import KVM_INTERNAL_ERROR_EMULATION
from pykvm.kvm.uapi import KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.cpuid import CpuidTable
from pykvm.x86.decode import (
    LONGEST,
    ForeignError,
    Instruction,
    TruncatedError,
    UndecodableError,
    decode,
)
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pykvm.emulate.native import Native
    from pykvm.exits import Exit
    from pykvm.memory import GuestMemory
    from pykvm.vcpu import CPU

__all__ = ["BusDevices", "Emulator"]

_COUNTERS: int = lib.PYKVM_COUNTERS
_METHODS = 4096
_FOREIGN = {"EVEX": "avx512f", "XOP": "xop"}
# So often may the very same instruction fault in the very same state, and nothing else happen.
PATIENCE = 1000


class Emulator:
    """Completes the instructions that KVM refuses, for all vCPUs of a machine.

    `devices` answers where there is no memory.  `counts` says which instructions were completed and
    how often, `seconds` how long that took, both since the beginning.
    """

    def __init__(self, memory: GuestMemory, devices: Devices) -> None:
        self._memory = memory
        self._devices = devices
        self._benches: dict[int, _Bench] = {}
        #: The features of the processors by their CPUID names; None for what each vCPU's CPUID
        #: shows.
        self.features: frozenset[str] | None = None
        #: Called after each instruction with its name and what became of it.  If it gives True,
        #: or is None, the run loop need not come here for an instruction that was done before.
        self.on_done: Callable[[CPU, str, str], bool] | None = None

    @property
    def counts(self) -> Counter[str]:
        """Instructions completed so far, by name."""
        total: Counter[str] = Counter()
        for bench in list(self._benches.values()):
            total.update(bench.counts)
            total.update(bench.counts_in_core())
        return total

    @property
    def seconds(self) -> float:
        """Time spent on them, of all vCPUs together."""
        benches = list(self._benches.values())
        return sum(bench.seconds + bench.seconds_in_core() for bench in benches)

    def take(self, cpu: CPU, exit: Exit) -> bool:
        """Complete the instruction of `exit`; False if it is not one, or pykvm cannot.

        Raises GuestError where the guest cannot go on, and what a device raises.
        """
        if not isinstance(exit, InternalError) or exit.suberror != KVM_INTERNAL_ERROR_EMULATION:
            return False
        bench = self._benches.get(cpu.index)
        if bench is None or bench.cpu is not cpu:
            features = self.features
            bench = self._benches[cpu.index] = _Bench(cpu, self._memory, self._devices, features)
        done = bench.take(exit.instruction)
        if done is None:
            return False
        bench.quicken(self.on_done is None or self.on_done(cpu, *done))
        return True

    def refusal(self, cpu: CPU) -> tuple[str, str]:
        """The instruction that was not done for `cpu`, by name, and why not; both may be empty."""
        bench = self._benches.get(cpu.index)
        return bench.refusal if bench else ("", "")

    def close(self) -> None:
        """Let go of guest memory.  Closing twice is harmless."""
        for bench in self._benches.values():
            bench.close()


class _Late:
    """Devices whose exceptions wait until the instruction that they were raised in is done.

    A read gives all ones then, as on an open bus.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self.error: BaseException | None = None

    def read(self, address: int, size: int) -> int:
        try:
            return self._devices.read(address, size)
        except GuestError:
            raise
        except BaseException as error:  # noqa: BLE001 - `_Bench.take` raises it
            self.error = self.error or error
            return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        try:
            self._devices.write(address, size, value)
        except GuestError:
            raise
        except BaseException as error:  # noqa: BLE001 - `_Bench.take` raises it
            self.error = self.error or error


def _absent(name: str) -> Method:
    """How an instruction is done that this guest's processor does not have."""
    return Method(Instruction(b"", 0, 0), name, _undefined, None, ())


def _undefined(at: Refused) -> None:
    raise Fault(UD)


class _Bench:
    """What one vCPU's instructions are done with, by the thread that runs it."""

    def __init__(
        self, cpu: CPU, memory: GuestMemory, devices: Devices, features: frozenset[str] | None
    ) -> None:
        self.cpu = cpu
        self._given = features
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._late = _Late(devices)
        self._memory = LinearMemory(memory, self._late)
        self._methods: dict[tuple[bytes, int], Method | None] = {}
        self._made: Native | None = None
        #: The name of the last instruction that pykvm does not emulate, and why.
        self.refusal = "", ""
        self._stuck = 0
        self._fault_scene: tuple[object, ...] = ()

    def take(self, code: bytes) -> tuple[str, str] | None:
        """Complete the instruction at RIP; its name and result, None if pykvm cannot emulate it."""
        began = time.perf_counter()
        registers = self.cpu.engine.sync_regs()
        regs, sregs = registers.regs, registers.sregs
        at = Refused(self.cpu, registers, code_bits(sregs, regs.rflags), self._memory)
        self._memory.look(sregs, at.cpl, regs.rflags)
        stepping = regs.rflags & RFLAGS.TF
        name = "fetch"
        try:
            method = self._method(at, code)
            if method is None:
                self.refusal = "", ""
                return None
            name, at.instruction = method.name, method.instruction
            self._do(at, method)
        except Fault as fault:
            self._count_fault(at, name, fault)
            inject(at, fault)
            result = f"raised exception {fault.vector}"
        except UnsupportedError as unable:
            self.refusal = name, str(unable)
            return None
        else:
            result = "done"
            self._fault_scene = ()
            self._finish(at, registers, stepping=bool(stepping))
        self.counts[name] += 1
        self.seconds += time.perf_counter() - began
        error, self._late.error = self._late.error, None
        if error is not None:
            raise error
        return name, result

    def _finish(self, at: Refused, registers: Any, *, stepping: bool) -> None:
        if at.finished:
            return
        at.finish()
        interrupt = registers.events.interrupt
        if stepping:
            inject_step(at)
        elif interrupt.shadow:
            # STI and MOV SS hold interrupts back for one instruction, and this was it.
            interrupt.shadow = 0
            self.cpu.engine.commit_events()

    def _method(self, at: Refused, code: bytes) -> Method | None:
        """How the instruction that begins with `code` is done, None if that is not known.

        KVM gives the bytes up to the end of a page; those after it are fetched here.  Raises
        Fault as the fetch does.
        """
        key = code, at.bits
        try:
            return self._methods[key]
        except KeyError:
            pass
        method: Method | None
        try:
            method = method_of(decode(code, at.bits))
        except TruncatedError:
            longer = self._fetch(at, code)
            return self._method(at, longer) if len(longer) > len(code) else None
        except ForeignError as foreign:
            # The first processors with these encodings have these features.
            if _FOREIGN[foreign.encoding] in self._features:
                method = None
            else:
                method = _absent(foreign.encoding)
        except UndecodableError:
            method = None
        if method is not None and not self._features.issuperset(method.features):
            method = _absent(method.name)
        if len(self._methods) >= _METHODS:
            self._methods.clear()
        self._methods[key] = method
        return method

    @cached_property
    def _features(self) -> frozenset[str]:
        """What the processor has.  What CPUID shows cannot change once a vCPU has run."""
        if self._given is not None:
            return self._given
        return CpuidTable(self.cpu.kvm.get_cpuid2()).features

    def _fetch(self, at: Refused, code: bytes) -> bytes:
        """`code` and what follows it in memory, up to 15 bytes or the end of a page.

        No longer than `code` where there is no memory.
        """
        if len(code) == LONGEST:
            raise Fault(GP)  # SDM 3A 6.15, #GP: an instruction of more than 15 bytes
        address = at.regs.rip + len(code)
        if at.bits == 64:
            address &= (1 << 64) - 1
        elif address > at.sregs.cs.limit:
            raise Fault(GP)
        else:
            address = (at.sregs.cs.base + address) & 0xFFFF_FFFF
        length = min(LONGEST - len(code), PAGE - address % PAGE)
        try:
            return code + self._memory.fetch(address, length)
        except MemoryRangeError:
            return code

    def _do(self, at: Refused, method: Method) -> None:
        if method.instruction.vex and at.real:
            raise Fault(UD)  # SDM 2A 2.3.1
        if method.operation is not None:
            method.operation(at)
        elif method.unit is not None:
            rip = at.regs.rip
            self._native.execute(at, method.unit)
            if at.bits == 64:
                self._native.learn(at, method.unit, method.name, rip)
        else:
            raise UnsupportedError("it is not among the instructions that pykvm does")

    @property
    def _native(self) -> Native:
        if self._made is None:
            from pykvm.emulate.native import Native

            self._made = Native()
        return self._made

    def quicken(self, allowed: bool) -> None:
        """Let the run loop complete instructions by itself that were done here once."""
        native, cpu = self._made, self.cpu
        if native is None:
            return
        if allowed and cpu.kvm.xsave_size <= PLAIN and not cpu.debug.stepping:
            native.follow(cpu, self._memory.memory)
            cpu.engine.core.native = native.core
        else:
            cpu.engine.core.native = ffi.NULL

    def counts_in_core(self) -> Counter[str]:
        """Instructions that the run loop completed by itself, by name."""
        return self._made.counts() if self._made is not None else Counter()

    def seconds_in_core(self) -> float:
        """Time that the run loop spent on them."""
        return self._made.core.nanoseconds / 1e9 if self._made is not None else 0.0

    def close(self) -> None:
        if self._made is not None:
            if self.cpu.engine.core is not None:
                self.cpu.engine.core.native = ffi.NULL
            self._made.close()

    def _count_fault(self, at: Refused, name: str, fault: Fault) -> None:
        """Raise GuestError when the guest does nothing but run into the same fault."""
        exits = ffi.unpack(self.cpu.engine.core.exits, _COUNTERS)
        elsewhere = sum(exits) - exits[KVM_EXIT_INTERNAL_ERROR] - exits[KVM_EXIT_INTR]
        registers = bytes(ffi.buffer(ffi.addressof(at.regs)))
        scene = elsewhere, registers, fault.vector, fault.error, fault.address
        self._stuck = self._stuck + 1 if scene == self._fault_scene else 0
        self._fault_scene = scene
        if self._stuck >= PATIENCE:
            raise GuestError(
                "no progress",
                f"{name} at {at.regs.rip:#x} raised exception {fault.vector} "
                f"{self._stuck} times in a row, with nothing else in between",
            )
