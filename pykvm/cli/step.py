"""`pykvm step`: a prompt that stops at every VM exit."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress

from pykvm.cli.consoles import Consoles
from pykvm.cli.interrupts import Interrupts
from pykvm.cli.machine import machine_of
from pykvm.cli.output import TimeLimit
from pykvm.cli.palette import Palette
from pykvm.cli.report import say, show
from pykvm.cli.step_commands import Leave, command, words_like
from pykvm.cli.stepper import Stepper
from pykvm.errors import HostError
from pykvm.printable import printable
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.cli.options import Options
    from pykvm.machine import Machine

__all__ = ["main"]

_PROMPT = "step> "


def main(options: Options) -> int:
    """Step through the guest that `options` describe and return the exit status."""
    with machine_of(options) as machine, _consoles(machine, options):
        here = options.serial.kind == "stdio"
        palette = Palette.of_stdout()
        stepper = Stepper(
            machine, _show_line, image=options.guest, paint=palette.paint, console=here
        )
        place = f"{printable(options.guest)} is about to start at {stepper.place}"
        _show_line(f"{place}; help lists the commands")
        with suppress(Leave):
            for line in _lines(stepper):
                command(stepper, line)
    return 0


@contextmanager
def _consoles(machine: Machine, options: Options) -> Iterator[None]:
    """Connect a serial port that is to go elsewhere; here its lines are shown between exits."""
    if options.serial.kind == "stdio":
        yield
        return
    # Signals stay Python's own: Ctrl-C comes back to the prompt.
    with Consoles(machine, options, Interrupts(machine.stop), TimeLimit()) as consoles:
        yield
    for remark in consoles.remarks:
        say(remark)


def _prompt() -> str:
    try:
        return input(_PROMPT)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"cannot ask for a command: {error.strerror}") from error


def _edit_lines(stepper: Stepper) -> None:
    """Line editing, history and Tab for input(), where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    found: list[str] = []

    def complete(text: str, number: int) -> str | None:
        if number == 0:
            first = readline.get_begidx() == 0
            found[:] = words_like(stepper, text, first=first)
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" +=")
    readline.parse_and_bind("tab: complete")


def _lines(stepper: Stepper) -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D."""
    typed = sys.stdin.isatty()
    if typed:
        _edit_lines(stepper)
    while True:
        try:
            line = _prompt()
        except EOFError:
            _show_line("")
            return
        except KeyboardInterrupt:
            _show_line("")
            continue
        if not typed:
            # So that the output reads as the session would have looked.
            _show_line(line)
        yield line


def _show_line(text: str) -> None:
    show(f"{text}\n")
