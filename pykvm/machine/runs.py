"""The runs of a machine, one after the other."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import contextmanager
from functools import partial

from pykvm.boot.symbols import Symbols
from pykvm.errors import StateError
from pykvm.machine.guest_ends import ending_of
from pykvm.machine.listening import Listening
from pykvm.machine.run import Run
from pykvm.result import Ending, Outcome, Unclaimed
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.boot import Entry
    from pykvm.bus.published import Shared
    from pykvm.exits import Exit
    from pykvm.machine.answers import Answers
    from pykvm.machine.board import Board
    from pykvm.machine.exits import Exits
    from pykvm.machine.guest import Guest
    from pykvm.machine.linux_console import KernelWatch
    from pykvm.machine.until import Ear
    from pykvm.machine.workarounds import Workarounds
    from pykvm.result import Result
    from pykvm.vcpu import CPU

__all__ = ["Runs"]

# Ends of a kernel that has said its last word, if it was one of a panic.
_MAY_BE_DEAD = frozenset({Outcome.RESET, Outcome.HALTED, Outcome.TIMEOUT, Outcome.CRASHED})


class Runs:
    """Runs a board with the guest on it, one run at a time.

    `entry` is where the guest was placed, None if there is no image; `remarks` go into each Result.
    """

    def __init__(
        self,
        board: Board,
        workarounds: Workarounds,
        guest: Guest,
        entry: Entry | None,
        remarks: tuple[str, ...],
    ) -> None:
        self._board = board
        self._workarounds = workarounds
        self._guest = guest
        self._entry = entry
        self._remarks = remarks
        self._symbol_at = (Symbols() if entry is None else entry.symbols).name_at
        self.listening = Listening(board.devices, is_linux=guest.is_linux)
        #: Called before each run; what it raises comes out of that.
        self.check: Callable[[], None] | None = None
        # The run in progress, or the last one: see `Board.claim`.
        self._last: Run | None = None
        #: What the last one that has ended returned, None if it was an exception.
        self.last_result: Result | None = None
        #: Whether a run is in progress, from its beginning until its result is known.
        self.busy = False
        #: Held by a console that runs the machine while it waits.
        self.waiting = allocate_lock()
        self._answers: Answers | None = None

    @property
    def under_way(self) -> bool:
        """Whether a run is in progress."""
        return self._last is not None and self._last.under_way

    def stop(self) -> bool:
        """From any thread: end the run in progress as STOPPED.  False if there is none."""
        return self._last is not None and self._last.stop()

    @property
    def answers(self) -> Answers:
        """Made when an exit first comes to Python: many a guest ends without any."""
        if self._answers is None:
            from pykvm.machine.answers import Answers

            self._answers = Answers(self._board, self._workarounds, self._guest, self._symbol_at)
        return self._answers

    def run(
        self,
        machine: object,
        timeout: float | None,
        until: object,
        fail: object,
        *,
        on_exit: Callable[[CPU, Exit], None] | None = None,
        on_answer: Callable[[CPU, Exit], None] | None = None,
        ear: Ear | None = None,
        in_guest_time: bool = False,
    ) -> Result:
        """See `Machine.run`; `machine` is for the functions in `until` and `fail`.

        `ear` hears what they wait for, instead of the first serial port's.  `in_guest_time` if
        `timeout` is of the guest's time.
        """
        part = partial(
            self._run,
            machine,
            timeout,
            until,
            fail,
            on_exit=on_exit,
            on_answer=on_answer,
            ear=ear,
            in_guest_time=in_guest_time,
        )
        return self._claimed(part)

    def run_after_waits(self, run: Callable[[], Result]) -> Result:
        """Run as soon as no console runs the machine while it waits for something."""
        while True:
            with self.waiting:
                pass
            try:
                return run()
            except StateError:
                if not self.waiting.locked():
                    raise

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is one that runs the machine."""
        return self._board.claim.is_mine

    def exits(self, machine: object, timeout: float | None, until: object, fail: object) -> Exits:
        """See `Machine.exits`."""
        from pykvm.machine.exits import Exits

        def run(left: float | None, goes_on: bool) -> tuple[Result, bool]:
            stops = self.answers.stops
            part = partial(
                self._run, machine, left, until, fail, limit=timeout, stops=stops, goes_on=goes_on
            )
            result = self._claimed(part)
            return result, self._last is not None and self._last.at_exit

        return Exits(self._board.vcpus, run, timeout)

    def _claimed(self, part: Callable[[], Result]) -> Result:
        """Do it in the machine's claim."""

        def whole() -> Result:
            result = None
            self.busy = True
            try:
                result = part()
                return result
            finally:
                self.last_result = result
                self.busy = False

        return self._board.claim.hold(whole)

    def _run(
        self,
        machine: object,
        timeout: float | None,
        until: object,
        fail: object,
        *,
        limit: float | None = None,
        on_exit: Callable[[CPU, Exit], None] | None = None,
        on_answer: Callable[[CPU, Exit], None] | None = None,
        stops: Callable[[CPU, Exit], bool] | None = None,
        goes_on: bool = False,
        ear: Ear | None = None,
        in_guest_time: bool = False,
    ) -> Result:
        """One run, or part of one, inside the machine's claim.

        With `goes_on` it is a further part of one that stopped at an exit (`stops`).
        """
        if self.check is not None:
            self.check()
        board, workarounds, listening = self._board, self._workarounds, self.listening
        collected = board.dispatch.collected
        with (
            listening.for_conditions(machine, collected, until, fail, ear) as conditions,
            listening.for_death() as kernel,
        ):
            run = Run(
                board.vcpus,
                board.claim,
                take=self._take_exit,
                timeout=None if in_guest_time else timeout,
                limit=limit,
                check=None if conditions is None else conditions.check,
                on_exit=on_exit,
                on_answer=on_answer,
                stops=stops,
                interrupts=board.irqchip.interrupts if board.irqchip else None,
                look=workarounds.look,
            )
            self._last = run
            board.on_interrupts = run.use_interrupts
            board.claim.check_open()  # `close` may not have seen it
            if conditions is not None:
                run.end(conditions.ending)
            before = workarounds.tally()
            if not goes_on:
                collected.forget_drops()
            with self._guest_deadline(run, timeout if in_guest_time else None):
                result = self._with_clock(run)
            workarounds.add_to(result, before)
            if not run.at_exit:
                result.awaited = "" if conditions is None else conditions.awaited
                self._complete(result, run, kernel)
            return result

    def settle(self) -> None:
        """Handle the exits at which the machine stands, inside its claim; no guest code runs.

        Raises StateError if one of them ends the guest, which then still stands there.
        """
        board = self._board
        pending = [(cpu, cpu.loop.pending) for cpu in board.vcpus]
        if all(exit is None for _, exit in pending):
            return
        run = Run(
            board.vcpus,
            board.claim,
            take=self._take_exit,
            timeout=None,
            interrupts=board.irqchip.interrupts if board.irqchip else None,
        )
        self._last = run
        board.on_interrupts = run.use_interrupts
        settled = False
        try:
            ending = run.settle()
            settled = ending is None
        finally:
            if not settled:
                for cpu, exit in pending:
                    cpu.loop.pending = exit
        if ending is not None:
            raise StateError(
                f"the guest ends at the exit at which this machine stands: {ending.sentence}",
                hint="take the snapshot before that exit, or answer the exit yourself",
            )

    def _take_exit(self, cpu: CPU, exit: Exit) -> Ending | None:
        """What becomes of an exit that the fast path left over."""
        return self.answers.take(cpu, exit)

    @contextmanager
    def _guest_deadline(self, run: Run, timeout: float | None) -> Iterator[None]:
        """End the run once so many seconds of the guest's time are over."""
        if timeout is None:
            yield
            return
        clock = self._board.clock
        sentence = f"the guest was still running after {timeout:g} s of its time"
        timer = clock.timer(lambda when: run.end(Ending(Outcome.TIMEOUT, sentence)))
        timer.arm(clock.now() + int(timeout * 1e9))
        try:
            yield
        finally:
            timer.cancel()

    def _with_clock(self, run: Run) -> Result:
        """Run, with the guest's clock going meanwhile."""
        board = self._board
        try:
            board.start_clock()
            try:
                return run()
            finally:
                board.stop_clock()
        except BaseException:
            # Ctrl-C may have come into the stopping; twice is harmless.
            board.stop_clock()
            raise

    def _complete(self, result: Result, run: Run, kernel: KernelWatch | None) -> None:
        """Add to a result what the guest said, and what else there is to say of its end."""
        board, guest = self._board, self._guest
        if kernel is not None and result.outcome in _MAY_BE_DEAD:
            death = kernel.death()
            if death is not None:
                result.end(ending_of(death, board.vcpus[0]))
        result.notes = (*self._remarks, *board.notes)
        if guest.open_bus:
            result.unclaimed = _unclaimed(board.dispatch.collected)
        if not result.ok:
            from pykvm.machine.report import complete

            complete(result, run, board, guest, self._symbol_at)
        if self._entry is not None and result.outcome is Outcome.CRASHED:
            result.notes += self._entry.suspicions


def _unclaimed(collected: Shared) -> Unclaimed:
    """The accesses that went nowhere."""
    reads, read = collected.drops(writes=False)
    writes, written = collected.drops(writes=True)
    return Unclaimed(reads, writes, tuple(map(str, (*written, *read))))
