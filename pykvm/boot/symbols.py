"""The symbols of a guest: from name to address, and back from any address to 'main+0x12'."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from pykvm.errors import LoadError, UnknownSymbol
from pykvm.printable import printable
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import show
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from pykvm.boot.elf import ElfHeader
    from pykvm.boot.source import Source

__all__ = ["Symbol", "Symbols", "per_cpu", "read_symbols"]

SHT_SYMTAB, SHT_DYNSYM = 2, 11
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_GNU_IFUNC = 0, 1, 2, 10

# Which of several symbols speaks for a name or an address: the higher rank.
_BINDING_RANK = {STB_LOCAL: 0, STB_WEAK: 1, STB_GLOBAL: 2}
_TYPE_RANK = {STT_NOTYPE: 0, STT_OBJECT: 1, STT_GNU_IFUNC: 2, STT_FUNC: 3}

# A kernel built for debugging has 200,000 symbols with 8 MiB of names.  What a file has beyond this
# is not read.
_MOST_ENTRIES = 1 << 20
_MOST_SYMBOLS = 1 << 19
_MOST_NAMES = 64 << 20
_LONGEST_NAME = 4096

# So many names, at most, are compared with one that is unknown.
_COMPARED = 2000


class Symbol(NamedTuple):
    """One defined symbol; `size` is 0 where the file does not say.

    `rank` decides between symbols of one name or one address; an `absolute` symbol is a number that
    the linker knew, not a place in memory.
    """

    name: str
    address: int
    size: int = 0
    rank: tuple[int, ...] = ()
    absolute: bool = False


class Symbols(Mapping[str, int]):
    """A mapping from symbol name to address (GVA), with lookup by address.

    `symbols` gives them when the first question is asked, so a run that asks none pays nothing.
    `extents` are the (start, end) of the segments: no symbol reaches out of its own.

    >>> symbols = Symbols(lambda: [Symbol("main", 0x1000, 0x40), Symbol("_edata", 0x1100)])
    >>> symbols["main"], symbols.find(0x1012), symbols.describe(0x1012)
    (4096, ('main', 18), 'main+0x12')
    >>> symbols.describe(0x1040)
    '0x1040'
    >>> symbols["mian"]
    Traceback (most recent call last):
    ...
    pykvm.errors.UnknownSymbol: the guest has no symbol 'mian'
    did you mean main?
    """

    __slots__ = ("_addresses", "_by_address", "_by_name", "_extents", "_read")

    def __init__(
        self,
        symbols: Callable[[], Iterable[Symbol]] = tuple,
        *,
        extents: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._read = symbols
        self._extents = tuple(extents)
        self._by_name: dict[str, int] | None = None
        self._by_address: list[Symbol] = []
        self._addresses: list[int] = []

    def _names(self) -> dict[str, int]:
        if self._by_name is None:
            symbols = self.listed()
            # Built whole, then published: another thread may ask meanwhile.
            numbers = per_cpu({symbol.name: symbol.address for symbol in symbols})
            by_address = {
                symbol.address: symbol
                for symbol in symbols
                if not (symbol.absolute or symbol.address in numbers)
            }
            self._addresses = sorted(by_address)
            self._by_address = [by_address[address] for address in self._addresses]
            self._by_name = {symbol.name: symbol.address for symbol in symbols}
        return self._by_name

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        """The segments' (start, end)."""
        return self._extents

    def listed(self) -> list[Symbol]:
        """All of them; of several with one name or address the last one counts."""
        return sorted(self._read(), key=lambda symbol: symbol.rank)

    def __getitem__(self, name: str) -> int:
        try:
            return self._names()[name]
        except (KeyError, TypeError):
            raise self._unknown(name) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._names()

    def _unknown(self, name: object) -> UnknownSymbol:
        names = self._names()
        told = f"the guest has no symbol {show(name)}"
        if not names:
            return UnknownSymbol(told, hint="it has none at all: a flat or stripped file, or none")
        from difflib import get_close_matches

        # A kernel has 100,000, and to compare each would take seconds.
        near = [known for known in names if _may_be_meant(str(name), known)][:_COMPARED]
        close = get_close_matches(str(name), near, n=3)
        return UnknownSymbol(told, hint=f"did you mean {' or '.join(close)}?" if close else "")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<{len(self)} symbols>"

    def find(self, address: int) -> tuple[str, int] | None:
        """Find the symbol that `address` belongs to and how far into it the address lies.

        That is the nearest symbol at or below it, unless that one's size, or its segment, ends
        before.  None where there is none.
        """
        self._names()
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        symbol = self._by_address[index]
        offset = address - symbol.address
        if (symbol.size and offset >= symbol.size) or self._parted(symbol.address, address):
            return None
        return symbol.name, offset

    def describe(self, address: int) -> str:
        """Name an address: 'main', 'main+0x12', or its plain hex where no symbol covers it.

        The name comes from a file: it is made fit for a terminal.
        """
        return self.name_at(address) or f"{address:#x}"

    def name_at(self, address: int) -> str:
        """The same, but the empty string where no symbol covers it."""
        found = self.find(address)
        if found is None:
            return ""
        name, offset = printable(found[0]), found[1]
        return f"{name}+{offset:#x}" if offset else name

    def _parted(self, first: int, second: int) -> bool:
        """Whether two addresses lie in different segments, or either in none."""
        if not self._extents:
            return False
        return not any(start <= first and second < end for start, end in self._extents)


def per_cpu(names: Mapping[str, int]) -> range:
    """Where Linux's per-CPU variables are linked, if at 0: their addresses are no places.

    Before Linux 6.15 a kernel for several processors has them so (arch/x86/kernel/vmlinux.lds.S).
    """
    end = names.get("__per_cpu_end", -1)
    return range(end + 1) if names.get("__per_cpu_start") == 0 else range(0)


def _may_be_meant(name: str, known: str) -> bool:
    return abs(len(name) - len(known)) <= 2 and (name[:1] == known[:1] or name[-1:] == known[-1:])


def read_symbols(source: Source, header: ElfHeader, *, bias: int = 0) -> list[Symbol]:
    """Read the defined symbols of an ELF file from .symtab, or from .dynsym where it is stripped.

    `bias` is added to every address that is one (a PIE's).  Never raises: a file is worth running
    without its symbols, so a table that is damaged, or larger than any program's, yields what can
    be read of it, and a file that has changed since none.
    """
    try:
        return _read_symbols(source, header, bias)
    except LoadError:
        return []


def _read_symbols(source: Source, header: ElfHeader, bias: int) -> list[Symbol]:
    sections = _read_sections(source, header)
    for wanted in (SHT_SYMTAB, SHT_DYNSYM):
        for section in sections:
            if section.sh_type == wanted and section.sh_link < len(sections):
                names = sections[section.sh_link].clip(source, _MOST_NAMES)
                table = section.clip(source, _MOST_ENTRIES * header.elf_class.symbol.size)
                found = _read_table(table, bytes(names), header, bias)
                return list(islice(found, _MOST_SYMBOLS))
    return []


class _Section(NamedTuple):
    sh_type: int
    sh_offset: int
    sh_size: int
    sh_link: int

    def clip(self, source: Source, most: int) -> memoryview:
        return source.part(self.sh_offset, min(self.sh_size, most))


def _read_sections(source: Source, header: ElfHeader) -> list[_Section]:
    shape = header.elf_class.section_header
    if not header.e_shoff or header.e_shentsize != shape.size:
        return []
    count = header.e_shnum or 0xFFFF
    table = source.part(header.e_shoff, count * shape.size)
    sections = []
    for fields in shape.iter_unpack(table[: len(table) // shape.size * shape.size]):
        _, sh_type, _, _, sh_offset, sh_size, sh_link, *_ = fields
        sections.append(_Section(sh_type, sh_offset, sh_size, sh_link))
    return sections


def _read_table(table: memoryview, names: bytes, header: ElfHeader, bias: int) -> Iterator[Symbol]:
    shape = header.elf_class.symbol
    wide = header.elf_class.bits == 64
    mask = (1 << header.elf_class.bits) - 1
    # Each name is the file's own bytes, but a hostile table names the same ones again and again.
    budget = len(names) + len(table)
    for fields in shape.iter_unpack(table[: len(table) // shape.size * shape.size]):
        if wide:
            st_name, st_info, _, st_shndx, st_value, st_size = fields
        else:
            st_name, st_value, st_size, st_info, _, st_shndx = fields
        binding, kind = _BINDING_RANK.get(st_info >> 4), _TYPE_RANK.get(st_info & 0xF)
        if st_shndx == SHN_UNDEF or binding is None or kind is None:
            continue
        end = names.find(b"\0", st_name, st_name + _LONGEST_NAME)
        if end <= st_name:
            continue
        budget -= end - st_name
        if budget < 0:
            return
        absolute = st_shndx == SHN_ABS
        address = st_value if absolute else (st_value + bias) & mask
        name = names[st_name:end].decode(errors="replace")
        yield Symbol(name, address, st_size, (binding, kind, st_size), absolute)
