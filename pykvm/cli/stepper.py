"""A guest that stands at a VM exit, and the ways to go on from there."""

from __future__ import annotations

from contextlib import closing

from pykvm.bus import GuestExit, GuestReset
from pykvm.cli.consoles import Lines
from pykvm.cli.describe import device_name, linear_rip, location, target
from pykvm.cli.report import ending_line
from pykvm.errors import GuestError, MemoryRangeError, StateError
from pykvm.exits import (
    Debug,
    FailEntry,
    Hlt,
    InternalError,
    IoIn,
    MemoryFault,
    MmioRead,
    RdMsr,
    Shutdown,
)
from pykvm.machine.crash import crash_of
from pykvm.printable import printable_lines
from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.exits import Exit
    from pykvm.machine import Machine

__all__ = ["Stepper"]

# Seconds after which a guest that does not exit is given back to the prompt.
PATIENCE = 10.0
STEP_PATIENCE = 2.0
_LONGEST_INSTRUCTION = 15
_CODE = 8

_OVER = frozenset({Outcome.EXITED, Outcome.RESET, Outcome.HALTED, Outcome.CRASHED})


class Stepper:
    """The first vCPU of a machine at one VM exit.

    `show` prints a line.  `exit` is where the guest stands (None at the start), `count` how many
    there were.  `settled` tells whether the exit was answered, by its device or by hand.  `ending`
    says how the guest ended, once it has.
    """

    def __init__(self, machine: Machine, show: Callable[[str], object]) -> None:
        self.machine = machine
        self.cpu = machine.vcpus[0]
        self.show = show
        self.exit: Exit | None = None
        self.count = 0
        self.settled = True
        self.ending = ""
        self._lines = Lines(self._show_lines)
        machine.serial.on_output(self._lines.write)

    @property
    def place(self) -> str:
        """Where the vCPU is, with its symbol."""
        return location(self.machine, linear_rip(self.cpu))

    def next(self) -> None:
        """Let the device answer, if nobody did by hand, and run to the next exit."""
        self.settle()
        if self._alive() and self._run_to_exit(PATIENCE):
            self._show_exit()

    def step(self) -> None:
        """Run one instruction, or to the exit in its middle."""
        self.settle()
        if not self._alive():
            return
        before = linear_rip(self.cpu)
        self.cpu.debug.single_step(True)
        try:
            stopped = self._run_to_exit(STEP_PATIENCE)
        finally:
            self.cpu.debug.single_step(False)
        if stopped:
            self._show_exit()
        if not isinstance(self.exit, Debug) or not stopped:
            self._explain_missed_step(before)

    def finish(self) -> None:
        """Let the devices answer everything until the guest is done."""
        self.settle()
        if not self._alive():
            return
        self.exit = None
        result = self.machine.run()
        self._lines.flush()
        # Without the console's last lines: they are on this terminal.
        self.show(ending_line(result.sentence + result.where, result))
        if result.outcome in _OVER:
            self.ending = result.sentence

    def answer(self, value: int) -> None:
        """Answer the read that the guest waits for.  Raises StateError if it waits for none."""
        if self.settled or not isinstance(self.exit, (IoIn, MmioRead, RdMsr)):
            raise StateError("the guest waits for no answer here")
        self.exit.answer(value)
        self.settled = True

    def settle(self) -> None:
        """Have the exit done with: by its device, unless it was answered by hand."""
        exit = self.exit
        if self.settled or exit is None:
            return
        self.settled = True
        try:
            if not self.machine.handle(exit) and target(exit) is not None:
                self.show("nobody is there: reads give all ones, writes go nowhere")
        except GuestExit as ended:
            self.ending = f"the guest exited with code {ended.code}"
        except GuestReset as reset:
            self.ending = f"the guest asked for a reset ({reset.how})"
        if self.ending:
            self._lines.flush()

    def _alive(self) -> bool:
        if self.ending:
            self.show(self.ending)
        return not self.ending

    def _run_to_exit(self, patience: float) -> bool:
        """Run to the next exit; False, and a line that says so, if none comes."""
        # A loop of its own each time: the clock must not tick while a person thinks.
        exits = self.cpu.raw_exits(timeout=patience)
        try:
            with closing(exits):
                self.exit = next(exits)
        except TimeoutError:
            self.exit = None
            self.show(f"no exit within {patience:g} s, at {self.place}")
            return False
        self.count += 1
        self.settled = target(self.exit) is None and not isinstance(self.exit, RdMsr)
        return True

    def _show_exit(self) -> None:
        exit = self.exit
        assert exit is not None
        match exit:
            case Debug():
                self.show(f"[{self.count}] stepped to {self.place}: {self._code()}")
                return
            case InternalError() if self._made_good(exit):
                return
        device = device_name(self.machine, exit)
        who = f" for {device}" if device else ""
        self.show(f"[{self.count}] {exit!r}{who} at {self.place}")
        match exit:
            case Hlt():
                self.show("    nothing here can wake it; n goes on behind the HLT")
            case Shutdown() | InternalError() | FailEntry() | MemoryFault():
                self.show(f"    {crash_of(self.cpu, exit, self.machine.symbol_at).message}")

    def _made_good(self, exit: InternalError) -> bool:
        """Whether the instruction that KVM refused was done all the same; then it says so."""
        machine = self.machine

        def done(_: object, name: str, result: str) -> None:
            self.show(
                f"[{self.count}] {name}, which KVM refused: {result}, on at {self.place}: "
                f"{self._code()}"
            )

        machine.on_emulated = done
        try:
            return machine.make_good(self.cpu, exit)
        except GuestError as error:
            self.show(f"    {error.message}")
            return False
        except GuestExit as ended:
            self.ending = f"the guest exited with code {ended.code}"
            return True
        except GuestReset as reset:
            self.ending = f"the guest asked for a reset ({reset.how})"
            return True
        finally:
            machine.on_emulated = None

    def _code(self) -> str:
        """The bytes of the next instruction and what follows it."""
        try:
            return self.cpu.read(linear_rip(self.cpu), _CODE).hex(" ")
        except MemoryRangeError:
            return "not readable"

    def _explain_missed_step(self, before: int) -> None:
        """Say so if the guest ran on although it was to stop after one instruction."""
        if not before <= linear_rip(self.cpu) <= before + _LONGEST_INSTRUCTION:
            ring = self.cpu.state.cpl
            self.show(
                f"    it did not stop after one instruction: this host's KVM does not "
                f"single-step everywhere (the guest is in ring {ring})"
            )

    def _show_lines(self, text: bytes) -> None:
        """What the guest prints, marked as its own."""
        plain = printable_lines(text.decode(errors="replace").removesuffix("\n"))
        for line in plain.split("\n"):
            self.show(f"    | {line}")
