"""`pykvm step`: a prompt that stops at every VM exit."""

from __future__ import annotations

import sys
from contextlib import suppress

from pykvm.cli.dump import code_line, hex_dump, stack_lines
from pykvm.cli.machine import machine_of
from pykvm.cli.report import show
from pykvm.cli.stepper import Stepper
from pykvm.errors import ConfigError, HostError, PykvmError
from pykvm.printable import printable
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.vcpu.registers import CONTROL, GENERAL, SEGMENTS, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pykvm.cli.options import Options

__all__ = ["COMMANDS", "Command", "Leave", "command", "main"]

_PROMPT = "step> "
_DUMP = 64
_LONGEST_DUMP = 1 << 16


class Leave(Exception):
    """The command q."""


def main(options: Options) -> int:
    """Step through the guest that `options` describe and return the exit status."""
    with machine_of(options) as machine:
        stepper = Stepper(machine, _show_line)
        place = f"{printable(options.guest)} is about to start at {stepper.place}"
        _show_line(f"{place}; h lists the commands")
        with suppress(Leave):
            for line in _lines():
                command(stepper, line)
    return 0


def _prompt() -> str:
    try:
        return input(_PROMPT)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"cannot ask for a command: {error.strerror}") from error


def _lines() -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
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


def command(stepper: Stepper, line: str) -> None:
    """Do what one line says.  Whatever goes wrong is shown; only q raises, `Leave`."""
    name, *words = line.split() or ["n"]
    found = COMMANDS.get(name)
    try:
        if found is None:
            raise ConfigError(f"there is no command {name!r}; h lists them")
        if not found.least <= len(words) <= found.most:
            raise ConfigError(f"usage: {name} {found.arguments}".rstrip())
        found.do(stepper, words)
    except PykvmError as error:
        stepper.show("\n    ".join(str(error).splitlines()))
    except KeyboardInterrupt:
        stepper.show(f"interrupted at {stepper.place}")


# -- reading what was typed ------------------------------------------------------------------


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number (write 10 or 0x10)") from None


def address(stepper: Stepper, text: str) -> int:
    """A number, a register, a symbol, or a sum of those: "0x1000", "rsp+8", "main"."""
    total = 0
    for word in text.split("+"):
        if word in GENERAL or word in CONTROL:
            total += getattr(stepper.cpu.regs, word)
        elif word in stepper.machine.symbols:
            total += stepper.machine.symbols[word]
        else:
            try:
                total += int(word, 0)
            except ValueError:
                raise ConfigError(f"{word!r} is no number, register or symbol") from None
    return total


def _length(words: Sequence[str]) -> int:
    length = _number(words[0]) if words else _DUMP
    if not 0 < length <= _LONGEST_DUMP:
        raise ConfigError(f"a length from 1 to {_LONGEST_DUMP}, not {length}")
    return length


# -- the commands ----------------------------------------------------------------------------


def _repeat(stepper: Stepper, words: Sequence[str], go: Callable[[], None]) -> None:
    for _ in range(_number(words[0]) if words else 1):
        go()
        if stepper.ending:
            return


def _next(stepper: Stepper, words: Sequence[str]) -> None:
    _repeat(stepper, words, stepper.next)


def _step(stepper: Stepper, words: Sequence[str]) -> None:
    _repeat(stepper, words, stepper.step)


def _continue(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.finish()


def _answer(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.answer(_number(words[0]))


def _registers(stepper: Stepper, words: Sequence[str]) -> None:
    if not words:
        stepper.show(str(stepper.cpu.state))
        return
    name, equals, text = "".join(words).partition("=")
    known = GENERAL + CONTROL if equals else GENERAL + CONTROL + SEGMENTS + TABLES
    if name not in known:
        raise ConfigError(f"there is no register {name!r} to {'set' if equals else 'show'}")
    if equals:
        value = address(stepper, text)
        # A device that still has to answer would overwrite it.
        stepper.settle()
        setattr(stepper.cpu.regs, name, value)
    found: Any = getattr(stepper.cpu.regs, name)
    symbol = stepper.machine.symbol_at(found) if isinstance(found, int) else ""
    shown = f"{found:#x} {symbol}".rstrip() if isinstance(found, int) else str(found)
    stepper.show(f"{name} = {shown}")


def _memory(stepper: Stepper, words: Sequence[str]) -> None:
    start = address(stepper, words[0])
    stepper.show("\n".join(hex_dump(stepper.cpu.read(start, _length(words[1:])), start)))


def _physical(stepper: Stepper, words: Sequence[str]) -> None:
    start = address(stepper, words[0])
    data = stepper.machine.memory.read(start, _length(words[1:]))
    stepper.show("\n".join(hex_dump(data, start)))


def _walk(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.show(str(stepper.cpu.walk(address(stepper, words[0]))))


def _place(stepper: Stepper, words: Sequence[str]) -> None:
    lines = [code_line(stepper.machine, stepper.cpu), *stack_lines(stepper.machine, stepper.cpu)]
    stepper.show("\n".join(lines))


def _devices(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.show(
        "\n".join(
            [*map(str, stepper.machine.memory.regions), *map(str, stepper.machine.bus.ranges)]
        )
    )


def _input(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.machine.serial.send(" ".join(words) + "\n")


def _quit(stepper: Stepper, words: Sequence[str]) -> None:
    raise Leave


def _help(stepper: Stepper, words: Sequence[str]) -> None:
    rows = [(f"{name} {one.arguments}".rstrip(), one.help) for name, one in COMMANDS.items()]
    stepper.show("\n".join(f"  {left:<18} {right}" for left, right in rows))
    stepper.show("  ADDR is a number, a register, a symbol or a sum: 0x1000, rsp+8, main")


class Command(NamedTuple):
    """A command: `do` takes the stepper and the `least` to `most` words after its name."""

    do: Callable[[Stepper, Sequence[str]], None]
    arguments: str
    help: str
    least: int = 0
    most: int = 0


COMMANDS = {
    "n": Command(_next, "[COUNT]", "go on to the next exit; Enter does it too", most=1),
    "s": Command(_step, "[COUNT]", "one instruction", most=1),
    "c": Command(_continue, "", "go on to the end (Ctrl-C comes back here)"),
    "a": Command(_answer, "VALUE", "answer this IN or read by hand, not by its device", 1, 1),
    "r": Command(_registers, "[NAME[=VALUE]]", "registers: all, one, or set one", most=3),
    "m": Command(_memory, "ADDR [LENGTH]", "memory at a virtual address", 1, 2),
    "mp": Command(_physical, "ADDR [LENGTH]", "memory at a physical address", 1, 2),
    "w": Command(_walk, "ADDR", "how the page tables translate an address", 1, 1),
    "p": Command(_place, "", "code at RIP and the top of the stack"),
    "d": Command(_devices, "", "memory and devices: what is where"),
    "i": Command(_input, "TEXT", "type a line at the guest's serial port", 1, 1000),
    "h": Command(_help, "", "this list"),
    "q": Command(_quit, "", "leave"),
}
