"""The walker, one architectural rule after another: address, reason, exception, error code.

Error code bits (SDM 3A 4.7): 1 P, 2 W, 4 U, 8 RSVD, 10h I/D, 20h PK.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pykvm.errors import ConfigError
from pykvm.x86.paging import PageTables, PagingMode, Walk, walk
from pykvm.x86.registers import CR0, CR4, EFER

K, M, G = 1 << 10, 1 << 20, 1 << 30
LEGACY32, PAE = PagingMode.LEGACY32, PagingMode.PAE
LEVEL4, LEVEL5 = PagingMode.LEVEL4, PagingMode.LEVEL5
P, W, U, PS, NX = 1, 2, 4, 0x80, 1 << 63

REGISTERS: dict[PagingMode, dict[str, Any]] = {
    PagingMode.NONE: {"cr0": CR0.PE, "cr4": 0, "efer": 0},
    LEGACY32: {"cr0": CR0.PE | CR0.PG, "cr4": CR4.PSE, "efer": 0},
    PAE: {"cr0": CR0.PE | CR0.PG, "cr4": CR4.PAE, "efer": EFER.NXE},
    LEVEL4: {"cr0": CR0.PE | CR0.PG, "cr4": CR4.PAE, "efer": EFER.LMA | EFER.NXE},
    LEVEL5: {"cr0": CR0.PE | CR0.PG, "cr4": CR4.PAE | CR4.LA57, "efer": EFER.LMA | EFER.NXE},
}


class Memory:
    """Guest memory with nothing but the entries given: 64 KiB from 0."""

    def __init__(self, entries: dict[int, int], size: int = 8) -> None:
        self.bytes = bytearray(0x10000)
        for address, value in entries.items():
            struct.pack_into("<I" if size == 4 else "<Q", self.bytes, address, value)

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.bytes):
            raise LookupError(hex(address))
        return bytes(self.bytes[address : address + size])


def look(
    mode: PagingMode,
    entries: dict[int, int],
    address: int,
    *,
    cr0: int = 0,
    cr4: int = 0,
    efer: int | None = None,
    cr3: int = 0x1000,
    **options: Any,
) -> Walk:
    """Walk with the registers of `mode`; cr0 and cr4 are added to them, efer replaces."""
    registers = REGISTERS[mode]
    return walk(
        Memory(entries, mode.entry_size).read,
        address,
        cr0=registers["cr0"] | cr0,
        cr3=cr3,
        cr4=registers["cr4"] | cr4,
        efer=registers["efer"] if efer is None else efer,
        **options,
    )


def page(rights: int = P | W, *, upper: int = P | W | U, frame: int = 0x9000) -> dict[int, int]:
    """4-level tables that map address 0 to `frame` with `rights`."""
    return {0x1000: 0x2000 | upper, 0x2000: 0x3000 | upper, 0x3000: 0x4000 | upper} | {
        0x4000: frame | rights
    }


def test_without_paging_linear_is_physical() -> None:
    found = look(PagingMode.NONE, {}, 0xFFFF_F123)
    assert (found.physical, found.levels, found.fault) == (0xFFFF_F123, [], None)


def test_32_bit_paging_4k() -> None:
    # 0x00402345: PDE 1, PTE 2, offset 0x345.
    found = look(LEGACY32, {0x1004: 0x2007, 0x2008: 0xFEDC_B063}, 0x0040_2345, cr3=0x1FFF)

    assert (found.physical, found.page_size) == (0xFEDC_B345, 4 * K)
    assert [(level.name, level.slot, level.address) for level in found.levels] == [
        ("PDE", 1, 0x1004),
        ("PTE", 2, 0x2008),
    ]
    assert (found.accessed, found.dirty) == (False, True)


def test_32_bit_paging_4m_with_pse36() -> None:
    found = look(LEGACY32, {0x1004: 0x0080_0000 | 0xAB << 13 | 0xE7}, 0x0040_2345)
    assert (found.physical, found.page_size) == (0xAB_0080_2345, 4 * M)
    assert (found.accessed, found.dirty) == (True, True)


def test_without_pse_the_ps_bit_of_a_pde_is_ignored() -> None:
    found = walk(
        Memory({0x1000: 0x2083, 0x2000: 0x5003}, 4).read,
        0x10,
        cr0=CR0.PE | CR0.PG,
        cr3=0x1000,
        cr4=0,
        efer=0,
    )
    assert (found.physical, found.page_size) == (0x5010, 4 * K)


def test_pae_paging_takes_the_pdpt_at_any_32_byte_boundary() -> None:
    # 0xC0201234: PDPTE 3, PDE 1, PTE 1.
    entries = {0x1038: 0x2001, 0x2008: 0x3003, 0x3008: 0xF_0000_7003}
    found = look(PAE, entries, 0xC020_1234, cr3=0x1020)

    assert (found.physical, found.page_size) == (0xF_0000_7234, 4 * K)
    assert [level.slot for level in found.levels] == [3, 1, 1]
    assert found.levels[0].accessed is None


def test_pae_paging_2m() -> None:
    found = look(PAE, {0x1000: 0x2001, 0x2008: 0x0060_0083}, 0x0020_1234)
    assert (found.physical, found.page_size) == (0x0060_1234, 2 * M)


@pytest.mark.parametrize(
    ("entries", "address", "physical", "page_size"),
    [
        (page(), 0xABC, 0x9ABC, 4 * K),
        ({0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x60_0083}, 0x1A_BCDE, 0x7A_BCDE, 2 * M),
        ({0x1000: 0x2003, 0x2000: 3 * G | 0x83}, 0x1A_BCDE, 3 * G + 0x1A_BCDE, G),
        ({at << 12 | 0xFF8: (at + 1) << 12 | 3 for at in (1, 2, 3, 4)}, 2**64 - 1, 0x5FFF, 4 * K),
        ({0x1800: 0x2003, 0x2000: 0x83}, 0xFFFF_8000_0000_0000, 0, G),
    ],
)  # fmt: skip
def test_4_level_paging(
    entries: dict[int, int], address: int, physical: int, page_size: int
) -> None:
    found = look(LEVEL4, entries, address, cr3=0x1018)
    assert (found.physical, found.page_size, found.fault) == (physical, page_size, None)


def test_5_level_paging() -> None:
    # Bits 56:48 of 0xff01_0000_0000_0000 are 0x101: the upper half.
    entries = {0x1808: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x20_0083}
    found = look(LEVEL5, entries, 0xFF01_0000_0000_0042)

    assert (found.physical, found.page_size) == (0x20_0042, 2 * M)
    assert [level.name for level in found.levels] == ["PML5E", "PML4E", "PDPTE", "PDE"]


def test_software_bits_do_not_matter() -> None:
    # SDM 3A table 4-20: bits 11:9 and 62:52 are ignored (59:62 are the key if CR4.PKE is set).
    found = look(LEVEL4, page(P | W | 0xE00 | 0x7FF << 52), 0)
    assert found.physical == 0x9000


def test_a_non_canonical_address_is_a_general_protection_fault() -> None:
    found = look(LEVEL4, {}, 1 << 47)
    assert found.fault == (
        "0x800000000000 is not canonical: bits 63 to 47 must be equal in 4-level paging"
    )
    assert (found.vector, found.error_code, found.physical) == (13, 0, None)
    assert look(LEVEL5, {}, 1 << 47).vector == 14
    assert look(LEVEL5, {}, 1 << 56).vector == 13
    assert look(LEVEL4, {}, 0xFFFF_7FFF_FFFF_FFFF).vector == 13
    assert look(LEVEL4, {}, 0xFFFF_8000_0000_0000).vector == 14


@pytest.mark.parametrize("mode", [PagingMode.NONE, LEGACY32, PAE])
def test_an_address_beyond_32_bits_exists_only_in_long_mode(mode: PagingMode) -> None:
    found = look(mode, {}, 1 << 32)
    assert found.fault == ("0x100000000 lies beyond the 4 GiB of a 32-bit linear address space")
    assert found.vector is None


@pytest.mark.parametrize("missing", [0x1000, 0x2000, 0x3000, 0x4000])
def test_not_present_names_the_level(missing: int) -> None:
    entries = page()
    entries[missing] &= ~P
    found = look(LEVEL4, entries, 0x123)
    name = {0x1000: "PML4E", 0x2000: "PDPTE", 0x3000: "PDE", 0x4000: "PTE"}[missing]

    assert found.fault == (
        f"0x123 is not mapped: {name}[0] at {missing:#x} ({entries[missing]:#x}) is not present"
    )
    assert (found.vector, found.error_code, found.page_size) == (14, 0, 0)
    assert [level.name for level in found.levels][-1] == name


@pytest.mark.parametrize(
    ("options", "error_code"),
    [
        ({"access": "read"}, 0x0),
        ({"access": "write"}, 0x2),
        ({"access": "read", "user": True}, 0x4),
        ({"access": "write", "user": True}, 0x6),
        ({"access": "execute"}, 0x10),
        ({"access": "execute", "user": True}, 0x14),
        # I/D needs NXE (with PAE) or SMEP (SDM 3A 4.7).
        ({"access": "execute", "efer": EFER.LMA}, 0x0),
        ({"access": "execute", "efer": EFER.LMA, "cr4": CR4.SMEP}, 0x10),
        ({"access": None}, 0x0),
    ],
)
def test_the_error_code_of_a_page_that_is_not_present(
    options: dict[str, Any], error_code: int
) -> None:
    assert look(LEVEL4, {}, 0, **options).error_code == error_code


def test_reserved_bits_do_not_count_while_the_entry_is_not_present() -> None:
    assert look(LEVEL4, {0x1000: 0xFFFF_FFFF_FFFF_FFFE}, 0).error_code == 0


@pytest.mark.parametrize(
    ("mode", "entries", "options", "reserved"),
    [
        # Physical address bits that the processor does not have.
        (LEVEL4, page(P | 1 << 51), {"maxphyaddr": 51}, 1 << 51),
        (LEVEL4, page(upper=P | 1 << 40), {"maxphyaddr": 40}, 1 << 40),
        # PS in a PML4E or PML5E, in a PDPTE without 1 GiB pages.
        (LEVEL4, {0x1000: 0x2083}, {}, PS),
        (LEVEL5, {0x1000: 0x2083}, {}, PS),
        (LEVEL4, {0x1000: 0x2003, 0x2000: 0x83}, {"gbpages": False}, PS),
        # The low bits of a large page's address, beside PAT at bit 12.
        (LEVEL4, {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x10_2083}, {}, 0x10_2000),
        (LEVEL4, {0x1000: 0x2003, 0x2000: 0x2000_3083}, {}, 0x2000_2000),
        (LEGACY32, {0x1000: 1 << 21 | PS | P}, {}, 1 << 21),
        (LEGACY32, {0x1000: 0x10 << 13 | PS | P}, {"maxphyaddr": 36}, 0x10 << 13),
        # NX without NXE; bits 62:52 in PAE paging, NX or not.
        (LEVEL4, page(P | NX), {"efer": EFER.LMA}, NX),
        (PAE, {0x1000: 0x2001, 0x2000: 0x83 | NX}, {"efer": 0}, NX),
        (PAE, {0x1000: 0x2001, 0x2000: 0x3003 | 1 << 52 | NX}, {}, 1 << 52),
    ],
)
def test_reserved_bits(
    mode: PagingMode, entries: dict[int, int], options: dict[str, Any], reserved: int
) -> None:
    found = look(mode, entries, 0, **options)
    assert found.fault is not None
    assert found.fault.endswith(f" has reserved bits set: {reserved:#x}")
    assert (found.vector, found.error_code) == (14, 0x9)
    assert look(mode, entries, 0, access="write", user=True, **options).error_code == 0xF


def test_what_is_one_bit_lower_than_reserved_is_not_reserved() -> None:
    assert look(LEVEL4, page(P | 1 << 50), 0, maxphyaddr=51).physical == 1 << 50 | 0x9000
    assert look(LEGACY32, {0x1000: 0x8 << 13 | PS | P}, 0, maxphyaddr=36).physical == 0x8 << 32
    assert look(LEVEL4, {0x1000: 0x2003, 0x2000: 0x1083}, 0).physical == 0


@pytest.mark.parametrize("bits", [0x2, 0x4, 0x20, 0x100, NX, 1 << 52])
def test_a_pdpte_of_pae_paging_is_refused_when_cr3_is_loaded(bits: int) -> None:
    found = look(PAE, {0x1000: 0x2001 | bits}, 0)
    assert (found.vector, found.error_code) == (13, 0)


def test_a_table_outside_memory() -> None:
    found = look(LEVEL4, {0x1000: 0x5000_0003}, 0x123)
    assert found.fault == "the PDPTE at 0x50000000 lies outside memory"
    assert (found.vector, found.error_code, found.physical) == (None, None, None)

    found = look(LEVEL4, {}, 0, cr3=0x8000_0000)
    assert found.fault == "the PML4E at 0x80000000 lies outside memory: CR3 is 0x80000000"


# Rights (SDM 3A 4.6.1)

SUPERVISOR_RO, SUPERVISOR_RW = P, P | W
USER_RO, USER_RW = P | U, P | U | W
READ, WRITE, FETCH = {"access": "read"}, {"access": "write"}, {"access": "execute"}
USER_READ = {"access": "read", "user": True}
USER_WRITE = {"access": "write", "user": True}
USER_FETCH = {"access": "execute", "user": True}


@pytest.mark.parametrize(
    ("rights", "access", "extra"),
    [
        (SUPERVISOR_RO, READ, {}),
        (SUPERVISOR_RO, FETCH, {}),
        (SUPERVISOR_RO, WRITE, {}),
        (SUPERVISOR_RW, WRITE, {"cr0": CR0.WP}),
        (USER_RO, READ, {}),
        (USER_RO, FETCH, {}),
        (USER_RO, WRITE, {}),
        (USER_RW, WRITE, {"cr0": CR0.WP}),
        (USER_RO, USER_READ, {"cr0": CR0.WP, "cr4": CR4.SMEP | CR4.SMAP}),
        (USER_RW, USER_WRITE, {"cr4": CR4.SMEP | CR4.SMAP}),
        (USER_RO, USER_FETCH, {"cr4": CR4.SMEP | CR4.SMAP}),
        (USER_RO, READ, {"cr4": CR4.SMAP, "ac": True}),
        (USER_RW, WRITE, {"cr0": CR0.WP, "cr4": CR4.SMAP, "ac": True}),
        (SUPERVISOR_RW, WRITE, {"cr0": CR0.WP, "cr4": CR4.SMAP}),
        (SUPERVISOR_RO, FETCH, {"cr4": CR4.SMEP}),
        (USER_RW | NX, USER_WRITE, {}),
        # Without rights asked nothing is refused: a debugger's look.
        (NX | P, {"access": None, "user": True}, {"cr0": CR0.WP, "cr4": CR4.SMEP | CR4.SMAP}),
    ],
)
def test_allowed(rights: int, access: dict[str, Any], extra: dict[str, Any]) -> None:
    found = look(LEVEL4, page(rights), 0x42, **access, **extra)
    assert (found.physical, found.fault, found.error_code) == (0x9042, None, None)


@pytest.mark.parametrize(
    ("rights", "access", "extra", "error_code", "reason"),
    [
        (SUPERVISOR_RW, USER_READ, {}, 0x5, "user read at 0x42: the page is the supervisor's"),
        (SUPERVISOR_RW, USER_WRITE, {}, 0x7, "user write at 0x42: the page is the supervisor's"),
        (SUPERVISOR_RW, USER_FETCH, {}, 0x15, "user instruction fetch at 0x42: the page is the"),
        (USER_RO, USER_WRITE, {}, 0x7, "user write at 0x42: the page is read-only"),
        (SUPERVISOR_RO, WRITE, {"cr0": CR0.WP}, 0x3, "supervisor write at 0x42: the page is read-"),
        (USER_RO, WRITE, {"cr0": CR0.WP}, 0x3, "supervisor write at 0x42: the page is read-only"),
        (SUPERVISOR_RW | NX, FETCH, {}, 0x11, "supervisor instruction fetch at 0x42: the page is"),
        (USER_RW | NX, USER_FETCH, {}, 0x15, "user instruction fetch at 0x42: the page is no-exec"),
        (USER_RO, FETCH, {"cr4": CR4.SMEP}, 0x11, "SMEP forbids the supervisor to execute"),
        (USER_RW, READ, {"cr4": CR4.SMAP}, 0x1, "SMAP forbids the supervisor a user page while"),
        (USER_RW, WRITE, {"cr4": CR4.SMAP}, 0x3, "SMAP forbids the supervisor a user page while"),
        (USER_RO, WRITE, {"cr0": CR0.WP, "cr4": CR4.SMAP, "ac": True}, 0x3, "page is read-only"),
    ],
)  # fmt: skip
def test_denied(
    rights: int, access: dict[str, Any], extra: dict[str, Any], error_code: int, reason: str
) -> None:
    found = look(LEVEL4, page(rights), 0x42, **access, **extra)

    assert found.fault is not None
    assert reason in found.fault
    assert (found.vector, found.error_code, found.physical) == (14, error_code, None)
    assert found.levels[-1].target == 0x9000


def test_a_denial_cites_the_entry_that_withholds_the_right() -> None:
    entries = page(P | W | U)
    entries[0x2000] &= ~W
    found = look(LEVEL4, entries, 0, access="write", user=True)

    assert found.fault == (
        "user write at 0x0: the page is read-only, R/W is clear in PDPTE[0] at 0x2000 (0x3005)"
    )
    assert (found.writable, found.user, found.executable) == (False, True, True)


def test_32_bit_paging_has_no_nx_and_the_fetch_bit_only_with_smep() -> None:
    entries = {0x1000: 0x2007, 0x2000: 0x5007}

    assert look(LEGACY32, entries, 0, access="execute", efer=EFER.NXE).physical == 0x5000
    assert look(LEGACY32, {}, 0, access="execute", efer=EFER.NXE).error_code == 0
    assert look(LEGACY32, entries, 0, access="execute", cr4=CR4.SMEP).error_code == 0x11


@pytest.mark.parametrize(
    ("pkru", "access", "extra", "fault"),
    [
        (0, USER_WRITE, {}, None),
        (1 << 10, USER_READ, {}, "user read at 0x0: PKRU disables access"),
        (2 << 10, USER_READ, {}, None),
        (2 << 10, USER_WRITE, {}, "user write at 0x0: PKRU disables writes"),
        (3 << 10, USER_FETCH, {}, None),
        (3 << 8, USER_WRITE, {}, None),
        (2 << 10, WRITE, {}, None),
        (2 << 10, WRITE, {"cr0": CR0.WP}, "supervisor write at 0x0: PKRU disables writes"),
    ],
)  # fmt: skip
def test_protection_keys(
    pkru: int, access: dict[str, Any], extra: dict[str, Any], fault: str | None
) -> None:
    found = look(LEVEL4, page(USER_RW | 5 << 59), 0, pkru=pkru, cr4=CR4.PKE, **access, **extra)

    if fault is None:
        assert found.fault is None
    else:
        assert found.fault == f"{fault} to pages of protection key 5"
        assert found.error_code is not None
        assert found.error_code & 0x21 == 0x21


def test_protection_keys_are_for_user_pages_and_need_cr4_pke() -> None:
    entries = page(SUPERVISOR_RW | 5 << 59)
    assert look(LEVEL4, entries, 0, pkru=0xFFFF_FFFF, cr4=CR4.PKE).fault is None
    assert look(LEVEL4, page(USER_RW | 5 << 59), 0, pkru=0xFFFF_FFFF, user=True).fault is None


def test_accessed_is_true_only_if_every_level_was() -> None:
    entries = page(P | 0x20, upper=P | 0x20)
    assert look(LEVEL4, entries, 0).accessed
    entries[0x3000] &= ~0x20
    found = look(LEVEL4, entries, 0)

    assert not found.accessed
    assert [level.accessed for level in found.levels] == [True, True, False, True]
    assert [level.dirty for level in found.levels] == [None, None, None, False]


def test_a_walk_reads_well() -> None:
    found = look(LEVEL4, page(P | U | NX | 0x60, frame=0x7000), 0x123, access="write", user=True)

    assert str(found).splitlines() == [
        "0x123 by 4-level paging",
        "  PML4E[0] at 0x1000 = 0x2007 -> 0x2000 table writable user",
        "  PDPTE[0] at 0x2000 = 0x3007 -> 0x3000 table writable user",
        "  PDE[0] at 0x3000 = 0x4007 -> 0x4000 table writable user",
        "  PTE[0] at 0x4000 = 0x8000000000007065 -> 0x7000 page read-only user no-execute "
        "accessed dirty",
        "  #PF(0x7 [P W U]): user write at 0x123: the page is read-only, R/W is clear in "
        "PTE[0] at 0x4000 (0x8000000000007065)",
    ]


def test_success_and_other_failures_read_well_too() -> None:
    assert str(look(LEVEL4, page(), 0x123)).splitlines()[-1] == "  = 0x9123"
    assert str(look(LEVEL4, {}, 0)).splitlines()[1] == "  PML4E[0] at 0x1000 = 0x0 not present"
    assert str(look(LEVEL4, {}, 1 << 63)).splitlines()[1].startswith("  #GP(0): 0x80000")
    assert str(look(LEVEL4, {}, 0, cr3=1 << 40)).splitlines()[1].startswith("  the PML4E at 0x1")


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(ConfigError, match="read, write or execute, not 'fetch'"):
        look(LEVEL4, {}, 0, access="fetch")


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (CR0.PE, CR4.PAE, EFER.LME, PagingMode.NONE),
        (CR0.PE | CR0.PG, CR4.PSE, 0, LEGACY32),
        (CR0.PE | CR0.PG, CR4.PAE, EFER.NXE, PAE),
        (CR0.PE | CR0.PG, CR4.PAE, EFER.LME | EFER.LMA, LEVEL4),
        (CR0.PE | CR0.PG, CR4.PAE | CR4.LA57, EFER.LME | EFER.LMA, LEVEL5),
        (CR0.PE | CR0.PG, CR4.PAE | CR4.LA57, 0, PAE),
    ],
)
def test_the_mode_follows_from_the_registers(
    cr0: int, cr4: int, efer: int, mode: PagingMode
) -> None:
    assert PagingMode.of(cr0, cr4, efer) is mode


def test_the_walker_reads_what_the_builder_wrote() -> None:
    tables = PageTables(LEVEL4, iter(range(0x1000, 0x9000, 0x1000)).__next__)
    tables.map(0x40_0000, 0x123_4000, 4 * K, writable=False, user=True, executable=False)
    found = walk(tables.read, 0x40_0ABC, cr3=tables.root, **REGISTERS[LEVEL4])

    assert found.physical == 0x123_4ABC
    assert (found.writable, found.user, found.executable) == (False, True, False)
