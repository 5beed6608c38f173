"""What a machine is made from: the options of `Machine` as one value, each checked."""

from __future__ import annotations

import os

from pykvm.errors import ConfigError
from pykvm.irqchip import IRQCHIPS, check_irqchip
from pykvm.memory import GuestMemory
from pykvm.memory.backing import PAGE_SIZE
from pykvm.memory.regions import ADDRESS_LIMIT
from pykvm.typed import TYPE_CHECKING
from pykvm.values import checks
from pykvm.values.frozen import Frozen
from pykvm.values.sizes import parse_size
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from dataclasses import KW_ONLY
    from typing import Any

    from pykvm.bus import Placement

    #: A file by its path, or its bytes.
    File = str | os.PathLike[str] | bytes

__all__ = ["MachineConfig"]

UNCLAIMED = ("stop", "open-bus")
QUIRKS = ("auto", "on", "off")
EMULATE = ("auto", "off")


class MachineConfig(Frozen):
    """What a `Machine` is made from: its fields are the keywords of `Machine`, which explains them.

    >>> config = MachineConfig("kernel.elf", memory="16M")
    >>> config
    MachineConfig('kernel.elf', memory='16M')
    >>> config.replace(vcpus=2).vcpus
    2

    ``Machine(config)`` makes a machine of it, any number of times.  One with a GuestMemory or with
    `devices` is for one machine, which takes these objects over.

    Raises ConfigError for a value that its field does not take, and for fields that contradict each
    other.  What depends on the guest's file or on the host is checked by `Machine`.
    """

    image: File | None = None
    _: KW_ONLY
    memory: int | str | GuestMemory = "64M"
    vcpus: int = 1
    boot: str | None = None
    mode: Mode | str | None = None
    load_address: int | None = None
    entry: str | None = None
    stack: str | None = None
    append: str = ""
    append_only: bool = False
    args: Sequence[str] = ()
    initrd: File | None = None
    modules: Sequence[tuple[File, str]] = ()
    kernel: File | None = None
    fw_cfg: Mapping[str, bytes] | None = None
    symbols: File | None = None
    symbols_offset: int = 0
    devices: Iterable[Placement] | None = None
    cpu: str = "baseline"
    unclaimed: str | None = None
    irqchip: str | None = None
    clock: str = "realtime"
    tsc_khz: int | None = None
    quirks: str = "auto"
    emulate: str = "auto"

    if not TYPE_CHECKING:

        def __init__(self, *args, **fields):
            super().__init__(*args, **fields)
            cls = type(self)
            for name, put in cls.__fields__.items():
                value = getattr(self, name)
                if value is not cls.__defaults__[name]:
                    put(self, CHECKS[name](name, value))
            _check_together(self)

    def replace(self, **changes: Any) -> MachineConfig:
        """The same with some fields changed, and checked again."""
        changed: MachineConfig = self.__replace__(**changes)
        return changed

    @property
    def name(self) -> str:
        """The guest file's name, for messages."""
        image = self.image
        return os.path.basename(image) if isinstance(image, (str, os.PathLike)) else "bytes"

    @property
    def ram(self) -> int:
        """How many bytes of memory it has."""
        memory = self.memory
        if isinstance(memory, GuestMemory):
            return sum(region.end - region.start for region in memory.regions)
        return parse_size(memory) if isinstance(memory, str) else memory

    def __repr__(self) -> str:
        shown = [] if self.image is None else [checks.show(self.image)]
        for name, default in type(self).__defaults__.items():
            value = getattr(self, name)
            if name != "image" and value != default:
                shown.append(f"{name}={checks.show(value)}")
        return f"MachineConfig({', '.join(shown)})"


# What has no meaning without a guest file.
_OF_IMAGES = (
    *("boot", "mode", "load_address", "entry", "stack"),
    *("append", "args", "initrd", "modules", "kernel", "symbols"),
)


def _check_together(config: MachineConfig) -> None:
    """Raise ConfigError for fields that contradict each other."""
    check_irqchip(config.irqchip or "user", config.clock)
    if config.image is None and any(
        getattr(config, name) not in (None, "", ()) for name in _OF_IMAGES
    ):
        *names, last = _OF_IMAGES
        raise ConfigError(f"{', '.join(names)} and {last} go with an image")


def _mode(name: str, value: Any) -> Mode:
    if isinstance(value, Mode):
        return value
    checks.one_of(name, value, [mode.value for mode in Mode])
    return Mode(value)


def _real_address(name: str, value: Any) -> str:
    from pykvm.boot.real_start import RealAddress

    return str(RealAddress.parse(checks.text(name, value)))


def _clock(name: str, value: Any) -> Any:
    from pykvm.clock import POLICIES

    return checks.one_of(name, value, POLICIES)


def _file(name: str, value: Any) -> Any:
    if not isinstance(value, (str, bytes, bytearray, memoryview)) and not hasattr(
        value, "__fspath__"
    ):
        raise checks.wrong(name, "a path or the bytes of a file", value)
    return value


# How far a guest may lie from where its symbols say: anywhere in 64 bits.
_MOST_MOVED = (1 << 64) - 1


def _memory(name: str, value: Any) -> Any:
    if isinstance(value, GuestMemory):
        return value
    units = f"write it with a unit: {option('memory', '64M')}"
    size = parse_size(value) if isinstance(value, str) else checks.integer(name, value, hint=units)
    if not PAGE_SIZE <= size < ADDRESS_LIMIT or size % PAGE_SIZE:
        raise checks.wrong(
            name, f"{PAGE_SIZE} bytes at least, and a multiple of that", value, hint=units
        )
    return value if isinstance(value, str) else size


def _words(name: str, value: Any) -> tuple[str, ...]:
    return tuple(checks.words(name, value))


def _modules(name: str, value: Any) -> tuple[tuple[File, str], ...]:
    def check(each: str, module: Any) -> tuple[File, str]:
        pair = module if isinstance(module, (tuple, list)) else ()
        if len(pair) != 2:
            raise checks.wrong(each, "a file and its command line", module)
        file, line = pair
        return _file(f"{each}, the file,", file), checks.text(f"{each}, the command line,", line)

    if isinstance(value, (str, bytes)):
        raise checks.wrong(name, "a list of (file, command line)", value)
    return tuple(checks.each(name, value, "a list of (file, command line)", check))


def _files(name: str, value: Any) -> dict[str, Any]:
    try:
        files = dict(value)
    except (TypeError, ValueError):
        raise checks.wrong(name, "a dict of bytes by file name", value) from None
    for file, data in files.items():
        checks.text(f"a name in {name}", file)
        checks.buffer(f"{name}[{file!r}]", data)
    return files


def _placements(name: str, value: Any) -> tuple[Any, ...]:
    return tuple(checks.iterable(name, value))


#: How each field is checked, whatever the others are: each gives the value to keep.
CHECKS: Mapping[str, checks.Check] = {
    "image": checks.optional(_file),
    "memory": _memory,
    "vcpus": checks.integer,
    "boot": checks.optional(checks.text),
    "mode": checks.optional(_mode),
    "load_address": checks.optional(lambda name, value: checks.unsigned(name, value, 64)),
    "entry": checks.optional(_real_address),
    "stack": checks.optional(_real_address),
    "append": checks.text,
    "append_only": checks.flag,
    "args": _words,
    "initrd": checks.optional(_file),
    "modules": _modules,
    "kernel": checks.optional(_file),
    "fw_cfg": checks.optional(_files),
    "symbols": checks.optional(_file),
    "symbols_offset": lambda name, value: checks.integer(name, value, -_MOST_MOVED, _MOST_MOVED),
    "devices": checks.optional(_placements),
    "cpu": checks.text,
    "unclaimed": checks.choice(None, *UNCLAIMED),
    "irqchip": checks.choice(None, *IRQCHIPS),
    "clock": _clock,
    "tsc_khz": checks.optional(lambda name, value: checks.integer(name, value, 1, 0xFFFF_FFFF)),
    "quirks": checks.choice(*QUIRKS),
    "emulate": checks.choice(*EMULATE),
}
