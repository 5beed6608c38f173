"""Memory as completed instructions see it: ROM, devices, page tables wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from emulate.fake_vcpu import Devices
from pykvm import GuestMemory, Machine, Mode, Outcome
from pykvm.emulate.memory import LinearMemory
from pykvm.errors import GuestError
from pykvm.x86.paging import PageTables, PagingMode
from pykvm.x86.registers import CR0, CR4, EFER
from support.host import host_probe
from support.listing import assemble

ROM, ROM_SIZE = 0xF_0000, 0x1_0000


def memory_with_tables(*, accessed: bool = False) -> tuple[GuestMemory, int]:
    """RAM below a ROM with page tables in it that map all of both to themselves, and their root."""
    tables = PageTables(PagingMode.LEVEL4, iter(range(ROM, ROM + ROM_SIZE, 0x1000)).__next__)
    tables.map(0, 0, 0x10_0000, accessed=accessed)
    image = bytearray(ROM_SIZE)
    for address, table in tables.pages.items():
        image[address - ROM : address - ROM + 0x1000] = table
    memory = GuestMemory()
    memory.add_ram(0, ROM)
    memory.add_rom(ROM, bytes(image), name="firmware")
    return memory, tables.root


@pytest.fixture
def rom() -> Iterator[tuple[GuestMemory, Devices, LinearMemory]]:
    memory, root = memory_with_tables()
    devices = Devices()
    linear = LinearMemory(memory, devices)
    sregs: Any = SimpleNamespace(
        cr0=CR0.PE | CR0.PG | CR0.WP, cr3=root, cr4=CR4.PAE, efer=EFER.LME | EFER.LMA
    )
    linear.look(sregs, 0, 0)
    yield memory, devices, linear
    memory.close()


Rom = tuple[GuestMemory, Devices, LinearMemory]


def test_page_tables_in_rom_stay_as_they_are(rom: Rom) -> None:
    memory, devices, linear = rom
    before = memory.read(ROM, ROM_SIZE)
    linear.write(0x2FFE, b"1234")
    assert linear.read(0x2FFE, 4) == b"1234"
    assert memory.read(ROM, ROM_SIZE) == before
    assert not devices.log


def test_a_write_to_rom_goes_to_the_devices(rom: Rom) -> None:
    """As the exit of a KVM slot that is read-only."""
    memory, devices, linear = rom
    linear.write(ROM + 0x8000, bytes(16))
    assert devices.log == [("write", ROM + 0x8000, 8), ("write", ROM + 0x8008, 8)]
    assert linear.read(ROM + 0x8000, 1) == memory.read(ROM + 0x8000, 1)


def test_a_descriptor_in_rom_is_not_marked(rom: Rom) -> None:
    memory, devices, linear = rom
    linear.mark_as_system(ROM + 0x9005, 0x9B)
    linear.mark_as_system(0x4005, 0x9B)
    assert (memory.read(ROM + 0x9005, 1), memory.read(0x4005, 1)) == (b"\0", b"\x9b")
    assert not devices.log


@pytest.mark.parametrize(
    ("offset", "length", "sizes"),
    [(0, 16, [8, 8]), (1, 8, [8]), (4, 10, [8, 2]), (0, 32, [8] * 4), (3, 3, [3])],
)
def test_accesses_to_devices_have_8_bytes_at_most(
    rom: Rom, offset: int, length: int, sizes: list[int]
) -> None:
    """Cut from the first byte on, whatever the alignment (KVM's emulator_read_write)."""
    _, devices, linear = rom
    linear.read_physical(0xD000_0000 + offset, length)
    linear.write_physical(0xD000_0000 + offset, bytes(length))
    expected = [(0xD000_0000 + offset + sum(sizes[:at]), size) for at, size in enumerate(sizes)]
    assert devices.log == [(kind, *access) for kind in ("read", "write") for access in expected]


TO_RAM = """
    BF 00 00 01 00   mov edi, 0x10000
    F3 0F 7F 07      movdqu [rdi], xmm0
    F3 0F 6F 0F      movdqu xmm1, [rdi]
    31 C0            xor eax, eax
    E6 F4            out 0xf4, al
"""
TO_ROM = """
    BF 00 80 0F 00   mov edi, 0xf8000
    F3 0F 7F 07      movdqu [rdi], xmm0
    31 C0            xor eax, eax
    E6 F4            out 0xf4, al
"""


TABLES_IN_ROM = "walks-page-tables-in-rom"


def machine_in_rom(listing: str, **options: Any) -> Machine:
    memory, root = memory_with_tables()
    machine = Machine(assemble(listing), mode=Mode.LONG, memory=memory, **options)
    state = machine.vcpus[0].state
    state.cr3 = root
    state.cr4 |= CR4.OSFXSR
    machine.vcpus[0].state = state
    return machine


@host_probe(TABLES_IN_ROM)
def walks_page_tables_in_rom() -> str | None:
    """Whether a guest runs whose page tables are in a read-only slot.

    A processor that walks them itself writes their accessed bits, or with nested paging counts each
    look as a write (APM 2 15.25.5): KVM_EXIT_MMIO at the ROM.
    """
    with machine_in_rom("F4  hlt") as machine:
        outcome = machine.run(timeout=10).outcome
    return None if outcome is Outcome.HALTED else "reading page tables in ROM is a write there"


@pytest.mark.needs_host(TABLES_IN_ROM)
def test_a_guest_with_its_page_tables_in_rom() -> None:
    with machine_in_rom(TO_RAM) as machine:
        before = machine.memory.read(ROM, ROM_SIZE)
        assert machine.run(timeout=10).exit_code == 0
        assert machine.memory.read(ROM, ROM_SIZE) == before


@pytest.mark.needs_host(TABLES_IN_ROM)
def test_a_vector_written_to_rom_is_dropped_or_ends_the_run() -> None:
    with machine_in_rom(TO_ROM, unclaimed="open-bus") as machine:
        before = machine.memory.read(ROM, ROM_SIZE)
        assert machine.run(timeout=10).exit_code == 0
        assert machine.memory.read(ROM, ROM_SIZE) == before
    with machine_in_rom(TO_ROM) as machine:
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.CRASHED
        error = result.error
        assert isinstance(error, GuestError)
        assert error.kind == "wild access"
        assert "0xf8000, where there is ROM (firmware)" in error.cause
