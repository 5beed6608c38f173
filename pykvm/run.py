"""One run of a machine: its vCPUs' threads, and how they come to one end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from pykvm._core import ffi, lib
from pykvm.result import Ending, Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.exits import Exit
    from pykvm.vcpu import CPU

__all__ = ["Run"]

_HLT = 5  # KVM_EXIT_HLT
_REASON = 8  # struct kvm_run: exit_reason

# Ends that the host asked for; what the guest did at the same moment counts more.
_ASKED_FOR = frozenset({Outcome.STOPPED, Outcome.TIMEOUT, Outcome.UNTIL})

# The index in pykvm_vcpu.exits to the name of the exit's class in pykvm.exits.
_WRITE = lib.PYKVM_COUNTERS // 2
_NAMES = {
    0: "Unknown",
    1: "ExceptionExit",
    2: "IoIn",
    2 + _WRITE: "IoOut",
    3: "Hypercall",
    4: "Debug",
    5: "Hlt",
    6: "MmioRead",
    6 + _WRITE: "MmioWrite",
    7: "IrqWindowOpen",
    8: "Shutdown",
    9: "FailEntry",
    10: "Interrupted",
    11: "SetTpr",
    12: "TprAccess",
    16: "Nmi",
    17: "InternalError",
    24: "SystemEvent",
    26: "IoapicEoi",
    27: "Hyperv",
    29: "RdMsr",
    30: "WrMsr",
    31: "DirtyRingFull",
    33: "BusLock",
    37: "Notify",
    39: "MemoryFault",
}


class Run:
    """What happens between one call of `Machine.run` and its return.

    It is the Board of every vCPU's loop.  The first vCPU runs in the calling thread, so that
    exceptions and Ctrl-C surface where the caller is; each of the others in one of its own.
    """

    def __init__(
        self,
        cpus: Sequence[CPU],
        *,
        take: Callable[[CPU, Exit], Ending | None],
        timeout: float | None,
        check: Callable[[], Ending | None] | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
    ) -> None:
        """`take` answers an exit or says how the run ends; `on_exit` sees each of them before."""
        self.check = check
        self._cpus = [cpu for cpu in cpus if cpu.index == 0 or not cpu.parked]
        self._take = take
        self._on_exit = on_exit
        self._timeout = timeout
        self._ending: Ending | None = None
        self._errors: list[BaseException] = []
        self._threads = {threading.get_ident()}
        self._halted = 0
        self._changed = threading.Condition()
        self._began = time.monotonic()

    # -- ending ------------------------------------------------------------------------------

    def end(self, ending: Ending | None) -> None:
        """From any thread: end the run, all vCPUs of it.  The first ending counts.

        Only what the guest itself did is preferred to an end that the host asked for.
        """
        with self._changed:
            if ending is not None:
                mine = self._ending
                if mine is None or (
                    mine.outcome in _ASKED_FOR and ending.outcome not in _ASKED_FOR
                ):
                    self._ending = ending
            self._changed.notify_all()
        for cpu in self._cpus:
            cpu.kick()

    def stop(self) -> None:
        """From any thread: end the run as STOPPED."""
        self.end(Ending(Outcome.STOPPED, "stopped by the host"))

    def is_mine(self) -> bool:
        """Whether the calling thread is one that runs a vCPU of this run."""
        return threading.get_ident() in self._threads

    # -- the Board of every vCPU -------------------------------------------------------------

    def take_exit(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.Board`."""
        if self._on_exit is None and cpu.page[_REASON] == _HLT:
            return self._halt(cpu)
        from pykvm.exits import Hlt, decode

        exit = decode(cpu.run_page)
        if self._on_exit is not None:
            self._on_exit(cpu, exit)
        if isinstance(exit, Hlt):
            return self._halt(cpu)
        return self._take(cpu, exit)

    def take_kick(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.Board`."""
        return self._ending or (self._failed if self._errors else None)

    def take_deadline(self, cpu: CPU) -> Ending:
        """See `pykvm.vcpu.Board`."""
        return self._timed_out()

    def take_attention(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.Board`."""
        return None

    #: What a vCPU's loop returns when another vCPU's handler raised; nobody sees it.
    _failed = Ending(Outcome.STOPPED, "another vCPU's handler raised")

    def _timed_out(self) -> Ending:
        return Ending(Outcome.TIMEOUT, f"the guest was still running after {self._timeout:g} s")

    def _halt(self, cpu: CPU) -> Ending | None:
        """HLT: nothing can wake a vCPU yet, so wait until all have halted or the run ends."""
        with self._changed:
            self._halted += 1
            if self._halted == len(self._cpus):
                who = "the guest" if len(self._cpus) == 1 else "every vCPU of the guest"
                return Ending(Outcome.HALTED, f"{who} halted with nothing to wake it")
            deadline = None if self._timeout is None else self._began + self._timeout
            while self._ending is None and not self._errors:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return self._timed_out()
                self._changed.wait(left)
            self._halted -= 1
        return self._ending or self._failed

    # -- running -----------------------------------------------------------------------------

    def _run_cpu(self, cpu: CPU) -> None:
        timeout = self._timeout
        self._threads.add(threading.get_ident())
        try:
            if timeout is not None:
                timeout = max(timeout - (time.monotonic() - self._began), 0.0)
            cpu.enter(None if timeout is None else int(timeout * 1e9) or 1)
            try:
                # The end may have come before this vCPU could be kicked.
                ending = self.take_kick(cpu) or cpu.loop(self, surface=self._on_exit is not None)
            finally:
                cpu.leave()
            self.end(ending)
        except BaseException as error:
            self._errors.append(error)
            self.end(None)
            if cpu is self._cpus[0]:
                raise

    def __call__(self) -> Result:
        """Run to the end.  An exception of a handler, or Ctrl-C, passes as it is."""
        before = [_Counters(cpu) for cpu in self._cpus]
        cycles = lib.pykvm_cycles()
        threads = [
            threading.Thread(
                target=self._run_cpu, args=(cpu,), name=f"vcpu{cpu.index}", daemon=True
            )
            for cpu in self._cpus[1:]
        ]
        for thread in threads:
            thread.start()
        try:
            self._run_cpu(self._cpus[0])
        finally:
            for thread in threads:
                thread.join()
        seconds = time.monotonic() - self._began
        if self._errors:
            raise self._errors[0]
        assert self._ending is not None
        rate = (lib.pykvm_cycles() - cycles) / seconds if seconds else 1.0
        return self._result(seconds, rate, before)

    def _result(self, seconds: float, rate: float, before: Sequence[_Counters]) -> Result:
        assert self._ending is not None
        exits: dict[str, int] = {}
        cycles = 0
        for old, cpu in zip(before, self._cpus, strict=True):
            new = _Counters(cpu)
            cycles += new.cycles - old.cycles
            for index, count in enumerate(new.exits):
                if count != old.exits[index]:
                    name = _NAMES.get(index, f"UnknownReason {index}")
                    exits[name] = exits.get(name, 0) + count - old.exits[index]
            if new.interruptions != old.interruptions:
                exits["Interrupted"] = (
                    exits.get("Interrupted", 0) + new.interruptions - old.interruptions
                )
        inside = cycles / rate
        return Result(
            self._ending,
            exits=exits,
            seconds=seconds,
            guest_seconds=inside,
            outside_seconds=max(seconds * len(self._cpus) - inside, 0.0),
        )


class _Counters:
    """What a vCPU has counted in its life so far."""

    def __init__(self, cpu: CPU) -> None:
        core: Any = cpu.core
        self.exits: Sequence[int] = ffi.unpack(core.exits, lib.PYKVM_COUNTERS)
        self.cycles: int = core.guest_cycles
        self.interruptions: int = core.interruptions
