"""What may stand on the command line: one table, from which it is parsed and `--help` is made.

Importing argparse alone would cost a third of a small guest's whole run.

>>> options = parse(["--memory", "32M", "guest.elf", "--", "one"])
>>> options.command, options.guest, options.arguments, options.config
('run', 'guest.elf', ('one',), {'memory': 33554432})
"""

from __future__ import annotations

import os

from pykvm.cli.status import UsageError
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import LONGEST_WAIT
from pykvm.values.frozen import NamedTuple
from pykvm.values.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from re import Pattern
    from typing import Any

__all__ = [
    "COMMANDS",
    "OPTIONS",
    "Destination",
    "Option",
    "Options",
    "parse",
    "spell",
]

COMMANDS = ("run", "step", "info", "snapshot")

# A number of MiB with more digits is one of bytes.
_DIGITS = 6


class Destination(NamedTuple):
    """Where a guest's console goes: `kind` is stdio, file, pty, unix, tcp or none.

    `path` belongs to file and unix; that of tcp is "PORT" or "HOST:PORT".
    """

    kind: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" if self.path else self.kind


class Options:
    """What was asked for.  The class has the defaults."""

    command: str = "run"
    guest: str = ""
    #: What stands after ``--``, for the guest.
    arguments: tuple[str, ...] = ()
    help: bool = False
    version: bool = False
    serial: Destination = Destination("stdio")
    serial2: Destination = Destination("none")
    debugcon: Destination = Destination("serial")
    #: How many bytes each file takes, None for any number.
    output_limit: int | None = 1 << 30
    timeout: float | None = None
    #: What ends the run once the guest has said it: texts and regular expressions.
    until: tuple[str | bytes | Pattern[str], ...] = ()
    #: The file for a snapshot at the end.
    save: str | None = None
    #: Whether a snapshot goes on where this host lacks what its guest knows.
    force: bool = False
    #: Whether the clocks of a snapshot go on from where they were, or with the host's.
    wall: str | None = None
    #: What `snapshot` is to do, and with which files.
    words: tuple[str, ...] = ()
    verify: bool = False
    exit_status: str = "guest"
    debug_exit: int | None = None
    quiet: bool = False
    trace: str | None = None
    trace_only: str | None = None
    trace_file: str | None = None
    stats: bool = False
    dump_on_exit: bool = False
    json: bool = False

    def __init__(self) -> None:
        #: What was asked for of the machine: fields of a MachineConfig, which has the defaults.
        self.config: dict[str, Any] = {}

    def put(self, option: Option, value: Any) -> None:
        """Note the value of an option."""
        known = self.config if option.group in OF_MACHINE else vars(self)
        known[option.field] = (*known.get(option.field, ()), value) if option.repeats else value


class Option(NamedTuple):
    """One row of the table.

    `metavar` is empty for an option that takes no value; `bare` is then what it stands for.  An
    option with both takes its value after "=" only.  `commands` are those that know it.  One that
    `repeats` gathers its values in a tuple.  Those of the groups OF_MACHINE set the field of
    MachineConfig that has their name, or the name `sets`; the others an attribute of Options.
    """

    flag: str
    metavar: str
    convert: Callable[[str], Any]
    group: str
    help: str
    commands: tuple[str, ...] = ("run",)
    short: str = ""
    bare: Any = None
    repeats: bool = False
    sets: str = ""

    @property
    def field(self) -> str:
        """What it sets."""
        return self.sets or self.flag.removeprefix("--").replace("-", "_")


def one_of(*words: str) -> Callable[[str], str]:
    """A converter that takes one of these words."""

    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return convert


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ConfigError as error:
        raise ValueError("a size such as 64M or 2G") from error
    if size == 0:
        raise ValueError("a size above zero, such as 64M")
    return size


def _memory(text: str) -> int:
    # "size=" is QEMU's, too.
    number = text.removeprefix("size=")
    if not number.isdecimal():
        return _size(number)
    if len(number) > _DIGITS:
        raise ValueError(f"a size with its unit, as 64M ({number} alone would be MiB)")
    return _size(f"{number}M")


def _limit(text: str) -> int | None:
    return None if text == "none" else _size(text)


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a number") from None


def _khz(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) < 1 << 32):
        raise ValueError("a frequency in kHz, as 2000000 for 2 GHz")
    return int(text)


def _address(text: str) -> int:
    try:
        address = int(text, 0)
    except ValueError:
        raise ValueError("an address such as 0x100000") from None
    if address < 0:
        raise ValueError("an address, not negative")
    return address


def _offset(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("bytes such as 0x1e000000") from None


def _port(text: str) -> int:
    try:
        port = int(text, 0)
    except ValueError:
        port = -1
    if not 0 <= port <= 0xFFFF:
        raise ValueError("a port such as 0x501")
    return port


def _real_address(text: str) -> str:
    from pykvm.boot.real_start import RealAddress

    try:
        return str(RealAddress.parse(text))
    except ConfigError:
        raise ValueError("SEGMENT:OFFSET, as 07C0:0000") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("seconds such as 5 or 0.5") from None
    # Not a number is not in it either.
    if not 0 < seconds <= LONGEST_WAIT:
        raise ValueError(f"seconds, above zero and up to {LONGEST_WAIT}")
    return seconds


def _cpu(text: str) -> str:
    from pykvm.x86.cpuid import Specification

    try:
        Specification.parse(text)
    except ConfigError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise UsageError(f"--cpu: {error.message}{hint}") from None
    return text


def _destination(text: str, also: tuple[str, ...] = ()) -> Destination:
    kind, _, path = text.partition(":")
    if kind in ("file", "unix"):
        if not path:
            raise ValueError(f"{kind}:PATH, with a path")
        return Destination(kind, path)
    if kind == "tcp":
        port = path.rpartition(":")[2]
        if not (port.isdecimal() and port.isascii() and len(port) < 6 and int(port) < 1 << 16):
            raise ValueError("tcp:PORT or tcp:HOST:PORT, as tcp:4444")
        return Destination(kind, path)
    if text not in ("stdio", "pty", "none", *also):
        kinds = "stdio, file:PATH, pty, unix:PATH, tcp:[HOST:]PORT or none"
        raise ValueError(", ".join((*also, kinds)))
    return Destination(kind)


def _debugcon(text: str) -> Destination:
    return _destination(text, also=("serial",))


def _module(text: str) -> tuple[str, str]:
    path, _, words = text.partition(" ")
    if not path:
        raise ValueError("FILE, or FILE and words after a blank")
    return path, words


def _fw_cfg(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ValueError("NAME=FILE, as opt/org.example/key=key.pem")
    return name, path


def _said(text: str) -> str | bytes:
    if not text:
        raise ValueError("text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("the path of a file")
    return text


def _pattern(text: str) -> Pattern[str]:
    import re

    try:
        pattern = re.compile(text, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression ({error})") from None
    if pattern.search(""):
        raise ValueError("a regular expression that matches no empty text")
    return pattern


def _flag(text: str) -> bool:
    raise AssertionError("an option without a value has nothing to convert")


_GUESTS = ("run", "step")
_ALL = COMMANDS

MACHINE = "The machine"
GUEST = "The guest file"
CONSOLE = "Console"
ENDING = "Ending"
LOOKING = "Looking inside"
GENERAL = "General"

# The groups whose options are fields of a MachineConfig.
OF_MACHINE = (MACHINE, GUEST)

OPTIONS: tuple[Option, ...] = (
    Option(
        "--memory", "SIZE", _memory, MACHINE,
        "RAM, as 64M or 2G, a number alone in MiB; beyond 3G it goes on above 4G (default 64M)",
        _GUESTS, short="-m",
    ),
    Option("--smp", "N", _count, MACHINE, "number of vCPUs (default 1)", _GUESTS, sets="vcpus"),
    Option(
        "--cpu", "MODEL", _cpu, MACHINE,
        "what CPUID shows: baseline, the same on every host (default), host, all that this one "
        "has, or x86-64-v1 to x86-64-v4; then +FEATURE and -FEATURE, by Linux's names or QEMU's: "
        "baseline,+cx16,-x2apic",
        _GUESTS,
    ),
    Option(
        "--irqchip", "WHERE", one_of("user", "kernel", "split", "none"), MACHINE,
        "interrupt controllers and clocks: user for software (default, but for Linux), kernel for "
        "KVM's own (default for Linux), split for KVM's local APICs and the rest in software, or "
        "none",
        _GUESTS,
    ),
    Option(
        "--clock", "POLICY", one_of("realtime", "paused", "warp"), MACHINE,
        "guest time: realtime (default); paused hides what passes while the guest is stopped; "
        "warp also skips what a halted guest waits for (irqchip user)",
        _GUESTS,
    ),
    Option(
        "--tsc-khz", "KHZ", _khz, MACHINE,
        "frequency of the guest's TSC, where this host can scale it (default the host's)",
        _GUESTS,
    ),
    Option(
        "--unclaimed", "WHAT", one_of("stop", "open-bus"), MACHINE,
        "an access where neither memory nor a device is: stop ends the run as a crash (default for "
        "bare guests), open-bus reads all ones and ignores writes (default for kernels)",
        _GUESTS,
    ),
    Option(
        "--quirks", "auto|on|off", one_of("auto", "on", "off"), MACHINE,
        "work around what this host's KVM gets wrong for the guest: auto for guests that may "
        "meet it (default), on for any, off to see the host bare; `pykvm info` lists what it finds",
        _GUESTS,
    ),
    Option(
        "--emulate", "auto|off", one_of("auto", "off"), MACHINE,
        "execute instructions that KVM refuses (default), or let the run end at the first",
        _GUESTS,
    ),
    Option(
        "--boot", "NAME", str, GUEST,
        "insist on a boot protocol; by default the file's content decides",
        _GUESTS,
    ),
    Option(
        "--mode", "MODE", one_of("real", "protected", "long"), GUEST,
        "CPU mode at entry: real, protected or long; by default the file decides, and a flat "
        "binary starts in real mode",
        _GUESTS,
    ),
    Option(
        "--load-address", "ADDR", _address, GUEST,
        "where to put a flat binary (default 0x7c00), a PIE or a relocatable kernel",
        _GUESTS,
    ),
    Option(
        "--entry", "SEG:OFF", _real_address, GUEST,
        "where a flat binary or a boot sector starts in real mode, as 07C0:0000 (default its first "
        "byte)",
        _GUESTS,
    ),
    Option(
        "--stack", "SEG:OFF", _real_address, GUEST,
        "what SS:SP is then, as 0000:7C00 (default below the image)",
        _GUESTS,
    ),
    Option(
        "--append", "WORDS", str, GUEST,
        "a kernel's command line; for a bare guest, words of its argv before those that follow --",
        _GUESTS,
    ),
    Option(
        "--append-only", "", _flag, GUEST,
        "add no workarounds for this host to a kernel's command line",
        _GUESTS, bare=True,
    ),
    Option("--initrd", "FILE", str, GUEST, "a Linux kernel's initial RAM disk", _GUESTS),
    Option(
        "--module", "FILE[ WORDS]", _module, GUEST,
        "a file for a multiboot or PVH kernel, and the words that go with it; may be given again",
        _GUESTS, repeats=True, sets="modules",
    ),
    Option(
        "--kernel", "FILE", str, GUEST,
        "a Linux kernel that the guest file, which is firmware, is to boot (fw_cfg); without a "
        "guest file it is the guest itself",
        _GUESTS,
    ),
    Option(
        "--symbols", "FILE", str, GUEST,
        "the guest's symbols, where its file has none: a vmlinux or another ELF file, or a "
        "System.map",
        _GUESTS,
    ),
    Option(
        "--symbols-offset", "BYTES", _offset, GUEST,
        "how far above these addresses the guest is, as where KASLR has moved a kernel",
        _GUESTS,
    ),
    Option(
        "--fw-cfg", "NAME=FILE", _fw_cfg, GUEST,
        "a file for firmware or a kernel to read by this name (fw_cfg); may be given again",
        _GUESTS, repeats=True,
    ),
    Option(
        "--serial", "DEST", _destination, CONSOLE,
        "serial port COM1: stdio (default), file:PATH (output only; the file is replaced), "
        "pty, unix:PATH (a socket, one client at a time), tcp:[HOST:]PORT (the same; on loopback "
        "without a host) or none",
        _GUESTS,
    ),
    Option(
        "--serial2", "DEST", _destination, CONSOLE,
        "serial port COM2: the same (default none); typing on stdin goes to COM1 if both are stdio",
    ),
    Option(
        "--debugcon", "DEST", _debugcon, CONSOLE,
        "output of the debug console, port 0xe9: the same, or serial (default) for wherever the "
        "serial port goes",
        _GUESTS,
    ),
    Option(
        "--output-limit", "SIZE|none", _limit, CONSOLE,
        "the most that a file of --serial, --serial2, --debugcon or --trace-file takes (default "
        "1G): the guest goes on, what does not fit is dropped and counted",
        _GUESTS,
    ),
    Option("--timeout", "SECONDS", _seconds, ENDING, "stop the guest after this time"),
    Option(
        "--until", "TEXT", _said, ENDING,
        "end the run, with status 0, as soon as the guest has printed this on the serial port; may "
        "be given again, for any of several",
        repeats=True,
    ),
    Option(
        "--until-regex", "REGEX", _pattern, ENDING,
        "the same for a regular expression of Python's; ^ and $ are the ends of a line, and a "
        "match is up to 1,024 bytes long",
        repeats=True, sets="until",
    ),
    Option(
        "--save", "FILE", _path, ENDING,
        "then, with --until once the guest has said it, without it at the time limit, Ctrl-C or "
        "Ctrl-A x, write a snapshot that goes on from there: pykvm FILE",
    ),
    Option(
        "--force", "", _flag, ENDING,
        "go on with a snapshot though this host lacks what its guest knows of the one that it was "
        "saved on",
        _GUESTS, bare=True,
    ),
    Option(
        "--wall", "keep|host", one_of("keep", "host"), ENDING,
        "the clocks of a snapshot: keep goes on from where they were (default), host sets them "
        "forward by the time that has passed since it was saved",
        _GUESTS,
    ),
    Option(
        "--exit-status", "STYLE", one_of("guest", "qemu"), ENDING,
        "status for a guest's exit code v: guest gives v (default), qemu gives (v << 1) | 1 as "
        "QEMU's isa-debug-exit does",
    ),
    Option(
        "--debug-exit", "PORT", _port, ENDING,
        "the port that ends the run with what the guest writes there, as QEMU's isa-debug-exit "
        "(default 0xf4; QEMU's own default is 0x501)",
        _GUESTS,
    ),
    Option(
        "--quiet", "", _flag, ENDING,
        "say nothing on stderr when the guest exits by itself, or has said what --until waits for",
        short="-q", bare=True,
    ),
    Option(
        "--trace", "text|json", one_of("text", "json"), LOOKING,
        "one line for every VM exit on stderr, or JSON lines",
        bare="text",
    ),
    Option(
        "--trace-only", "WHAT", str, LOOKING,
        "trace these exits only: devices (com1), kinds (IoOut), ports or addresses (0x60, "
        "0x3f8-0x3ff), with commas between them; -WHAT leaves out: -com1,-com2",
    ),
    Option(
        "--trace-file", "PATH", str, LOOKING,
        "write the trace there (and trace, if --trace is not given)",
    ),
    Option(
        "--stats", "", _flag, LOOKING,
        "at the end, VM exits by kind and time inside and outside the guest; with --trace, the "
        "busiest ports and addresses too",
        bare=True,
    ),
    Option(
        "--dump-on-exit", "", _flag, LOOKING,
        "at the end, registers, code at RIP and the top of the stack",
        bare=True,
    ),
    Option(
        "--verify", "", _flag, GENERAL,
        "snapshot info: read the files whole, and check every hash",
        ("snapshot",), bare=True,
    ),
    Option(
        "--json", "", _flag, GENERAL, "info, snapshot: print JSON", ("info", "snapshot"), bare=True
    ),
    Option("--help", "", _flag, GENERAL, "show this", _ALL, short="-h", bare=True),
    Option("--version", "", _flag, GENERAL, "show the version", _ALL, bare=True),
)  # fmt: skip

_BY_FIELD = {**{option.field: option.flag for option in OPTIONS}, "on_exit": "--trace"}
_BY_FLAG = {
    **{option.flag: option for option in OPTIONS},
    **{option.short: option for option in OPTIONS if option.short},
}


def parse(argv: Sequence[str]) -> Options:
    """The options that `argv` (without the program's name) asks for.

    Options may stand before and after the guest file; what follows ``--`` is the guest's.
    Raises UsageError with one line that says what is wrong.
    """
    options = Options()
    words: list[str] = []
    given: list[Option] = []
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        if word == "--":
            options.arguments = tuple(reversed(rest))
            break
        if word.startswith("-") and word != "-":
            if _is_qemus(word):
                from pykvm.cli.qemu import translate

                flags = {option.flag for option in given}
                rest += reversed(translate(word.lstrip("-"), rest, flags))
                continue
            option, value = _option(word, rest)
            options.put(option, value)
            given.append(option)
        else:
            words.append(word)
    if words and words[0] in COMMANDS:
        options.command = words.pop(0)
    if not (options.help or options.version):
        _check(options, words, given)
    return options


def _option(word: str, rest: list[str]) -> tuple[Option, Any]:
    """The option that `word` names and its value, taken from `rest` where it stands apart."""
    flag, equals, text = word.partition("=")
    if word[:2] == "-m" and word[2:3].isdecimal():
        flag, equals, text = "-m", "=", word[2:]
    option = _BY_FLAG.get(flag)
    if option is None:
        raise UsageError(f"unknown option {flag}{_suggestion(flag)}")
    if not option.metavar and equals:
        raise UsageError(f"{flag} takes no value")
    if option.bare is not None and not equals:
        return option, option.bare
    if not equals:
        if not rest or rest[-1] == "--":
            raise UsageError(f"{flag} needs a value: {flag} {option.metavar}")
        text = rest.pop()
    try:
        return option, option.convert(text)
    except ValueError as error:
        raise UsageError(f"{flag} takes {error}, not {text!r}") from None


def spell(name: str, value: object) -> str:
    """How the option of `Machine` of this name is written here; `value` is None for any.

    >>> spell("load_address", None), spell("vcpus", 4), spell("append_only", True)
    ('--load-address', '--smp 4', '--append-only')
    """
    flag = _BY_FIELD[name]
    return flag if value is None or value is True else f"{flag} {value}"


def _is_qemus(word: str) -> bool:
    """Whether `word` is an option of QEMU's that is none of pykvm's."""
    if word.partition("=")[0] in _BY_FLAG:
        return False
    from pykvm.cli.qemu import knows

    return knows(word.lstrip("-"))


def _suggestion(flag: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(flag, _BY_FLAG, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _check(options: Options, words: Sequence[str], given: Sequence[Option]) -> None:
    command = options.command
    for option in given:
        if command not in option.commands:
            where = " and ".join(option.commands)
            raise UsageError(f"{option.flag} belongs to {where}, not to {command}")
    if command == "info":
        if words or options.arguments:
            raise UsageError(f"info takes no guest: unexpected {[*words, *options.arguments][0]!r}")
        return
    if command == "snapshot":
        _check_snapshot(options, words)
        return
    if not words and "kernel" in options.config:
        words = [options.config.pop("kernel")]
    if not words:
        raise UsageError("no guest file given")
    if len(words) > 1:
        raise UsageError(f"unexpected {words[1]!r}: what is meant for the guest goes after --")
    options.guest = words[0]
    filed = options.trace_file is not None or options.trace_only is not None
    if filed and options.trace is None:
        options.trace = "text"


def _check_snapshot(options: Options, words: Sequence[str]) -> None:
    what, files = words[0] if words else "", words[1:]
    if options.arguments or not (
        (what == "info" and files) or (what == "diff" and len(files) == 2)
    ):
        raise UsageError("it is `snapshot info FILE...` or `snapshot diff FILE FILE`")
    options.words = tuple(words)
