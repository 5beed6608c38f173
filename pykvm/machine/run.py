"""One run of a machine: its vCPUs' threads, and how they come to one end."""

from __future__ import annotations

import _thread
import time
from functools import partial

from pykvm._core import ffi, lib
from pykvm.bus import GuestEnd
from pykvm.errors import ResourceError
from pykvm.kvm import uapi
from pykvm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
)
from pykvm.kvm.run_page import EXIT_REASON
from pykvm.machine.guest_ends import ending_of
from pykvm.result import Ending, Outcome, Place, Result
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.claim import LateError
from pykvm.vcpu.loop import OVER, Pending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pykvm.exits import Exit
    from pykvm.irqchip.base import Interrupts
    from pykvm.vcpu import CPU
    from pykvm.vcpu.claim import Claim

__all__ = ["AT_EXIT", "SENT_INIT", "Run"]

#: The end of a run that was to stop at an exit; no Result that a user sees has it.
AT_EXIT = Ending(Outcome.STOPPED, "stopped at a VM exit")

#: The end of one that only handles the exits at which the vCPUs stand.
SETTLED = Ending(Outcome.STOPPED, "stopped before the guest went on")

#: Where no firmware is to begin in.
SENT_INIT = "the guest sent INIT to its first vCPU"

# Ends that the host asked for; what the guest did at the same moment counts more.
_ASKED_FOR = frozenset(
    {Outcome.STOPPED, Outcome.TIMEOUT, Outcome.DEBUG, Outcome.UNTIL, Outcome.FAILED}
)

# The index in pykvm_vcpu.exits to the name of the exit's class in pykvm.exits.
_WRITE = lib.PYKVM_COUNTERS // 2
_NAMES = {
    uapi.KVM_EXIT_UNKNOWN: "Unknown",
    uapi.KVM_EXIT_EXCEPTION: "ExceptionExit",
    uapi.KVM_EXIT_IO: "IoIn",
    uapi.KVM_EXIT_IO + _WRITE: "IoOut",
    uapi.KVM_EXIT_HYPERCALL: "Hypercall",
    uapi.KVM_EXIT_DEBUG: "Debug",
    uapi.KVM_EXIT_HLT: "Hlt",
    uapi.KVM_EXIT_MMIO: "MmioRead",
    uapi.KVM_EXIT_MMIO + _WRITE: "MmioWrite",
    uapi.KVM_EXIT_IRQ_WINDOW_OPEN: "IrqWindowOpen",
    uapi.KVM_EXIT_SHUTDOWN: "Shutdown",
    uapi.KVM_EXIT_FAIL_ENTRY: "FailEntry",
    uapi.KVM_EXIT_INTR: "Interrupted",
    uapi.KVM_EXIT_SET_TPR: "SetTpr",
    uapi.KVM_EXIT_TPR_ACCESS: "TprAccess",
    uapi.KVM_EXIT_NMI: "Nmi",
    uapi.KVM_EXIT_INTERNAL_ERROR: "InternalError",
    uapi.KVM_EXIT_SYSTEM_EVENT: "SystemEvent",
    uapi.KVM_EXIT_IOAPIC_EOI: "IoapicEoi",
    uapi.KVM_EXIT_HYPERV: "Hyperv",
    uapi.KVM_EXIT_X86_RDMSR: "RdMsr",
    uapi.KVM_EXIT_X86_WRMSR: "WrMsr",
    uapi.KVM_EXIT_DIRTY_RING_FULL: "DirtyRingFull",
    uapi.KVM_EXIT_X86_BUS_LOCK: "BusLock",
    uapi.KVM_EXIT_NOTIFY: "Notify",
    uapi.KVM_EXIT_MEMORY_FAULT: "MemoryFault",
}


class Run:
    """What happens between one call of `Machine.run` and its return.

    It is the Handlers of every vCPU's loop.  The first vCPU runs in the calling thread, so that
    exceptions and Ctrl-C surface where the caller is; each of the others in one of its own.

    What several threads touch is changed by single operations (a list's append, a set's add and
    discard), without a lock: an exception that comes in between could leave one taken.
    """

    def __init__(
        self,
        cpus: Sequence[CPU],
        claim: Claim,
        *,
        take: Callable[[CPU, Exit], Ending | None],
        timeout: float | None,
        limit: float | None = None,
        check: Callable[[], Ending | None] | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
        on_answer: Callable[[CPU, Exit], None] | None = None,
        stops: Callable[[CPU, Exit], bool] | None = None,
        interrupts: Interrupts | None = None,
        look: Callable[[CPU], None] | None = None,
    ) -> None:
        """`cpus` are to run within `claim`, which the caller holds.

        `timeout` is what is left of the caller's `limit`, where that is given.
        `take` answers an exit or says how the run ends; `on_exit` sees each of them before, and
        `on_answer` those that wait for an answer once they have it.
        With `stops` the run stops at each exit for which that is true, `AT_EXIT`, with the exit as
        its vCPU's `Loop.pending`; else `stops` has dealt with it.
        `interrupts` is what wakes halted vCPUs, and starts parked ones; None if nothing does.
        `look` is called whenever there is an occasion to look at a vCPU.
        """
        self.check = check
        self.interrupts = interrupts
        self._cpus = [
            cpu
            for cpu in cpus
            if cpu.index == 0 or not cpu.parked or (interrupts and interrupts.can_start)
        ]
        self._alone = len(self._cpus) == 1
        self._take = take
        self._on_exit = on_exit
        self._on_answer = on_answer
        self._stops = stops
        self._surface = (on_exit or on_answer or stops) is not None
        self._look = look
        self._timeout = timeout
        self._limit = timeout if limit is None else limit
        self._claim = claim
        self._turn = claim.turn
        self._endings: list[Ending] = []
        self._errors: list[BaseException] = []
        # Halted or parked: by index.
        self._idle: set[int] = set()
        # Those that were so when the run ended.
        self._asleep: set[int] = set()
        # Taken, and never waited for, by the vCPU that skips ahead.
        self._skipping = _thread.allocate_lock()
        self._began = time.monotonic()

    def end(self, ending: Ending | None) -> None:
        """From any thread: end the run, all vCPUs of it.  Later runs are left alone."""
        if ending is not None:
            self._endings.append(ending)
        for cpu in self._cpus:
            cpu.engine.kick(self._turn)

    def stop(self) -> bool:
        """From any thread: end the run as STOPPED.  False if it is over."""
        if not self.under_way:
            return False
        self.end(Ending(Outcome.STOPPED, "stopped by the host"))
        return True

    @property
    def at_exit(self) -> bool:
        """Whether it has ended for nothing but an exit to stop at."""
        return self._ending is AT_EXIT

    def use_interrupts(self, interrupts: Interrupts) -> None:
        """The guest has touched what can interrupt it: ask this from now on."""
        self.interrupts = interrupts

    @property
    def under_way(self) -> bool:
        """Whether its vCPUs may still enter the guest."""
        return self._claim.running == self._turn

    @property
    def _ending(self) -> Ending | None:
        """The first ending, but for one that the host asked for and the guest's own replaces.

        To stop at an exit gives way to all others.
        """
        endings = self._endings
        if not endings:
            return None
        of_no_vcpu = (AT_EXIT, OVER, SETTLED, self._failed)
        asked = next((end for end in endings if end not in of_no_vcpu), endings[0])
        return next((end for end in endings if end.outcome not in _ASKED_FOR), asked)

    def take_exit(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.loop.Handlers`."""
        reason = cpu.engine.page[EXIT_REASON]
        if not self._surface and reason == uapi.KVM_EXIT_HLT:
            return self._halt(cpu)
        from pykvm.exits import decode

        exit = decode(cpu.engine.run_page)
        if self._on_exit is not None:
            self._on_exit(cpu, exit)
        if self._stops is None:
            ending = self._answer(cpu, exit)
            if self._on_answer is not None and exit.awaits_answer and ending is None:
                self._on_answer(cpu, exit)
            return ending
        if not self._stops(cpu, exit):
            return None
        cpu.loop.pending = Pending(exit)
        return AT_EXIT

    def _answer(self, cpu: CPU, exit: Exit) -> Ending | None:
        from pykvm.exits import Hlt, IrqWindowOpen, SetTpr

        if isinstance(exit, Hlt):
            return self._halt(cpu)
        if isinstance(exit, (IrqWindowOpen, SetTpr)):
            return self.take_attention(cpu)
        return self._take(cpu, exit)

    def take_kick(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.loop.Handlers`."""
        return self._ending or (self._failed if self._errors else None)

    def take_deadline(self, cpu: CPU) -> Ending:
        """See `pykvm.vcpu.loop.Handlers`."""
        return self._timed_out()

    def take_tick(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.loop.Handlers`."""
        if self._look is not None:
            self._look(cpu)
        if self.interrupts is None or self.interrupts.can_start:
            return None
        # HLT waits inside KVM_RUN: look whether it will ever come back.
        if not self.interrupts.dead(cpu):
            self._idle.discard(cpu.index)
            return None
        self._idle.add(cpu.index)
        return self._halted_for_good() if len(self._idle) == len(self._cpus) else None

    def take_attention(self, cpu: CPU) -> Ending | None:
        """See `pykvm.vcpu.loop.Handlers`."""
        if self._look is not None:
            self._look(cpu)
        interrupts = self.interrupts
        if interrupts is None:
            return None
        interrupts.run_timers(cpu)
        interrupts.set_alarm(cpu)
        ending = self._take_init(cpu) or (self._wait(cpu) if cpu.parked else None)
        if ending is None:
            interrupts.serve(cpu)
        return ending

    def _take_init(self, cpu: CPU) -> Ending | None:
        """Carry out an INIT, if one came."""
        if self.interrupts is None or not self.interrupts.reset_by_init(cpu):
            return None
        from pykvm.vcpu.reset import can_reset

        if cpu.index == 0 and not can_reset(cpu):
            return Ending(Outcome.RESET, SENT_INIT)
        return None

    #: What a vCPU's loop returns when another vCPU's handler raised; it is discarded.
    _failed = Ending(Outcome.STOPPED, "another vCPU's handler raised")

    def _timed_out(self) -> Ending:
        return Ending(Outcome.TIMEOUT, f"the guest was still running after {self._limit:g} s")

    def _halt(self, cpu: CPU) -> Ending | None:
        ending = self._wait(cpu)
        if ending is not None:
            self._asleep.add(cpu.index)
            if (self._ending or ending).outcome is not Outcome.HALTED:
                cpu.loop.left_in_hlt()
        elif self.interrupts is not None:
            self.interrupts.serve(cpu)
        return ending

    def place(self, cpu: CPU, symbol: Callable[[int], str]) -> Place:
        """Where a vCPU of the machine is, once the run is over.

        `symbol` names a guest-virtual address, or gives the empty string.
        """
        # Of HLT and of processors to be started KVM knows only where the local APICs are its own.
        state = cpu.kvm.get_mp_state()
        doing = "running"
        if cpu.parked or state in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED):
            doing = "parked"
        elif cpu.index in self._asleep or state == KVM_MP_STATE_HALTED:
            doing = "halted"
        address = cpu.state.linear_rip
        return Place(cpu.index, doing, address, symbol(address))

    def _wait(self, cpu: CPU) -> Ending | None:
        """Wait outside the guest, without burning CPU, until this vCPU can go on."""
        interrupts = self.interrupts
        while True:
            ending = None
            if self._endings or self._errors:
                ending = self.take_kick(cpu)
            if ending is None and self.check is not None:
                # The exit that led here is one of those after which it is asked.
                ending = self.check()
            if ending is not None:
                return ending
            if interrupts is not None and interrupts.awake(cpu):
                if not interrupts.start(cpu):
                    interrupts.set_alarm(cpu)
                    return None
                ending = self._take_init(cpu)
                if ending is not None or not cpu.parked:
                    return ending
                continue
            if self._timeout is not None and time.monotonic() >= self._began + self._timeout:
                return self._timed_out()
            if interrupts is not None and self._alone and self._skip(cpu, interrupts):
                continue
            # A vCPU that is called to attention from here on is not idle, and does not wait.
            self._idle.add(cpu.index)
            if self._all_idle():
                if interrupts and not self._alone and self._skip_ahead(cpu, interrupts):
                    self._idle.discard(cpu.index)
                    interrupts.run_timers(cpu)
                    continue
                if interrupts is None or not interrupts.can_wake(self._cpus):
                    return self._halted_for_good()
            if interrupts is not None:
                interrupts.set_alarm(cpu)
            code = cpu.engine.wait()
            self._idle.discard(cpu.index)
            cpu.engine.clear_attention()
            if code == lib.PYKVM_OVER:
                return OVER
            if interrupts is not None:
                interrupts.run_timers(cpu)

    def _all_idle(self) -> bool:
        """Whether every vCPU waits, and none of them has been called and not yet looked."""
        if len(self._idle) != len(self._cpus):
            return False
        for cpu in self._cpus:  # noqa: SIM110  at every HLT
            if cpu.engine.attended:
                return False
        return True

    def _skip(self, cpu: CPU, interrupts: Interrupts) -> bool:
        """The only vCPU waits: whether a warping clock has jumped to what may wake it."""
        if cpu.engine.attended or not interrupts.warp(self._cpus):
            return False
        interrupts.run_timers(cpu)
        return True

    def _skip_ahead(self, cpu: CPU, interrupts: Interrupts) -> bool:
        """All are idle: whether a warping clock has jumped to what wakes one of them."""
        # One vCPU at a time: a second skip would begin where the first one leads.
        if not self._skipping.acquire(blocking=False):
            return False
        try:
            if not self._all_idle() or not interrupts.warp(self._cpus):
                return False
            for other in self._cpus:
                if other is not cpu:
                    other.engine.attend()
            return True
        finally:
            self._skipping.release()

    def _halted_for_good(self) -> Ending:
        who = "the guest" if len(self._cpus) == 1 else "every vCPU of the guest"
        return Ending(Outcome.HALTED, f"{who} halted with nothing to wake it")

    def _run_cpu(self, cpu: CPU) -> None:
        """Run a vCPU in the calling thread until the run ends, and end it if this one does."""
        timeout = self._timeout
        if timeout is not None:
            timeout = max(timeout - (time.monotonic() - self._began), 0.0)
        nanoseconds = None if timeout is None else int(timeout * 1e9) or 1
        cpu.engine.hold(partial(self._drive, cpu), nanoseconds, self._turn)

    def _drive(self, cpu: CPU) -> None:
        try:
            self.end(self._until_the_end(cpu))
        except BaseException as error:
            self._errors.append(error)
            self.end(None)
            raise

    def _until_the_end(self, cpu: CPU) -> Ending:
        try:
            if self.interrupts is not None:
                # A new run has no alarm, and timers may wait from the one before.
                cpu.engine.attend()
            # The end may have come before this vCPU could be kicked.
            ending = self.take_kick(cpu)
            if ending is None:
                ending = self._go_on(cpu)
            if ending is None and self.check is not None:
                ending = self.check()
            return ending or cpu.loop.run(self, surface=self._surface)
        except GuestEnd as end:
            return ending_of(end, cpu)

    def _go_on(self, cpu: CPU) -> Ending | None:
        """Begin where the last run left this vCPU: at an exit, in HLT, or parked."""
        pending, cpu.loop.pending = cpu.loop.pending, None
        if pending is not None and not (
            pending.exit.taken or (pending.exit.is_over and pending.exit.awaits_answer)
        ):
            ending = self._answer(cpu, pending.exit)
            # A breakpoint that was handed out has stopped the run already.
            if ending is not None and ending.outcome is not Outcome.DEBUG:
                return ending
        if cpu.loop.leave_hlt():
            return self._halt(cpu)
        return self._wait(cpu) if cpu.parked else None

    def _run_other(self, cpu: CPU) -> None:
        """The thread of a vCPU that is not the first."""
        try:
            self._run_cpu(cpu)
        except LateError:
            pass  # the run was that short
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            if error not in self._errors:
                self._errors.append(error)
                self.end(None)

    def _start(self, cpu: CPU) -> None:
        # Not threading.Thread: it waits for its thread to begin, and an exception meanwhile may
        # leave that one waiting for good.
        try:
            _thread.start_new_thread(self._run_other, (cpu,))
        except (RuntimeError, MemoryError) as error:
            raise ResourceError(
                f"this host gives no thread for vCPU {cpu.index}: {error}",
                hint="each vCPU but the first takes one: see `ulimit -u`, `ulimit -v` and the "
                "pids.max of the container, or use fewer vCPUs",
            ) from error

    def settle(self) -> Ending | None:
        """Handle the exits at which the vCPUs stand, and enter no guest.

        Returns how one of them has ended the guest, if so.
        """
        self._endings.append(SETTLED)
        for cpu in self._cpus:
            if cpu.loop.pending is not None:
                cpu.engine.hold(partial(self._settle, cpu), None, self._turn)
        ending = self._ending
        return None if ending is SETTLED else ending

    def _settle(self, cpu: CPU) -> None:
        try:
            self.end(self._go_on(cpu))
        except GuestEnd as end:
            self.end(ending_of(end, cpu))

    def __call__(self) -> Result:
        """Run to the end.  An exception of a handler, or Ctrl-C, passes as it is."""
        before = [_Counters(cpu) for cpu in self._cpus]
        cycles = lib.pykvm_cycles()
        try:
            for cpu in self._cpus[1:]:
                self._start(cpu)
            self._run_cpu(self._cpus[0])
        finally:
            if len(self._cpus) > 1:
                self._claim.finish()
        seconds = time.monotonic() - self._began
        if self._errors:
            raise self._errors[0]
        rate = (lib.pykvm_cycles() - cycles) / seconds if seconds else 1.0
        return self._result(seconds, rate, before)

    def _result(self, seconds: float, rate: float, before: Sequence[_Counters]) -> Result:
        ending = self._ending
        assert ending is not None
        exits: dict[str, int] = {}
        cycles = 0
        for old, cpu in zip(before, self._cpus, strict=True):
            new = _Counters(cpu)
            cycles += new.cycles - old.cycles
            for index, count in enumerate(new.exits):
                if count != old.exits[index]:
                    name = _NAMES.get(index, f"UnknownReason {index}")
                    exits[name] = exits.get(name, 0) + count - old.exits[index]
        inside = cycles / rate
        return Result(
            ending,
            exits=exits,
            seconds=seconds,
            guest_seconds=inside,
            outside_seconds=max(seconds * len(self._cpus) - inside, 0.0),
        )


class _Counters:
    """What a vCPU has counted in its life so far."""

    def __init__(self, cpu: CPU) -> None:
        core: Any = cpu.engine.core
        self.exits: Sequence[int] = ffi.unpack(core.exits, lib.PYKVM_COUNTERS)
        self.cycles: int = core.guest_cycles
