r"""What kinds of guest file exist and how each is entered: one module for each boot protocol.

>>> import pykvm.boot as boot
>>> from pykvm.x86.state import Mode
>>> code = b"\xb0A\xe6\xe9\xf4"  # mov al, 'A'; out 0xe9, al; hlt
>>> image = boot.load(code, boot.Request(mode=Mode.REAL))
>>> image.kind, hex(image.entry)
('flat', '0x7c00')

A boot protocol is a module, or an object in one, that is a `BootProtocol`.  To add one, write
its file and name it in `_MODULES`, and in `_ASKED` before those that would take its files for
theirs.

An ELF file may name the protocol that it wants, in a note of owner "pykvm" and type 1 whose
description is the name.  That one then takes it, whatever else the file looks like.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from pykvm.boot.elf import ELFMAG
from pykvm.boot.files import source_of
from pykvm.boot.image import Entry, Image, Module, Range, Segment, Setup
from pykvm.boot.notes import named_protocol
from pykvm.boot.source import Request, Source
from pykvm.boot.symbols import Symbols
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING, Protocol, cast
from pykvm.values.spelling import option

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from pykvm.errors import LoadError
    from pykvm.memory import GuestMemory

__all__ = [
    "PROTOCOLS",
    "BootProtocol",
    "Entry",
    "Image",
    "Module",
    "Range",
    "Request",
    "Segment",
    "Setup",
    "Source",
    "Symbols",
    "load",
    "place",
    "protocol_of",
    "source_of",
]


class BootProtocol(Protocol):
    """A kind of guest file: how it is recognised, read, and put into a machine."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module's constant
        """What messages and the option --boot call it, one word in small letters."""

    @property
    def PC(self) -> bool:  # noqa: N802 - a module's constant
        """Whether what it boots expects a PC around it: tables, more devices, an open bus."""

    def recognise(self, source: Source, request: Request, /) -> str | None:
        """Return None if the file is of this kind, else the reason why not."""

    def load(self, source: Source, request: Request, /) -> Image:
        """Read and check the file.  Raises LoadError and nothing else, whatever its bytes."""

    def place(self, image: Image, memory: GuestMemory, setup: Setup, /) -> Entry:
        """Write the image and all it needs at entry.  Raises LoadError, then nothing is written."""


# By name, the module of each, or an object in it: it is imported when a file may be its own.
_MODULES = {
    "linux": "pykvm.boot.linux",
    "linux64": "pykvm.boot.linux_own_entry:LINUX64",
    "linux32": "pykvm.boot.linux_own_entry:LINUX32",
    "multiboot": "pykvm.boot.multiboot",
    "multiboot2": "pykvm.boot.multiboot2",
    "pvh": "pykvm.boot.pvh",
    "elf": "pykvm.boot.bare_elf",
    "firmware": "pykvm.boot.firmware",
    "bootsector": "pykvm.boot.bootsector",
    "flat": "pykvm.boot.flat",
}
PROTOCOLS = tuple(_MODULES)
# Asked in this order; the others take a file that another would take too, and want to be named.
_ASKED = (
    "linux",
    "firmware",
    "multiboot",
    "multiboot2",
    "pvh",
    "elf",
    "bootsector",
    "flat",
)
# `elf` takes every ELF file that those before it leave.
_ASKED_OF_ELF = ("linux", "multiboot", "multiboot2", "pvh", "elf")
LEFT_TO_THE_FILE = Request()
#: The first words of the headers that they look for in the first MiB of a file.  One without them
#: is no kernel of theirs, and does not have these modules loaded.
MAGIC = {"multiboot": 0x1BADB002, "multiboot2": 0xE85250D6}
MAGIC_REACH = 1 << 20
# Those that can be told where to start and where the stack is, by segments.
_REAL_MODE = ("bootsector", "flat")


def load(
    file: str | os.PathLike[str] | bytes | bytearray | memoryview,
    request: Request = LEFT_TO_THE_FILE,
    *,
    name: str | None = None,
) -> Image:
    """Read a guest file, from its path or as its bytes, by the first protocol that knows it.

    `name` (the file's own by default, "guest" for bytes) is for messages and the guest's argv[0].

    Raises LoadError for a file that no protocol knows or that its protocol finds fault with, naming
    the file, the field and its value; ConfigError for a negative address or an unknown protocol.
    """
    if request.protocol is not None:
        _named(request.protocol)
    if request.address is not None and request.address < 0:
        raise ConfigError(f"load address {request.address:#x} is negative")
    source = source_of(file, name=name)
    if not len(source):
        raise source.error("is empty")
    missed = {}
    for one in map(_named, _candidates(source, request.protocol)):
        reason = one.recognise(source, request)
        if reason is None:
            if (request.entry or request.stack) and one.NAME not in _REAL_MODE:
                raise source.error(
                    f"is of kind {one.NAME}: an entry or a stack as SEGMENT:OFFSET is for "
                    f"{' and '.join(_REAL_MODE)} images",
                    hint="leave them out",
                )
            return one.load(source, request)
        missed[one.NAME] = reason
    raise _unknown(source, missed)


def _unknown(source: Source, missed: Mapping[str, str]) -> LoadError:
    """The error for a file that no protocol takes: what it may be, and what each has missed."""
    from pykvm.boot.magic import familiar

    raw = (
        "to run it as raw machine code, say in which mode: "
        f"{option('mode', 'real')}, protected or long"
    )
    what, advice = familiar(bytes(source.part(0, 64))) or ("no guest that pykvm knows", raw)
    reasons = [f"no {name} image: {reason}" for name, reason in missed.items()]
    if len(reasons) == 1:
        return source.error(f"is {what}: {reasons[0]}", hint=advice)
    return source.error(f"is {what}", hint="\n".join((advice, *reasons)))


def _candidates(source: Source, protocol: str | None) -> Iterable[str]:
    """The protocols to ask: the one that the caller names, or the file itself, or else all."""
    if protocol is not None:
        return (protocol,)
    if bytes(source.part(0, len(ELFMAG))) != ELFMAG:
        return _ASKED
    named = named_protocol(source)
    if named is None:
        return (name for name in _ASKED_OF_ELF if _may_be(source, name))
    if named not in PROTOCOLS:
        raise source.error(
            f"names the boot protocol {named!r} (note of owner pykvm), and there is none",
            hint=f"choose from {', '.join(PROTOCOLS)}, here or in the file",
        )
    return (named,)


def _may_be(source: Source, protocol: str) -> bool:
    magic = MAGIC.get(protocol)
    return magic is None or magic.to_bytes(4, "little") in bytes(source.part(0, MAGIC_REACH))


def place(image: Image, memory: GuestMemory, setup: Setup | None = None) -> Entry:
    """Put `image` into `memory`, with what its protocol promises at entry, and say how to start it.

    `setup` is what it finds beside itself.  On an error nothing has been written.

    Raises LoadError, with the numbers, where something lies outside RAM or finds no room in it;
    ConfigError for arguments that cannot be passed.
    """
    return protocol_of(image).place(image, memory, setup or Setup())


def protocol_of(image: Image) -> BootProtocol:
    """The protocol that has read `image`."""
    return _named(image.protocol)


@cache
def _named(name: str) -> BootProtocol:
    if name not in _MODULES:
        raise ConfigError(
            f"there is no boot protocol {name!r}", hint=f"choose from {', '.join(PROTOCOLS)}"
        )
    path, _, within = _MODULES[name].partition(":")
    module = import_module(path)
    return cast("BootProtocol", getattr(module, within) if within else module)
