"""The walk that the processor's MMU does, level by level, with the reason where it fails."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.paging.modes import PAGE_SIZE, PTE, LevelFormat, PagingMode
from pykvm.x86.registers import CR0, CR4, EFER, PageFaultError, names

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Level", "Walk", "walk"]

PAGE_FAULT = 14
GENERAL_PROTECTION = 13

_ACCESSES = ("read", "write", "execute", None)


class Level(NamedTuple):
    """One entry of a walk, decoded.

    `slot` is its number in the table, `address` the guest-physical address of the entry, `entry`
    its raw value.  `target` is what it points to: the next table, or the page if `leaf`.  A right
    that the format does not have is granted; `accessed` and `dirty` are None where the entry has no
    such bit.
    """

    name: str
    slot: int
    address: int
    entry: int
    leaf: bool
    target: int
    present: bool
    writable: bool
    user: bool
    executable: bool
    accessed: bool | None
    dirty: bool | None

    def __str__(self) -> str:
        text = f"{self.name}[{self.slot}] at {self.address:#x} = {self.entry:#x}"
        if not self.present:
            return f"{text} not present"
        words = [f"-> {self.target:#x}", "page" if self.leaf else "table"]
        words += ["writable" if self.writable else "read-only"]
        words += ["user" if self.user else "supervisor"]
        words += ["no-execute"] * (not self.executable)
        words += ["accessed"] * bool(self.accessed) + ["dirty"] * bool(self.dirty)
        return f"{text} {' '.join(words)}"


class Walk(NamedTuple):
    """What became of an address.

    `levels` are the entries read, root first.  If the access is allowed `physical` is the
    guest-physical address and `fault` None; otherwise `fault` is the reason in a sentence, `vector`
    the exception (14 #PF, 13 #GP) and `error_code` its error code, both None where the processor
    would raise none (a table outside memory).  `page_size` is in bytes, 0 when no page was found.
    `writable`, `user` and `executable` are the rights that the entries grant together.
    """

    mode: PagingMode
    address: int
    levels: list[Level]
    physical: int | None
    page_size: int
    writable: bool
    user: bool
    executable: bool
    accessed: bool
    dirty: bool
    fault: str | None = None
    vector: int | None = None
    error_code: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.address:#x} by {self.mode}"]
        lines += [f"  {level}" for level in self.levels]
        if self.fault is None:
            lines.append(f"  = {self.physical:#x}")
        elif self.vector == PAGE_FAULT:
            bits = " ".join(names(self.error_code or 0, PageFaultError))
            lines.append(f"  #PF({self.error_code:#x} [{bits}]): {self.fault}")
        else:
            exception = "#GP(0): " if self.vector == GENERAL_PROTECTION else ""
            lines.append(f"  {exception}{self.fault}")
        return "\n".join(lines)


def walk(
    read: Callable[[int, int], bytes],
    address: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    access: str | None = "read",
    user: bool = False,
    ac: bool = False,
    pkru: int = 0,
    maxphyaddr: int = 52,
    gbpages: bool = True,
) -> Walk:
    """Translate the linear `address` as the processor does (SDM 3A 4.3 to 4.7).

    `read(gpa, size)` gives the guest's memory and raises LookupError where there is none.
    `access` is "read", "write" or "execute", at CPL 3 if `user`; with None no rights are asked,
    as a debugger looks.  `ac` is RFLAGS.AC, which lets the supervisor past SMAP, `pkru` the
    protection keys of user pages.  `maxphyaddr` (physical address bits) and `gbpages` say what
    CPUID shows the guest; they decide which bits are reserved.  Accessed and dirty bits are read,
    never set.

    Raises ConfigError for another `access`.

    >>> from pykvm.x86.paging.tables import identity
    >>> tables = identity(4 << 30, base=0x1000)
    >>> found = walk(
    ...     tables.read, 0x12_3456, cr0=CR0.PE | CR0.PG, cr3=0x1000, cr4=CR4.PAE, efer=EFER.LMA
    ... )
    >>> hex(found.physical), hex(found.page_size), [level.name for level in found.levels]
    ('0x123456', '0x200000', ['PML4E', 'PDPTE', 'PDE'])
    """
    if access not in _ACCESSES:
        raise ConfigError(f"an access is read, write or execute, not {access!r}")
    mode = PagingMode.of(cr0, cr4, efer)
    levels: list[Level] = []
    if mode is PagingMode.NONE:
        if address >> 32:
            return _failed(mode, address, levels, _BEYOND.format(address=address))
        return Walk(mode, address, levels, address, 1 << 32, True, True, True, True, True)
    if not mode.canonical(address):
        if mode.linear_bits == 32:
            return _failed(mode, address, levels, _BEYOND.format(address=address))
        fault = (
            f"{address:#x} is not canonical: bits 63 to {mode.linear_bits - 1} "
            f"must be equal in {mode}"
        )
        return _failed(mode, address, levels, fault, GENERAL_PROTECTION, 0)

    # Which part of the error code the kind of access gives, whatever fails (SDM 3A 4.7).
    fetch = access == "execute"
    nxe = bool(efer & EFER.NXE) and mode is not PagingMode.LEGACY32
    error = PageFaultError.W * (access == "write") | PageFaultError.U * user
    error |= PageFaultError.I * (fetch and (nxe or bool(cr4 & CR4.SMEP)))

    table = _root(mode, cr3)
    for level in mode.levels:
        slot = address >> level.shift & (1 << level.bits) - 1
        where = table + slot * mode.entry_size
        try:
            entry = int.from_bytes(read(where, mode.entry_size), "little")
        except LookupError:
            fault = f"the {level.name} at {where:#x} lies outside memory"
            if not levels:
                fault += f": CR3 is {cr3:#x}"
            return _failed(mode, address, levels, fault)
        found = _decode(mode, level, slot, where, entry, cr4, nxe)
        levels.append(found)
        if not found.present:
            fault = f"{address:#x} is not mapped: {_cite(found)} is not present"
            return _failed(mode, address, levels, fault, PAGE_FAULT, error)
        reserved = entry & _reserved(mode, level, found.leaf, nxe, maxphyaddr, gbpages)
        if reserved:
            fault = f"{_cite(found)} has reserved bits set: {reserved:#x}"
            if mode is PagingMode.PAE and level.name == "PDPTE":
                # The four PDPTEs are loaded and checked by MOV to CR3 (SDM 3A 4.4.1).
                return _failed(mode, address, levels, fault, GENERAL_PROTECTION, 0)
            error |= PageFaultError.P | PageFaultError.RSVD
            return _failed(mode, address, levels, fault, PAGE_FAULT, error)
        if found.leaf:
            break
        table = found.target

    page_size = 1 << level.shift
    result = Walk(
        mode,
        address,
        levels,
        found.target + (address & (page_size - 1)),
        page_size,
        writable=all(entry.writable for entry in levels),
        user=all(entry.user for entry in levels),
        executable=all(entry.executable for entry in levels),
        accessed=all(entry.accessed is not False for entry in levels),
        dirty=bool(found.dirty),
    )
    if access is None:
        return result
    denied = _denied(result, access, user, cr0, cr4, ac)
    if denied is None:
        denied = _denied_by_key(result, access, user, cr0, cr4, pkru)
        if denied is None:
            return result
        error |= PageFaultError.PK
    return result._replace(
        physical=None, fault=denied, vector=PAGE_FAULT, error_code=error | PageFaultError.P
    )


_BEYOND = "{address:#x} lies beyond the 4 GiB of a 32-bit linear address space"


def _failed(
    mode: PagingMode,
    address: int,
    levels: list[Level],
    fault: str,
    vector: int | None = None,
    error_code: int | None = None,
) -> Walk:
    """A walk that found no page."""
    rights = (False, False, False, False, False)
    return Walk(mode, address, levels, None, 0, *rights, fault, vector, error_code)


def _root(mode: PagingMode, cr3: int) -> int:
    """The address of the root table that `cr3` names (SDM 3A tables 4-3, 4-7, 4-12)."""
    if mode is PagingMode.LEGACY32:
        return cr3 & 0xFFFF_F000
    if mode is PagingMode.PAE:
        return cr3 & 0xFFFF_FFE0
    return cr3 & (1 << 52) - PAGE_SIZE


def _decode(
    mode: PagingMode, level: LevelFormat, slot: int, where: int, entry: int, cr4: int, nxe: bool
) -> Level:
    """The entry's bits by meaning."""
    large = level.large and bool(entry & PTE.PS)
    if mode is PagingMode.LEGACY32 and not cr4 & CR4.PSE:
        large = False
    leaf = large or level.shift == 12
    rightless = mode is PagingMode.PAE and level.name == "PDPTE"
    if mode is PagingMode.LEGACY32:
        target = entry & 0xFFFF_F000
        if large:
            target = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
    else:
        target = entry & (1 << 52) - (1 << level.shift if leaf else PAGE_SIZE)
    return Level(
        name=level.name,
        slot=slot,
        address=where,
        entry=entry,
        leaf=leaf,
        target=target,
        present=bool(entry & PTE.P),
        writable=rightless or bool(entry & PTE.W),
        user=rightless or bool(entry & PTE.U),
        executable=not (nxe and entry & PTE.NX),
        accessed=None if rightless else bool(entry & PTE.A),
        dirty=bool(entry & PTE.D) if leaf else None,
    )


def _reserved(
    mode: PagingMode, level: LevelFormat, leaf: bool, nxe: bool, maxphyaddr: int, gbpages: bool
) -> int:
    """The bits that must be zero in a present entry (SDM 3A tables 4-4 to 4-20)."""
    large = leaf and level.shift > 12
    if mode is PagingMode.LEGACY32:
        # Bits 20:13 hold physical bits 39:32 as far as the processor has them; 21 is reserved.
        return 0x3F_E000 & -1 << max(13, min(maxphyaddr, 40) - 19) if large else 0
    bits = (1 << 52) - (1 << maxphyaddr)
    if not nxe:
        bits |= PTE.NX
    if large:
        bits |= (1 << level.shift) - (1 << 13)
    if mode is PagingMode.PAE:
        bits |= (1 << 63) - (1 << 52)
        if level.name == "PDPTE":
            return bits | PTE.NX | 0x1E6
    elif level.name in ("PML5E", "PML4E") or (large and level.name == "PDPTE" and not gbpages):
        bits |= PTE.PS
    return bits


def _denied(found: Walk, access: str, user: bool, cr0: int, cr4: int, ac: bool) -> str | None:
    """Why the rights of the page forbid the access, or None (SDM 3A 4.6.1)."""
    who = "user" if user else "supervisor"
    doing = {"read": "read", "write": "write", "execute": "instruction fetch"}[access]
    what = f"{who} {doing} at {found.address:#x}"
    if user and not found.user:
        return f"{what}: the page is the supervisor's, U/S is clear in {_culprit(found, 'user')}"
    if access == "execute":
        if found.user and not user and cr4 & CR4.SMEP:
            return f"{what}: SMEP forbids the supervisor to execute a user page"
        if not found.executable:
            return f"{what}: the page is no-execute, NX is set in {_culprit(found, 'executable')}"
        return None
    if found.user and not user and cr4 & CR4.SMAP and not ac:
        return f"{what}: SMAP forbids the supervisor a user page while RFLAGS.AC is clear"
    if access == "write" and not found.writable and (user or cr0 & CR0.WP):
        held = "" if user else " and CR0.WP is set"
        return f"{what}: the page is read-only, R/W is clear in {_culprit(found, 'writable')}{held}"
    return None


def _denied_by_key(
    found: Walk, access: str, user: bool, cr0: int, cr4: int, pkru: int
) -> str | None:
    """Why the protection key of a user page forbids a data access, or None (SDM 3A 4.6.2)."""
    long = found.mode in (PagingMode.LEVEL4, PagingMode.LEVEL5)
    if not (long and cr4 & CR4.PKE and found.user) or access == "execute":
        return None
    key = found.levels[-1].entry >> 59 & 0xF
    denied = pkru >> 2 * key
    what = f"{'user' if user else 'supervisor'} {access} at {found.address:#x}"
    if denied & 1:
        return f"{what}: PKRU disables access to pages of protection key {key}"
    if denied & 2 and access == "write" and (user or cr0 & CR0.WP):
        return f"{what}: PKRU disables writes to pages of protection key {key}"
    return None


def _culprit(found: Walk, right: str) -> str:
    """The first entry on the way that withholds `right`."""
    return _cite(next(level for level in found.levels if not getattr(level, right)))


def _cite(level: Level) -> str:
    return f"{level.name}[{level.slot}] at {level.address:#x} ({level.entry:#x})"
