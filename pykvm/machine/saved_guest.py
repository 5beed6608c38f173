"""A guest without its file: what a machine that goes on from a saved snapshot knows of it."""

from __future__ import annotations

from pykvm.boot import PROTOCOLS, Image, Range, Setup
from pykvm.boot.symbols import Symbol, Symbols
from pykvm.errors import ConfigError, LoadError
from pykvm.machine.config import MachineConfig
from pykvm.machine.guest import Guest
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.boot import Entry
    from pykvm.devices.fw_cfg import Contents
    from pykvm.values.state import U32, U64

__all__ = ["EntryRecord", "GuestRecord", "symbols_from_text", "symbols_to_text"]

# What boot.image says: the size in bytes of a pointer.
_WORDS = (2, 4, 8)
_LONGEST_SYMBOL = 4096


class GuestRecord(State):
    """What the machine was made from, with each choice that "auto" left open made.

    `protocol`, `kind` and `mode` are as in `pykvm.boot.Image`, and empty without a guest file.
    """

    name: str
    protocol: str
    kind: str
    mode: str
    word: U32
    memory: U64
    vcpus: U32
    cpu: str
    irqchip: str
    clock: str
    tsc_khz: U32 | None
    unclaimed: str
    quirks: str
    emulate: str
    append: str
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, guest: Guest) -> GuestRecord:
        """That of a machine's guest."""
        config, image = guest.config, guest.image
        return cls(
            name=config.name if config.image is not None else "",
            protocol="" if image is None else image.protocol,
            kind="" if image is None else image.kind,
            mode="" if image is None else image.mode.value,
            word=8 if image is None else image.word,
            memory=config.ram,
            vcpus=config.vcpus,
            cpu=config.cpu,
            irqchip=guest.irqchip,
            clock=config.clock,
            tsc_khz=config.tsc_khz,
            unclaimed="open-bus" if guest.open_bus else "stop",
            quirks="on" if guest.wants_workarounds else "off",
            emulate=config.emulate,
            append=guest.setup.append,
            remarks=guest.remarks,
        )

    def guest(self, contents: Contents | None, where: str) -> Guest:
        """The guest, whose fw_cfg holds `contents`.  Raises LoadError."""
        image = None
        if self.protocol:
            modes = [mode.value for mode in Mode]
            if self.protocol not in PROTOCOLS or self.mode not in modes or self.word not in _WORDS:
                raise LoadError(f"{where}: a guest of {self.protocol!r} in {self.mode!r} mode")
            image = Image(
                self.name, self.kind, self.protocol, Mode(self.mode), 0, (), Symbols(), self.word
            )
        try:
            config = MachineConfig(
                # For messages: it is not read again.
                self.name or None,
                memory=self.memory,
                vcpus=self.vcpus,
                cpu=self.cpu,
                irqchip=self.irqchip,
                clock=self.clock,
                tsc_khz=self.tsc_khz,
                unclaimed=self.unclaimed,
                quirks=self.quirks,
                emulate=self.emulate,
            )
        except ConfigError as error:
            raise LoadError(f"{where}: {error.message}") from error
        return Guest(config, image, Setup(append=self.append), self.remarks, contents=contents)


class EntryRecord(State):
    """How the guest was placed: (name, start, end) of each part, and of its segments."""

    layout: tuple[tuple[str, U64, U64], ...]
    extents: tuple[tuple[U64, U64], ...]
    remarks: tuple[str, ...]
    suspicions: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry) -> EntryRecord:
        """That of a guest that was placed."""
        return cls(
            layout=tuple((one.name, one.start, one.end) for one in entry.layout),
            extents=entry.symbols.extents,
            remarks=entry.remarks,
            suspicions=entry.suspicions,
        )

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The layout."""
        return tuple(Range(*one) for one in self.layout)


def symbols_to_text(symbols: Symbols) -> bytes:
    """A line for each symbol: address and size in hexadecimal, whether it is a place, its name."""
    lines = (
        f"{one.address:x} {one.size:x} {'A' if one.absolute else 'T'} {one.name}\n"
        for one in symbols.listed()
        if "\n" not in one.name
    )
    return "".join(lines).encode(errors="surrogateescape")


def symbols_from_text(data: bytes) -> Iterator[Symbol]:
    """The symbols of such lines; one that is no such line counts for nothing."""
    for line in data.decode(errors="surrogateescape").split("\n"):
        address, _, rest = line.partition(" ")
        size, _, rest = rest.partition(" ")
        kind, _, name = rest.partition(" ")
        if not 0 < len(name) <= _LONGEST_SYMBOL or max(len(address), len(size)) > 16:
            continue
        try:
            numbers = int(address, 16), int(size, 16)
        except ValueError:
            continue
        if min(numbers) >= 0:
            yield Symbol(name, *numbers, absolute=kind == "A")
