"""The loop around KVM_RUN: what runs a vCPU, for a machine or by hand."""

from __future__ import annotations

import time
from functools import partial

from pykvm.bus import odd_answer
from pykvm.errors import StateError
from pykvm.result import Ending, Outcome
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import seconds
from pykvm.vcpu import codes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pykvm.bus.dispatch import Dispatch
    from pykvm.exits import Exit
    from pykvm.vcpu.cpu import CPU
    from pykvm.vcpu.engine import Engine
    from pykvm.vcpu.guest_debug import GuestDebug

__all__ = ["OVER", "Handlers", "Loop", "Pending"]

_LIMIT = 1 << 64

#: Accesses of one string instruction that are carried out outside a run.
LONGEST_INSTRUCTION = 4096

#: What `Loop.run` returns when the run has ended without this vCPU; no Result has it.
OVER = Ending(Outcome.STOPPED, "the run is over")


class Handlers(Protocol):
    """What the loop hands over; an Ending ends the run."""

    #: Called after each exit that Python sees and at each tick.
    check: Callable[[], Ending | None] | None

    def take_exit(self, cpu: CPU) -> Ending | None:
        """An exit that no device answered by itself."""

    def take_kick(self, cpu: CPU) -> Ending | None:
        """The vCPU was kicked."""

    def take_deadline(self, cpu: CPU) -> Ending:
        """The time is up."""

    def take_tick(self, cpu: CPU) -> Ending | None:
        """Nothing happened for a while, or a signal of the host's did."""

    def take_attention(self, cpu: CPU) -> Ending | None:
        """`Engine.attend` was called, or the alarm went off: look at timers and interrupts."""


class Pending:
    """An exit at which a run stopped: `shown` once it was handed out."""

    __slots__ = ("exit", "shown")

    def __init__(self, exit: Exit) -> None:
        self.exit = exit
        self.shown = False


class Loop:
    """Runs one vCPU by its engine; what each exit means is the business of others."""

    def __init__(self, cpu: CPU) -> None:
        self._cpu = cpu
        self._engine: Engine = cpu.engine
        self._dispatch: Dispatch | None = None
        # The RIP after the HLT in which the last run left this vCPU waiting.
        self._halted: int | None = None
        #: The exit at which the last run stopped, for the next to deal with.
        self.pending: Pending | None = None
        #: Called before and after each step of a loop by hand, for a clock that stands still
        #: between them.
        self.timing: tuple[Callable[[], None], Callable[[], None]] | None = None
        #: Called as a loop begins: with True if pykvm runs the vCPU, False for a loop by hand, in
        #: which nothing is to take part.
        self.on_begin: Callable[[bool], None] | None = None
        #: Breakpoints and single steps, once anyone has asked for them.
        self.debug: GuestDebug | None = None

    def __repr__(self) -> str:
        return f"<Loop of vCPU {self._cpu.index}>"

    def use(self, dispatch: Dispatch) -> None:
        """Answer exits by these devices from now on."""
        self._dispatch = dispatch
        self._engine.use(dispatch)

    def left_in_hlt(self) -> None:
        """A run ends while this vCPU waits in HLT: the next goes on waiting."""
        self._halted = self._engine.regs().rip

    @property
    def halted(self) -> bool:
        """Whether the next run is to go on waiting in HLT."""
        return self._halted is not None and self._halted == self._engine.regs().rip

    def load(self, *, halted: int | None) -> None:
        """The vCPU's state was set: whether it waits in HLT, and with which RIP."""
        self._halted = halted
        self.pending = None

    def leave_hlt(self) -> bool:
        """A run begins: whether it begins in HLT, as the last has left it.  Asked once."""
        halted, self._halted = self._halted, None
        # The user may have moved RIP.
        return halted is not None and halted == self._engine.regs().rip

    def settle(self, take: Callable[[CPU, Exit], Ending | None]) -> Ending | None:
        """Carry out what the vCPU is in the middle of, so that it stands between two instructions.

        ``take(cpu, exit)`` deals with an access that was not dealt with; how it says that the run
        ends is returned.  What devices raise passes.  Raises StateError inside an instruction that
        is too long.
        """
        from pykvm.exits import Hlt

        for _ in range(LONGEST_INSTRUCTION):
            if not self._engine.settle():
                if self._dispatch is not None and self._dispatch.waiting:
                    self._dispatch.deliver()
                return None
            exit = self._engine.hand_out()
            if isinstance(exit, Hlt):
                self.left_in_hlt()
                continue
            ending = take(self._cpu, exit)
            if ending is not None:
                return ending
        raise StateError(
            f"vCPU {self._cpu.index} is inside an instruction of more than {LONGEST_INSTRUCTION} "
            "accesses",
            hint="run the machine on first",
        )

    def run(self, handlers: Handlers, *, surface: bool = False) -> Ending:
        """Run until an Ending, inside `Engine.hold`.

        With `surface` every exit goes to `handlers.take_exit`, else only those that no device
        answers.  What a device raises passes.
        """
        engine, dispatch = self._engine, self._dispatch
        engine.check_open()
        if dispatch is None:
            raise StateError("no devices were given to this vCPU")
        engine.end_exit()
        drive, _keep, handle = engine.begin(surface=surface)
        if self.on_begin is not None:
            self.on_begin(True)
        if self.debug is not None and (self.debug.hit is not None or self.debug.stepping):
            self.debug.begin(self._cpu.state.linear_rip)
        dispatch.coalesce(not surface)
        reads, writes, check = dispatch.reads, dispatch.writes, handlers.check
        odd, once = self._odd_answer, check is not None
        if dispatch.waiting:
            dispatch.deliver()
        while True:
            code = drive(handle, reads, writes, odd, once)
            if code == codes.DRAIN:
                dispatch.deliver()
            elif code != codes.CALLED:
                ending = self._hand_over(handlers, code)
                if ending is not None:
                    return ending
            if check is not None:
                ending = check()
                if ending is not None:
                    return ending

    def _hand_over(self, handlers: Handlers, code: int) -> Ending | None:
        if code == codes.EXIT:
            return handlers.take_exit(self._cpu)
        if code == codes.AGAIN:
            return handlers.take_tick(self._cpu)
        if code in (codes.ATTENTION, codes.ALARM):
            self._engine.clear_attention()
            return handlers.take_attention(self._cpu)
        if code == codes.KICKED:
            return handlers.take_kick(self._cpu)
        if code == codes.DEADLINE:
            return handlers.take_deadline(self._cpu)
        if code == codes.OVER:
            return OVER
        return self._engine.failed()

    def _odd_answer(self, answer: object, slot: int) -> int:
        """A number is taken modulo the size; anything else is a fault of the device."""
        range_ = self._dispatch.bus.by_slot.get(slot) if self._dispatch else None
        return odd_answer(range_.name if range_ else "?", answer) % _LIMIT

    def raw_exits(self, timeout: float | None) -> Generator[Exit, None, None]:
        """See `CPU.raw_exits`."""
        engine = self._engine
        engine.check_open()
        limit = None if timeout is None else int(seconds("timeout", timeout) * 1e9)
        deadline = 0 if limit is None else time.monotonic_ns() + limit
        number = engine.begin_by_hand()
        self.pending = None
        try:
            step = engine.steps(number, deadline, partial(self._take_other, timeout))
            if self.timing is not None:
                step = _timed(step, *self.timing)
            self._uncoalesce()
            if self.on_begin is not None:
                self.on_begin(False)
            while True:
                yield step()
        except ValueError:
            engine.check_open()  # `close`, in another thread, has released the kvm_run page
            raise
        finally:
            engine.end_by_hand(number)

    def _take_other(self, timeout: float | None, code: int) -> Exit | None:
        """What a step by hand came back for, if it was no single access."""
        from pykvm.exits import Interrupted, decode

        engine = self._engine
        if code == codes.EXIT:
            return decode(engine.run_page)
        if code == codes.KICKED:
            engine.end_exit()
            return Interrupted()
        if code == codes.DEADLINE:
            raise TimeoutError(f"vCPU {engine.index} still runs after {timeout} s")
        if code == codes.DRAIN:
            # Of a run that an exception ended.
            if self._dispatch is not None:
                self._dispatch.deliver()
        elif code == codes.ATTENTION:
            engine.clear_attention()
        elif code == codes.REFUSED:
            engine.not_entered()
        elif code != codes.AGAIN:
            engine.failed()
        return None

    def _uncoalesce(self) -> None:
        """Make every write exit: the kernel is to collect none."""
        if self._dispatch is not None:
            self._dispatch.coalesce(False)


def _timed(
    step: Callable[[], Exit], start: Callable[[], None], stop: Callable[[], None]
) -> Callable[[], Exit]:
    def timed() -> Exit:
        start()
        try:
            return step()
        finally:
            stop()

    return timed
