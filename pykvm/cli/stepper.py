"""A guest that stands at a VM exit, and the ways to go on from there."""

from __future__ import annotations

from pykvm.cli.consoles import Lines
from pykvm.cli.describe import linear_rip, location
from pykvm.cli.instruction import instruction_at, instruction_of
from pykvm.cli.palette import Palette
from pykvm.cli.sentences import answer, reason
from pykvm.cli.source_lines import SourceLines
from pykvm.errors import StateError
from pykvm.exits import (
    Debug,
    FailEntry,
    IoIn,
    MemoryFault,
    MmioRead,
    RdMsr,
    Shutdown,
)
from pykvm.machine.crash import crash_of
from pykvm.printable import printable, printable_lines
from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.exits import Exit
    from pykvm.machine import Machine
    from pykvm.result import Result
    from pykvm.vcpu import CPU

__all__ = ["Stepper"]

# Seconds after which the prompt returns from a guest that does not exit.
PATIENCE = 10.0
STEP_PATIENCE = 2.0

_LONGEST_INSTRUCTION = 15
_OWNER = "step"

_PLAIN = Palette(on=False).paint

# Ends after which there is nothing to go on with.
_OVER = frozenset({Outcome.EXITED, Outcome.RESET, Outcome.HALTED, Outcome.CRASHED})


class Stepper:
    """A machine that stands at one VM exit.

    `show` prints a line, and `paint` colours text (`Palette.paint`).  `cpu` is the vCPU that is
    looked at, `exit` where it stands (None at the start), `count` how many exits there were.
    `ending` says how the guest ended, once it has.
    """

    def __init__(
        self,
        machine: Machine,
        show: Callable[[str], object],
        *,
        image: str = "",
        paint: Callable[[str, str], str] = _PLAIN,
        console: bool = True,
    ) -> None:
        """`image` is the guest's file, for its lines of source.

        `console` says whether lines on the serial port are shown, too.
        """
        self.machine = machine
        self.cpu: CPU = machine.vcpus[0]
        self.show = show
        self.exit: Exit | None = None
        self.count = 0
        self.ending = ""
        self.breakpoints: list[int] = []
        self._paint = paint
        self._source = SourceLines(image)
        self._lines = Lines(self._show_lines)
        if console:
            machine.serial.on_output(self._lines.write)
        machine.on_emulated(self._show_emulated)

    @property
    def place(self) -> str:
        """Where the vCPU is, with its symbol."""
        return location(self.machine, linear_rip(self.cpu))

    @property
    def answered(self) -> bool:
        """Whether the exit was answered or taken by hand."""
        return self.exit is not None and self.exit.taken

    def complain(self, error: object) -> None:
        """Show what is wrong with a command, and what to do about it below."""
        first, *others = str(error).splitlines() or [""]
        self.show("\n    ".join([self._paint("error", first), *others]))

    def describe(self) -> None:
        """Show the exit: why, who answers, and the instruction with its symbol and line."""
        exit = self.exit
        if exit is None:
            self.show(self._instruction_line())
            return
        several = len(self.machine.vcpus) > 1
        who = f"vCPU {self.cpu.index}" if several else "the guest"
        answers = answer(self.machine, exit)
        self.show(
            f"[{self.count}] {self._paint('exit', f'{who} {reason(exit)}')}"
            + (f"; {answers}" if answers else "")
        )
        if isinstance(exit, (Shutdown, FailEntry, MemoryFault)):
            crash = crash_of(self.cpu, exit, self.machine.symbol_at).message
            self.show(f"    {self._paint('error', crash)}")
        self.show(self._instruction_line())

    def _instruction_line(self) -> str:
        exit = self.exit
        instruction = (
            instruction_at(self.cpu, linear_rip(self.cpu))
            if exit is None or isinstance(exit, Debug)
            else instruction_of(self.cpu, exit, self._function())
        )
        line = printable(self._source.at(instruction.address))
        where = location(self.machine, instruction.address)
        parts = (
            self._paint("place", where),
            self._paint("source", line),
            self._paint("instruction", str(instruction)),
        )
        return "    " + "  ".join(filter(None, parts))

    def _function(self) -> int | None:
        """Where the function begins that the vCPU stands in."""
        entry, rip = self.machine.entry, linear_rip(self.cpu)
        found = entry.symbols.find(rip) if entry is not None else None
        return rip - found[1] if found is not None else None

    def next(self) -> None:
        """Let the exit be answered, if it was not by hand, and run to the next one."""
        if self._alive() and self._run_to_exit(PATIENCE):
            self.describe()

    def step(self) -> None:
        """Run one instruction, or to the exit in its middle."""
        if not self._alive():
            return
        cpu, before = self.cpu, linear_rip(self.cpu)
        cpu.debug.single_step(True)
        try:
            stopped = self._run_to_exit(STEP_PATIENCE)
        finally:
            cpu.debug.single_step(False)
        if stopped:
            self.describe()
        if not (self.ending or (stopped and isinstance(self.exit, Debug))):
            self._explain_missed_step(before)

    def finish(self, until: str | None = None) -> None:
        """Let everything be answered until the guest is done, a breakpoint comes, or a text."""
        if not self._alive():
            return
        self._settle(self.machine.run(until=until))

    def run_to(self, address: int) -> None:
        """Go on to this linear address, or to the end."""
        self._set(*self.breakpoints, address)
        try:
            self.finish()
        finally:
            self._set(*self.breakpoints)

    def answer(self, value: int) -> None:
        """Answer the read that the guest waits for.  Raises StateError if it waits for none."""
        if self.answered or not isinstance(self.exit, (IoIn, MmioRead, RdMsr)):
            raise StateError("the guest waits for no answer here")
        self.exit.answer(value)

    def take(self) -> None:
        """Keep the exit from the device that would answer.  Raises StateError if there is none."""
        if self.exit is None:
            raise StateError("the guest is at no exit")
        self.exit.take()

    def look_at(self, index: int) -> None:
        """Look at another vCPU."""
        self.cpu = self.machine.vcpus[index]

    def _set(self, *addresses: int) -> None:
        for cpu in self.machine.vcpus:
            cpu.debug.set_breakpoints(_OWNER, addresses)

    def add_breakpoint(self, address: int) -> None:
        """Stop the guest whenever it comes to this linear address."""
        self._set(*self.breakpoints, address)
        if address not in self.breakpoints:
            self.breakpoints.append(address)

    def remove_breakpoint(self, address: int) -> None:
        """No longer.  Raises StateError if there is none."""
        if address not in self.breakpoints:
            raise StateError(f"there is no breakpoint at {address:#x}")
        self.breakpoints.remove(address)
        self._set(*self.breakpoints)

    def _alive(self) -> bool:
        if self.ending:
            self.show(self.ending)
        return not self.ending

    def _run_to_exit(self, patience: float) -> bool:
        """Run to the next exit; False, and a line that says so, if none comes."""
        exits = self.machine.exits(timeout=patience)
        self.exit = None
        for exit in exits:
            self.exit, self.cpu = exit, exits.cpu
            self.count += 1
            return True
        assert exits.result is not None
        if exits.result.outcome is Outcome.TIMEOUT:
            self._lines.flush()
            self.show(f"no exit within {patience:g} s: the guest is at {self.place}")
        else:
            self._settle(exits.result)
        return False

    def _settle(self, result: Result) -> None:
        """A run has ended."""
        self._lines.flush()
        self.exit = None
        kind = "error" if result.outcome is Outcome.CRASHED else "exit"
        self.show(self._paint(kind, f"{result.sentence}{result.where}"))
        if result.error is not None and result.error.hint:
            self.show(f"    {result.error.hint}")
        if result.outcome in _OVER:
            self.ending = result.sentence
        else:
            self.show(self._instruction_line())

    def _show_emulated(self, cpu: CPU, name: str, result: str) -> None:
        self.show(f"    {name}, which KVM refused: {result}")

    def _explain_missed_step(self, before: int) -> None:
        """Say so if the guest ran on although it was to stop after one instruction."""
        if not before <= linear_rip(self.cpu) <= before + _LONGEST_INSTRUCTION:
            self.show(
                f"    it did not stop after one instruction: this host's KVM does not "
                f"single-step everywhere (the guest is in ring {self.cpu.state.cpl})"
            )

    def _show_lines(self, text: bytes) -> None:
        """What the guest prints, marked as its own."""
        plain = printable_lines(text.decode(errors="replace").removesuffix("\n"))
        for line in plain.split("\n"):
            self.show(f"    | {self._paint('console', line)}")
