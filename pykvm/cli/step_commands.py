"""The commands of the stepping prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.cli.dump import code_line, hex_dump, stack_lines
from pykvm.cli.views import gdt_lines, idt_lines, tss_lines, walk_lines
from pykvm.errors import ConfigError, PykvmError, StateError
from pykvm.values.frozen import NamedTuple
from pykvm.vcpu.registers import CONTROL, GENERAL, SEGMENTS, TABLES
from pykvm.x86.registers import CR0, CR3, CR4, EFER, RFLAGS, decode
from pykvm.x86.state import SegmentRegister, TableRegister

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.cli.stepper import Stepper

__all__ = ["COMMANDS", "Command", "Leave", "command", "find", "words_like"]

_DUMP = 64
_LONGEST_DUMP = 1 << 16
_BITS: dict[str, type] = {"rflags": RFLAGS, "cr0": CR0, "cr3": CR3, "cr4": CR4, "efer": EFER}
_RFLAGS_ONE = 2  # bit 1 reads as one, whatever is written


class Leave(Exception):
    """The command quit."""


class Command(NamedTuple):
    """A command: `do` takes the stepper and the `least` to `most` words after its name."""

    names: tuple[str, ...]
    do: Callable[[Stepper, Sequence[str]], None]
    arguments: str
    help: str
    least: int = 0
    most: int = 0


def find(name: str) -> Command | None:
    """The command of this name."""
    return next((one for one in COMMANDS if name in one.names), None)


def command(stepper: Stepper, line: str) -> None:
    """Do what one line says.  Whatever goes wrong is shown; only quit raises, `Leave`."""
    name, *words = line.split() or ["n"]
    found = find(name)
    try:
        if found is None:
            raise ConfigError(f"there is no command {name!r}; help lists them")
        if not found.least <= len(words) <= found.most:
            raise ConfigError(f"usage: {name} {found.arguments}".rstrip())
        found.do(stepper, words)
    except PykvmError as error:
        stepper.complain(error)
    except KeyboardInterrupt:
        stepper.show(f"interrupted at {stepper.place}")


def words_like(stepper: Stepper, text: str, *, first: bool) -> list[str]:
    """What Tab offers for `text`: commands for the first word, registers and symbols after it."""
    if first:
        offered = [name for one in COMMANDS for name in one.names if len(name) > 1]
    else:
        offered = [*GENERAL, *CONTROL, *SEGMENTS, *TABLES, *stepper.machine.symbols]
    return sorted(word for word in offered if word.startswith(text))


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


def _until(stepper: Stepper, words: Sequence[str]) -> None:
    text = " ".join(words)
    if text[0] in "\"'":
        stepper.finish(until=text.strip(text[0]))
    elif len(words) > 1:
        raise ConfigError("usage: until ADDR, or until 'TEXT'")
    else:
        try:
            there = address(stepper, text)
        except ConfigError as error:
            hint = f"a text to wait for stands in quotes: until '{text}'"
            raise ConfigError(error.message, hint=hint) from None
        stepper.run_to(there)


def _break(stepper: Stepper, words: Sequence[str]) -> None:
    if words:
        stepper.add_breakpoint(address(stepper, words[0]))
    for at in stepper.breakpoints:
        stepper.show(f"breakpoint at {at:#x} {stepper.machine.symbol_at(at)}".rstrip())
    if not stepper.breakpoints:
        stepper.show("no breakpoints")


def _delete(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.remove_breakpoint(address(stepper, words[0]))


def _answer(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.answer(_number(words[0]))
    stepper.show(f"answered with {_number(words[0]):#x}; n goes on")


def _take(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.take()
    stepper.show("taken: nothing else answers this exit; n goes on")


def _input(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.machine.serial.send(" ".join(words) + "\n")


def _registers(stepper: Stepper, words: Sequence[str]) -> None:
    if not words:
        stepper.show(str(stepper.cpu.state))
        return
    name, equals, text = "".join(words).partition("=")
    if equals:
        _assign(stepper, name, text)
    stepper.show(f"{name} = {_shown(stepper, name)}")


def _set(stepper: Stepper, words: Sequence[str]) -> None:
    name, equals, text = "".join(words).partition("=")
    if not equals:
        raise ConfigError("usage: set NAME=VALUE, as rax=1 or cs.type=3")
    _assign(stepper, name, text)
    stepper.show(f"{name} = {_shown(stepper, name)}")


def _fields(name: str) -> tuple[str, ...]:
    """The fields of a segment or table register."""
    if name in SEGMENTS:
        return SegmentRegister.__slots__
    return TableRegister.__slots__ if name in TABLES else ()


def _assign(stepper: Stepper, name: str, text: str) -> None:
    register, _, field = name.partition(".")
    regs: Any = stepper.cpu.regs
    value = address(stepper, text)
    exit = stepper.exit
    if exit is not None and exit.awaits_answer and not (exit.taken or exit.is_over):
        raise StateError(
            "the guest waits for an answer, which setting a register would end",
            hint="a VALUE answers, t lets a read give all ones, n has the device answer",
        )
    if not field and register in GENERAL + CONTROL:
        setattr(regs, register, value | _RFLAGS_ONE if register == "rflags" else value)
    elif field and field in _fields(register):
        whole = getattr(regs, register)
        setattr(whole, field, value)
        setattr(regs, register, whole)
    elif _fields(register):
        raise ConfigError(f"{register} has the fields {', '.join(_fields(register))}")
    else:
        raise ConfigError(f"there is no register {name!r} to set")


def _shown(stepper: Stepper, name: str) -> str:
    register, _, field = name.partition(".")
    if register not in GENERAL + CONTROL + SEGMENTS + TABLES:
        raise ConfigError(f"there is no register {name!r} to show")
    if register in SEGMENTS + TABLES and not field:
        # As the whole state has it: what a type means depends on the mode.
        lines = str(stepper.cpu.state).splitlines()
        line = next((line for line in lines if line.split()[:1] == [register]), "")
        shown = line.strip().removeprefix(register).strip().removeprefix("=")
        return shown or str(getattr(stepper.cpu.regs, register))
    found: Any = getattr(stepper.cpu.regs, register)
    if field:
        if field not in _fields(register):
            raise ConfigError(f"{register} has no field {field!r}")
        found = getattr(found, field)
    if register in _BITS:
        return decode(found, _BITS[register])
    return f"{found:#x} {stepper.machine.symbol_at(found)}".rstrip()


def _memory(stepper: Stepper, words: Sequence[str]) -> None:
    start = address(stepper, words[0])
    stepper.show("\n".join(hex_dump(stepper.cpu.read(start, _length(words[1:])), start)))


def _physical(stepper: Stepper, words: Sequence[str]) -> None:
    start = address(stepper, words[0])
    data = stepper.machine.memory.read(start, _length(words[1:]))
    stepper.show("\n".join(hex_dump(data, start)))


def _pages(stepper: Stepper, words: Sequence[str]) -> None:
    wanted = address(stepper, words[0])
    stepper.show("\n".join(walk_lines(stepper.machine, stepper.cpu, wanted)))


def _gdt(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.show("\n".join(gdt_lines(stepper.cpu)))


def _idt(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.show("\n".join(idt_lines(stepper.machine, stepper.cpu)))


def _tss(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.show("\n".join(tss_lines(stepper.cpu)))


def _where(stepper: Stepper, words: Sequence[str]) -> None:
    stepper.describe()
    lines = [code_line(stepper.machine, stepper.cpu), *stack_lines(stepper.machine, stepper.cpu)]
    stepper.show("\n".join(lines))


def _devices(stepper: Stepper, words: Sequence[str]) -> None:
    machine = stepper.machine
    stepper.show("\n".join([*map(str, machine.memory.regions), *map(str, machine.bus.ranges)]))


def _vcpu(stepper: Stepper, words: Sequence[str]) -> None:
    vcpus = stepper.machine.vcpus
    if words:
        index = _number(words[0])
        if not 0 <= index < len(vcpus):
            raise ConfigError(f"there are vCPUs 0 to {len(vcpus) - 1}, not {index}")
        stepper.look_at(index)
    for cpu in vcpus:
        mark = "*" if cpu is stepper.cpu else " "
        stepper.show(f"{mark} {cpu.index} {'parked' if cpu.parked else cpu.state.mode.value}")


def _quit(stepper: Stepper, words: Sequence[str]) -> None:
    raise Leave


def _help(stepper: Stepper, words: Sequence[str]) -> None:
    rows = [(f"{', '.join(one.names)} {one.arguments}".rstrip(), one.help) for one in COMMANDS]
    width = max(len(left) for left, _ in rows)
    stepper.show("\n".join(f"  {left:<{width}}  {right}" for left, right in rows))
    stepper.show("  ADDR is a number, a register, a symbol or a sum: 0x1000, rsp+8, main")
    stepper.show("  Enter is next; Tab completes commands, registers and symbols")


COMMANDS = (
    Command(("n", "next"), _next, "[COUNT]", "have this exit answered, go on to the next", most=1),
    Command(("s", "step"), _step, "[COUNT]", "one instruction", most=1),
    Command(("c", "continue"), _continue, "", "go on to a breakpoint or the end; Ctrl-C stops"),
    Command(("until",), _until, "ADDR|'TEXT'", "go on to an address, or to a text on COM1", 1, 100),
    Command(
        ("b", "break"), _break, "[ADDR]", "stop there from now on, or list breakpoints", most=1
    ),
    Command(("delete",), _delete, "ADDR", "remove a breakpoint", 1, 1),
    Command(("a", "answer"), _answer, "VALUE", "answer this read by hand, not by its device", 1, 1),
    Command(("t", "take"), _take, "", "keep this exit from its device: a write goes nowhere"),
    Command(("r", "regs", "registers"), _registers, "[NAME]", "all registers, or one", most=3),
    Command(("set",), _set, "NAME=VALUE", "set a register or a field: rax=1, cs.type=3", 1, 3),
    Command(("m", "x"), _memory, "ADDR [LENGTH]", "memory at a virtual address", 1, 2),
    Command(("mp", "xp"), _physical, "ADDR [LENGTH]", "memory at a physical address", 1, 2),
    Command(("w", "pt"), _pages, "ADDR", "how page tables translate it, and what is there", 1, 1),
    Command(("gdt",), _gdt, "", "the global descriptor table"),
    Command(("idt",), _idt, "", "the interrupt descriptor table, or real mode's vectors"),
    Command(("tss",), _tss, "", "the task state segment"),
    Command(("p", "where"), _where, "", "this exit again, code at RIP, the top of the stack"),
    Command(("d", "devices"), _devices, "", "memory and devices: what is where"),
    Command(("cpu",), _vcpu, "[N]", "list the vCPUs, or look at another one", most=1),
    Command(("i", "input"), _input, "TEXT", "type a line at the guest's serial port", 1, 1000),
    Command(("h", "help", "?"), _help, "", "this list"),
    Command(("q", "quit", "exit"), _quit, "", "leave"),
)
