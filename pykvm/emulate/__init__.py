"""Instructions that KVM refuses, executed and handed back.

KVM_EXIT_INTERNAL_ERROR with suberror 1 says that KVM had to emulate an instruction and does not
know it (api.rst 5): on every host where a vector register meets a device, on hosts without VMX or
SVM for most of what a kernel does beyond moving integers.  The vCPU stands on the instruction, and
nothing is pending: whoever executes it can let the guest go on.  `Emulator` does: by a table of
small functions (`pykvm.emulate.table`), by Unicorn where that is installed (`engine`).  Exceptions
that the instruction raises become the guest's own.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from pykvm._core import ffi, lib
from pykvm.emulate.events import inject, inject_step
from pykvm.emulate.fault import Fault, UnsupportedError
from pykvm.emulate.memory import BusDevices, Devices, LinearMemory
from pykvm.emulate.refused import Refused, code_bits
from pykvm.emulate.table import Plan, plan_of
from pykvm.errors import GuestError, MemoryRangeError
from pykvm.exits import InternalError
from pykvm.x86.decode import UndecodableError, decode
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.engine import Engine
    from pykvm.exits import Exit
    from pykvm.memory import GuestMemory
    from pykvm.vcpu import CPU

__all__ = ["BusDevices", "Emulator"]

_EMULATION = 1  # KVM_INTERNAL_ERROR_EMULATION
# Among the counters of exits by reason: this one, and returns for a signal.
_INTERNAL_ERROR, _INTERRUPTED = 17, 10
_COUNTERS: int = lib.PYKVM_COUNTERS
_PLANS = 4096
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
        #: Called after each instruction with its name and what became of it.
        self.on_done: Callable[[CPU, str, str], None] | None = None

    @property
    def counts(self) -> Counter[str]:
        """Instructions completed so far, by name."""
        total: Counter[str] = Counter()
        for bench in list(self._benches.values()):
            total.update(bench.counts)
        return total

    @property
    def seconds(self) -> float:
        """Time spent on them, of all vCPUs together."""
        return sum(bench.seconds for bench in list(self._benches.values()))

    def take(self, cpu: CPU, exit: Exit) -> bool:
        """Complete the instruction behind `exit`; False if it is not one, or nobody can.

        Raises GuestError where the guest cannot go on, and what a device raises.
        """
        if not isinstance(exit, InternalError) or exit.suberror != _EMULATION:
            return False
        bench = self._benches.get(cpu.index)
        if bench is None or bench.cpu is not cpu:
            bench = self._benches[cpu.index] = _Bench(cpu, self._memory, self._devices)
        done = bench.take(exit.instruction)
        if done is None:
            return False
        if self.on_done is not None:
            self.on_done(cpu, *done)
        return True

    def refusal(self, cpu: CPU) -> tuple[str, str]:
        """The instruction that was not done for `cpu`, by name, and why not; both may be empty."""
        bench = self._benches.get(cpu.index)
        return bench.refusal if bench else ("", "")

    def close(self) -> None:
        """Give back what holds guest memory.  Closing twice is harmless."""
        for bench in self._benches.values():
            bench.close()


class _Late:
    """Devices whose exceptions wait until the instruction that they were raised in is done.

    A read gives all ones then, as a bus that nobody drives does.
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


class _Bench:
    """What one vCPU's instructions are done with, by the thread that runs it."""

    def __init__(self, cpu: CPU, memory: GuestMemory, devices: Devices) -> None:
        self.cpu = cpu
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._late = _Late(devices)
        self._memory = LinearMemory(memory, self._late)
        self._plans: dict[tuple[bytes, int], Plan | None] = {}
        self._engines: dict[bool, Engine] = {}
        #: The name of the last instruction that nobody could do, and why.
        self.refusal = "", ""
        self._stuck = 0
        self._fault_scene: tuple[object, ...] = ()

    def take(self, code: bytes) -> tuple[str, str] | None:
        """Complete the instruction at RIP; its name and what became of it, None if nobody can."""
        began = time.perf_counter()
        everything = self.cpu.everything()
        regs, special = everything.regs, everything.sregs
        bits = code_bits(special, regs.rflags)
        plan = self._plan(code or self._fetch(everything, bits), bits)
        if plan is None:
            self.refusal = "", ""
            return None
        at = Refused(self.cpu, everything, bits, plan.instruction, self._memory)
        self._memory.look(special, at.cpl, regs.rflags)
        stepping = regs.rflags & RFLAGS.TF
        try:
            self._do(at, plan)
        except Fault as fault:
            self._count_fault(at, plan, fault)
            inject(at, fault)
            result = f"raised exception {fault.vector}"
        except UnsupportedError as unable:
            self.refusal = plan.name, str(unable)
            return None
        else:
            result = "done"
            self._fault_scene = ()
            self._finish(at, everything, stepping=bool(stepping))
        self.counts[plan.name] += 1
        self.seconds += time.perf_counter() - began
        error, self._late.error = self._late.error, None
        if error is not None:
            raise error
        return plan.name, result

    def _finish(self, at: Refused, everything: Any, *, stepping: bool) -> None:
        if at.finished:
            return
        at.finish()
        interrupt = everything.events.interrupt
        if stepping:
            inject_step(at)
        elif interrupt.shadow:
            # STI and MOV SS hold interrupts back for one instruction, and this was it.
            interrupt.shadow = 0
            self.cpu.take_events()

    def _fetch(self, everything: Any, bits: int) -> bytes:
        """The bytes at RIP, if KVM did not tell them and they can be read."""
        address = everything.regs.rip
        if bits != 64:
            address = (everything.sregs.cs.base + address) & 0xFFFF_FFFF
        try:
            return self.cpu.read(address, 15)
        except MemoryRangeError:
            return b""

    def _plan(self, code: bytes, bits: int) -> Plan | None:
        key = code, bits
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        try:
            plan = plan_of(decode(code, bits))
        except UndecodableError:
            plan = None
        self._plans[key] = plan
        return plan

    def _do(self, at: Refused, plan: Plan) -> None:
        if plan.operation is not None:
            plan.operation(at)
        elif plan.unit is not None:
            self._engine(at.bits == 64).execute(at, plan.unit)
        else:
            raise UnsupportedError("it is not among the instructions that pykvm does")

    def _engine(self, wide: bool) -> Engine:
        engine = self._engines.get(wide)
        if engine is None:
            from pykvm.emulate.binding import load
            from pykvm.emulate.engine import Engine

            library = load()
            if library is None:
                raise UnsupportedError("Unicorn is not installed")
            engine = self._engines[wide] = Engine(library, 64 if wide else 32, self._memory)
        return engine

    def _count_fault(self, at: Refused, plan: Plan, fault: Fault) -> None:
        """Raise GuestError when the guest does nothing but run into the same fault."""
        exits = ffi.unpack(self.cpu.core.exits, _COUNTERS)
        elsewhere = sum(exits) - exits[_INTERNAL_ERROR] - exits[_INTERRUPTED]
        registers = bytes(ffi.buffer(ffi.addressof(at.regs)))
        scene = elsewhere, registers, fault.vector, fault.error, fault.address
        self._stuck = self._stuck + 1 if scene == self._fault_scene else 0
        self._fault_scene = scene
        if self._stuck >= PATIENCE:
            raise GuestError(
                "no progress",
                f"{plan.name} at {at.regs.rip:#x} raised exception {fault.vector} "
                f"{self._stuck} times in a row, with nothing else in between",
            )

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
