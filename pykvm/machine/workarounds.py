"""Workarounds for what this host's KVM gets wrong or refuses."""

from __future__ import annotations

from collections import Counter

from pykvm.errors import PykvmError
from pykvm.kvm.uapi import (
    KVM_EXIT_DEBUG,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_WRMSR,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pykvm.emulate import Emulator
    from pykvm.exits import Exit
    from pykvm.machine.board import Board
    from pykvm.quirks.signs import Signs
    from pykvm.quirks.workarounds import QuirkWorkarounds
    from pykvm.result import Result
    from pykvm.vcpu import CPU
    from pykvm.vcpu.msr_exits import MsrExits
    from pykvm.vcpu.saved import VcpuState

__all__ = ["WORKAROUND_EXITS", "Workarounds", "wanted_by"]

#: The exits that are asked about.
WORKAROUND_EXITS = (
    KVM_EXIT_DEBUG,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_X86_WRMSR,
)


def wanted_by(cpus: Iterable[VcpuState]) -> tuple[bool, Sequence[int]]:
    """Whether a guest that goes on from these states needs to be watched, and which MSRs at once.

    One that shows the signs of `pykvm.quirks.signs` has this host asked before its machine is made,
    and is spared what the answer makes needless.
    """
    from pykvm.quirks.signs import MSRS, shown_by

    if not shown_by(cpus):
        return True, ()
    from pykvm.quirks import found, syscall
    from pykvm.quirks.workarounds import WITH_WORKAROUND

    here = found(WITH_WORKAROUND)
    return bool(here), MSRS if syscall.QUIRK.name in here else ()


class Tally(NamedTuple):
    """Counts of workarounds and emulated instructions, and the time that emulation took."""

    workarounds: Counter[str]
    emulated: Counter[str]
    seconds: float


class Workarounds:
    """Workarounds for quirks of this host, if wanted, and the emulator, made when first needed.

    With `open_bus`, emulated instructions read unclaimed addresses as all ones.
    """

    def __init__(self, board: Board, *, emulate: bool, open_bus: bool) -> None:
        self._board = board
        self._emulate = emulate
        self._open_bus = open_bus
        self._emulated = Subscribers()
        self._emulator: Emulator | None = None
        # What is looked out for until this host was asked, and what came of it.
        self._signs: Signs | None = None
        self._quirks: QuirkWorkarounds | None = None
        self._msr_exits: MsrExits | None = None

    def add_quirk_workarounds(self, *, watched: bool = False) -> None:
        """Work around the quirks that this host has, from now on; the vCPUs must have been made.

        With `watched`, writes of SYSCALL's MSRs exit already.
        """
        from pykvm.quirks.signs import Signs

        self._msr_exits = self._board.msr_exits()
        self._signs = Signs(self._board.vcpus, self._msr_exits, self._ask, watched=watched)

    def _ask(self, cpu: CPU) -> None:
        """The guest may come to meet them: find out which this host has."""
        from pykvm.quirks import found
        from pykvm.quirks.signs import OWNER
        from pykvm.quirks.workarounds import WITH_WORKAROUND, QuirkWorkarounds

        board, msr_exits = self._board, self._msr_exits
        with board.dispatch.lock:
            signs = self._signs
            if signs is not None and msr_exits is not None:
                here = found(WITH_WORKAROUND)
                if here:
                    self._quirks = QuirkWorkarounds(
                        board.vcpus, board.memory, msr_exits, here, by_hand=signs.by_hand
                    )
                else:
                    msr_exits.ask(OWNER)
                    for each in board.vcpus:
                        each.loop.on_begin = None
                self._signs = None
        if self._quirks is not None:
            self._quirks.look(cpu)

    def take(self, cpu: CPU, exit: Exit) -> bool:
        """Set the vCPU right after one of the WORKAROUND_EXITS exits, so that the guest goes on.

        False if that is not possible.  Raises GuestError where the guest cannot go on, and what
        devices raise.
        """
        if self._signs is not None:
            self._signs.take(cpu, exit)
        if self._quirks is not None and self._quirks.take(cpu, exit):
            return True
        if self._msr_exits is not None and self._quirks is None and self._pass_on(cpu, exit):
            return True
        if not self._emulate or exit.reason != KVM_EXIT_INTERNAL_ERROR:
            return False
        return (self._emulator or self.emulator()).take(cpu, exit)

    def _pass_on(self, cpu: CPU, exit: Exit) -> bool:
        """Carry out a write that only exits because this host might have had a quirk."""
        from pykvm.exits import WrMsr
        from pykvm.quirks.signs import MSRS, write_msr

        if not isinstance(exit, WrMsr) or exit.index not in MSRS:
            return False
        write_msr(cpu, exit)
        return True

    def emulator(self) -> Emulator:
        """What completes the instructions that KVM refuses; made for the first of them."""
        board = self._board
        lock = board.dispatch.lock
        with lock:
            if self._emulator is None:
                from pykvm.emulate import BusDevices, Emulator

                drop = board.dispatch.collected.drop
                devices = BusDevices(
                    board.bus, board.memory, lock, open_bus=self._open_bus, drop=drop
                )
                self._emulator = Emulator(board.memory, devices)
                self._emulator.on_done = self._done
            return self._emulator

    def on_emulated(self, callback: Callable[[CPU, str, str], object]) -> Callable[[], None]:
        """Call ``callback(cpu, name, result)`` after each instruction that is emulated.

        Returns a function that unsubscribes.
        """
        return self._emulated.add(callback)

    def _done(self, cpu: CPU, name: str, result: str) -> bool:
        """See `Emulator.on_done`: without a subscriber, C may do the next ones."""
        if not self._emulated:
            return True
        self._emulated(cpu, name, result)
        return False

    @property
    def look(self) -> Callable[[CPU], None] | None:
        """What wants to look at a vCPU whenever there is an occasion."""
        return self._look if self._signs is not None or self._quirks is not None else None

    def _look(self, cpu: CPU) -> None:
        if self._signs is not None:
            self._signs.look(cpu)
        elif self._quirks is not None:
            self._quirks.look(cpu)

    def refusal(self, cpu: CPU) -> tuple[str, str]:
        """Which instruction the emulator refused last, and why; empty if none."""
        return self._emulator.refusal(cpu) if self._emulator is not None else ("", "")

    def limit(self, cpu: CPU, exit: Exit) -> str:
        """What this host's KVM does wrong with the instruction at which it gave up; "" if nothing.

        It is tried, in a VM of its own, for an instruction that is known to fail somewhere.
        """
        from pykvm.exits import Shutdown

        if not isinstance(exit, Shutdown):
            return ""
        from pykvm.quirks import found
        from pykvm.quirks.legacy_paging import MOV_CR0, refused_paging

        try:
            code = cpu.read(cpu.state.linear_rip, len(MOV_CR0) + 1)
            quirk = refused_paging(cpu.state, code)
            return quirk.wrong if quirk is not None and found([quirk]) else ""
        except PykvmError:
            return ""

    def tally(self) -> Tally:
        """What was done so far."""
        workarounds = Counter(self._quirks.counts() if self._quirks is not None else {})
        emulator = self._emulator
        if emulator is None:
            return Tally(workarounds, Counter(), 0.0)
        return Tally(workarounds, emulator.counts, emulator.seconds)

    def add_to(self, result: Result, before: Tally) -> None:
        """Add to a result what was done since `before`."""
        now = self.tally()
        result.workarounds = dict(now.workarounds - before.workarounds)
        result.emulated = dict(now.emulated - before.emulated)
        result.emulated_seconds = now.seconds - before.seconds

    def close(self) -> None:
        """Let go of guest memory; the vCPUs must be closed."""
        if self._emulator is not None:
            self._emulator.close()
        if self._quirks is not None:
            self._quirks.close()
