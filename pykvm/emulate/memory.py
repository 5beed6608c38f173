"""Memory as a refused instruction sees it: through the guest's page tables, to RAM or a device."""

from __future__ import annotations

from pykvm.bus import Space
from pykvm.emulate.fault import PF, Fault
from pykvm.errors import GuestError, MemoryRangeError
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.spelling import in_python, option
from pykvm.x86.registers import CR0, CR4, EFER, RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any, Literal

    from pykvm.bus import Bus
    from pykvm.memory import GuestMemory

__all__ = ["BusDevices", "Devices", "LinearMemory"]

PAGE = 4096
_TABLE = (1 << 52) - PAGE
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
# What a present entry of 4-level paging must not have for the short way: NX says nothing about
# data, and keys and 1 GiB pages go the long one.
_SHIFTS = (39, 30, 21, 12)


class Devices(Protocol):
    """What answers where there is no memory.  What a device raises passes."""

    def read(self, address: int, size: int) -> int:
        """`size` bytes, 1 to 8, at a guest-physical address."""

    def write(self, address: int, size: int, value: int) -> None:
        """Hand `value` to the device at a guest-physical address."""


class BusDevices:
    """The devices of a bus, entered by one vCPU at a time.

    Raises GuestError for an unclaimed address, unless the bus is open: then `drop` is told
    of each, as `pykvm.bus.published.Shared.drop` is.
    """

    def __init__(
        self,
        bus: Bus,
        memory: GuestMemory,
        lock: AbstractContextManager[object],
        *,
        open_bus: bool,
        drop: Callable[..., None] = lambda **_: None,
    ) -> None:
        self._bus = bus
        self._memory = memory
        self._lock = lock
        self._open_bus = open_bus
        self._drop = drop

    def read(self, address: int, size: int) -> int:
        """See `Devices`."""
        with self._lock:
            value = self._bus.read(Space.MMIO, address, size)
        if value is None:
            self._unclaimed(f"read {size} byte(s)", address)
            self._drop(pio=False, address=address, size=size, value=None)
            return (1 << 8 * size) - 1
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """See `Devices`."""
        with self._lock:
            taken = self._bus.write(Space.MMIO, address, size, value)
        if not taken:
            self._unclaimed(f"wrote {size} byte(s)", address)
            self._drop(pio=False, address=address, size=size, value=value)

    def _unclaimed(self, what: str, address: int) -> None:
        if not self._open_bus:
            rom = self._memory.region_at(address)
            raise GuestError(
                "wild access",
                f"the guest {what} at physical address {address:#x}, where there is "
                + (f"ROM ({rom.name})" if rom is not None else "no memory and no device"),
                hint=f"let unclaimed accesses find an open bus ({option('unclaimed', 'open-bus')})"
                f"{in_python(', or add a device there')}",
            )


class LinearMemory:
    """The linear addresses of one vCPU, as of one moment: give it the registers with `look`."""

    def __init__(self, memory: GuestMemory, devices: Devices) -> None:
        self.memory = memory
        self.devices = devices
        self._sregs: Any = None
        self._user = self._ac = False

    def look(self, sregs: Any, cpl: int, rflags: int) -> None:
        """Translate by these control registers, with the rights of `cpl`, from now on."""
        self._sregs = sregs
        self._user = cpl == 3
        self._ac = bool(rflags & RFLAGS.AC)

    def physical(self, address: int, *, write: bool) -> int:
        """Translate a linear address to its guest-physical one; sets accessed and dirty bits.

        Raises Fault, and GuestError for page tables outside memory.
        """
        sregs = self._sregs
        if not sregs.cr0 & CR0.PG:
            return address & 0xFFFF_FFFF
        if not self._user and sregs.efer & EFER.LMA and not sregs.cr4 & (CR4.LA57 | CR4.SMAP):
            found = self._walk_supervisor(address, write)
            if found is not None:
                return found
        return self._walk(address, "write" if write else "read")

    def _walk_supervisor(self, address: int, write: bool) -> int | None:
        """4-level paging where nothing is in the way; None where the walk has to look closer."""
        if (address >> 47) not in (0, 0x1FFFF):
            return None
        load = self.memory.read_u64
        table = self._sregs.cr3
        needed = _PRESENT | _ACCESSED | (_WRITABLE if write else 0)
        try:
            for shift in _SHIFTS:
                entry = load((table & _TABLE) + (address >> shift & 511) * 8)
                if entry & needed != needed:
                    return None
                table = entry
                if shift == 21 and entry & _LARGE:
                    break
                if shift == 30 and entry & _LARGE:
                    return None
        except MemoryRangeError:
            return None
        if write and not entry & _DIRTY:
            return None
        return (entry & _TABLE & -(1 << shift)) | (address & ((1 << shift) - 1))

    def fetch(self, address: int, length: int) -> bytes:
        """Bytes of code at a linear address, all of one page.

        Raises Fault as a fetch does, and MemoryRangeError where there is no memory.
        """
        if not self._sregs.cr0 & CR0.PG:
            return self.memory.read(address & 0xFFFF_FFFF, length)
        return self.memory.read(self._walk(address, "execute"), length)

    def _walk(self, address: int, access: Literal["read", "write", "execute"]) -> int:
        from pykvm.x86.paging import walk

        sregs = self._sregs
        found = walk(
            self.memory.read,
            address,
            cr0=sregs.cr0,
            cr3=sregs.cr3,
            cr4=sregs.cr4,
            efer=sregs.efer,
            access=access,
            user=self._user,
            ac=self._ac,
        )
        if found.physical is None:
            if found.vector is None:
                raise GuestError("broken page tables", found.fault or "")
            raise Fault(
                found.vector, found.error_code or 0, address if found.vector == PF else None
            )
        for level in found.levels:
            marks = _ACCESSED if level.accessed is False else 0
            if level.leaf and access == "write" and not level.dirty:
                marks |= _DIRTY
            # Tables in ROM stay as they are, as with KVM (paging_tmpl.h,
            # update_accessed_dirty_bits).
            if marks and not self._is_rom(level.address):
                self.memory.write_u8(level.address, level.entry & 0xFF | marks)
        return found.physical

    def _pieces(self, address: int, length: int, *, write: bool) -> list[tuple[int, int]]:
        pieces = []
        end = address + length
        while address < end:
            step = min(PAGE - address % PAGE, end - address)
            pieces.append((self.physical(address, write=write), step))
            address += step
        return pieces

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at a linear address.  Raises Fault, and what devices raise."""
        pieces = self._pieces(address, length, write=False)
        return b"".join(self.read_physical(gpa, size) for gpa, size in pieces)

    def check_write(self, address: int, length: int) -> None:
        """Raise the Fault that `write` would raise."""
        self._pieces(address, length, write=True)

    def write(self, address: int, data: bytes) -> None:
        """Write at a linear address: all of it, or nothing and a Fault."""
        done = 0
        for gpa, size in self._pieces(address, len(data), write=True):
            self.write_physical(gpa, data[done : done + size])
            done += size

    def read_as_system(self, address: int, length: int) -> bytes:
        """As `read`, with the supervisor's rights: how descriptors are read (SDM 3A 4.6)."""
        user, self._user = self._user, False
        try:
            return self.read(address, length)
        finally:
            self._user = user

    def mark_as_system(self, address: int, value: int) -> None:
        """Write the byte of a descriptor that says it was used, with the supervisor's rights.

        A descriptor in ROM stays as it is.
        """
        user, self._user = self._user, False
        try:
            physical = self.physical(address, write=True)
        finally:
            self._user = user
        if not self._is_rom(physical):
            self.write_physical(physical, bytes([value]))

    def _is_rom(self, address: int) -> bool:
        region = self.memory.region_at(address)
        return region is not None and region.readonly

    def read_physical(self, address: int, length: int) -> bytes:
        """`length` bytes at a guest-physical address, of RAM, ROM or devices."""
        if self.memory.covers(address, length):
            return self.memory.read(address, length)
        return b"".join(
            self.devices.read(address + at, size).to_bytes(size, "little")
            for at, size in _accesses(length)
        )

    def write_physical(self, address: int, data: bytes) -> None:
        """Write at a guest-physical address; what is not RAM is a device's."""
        if self.is_ram(address, len(data)):
            self.memory.write(address, data)
            return
        for at, size in _accesses(len(data)):
            value = int.from_bytes(data[at : at + size], "little")
            self.devices.write(address + at, size, value)

    def is_ram(self, address: int, length: int) -> bool:
        """Whether all of these guest-physical addresses, of one page, are writable memory."""
        region = self.memory.region_at(address)
        return region is not None and not region.readonly and address + length <= region.end


def _accesses(length: int) -> list[tuple[int, int]]:
    """The accesses of at most 8 bytes that a stretch of MMIO is made of, as KVM makes them."""
    return [(at, min(8, length - at)) for at in range(0, length, 8)]
