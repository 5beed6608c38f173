"""Builder against walker in every paging mode: what is mapped is found, and nothing else is."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.x86.paging import PTE, PageTables, PagingMode, Walk, identity, walk
from pykvm.x86.registers import CR0, CR4, EFER

REGISTERS: dict[PagingMode, dict[str, Any]] = {
    PagingMode.LEGACY32: {"cr0": CR0.PG | CR0.WP, "cr4": CR4.PSE, "efer": 0},
    PagingMode.PAE: {"cr0": CR0.PG | CR0.WP, "cr4": CR4.PAE, "efer": EFER.NXE},
    PagingMode.LEVEL4: {"cr0": CR0.PG | CR0.WP, "cr4": CR4.PAE, "efer": EFER.LMA | EFER.NXE},
    PagingMode.LEVEL5: {
        "cr0": CR0.PG | CR0.WP,
        "cr4": CR4.PAE | CR4.LA57,
        "efer": EFER.LMA | EFER.NXE,
    },
}
MODES = st.sampled_from(list(REGISTERS))
ACCESSES = st.sampled_from(["read", "write", "execute"])


class Mapping(NamedTuple):
    """One call of PageTables.map."""

    virtual: int
    physical: int
    page_size: int
    pages: int
    writable: bool
    user: bool
    executable: bool

    @property
    def end(self) -> int:
        return self.virtual + self.pages * self.page_size


def top_bits(mode: PagingMode) -> int:
    return 32 if mode.linear_bits == 32 else mode.linear_bits - 1


def sign_extend(mode: PagingMode, address: int, upper: bool) -> int:
    """The address in the half of the space that `upper` picks."""
    if mode.linear_bits == 32:
        return address
    return address | (-1 << top_bits(mode)) & (1 << 64) - 1 if upper else address


@st.composite
def mappings(draw: st.DrawFn, mode: PagingMode) -> list[Mapping]:
    """Mappings that do not overlap nor disagree about page sizes: one top-level slot each."""
    slot = 1 << mode.levels[0].shift
    slots = 1 << top_bits(mode)
    chosen = draw(st.lists(st.integers(0, slots // slot - 1), min_size=1, max_size=4, unique=True))
    upper = draw(st.booleans())
    result = []
    for number in chosen:
        page_size = draw(st.sampled_from([size for size in mode.page_sizes if size <= slot]))
        pages = draw(st.integers(1, min(5, slot // page_size)))
        first = draw(st.integers(0, slot // page_size - pages))
        bits = 32 if mode is PagingMode.LEGACY32 and page_size == 4096 else 40
        frame = draw(st.integers(0, (1 << bits) // page_size - pages))
        result.append(
            Mapping(
                sign_extend(mode, number * slot + first * page_size, upper),
                frame * page_size,
                page_size,
                pages,
                draw(st.booleans()),
                draw(st.booleans()),
                mode is PagingMode.LEGACY32 or draw(st.booleans()),
            )
        )
    return result


def build(mode: PagingMode, wanted: list[Mapping]) -> PageTables:
    tables = PageTables(mode, iter(range(0x1000, 0x100_0000, 0x1000)).__next__)
    for one in wanted:
        tables.map(
            one.virtual,
            one.physical,
            one.pages * one.page_size,
            one.page_size,
            writable=one.writable,
            user=one.user,
            executable=one.executable,
        )
    return tables


def look(tables: PageTables, address: int, **options: Any) -> Walk:
    return walk(tables.read, address, cr3=tables.root, **REGISTERS[tables.mode], **options)


@given(data=st.data(), mode=MODES)
@settings(max_examples=150)
def test_what_was_mapped_is_found_with_its_rights(data: st.DataObject, mode: PagingMode) -> None:
    wanted = data.draw(mappings(mode))
    tables = build(mode, wanted)
    one = data.draw(st.sampled_from(wanted))
    offset = data.draw(st.integers(0, one.end - one.virtual - 1))
    found = look(tables, one.virtual + offset, access=None)

    assert found.fault is None
    assert found.physical == one.physical + offset
    assert found.page_size == one.page_size
    assert (found.writable, found.user, found.executable) == (
        one.writable,
        one.user,
        one.executable,
    )


@given(data=st.data(), mode=MODES, access=ACCESSES, user=st.booleans())
@settings(max_examples=150)
def test_the_neighbours_of_a_mapping_are_not_mapped(
    data: st.DataObject, mode: PagingMode, access: str, user: bool
) -> None:
    wanted = data.draw(mappings(mode))
    tables = build(mode, wanted)
    for one in wanted:
        for address in (one.virtual - 1, one.end):
            inside = any(other.virtual <= address < other.end for other in wanted)
            if inside or not 0 <= address < 1 << 64 or not mode.canonical(address):
                continue
            found = look(tables, address, access=access, user=user)
            assert found.physical is None
            assert found.vector == 14
            assert found.error_code == error(mode, access, user, present=False)


def error(mode: PagingMode, access: str, user: bool, *, present: bool) -> int:
    """The error code as SDM 3A 4.7 composes it, for a machine without SMEP."""
    fetch = access == "execute" and mode is not PagingMode.LEGACY32
    return present | (access == "write") << 1 | user << 2 | fetch << 4


def allowed(access: str, user: bool, writable: bool, for_user: bool, executable: bool) -> bool:
    """Whether SDM 3A 4.6.1 grants the access, with CR0.WP and without SMEP and SMAP."""
    if user and not for_user:
        return False
    return {"read": True, "write": writable, "execute": executable}[access]


@given(data=st.data(), mode=MODES, access=ACCESSES, user=st.booleans())
@settings(max_examples=250)
def test_rights_are_the_and_over_all_levels(
    data: st.DataObject, mode: PagingMode, access: str, user: bool
) -> None:
    page_size = data.draw(st.sampled_from(mode.page_sizes))
    tables = PageTables(mode, iter(range(0x1000, 0x10000, 0x1000)).__next__)
    tables.map(0, 0, page_size, page_size, user=True)
    rights = {"writable": True, "user": True, "executable": True}
    size = mode.entry_size
    for level in look(tables, 0).levels:
        if level.name == "PDPTE" and mode is PagingMode.PAE:
            continue  # no rights there
        page = tables.pages[level.address & -0x1000]
        entry = level.entry
        if data.draw(st.booleans(), label=f"{level.name} read-only"):
            entry &= ~PTE.W
            rights["writable"] = False
        if data.draw(st.booleans(), label=f"{level.name} supervisor"):
            entry &= ~PTE.U
            rights["user"] = False
        if size == 8 and data.draw(st.booleans(), label=f"{level.name} no-execute"):
            entry |= PTE.NX
            rights["executable"] = False
        at = level.address & 0xFFF
        page[at : at + size] = entry.to_bytes(size, "little")

    found = look(tables, 0x123, access=access, user=user)

    assert {name: getattr(found, name) for name in rights} == rights
    if allowed(access, user, rights["writable"], rights["user"], rights["executable"]):
        assert (found.physical, found.error_code) == (0x123, None)
    else:
        assert found.physical is None
        assert found.error_code == error(mode, access, user, present=True)


@given(
    data=st.data(),
    mode=MODES,
    pages=st.integers(1, 3000),
    user=st.booleans(),
    writable=st.booleans(),
)
@settings(max_examples=60)
def test_identity_maps_each_address_to_itself_and_ends_where_it_should(
    data: st.DataObject, mode: PagingMode, pages: int, user: bool, writable: bool
) -> None:
    page_size = data.draw(st.sampled_from(mode.page_sizes))
    length = min(pages * page_size, 1 << top_bits(mode))
    base = 0x1000 * data.draw(st.integers(0, 0xFFF))
    tables = identity(
        length, base=base, page_size=page_size, mode=mode, user=user, writable=writable
    )
    address = data.draw(st.integers(0, length - 1))
    registers = REGISTERS[mode]
    found = walk(tables.read, address, cr3=tables.root, user=user, **registers)

    assert (found.physical, found.page_size, found.executable) == (address, page_size, True)
    assert (found.user, found.writable) == (user, writable)
    if mode.canonical(length):
        assert walk(tables.read, length, cr3=tables.root, **registers).error_code == 0


@given(
    mode=MODES,
    address=st.integers(0, 2**64 - 1),
    tables=st.binary(min_size=64, max_size=64),
    access=ACCESSES,
    user=st.booleans(),
)
@settings(max_examples=200)
def test_any_bytes_can_be_walked(
    mode: PagingMode, address: int, tables: bytes, access: str, user: bool
) -> None:
    """Garbage gives an address or a reason, never an exception, and a reason is one sentence."""

    def read(gpa: int, size: int) -> bytes:
        at = (gpa * 7) % (len(tables) - size)
        return tables[at : at + size]

    found = walk(read, address, cr3=0x1000, access=access, user=user, **REGISTERS[mode])

    assert (found.physical is None) == (found.fault is not None)
    assert (found.vector is None) == (found.error_code is None)
    assert "\n" not in (found.fault or "")
    assert len(str(found).splitlines()) == len(found.levels) + 2
