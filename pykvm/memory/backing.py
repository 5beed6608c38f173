"""What guest memory is made of: mappings in this process, and whether the host can afford them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import suppress

from pykvm._core import ffi, lib
from pykvm.descriptor import Descriptor
from pykvm.errors import (
    ClosedError,
    ConfigError,
    HostError,
    ResourceError,
    is_exhaustion,
    resource_error,
)
from pykvm.memory.pages import PAGE_SIZE, Pages
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import one_of
from pykvm.values.sizes import format_size
from pykvm.values.spelling import in_python, option

if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    Backing: TypeAlias = str | os.PathLike[str]
    HugePages: TypeAlias = Literal[False, True, "transparent"]

__all__ = [
    "PAGE_SIZE",
    "HostMapping",
    "check_affordable",
    "host_address",
    "host_memory",
    "map_memory",
]

# <asm-generic/mman.h>; Python names them only from 3.13 on.
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000

# How much one search step covers.  mmap.find holds the GIL, and vCPU threads want it too.
_FIND_STEP = 16 << 20


def host_address(buffer: mmap.mmap) -> int:
    """The address in this process (HVA) of the first byte of `buffer`.

    The address stays right for as long as the mapping exists: a mapping is never moved.
    """
    with ffi.from_buffer(buffer) as start:
        return int(ffi.cast("uintptr_t", start))


def host_memory(path: str = "/proc/meminfo") -> dict[str, int]:
    """The host's memory as the kernel reports it: ``MemAvailable`` and so on, in bytes.

    Counts without a unit (``HugePages_Free``) stay counts.  Source: proc_meminfo(5).
    """
    values: dict[str, int] = {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            number, _, unit = rest.strip().partition(" ")
            values[name] = int(number) << (10 if unit == "kB" else 0)
    return values


class HostMapping:
    """A writable mapping in this process that backs one region of guest memory.

    `address` is where it starts (HVA), `size` its bytes.

    Closing it unmaps at once, unless someone still holds a memoryview of it: then the mapping goes
    away with the last such view, so that no view ever points at nothing.
    """

    __slots__ = ("_foreign", "_kind", "_map", "_memfd", "_view", "address", "pages", "size")

    def __init__(
        self,
        mapped: mmap.mmap,
        kind: Literal["anonymous", "memfd", "private file", "shared file", "fork"] = "anonymous",
        memfd: Descriptor | None = None,
    ) -> None:
        self._map: mmap.mmap | None = mapped
        self.address = host_address(mapped)
        self._view = memoryview(mapped)
        self.size = len(mapped)
        self._memfd = memfd
        self._kind = kind
        # Whether others may write to it, too.
        self._foreign = kind == "shared file"
        self.pages = Pages(self.address, self.size)
        if kind in ("private file", "shared file"):
            self.pages.mark(0, self.size)

    @property
    def fd(self) -> int | None:
        """The memfd that is mapped; None for other backings, and once it is closed.

        Who has it can write: from now on any page may be dirty.
        """
        memfd = self._memfd
        if memfd is None or memfd.closed:
            return None
        self._foreign = True
        return memfd.fileno()

    def is_fork(self) -> None:
        """It is mapped over by pages of an image: which of them were touched says nothing."""
        self._kind = "fork"

    def mark_touched(self) -> None:
        """Mark the pages that anything may have written since the mapping was made."""
        memfd = self._memfd
        if memfd is not None:
            lib.pykvm_mark_data(self.pages.core, memfd.fileno())
        elif self._kind == "anonymous":
            lib.pykvm_mark_touched(self.pages.core)
        else:
            self.pages.mark(0, self.size)

    def mark_unseen(self) -> bool:
        """Mark what views and other processes may have written; whether there are such."""
        if self._foreign:
            self.mark_touched()
        return self.pages.mark_views() or self._foreign

    def view(self, offset: int, length: int) -> memoryview:
        """A writable view, whose pages count as dirty as long as it lives.  Raises ClosedError."""
        return self.pages.view(self.pin(), offset, length)

    def pin(self) -> Any:
        """All bytes, for C; the mapping stays as long as this does.  Raises ClosedError.

        Not made of a memoryview: CPython 3.11 crashes where the garbage collector clears one that
        has exported its bytes (gh-77894).
        """
        mapped = self._map
        if mapped is None:
            raise ClosedError("this guest memory is closed")
        return ffi.from_buffer(mapped)

    def slice(self, offset: int, length: int) -> memoryview:
        """A view of `length` bytes from `offset` on, to read.  Raises ClosedError.

        What is written to it has to be marked in `pages`.
        """
        try:
            return self._view[offset : offset + length]
        except ValueError:
            raise ClosedError("this guest memory is closed") from None

    def find(self, needle: bytes, start: int, stop: int) -> int:
        """The offset of the first `needle` that lies wholly in ``start:stop``, or -1.

        Searches in place.  Raises ClosedError.
        """
        # CPython 3.11.0 to 3.11.4 read the byte after the last one that they search, and there is
        # none after a mapping (gh-105235): its last place is compared by itself.
        last = stop - len(needle)
        for step in range(start, last, _FIND_STEP):
            mapped = self._map
            if mapped is None:
                raise ClosedError("this guest memory is closed")
            found = mapped.find(needle, step, min(step + _FIND_STEP + len(needle), stop) - 1)
            if found >= 0:
                return found
        return last if last >= start and self.slice(last, len(needle)) == needle else -1

    def advise_huge(self) -> None:
        """Ask for transparent huge pages; closes the mapping and raises HostError without them."""
        assert self._map is not None
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            self.close()
            raise HostError(
                f"this kernel offers no transparent huge pages ({error.strerror})",
                hint="see /sys/kernel/mm/transparent_hugepage/enabled, or leave huge_pages out",
            ) from error

    def close(self) -> None:
        """Unmap.  Closing twice is harmless."""
        # Each step may be done twice: after an exception in here the next call goes on.
        self._view.release()
        if self._map is not None:
            # A view that a caller still has holds the mapping; without our reference it dies with
            # it.
            with suppress(BufferError):
                self._map.close()
            self._map = None
        if self._memfd is not None:
            self._memfd.close()


def map_memory(size: int, backing: Backing, *, shared: bool, huge_pages: HugePages) -> HostMapping:
    """Map `size` bytes (a multiple of 4096) of `backing`; see `GuestMemory.add_ram`.

    Raises ConfigError for what makes no sense, HostError for what this host cannot give.
    """
    one_of("huge_pages", huge_pages, (False, True, "transparent"))
    if huge_pages is True:
        _check_huge_pages(size, backing)
    try:
        if backing == "anonymous":
            mapping = _map_anonymous(size, reserved=huge_pages is True)
        elif backing == "memfd":
            mapping = _map_memfd(size, hugetlb=huge_pages is True)
        else:
            mapping = _map_file(size, os.fspath(backing), shared=shared)
    except (OSError, OverflowError) as error:
        raise _refusal(size, backing, error) from error
    if huge_pages == "transparent":
        mapping.advise_huge()
    return mapping


def check_affordable(total: int) -> None:
    """Raise HostError if the host cannot hold `total` bytes of guest memory right now."""
    # Free pages alone suffice as a rule, and are asked for in a microsecond.
    if total <= os.sysconf("SC_AVPHYS_PAGES") * PAGE_SIZE:
        return
    host = host_memory()
    available = host["MemAvailable"] + host.get("SwapFree", 0)
    if total > available:
        raise HostError(
            f"{format_size(total)} of guest memory asked for, but the host has "
            f"{format_size(available)} available (of {format_size(host['MemTotal'])})",
            hint=f"ask for less ({option('memory')})"
            + in_python(", or use GuestMemory(overcommit=True) if the guest will use less"),
        )


def _map_anonymous(size: int, *, reserved: bool) -> HostMapping:
    # Huge pages are reserved at mmap: without a reservation a missing one is a SIGBUS later.
    extra = _MAP_HUGETLB if reserved else _MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | extra
    return HostMapping(mmap.mmap(-1, size, flags=flags))


def _map_memfd(size: int, *, hugetlb: bool) -> HostMapping:
    flags = os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if hugetlb else 0)
    memfd = Descriptor.memfd("pykvm-guest", flags)
    fd = memfd.fileno()
    os.ftruncate(fd, size)
    # A process that gets the fd must not be able to shrink it: our next access would SIGBUS.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return HostMapping(mmap.mmap(fd, size, flags=mmap.MAP_SHARED), "memfd", memfd)


def _map_file(size: int, path: str, *, shared: bool) -> HostMapping:
    # O_NONBLOCK: opening a FIFO by mistake must not hang; it means nothing for a regular file.
    access = (os.O_RDWR if shared else os.O_RDONLY) | os.O_NONBLOCK
    with Descriptor.open(path, access) as file:
        actual = os.fstat(file.fileno()).st_size
        # Pages past the end of the file would SIGBUS this process when touched.
        if actual < size:
            raise ConfigError(
                f"{path} holds {actual:#x} bytes, the region is to have {size:#x}",
                hint=f"make the file longer (truncate -s {size} FILE) or the region smaller",
            )
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | _MAP_NORESERVE
        mapped = mmap.mmap(file.fileno(), size, flags=flags)
        return HostMapping(mapped, "shared file" if shared else "private file")


def _check_huge_pages(size: int, backing: Backing) -> None:
    """Refuse before mapping what reserved huge pages cannot hold."""
    if backing not in ("anonymous", "memfd"):
        raise ConfigError(
            f"huge_pages=True backs anonymous and memfd memory, not the file {backing}",
            hint="a file in a mounted hugetlbfs has huge pages by itself",
        )
    host = host_memory()
    page = host.get("Hugepagesize", 0)
    if not page:
        raise HostError("this kernel has no huge pages (no Hugepagesize in /proc/meminfo)")
    if size % page:
        raise ConfigError(
            f"{size:#x} bytes are not a multiple of the huge page size {format_size(page)}"
        )
    needed, free = size // page, host["HugePages_Free"] - host["HugePages_Rsvd"]
    if needed > free:
        raise HostError(
            f"{needed} huge pages of {format_size(page)} asked for, {free} are free",
            hint=f"reserve them as root: echo {host['HugePages_Total'] - free + needed} > "
            "/proc/sys/vm/nr_hugepages, or use huge_pages='transparent'",
        )


def _refusal(size: int, backing: Backing, error: OSError | OverflowError) -> HostError:
    """The error for a mapping that the host refused."""
    reason = error.strerror if isinstance(error, OSError) else "more than an address space holds"
    message = f"cannot map {format_size(size)} of guest memory ({backing}): {reason}"
    number = getattr(error, "errno", None)
    if number == errno.ENOMEM:
        available = format_size(host_memory()["MemAvailable"])
        return ResourceError(f"{message}; the host has {available} available", hint="see ulimit -v")
    if is_exhaustion(number):
        return resource_error(f"cannot map {format_size(size)} of guest memory", number or 0)
    return HostError(message)
