"""Guest-physical memory as bytes, integers and strings."""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.memory.freezing import Freezing
from pykvm.memory.pages import PAGE_SIZE
from pykvm.memory.regions import ADDRESS_LIMIT, bytes_of, flat
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer as bytes_like
from pykvm.values.checks import integer, show, wrong

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["GuestMemory"]

# Native order and size: struct then reads the value in one piece, so that an aligned access is
# as atomic against the guest as the guest's own; pykvm_store does the same.
_INTEGERS = {1: Struct("@B"), 2: Struct("@H"), 4: Struct("@I"), 8: Struct("@Q")}

_FILL_STEP = 1 << 20


class GuestMemory(Freezing):
    """The guest-physical memory of one machine.

    Every address is guest-physical (GPA), every size in bytes.  Accesses may run across regions
    that touch; an access of which any byte lies outside every region raises MemoryRangeError and
    changes nothing.

    `overcommit` lets the regions add up to more than the host has available.

    A memoryview from `view` keeps its mapping alive: after `remove` or `close` the guest no longer
    has that memory, and the host gets it back when the last such view is gone.

    >>> with GuestMemory() as memory:
    ...     ram = memory.add_ram(0, 64 << 20)
    ...     memory.write(0x1000, b"hello")
    ...     memory.read(0x1000, 5), memory.read_u16(0x1000)
    (b'hello', 25960)
    """

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes at `address`.  Raises MemoryRangeError."""
        spans = self._spans(address, length)
        return bytes(spans[0]) if len(spans) == 1 else b"".join(spans)

    def read_into(self, address: int, buffer: Buffer) -> int:
        """Fill the writable `buffer` from `address` on; returns its length in bytes.

        Raises MemoryRangeError, ConfigError for a buffer that cannot be written.
        """
        target = bytes_like("buffer", buffer)
        if target.readonly or not target.c_contiguous:
            raise ConfigError("read_into needs a writable, contiguous buffer")
        position = 0
        target = bytes_of(target)
        for span in self._spans(address, len(target)):
            target[position : position + len(span)] = span
            position += len(span)
        return position

    def write(self, address: int, data: Buffer, *, rom: bool = False) -> None:
        """Copy `data` to `address`.

        Raises MemoryRangeError, ConfigError for read-only memory unless `rom` says it is meant.
        """
        source = flat(data)
        position = 0
        for mapping, offset, size in self._parts(address, len(source), rom=rom):
            # It keeps the mapping there meanwhile.
            with mapping.slice(offset, size):
                mapping.pages.store(offset, source[position : position + size], size)
            position += size

    def view(self, address: int, length: int) -> memoryview:
        """The guest's own bytes, not a copy: writable for RAM, read-only for ROM.

        Must lie in one region.  Raises MemoryRangeError.
        """
        spans = self._spans(address, length)
        if len(spans) > 1:
            raise MemoryRangeError(
                f"{length:#x} bytes at {address:#x} lie in {len(spans)} regions ({self._layout()})",
                address=address,
                length=length,
                hint="a view lies in one region: ask for one view each, or read a copy",
            )
        address, length = integer("address", address), integer("length", length)
        region = self.region_at(address)
        if region is None or not length:
            return spans[0]
        if region.readonly:
            return spans[0].toreadonly()
        return region.mapping.view(address - region.start, length)

    def fill(self, address: int, length: int, byte: int = 0, *, rom: bool = False) -> None:
        """Set `length` bytes at `address` to `byte`.  Raises as `write` does."""
        byte, length = integer("byte", byte, 0, 0xFF), integer("length", length, 0)
        for mapping, offset, size in self._parts(address, length, rom=rom):
            with mapping.slice(offset, size):
                for start in range(0, size, _FILL_STEP):
                    mapping.pages.fill(offset + start, min(size - start, _FILL_STEP), byte)

    def compare_exchange(self, address: int, expected: Buffer, desired: Buffer) -> bytes:
        """CMPXCHG16B with LOCK: store `desired` at `address` if `expected` is there.

        Returns what was there.  `address` is a multiple of 16 and both values have 16 bytes.
        Raises MemoryRangeError, ConfigError for read-only memory and other sizes.
        """
        found, wanted = ffi.new("uint64_t[2]"), ffi.new("uint64_t[2]")
        for name, words, value in (("expected", found, expected), ("desired", wanted, desired)):
            data = flat(value)
            if len(data) != 16:
                raise ConfigError(f"{name} has {len(data)} bytes, not 16")
            ffi.buffer(words)[:] = data
        if integer("address", address) % 16:
            raise ConfigError(f"{show(address)} is no multiple of 16")
        ((mapping, offset, _),) = self._parts(address, 16, rom=False)
        with mapping.slice(offset, 16):
            lib.pykvm_cmpxchg16b(mapping.pages.core, offset, found, wanted)
        return bytes(ffi.buffer(found))

    def find(self, needle: Buffer, start: int = 0, end: int = ADDRESS_LIMIT) -> int | None:
        """The lowest address in ``start:end`` where all of `needle` lies, or None.

        Searches every region in place, and across the seam of regions that touch; addresses
        without memory are passed over.  Raises ConfigError for an empty needle.

        >>> memory = GuestMemory()
        >>> ram = memory.add_ram(0x10000, 0x4000)
        >>> memory.write(0x12345, b"needle")
        >>> hex(memory.find(b"needle"))
        '0x12345'
        """
        wanted = bytes(flat(needle))
        if not wanted:
            raise ConfigError("cannot search for nothing: the needle is empty")
        start, end = integer("start", start), integer("end", end)
        self._check_open()
        for region in self.regions:
            low, high = max(start, region.start), min(end, region.end)
            if low >= high:
                continue
            found = region.mapping.find(wanted, low - region.start, high - region.start)
            if found >= 0:
                return region.start + found
            # A match that begins here and ends in regions that follow without a gap.
            low = max(low, region.end - len(wanted) + 1)
            high = self._hole(low, min(end, region.end + len(wanted) - 1))
            if high > region.end:
                found = self.read(low, high - low).find(wanted)
                if found >= 0:
                    return low + found
        return None

    def read_cstring(self, address: int, limit: int = PAGE_SIZE) -> bytes:
        """The bytes at `address` up to, without, the NUL that ends them.

        Raises MemoryRangeError if memory ends before the NUL, ConfigError if there is none within
        `limit` bytes.
        """
        address, limit = integer("address", address), integer("limit", limit, 0)
        end = self._hole(address, address + limit)
        nul = self.find(b"\0", address, end)
        if nul is not None:
            return self.read(address, nul - address)
        if end < address + limit:
            raise self._out_of_range(address, limit)
        raise ConfigError(f"no NUL within {limit} bytes of {address:#x}: not a C string")

    def write_cstring(self, address: int, text: str | bytes) -> int:
        """Write `text` (a str as UTF-8) and a NUL; returns how many bytes that took.

        Raises as `write` does.
        """
        data = text.encode() if isinstance(text, str) else bytes(bytes_like("text", text))
        if b"\0" in data:
            raise wrong("text", "what a C string can hold, without NUL", text)
        self.write(address, data + b"\0")
        return len(data) + 1

    # Integers, little-endian as the guest's; aligned ones are read and written in one piece.

    def read_u8(self, address: int) -> int:
        """The byte at `address`.  Raises MemoryRangeError."""
        return self._load(address, 1)

    def read_u16(self, address: int) -> int:
        """The 2-byte integer at `address`.  Raises MemoryRangeError."""
        return self._load(address, 2)

    def read_u32(self, address: int) -> int:
        """The 4-byte integer at `address`.  Raises MemoryRangeError."""
        return self._load(address, 4)

    def read_u64(self, address: int) -> int:
        """The 8-byte integer at `address`.  Raises MemoryRangeError."""
        return self._load(address, 8)

    def write_u8(self, address: int, value: int) -> None:
        """Write a byte.  Raises as `write` does, ConfigError if `value` does not fit."""
        self._store(address, 1, value)

    def write_u16(self, address: int, value: int) -> None:
        """Write a 2-byte integer.  Raises as `write_u8` does."""
        self._store(address, 2, value)

    def write_u32(self, address: int, value: int) -> None:
        """Write a 4-byte integer.  Raises as `write_u8` does."""
        self._store(address, 4, value)

    def write_u64(self, address: int, value: int) -> None:
        """Write an 8-byte integer.  Raises as `write_u8` does."""
        self._store(address, 8, value)

    def _load(self, address: int, size: int) -> int:
        spans = self._spans(address, size)
        data = spans[0] if len(spans) == 1 else b"".join(spans)
        value: int = _INTEGERS[size].unpack(data)[0]
        return value

    def _store(self, address: int, size: int, value: int) -> None:
        parts = self._parts(address, size, rom=False)
        try:
            data = _INTEGERS[size].pack(value)
        except struct_error:
            raise ConfigError(f"{show(value)} does not fit in {size} bytes") from None
        if len(parts) > 1:
            self.write(address, data)
            return
        ((mapping, offset, _),) = parts
        with mapping.slice(offset, size):
            mapping.pages.store(offset, data, size)
