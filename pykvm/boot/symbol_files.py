"""Symbols in a file beside the guest: an ELF file that was not stripped, or a kernel's System.map.

A System.map, as /proc/kallsyms and nm(1), has a line a symbol: address, type, name.
"""

from __future__ import annotations

from itertools import islice, pairwise

from pykvm.boot import elf
from pykvm.boot.files import source_of
from pykvm.boot.symbols import Symbol, Symbols, per_cpu, read_symbols
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from pykvm.boot.source import Source

__all__ = ["symbols_of"]

# A System.map of 200,000 symbols has 8 MiB.  What a file has beyond this is not read.
_MOST_BYTES = 64 << 20
_MOST_SYMBOLS = 1 << 19
_LONGEST_LINE = 4096

# Types as in nm(1): a capital for a global symbol; weak ones; functions; constants.
_WEAK = frozenset("VvWw")
_FUNCTION = frozenset("TtiI")
_ABSOLUTE = frozenset("Aa")


def symbols_of(file: str | os.PathLike[str] | bytes, *, offset: int = 0) -> Symbols:
    """The symbols of a file, read when the first is asked for; `offset` is added to addresses.

    Raises LoadError for a file that is neither ELF nor a System.map.
    """
    source = source_of(file, nameless="symbols")
    if bytes(source.part(0, len(elf.ELFMAG))) == elf.ELFMAG:
        header = elf.read_header(source)
        return Symbols(lambda: _moved(read_symbols(source, header), offset))
    first = bytes(source.part(0, _LONGEST_LINE)).split(b"\n")[0]
    if _symbol(first) is None:
        raise source.error(
            "has no symbols: it is neither an ELF file nor a System.map",
            hint="a kernel's build leaves them in vmlinux and in System.map",
        )
    return Symbols(lambda: _moved(_read_map(source), offset))


def _moved(symbols: list[Symbol], offset: int) -> list[Symbol]:
    """The places among them `offset` further on, as far as that is in 64 bits."""
    if not offset:
        return symbols
    numbers = per_cpu({symbol.name: symbol.address for symbol in symbols})
    return [
        symbol if stays else symbol._replace(address=symbol.address + offset)
        for symbol in symbols
        if (stays := symbol.absolute or symbol.address in numbers)
        or 0 <= symbol.address + offset < 1 << 64
    ]


def _read_map(source: Source) -> list[Symbol]:
    """The symbols of a System.map, each as long as it is to the next one."""
    found = sorted(islice(_map_symbols(source), _MOST_SYMBOLS), key=lambda symbol: symbol.address)
    sized = []
    for symbol, following in pairwise([*found, *found[-1:]]):
        sized.append(symbol._replace(size=following.address - symbol.address or 1))
    # Of several at one address the ends come first: they are as long as the last one.
    for at in range(len(sized) - 2, -1, -1):
        if sized[at].address == sized[at + 1].address:
            sized[at] = sized[at]._replace(size=sized[at + 1].size)
    return sized


def _map_symbols(source: Source) -> Iterator[Symbol]:
    text = bytes(source.part(0, min(len(source), _MOST_BYTES)))
    for line in text.splitlines():
        symbol = _symbol(line)
        if symbol is not None:
            yield symbol


def _symbol(line: bytes) -> Symbol | None:
    """The symbol of a line; None if it has none."""
    words = line[:_LONGEST_LINE].decode(errors="replace").split()
    if len(words) < 3 or len(words[1]) != 1 or not words[0].isalnum():
        return None
    try:
        address = int(words[0], 16)
    except ValueError:
        return None
    kind = words[1]
    binding = 1 if kind in _WEAK else 2 * kind.isupper()
    rank = (binding, 3 * (kind in _FUNCTION), 0)
    return Symbol(words[2], address, 0, rank, kind in _ABSOLUTE) if address < 1 << 64 else None
