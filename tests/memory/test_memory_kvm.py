"""Every kind of guest RAM, with a guest that runs in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pykvm import ConfigError, GuestMemory, Machine, Mode, Outcome
from pykvm.memory.backing import host_memory
from support.host import host_probe
from support.listing import assemble

pytestmark = pytest.mark.kvm

START, SIZE = 0x20_0000, 0x20_0000  # as a huge page wants it
MARK, COPY, FLAG = START + 0x1000, START + 0x2000, START + 0x3000

#: Adds one to the word at MARK and stores the sum at COPY.
INCREMENT = assemble("""
    A1 00 10 20 00       mov eax, [0x201000]
    40                   inc eax
    A3 00 20 20 00       mov [0x202000], eax
    F4                   hlt
""")
#: Spins until there is something at FLAG.
WAIT = assemble("""
    83 3D 00 30 20 00 00   cmp dword [0x203000], 0
    74 F7                  je $-7
    F4                     hlt
""")

Backing = Callable[[Path], dict[str, Any]]


@host_probe("a-huge-page-is-free")
def a_huge_page_is_free() -> str | None:
    host = host_memory()
    if host.get("Hugepagesize") == SIZE and host["HugePages_Free"]:
        return None
    return "no page of 2 MiB is reserved (/proc/sys/vm/nr_hugepages)"


@host_probe("transparent-huge-pages")
def transparent_huge_pages() -> str | None:
    here = os.path.exists("/sys/kernel/mm/transparent_hugepage")
    return None if here else "the kernel has no transparent huge pages"


def file(directory: Path) -> str:
    path = directory / "ram"
    with open(path, "wb") as ram:
        ram.truncate(SIZE)
    return str(path)


KINDS = [
    pytest.param(lambda _: {}, id="anonymous"),
    pytest.param(lambda _: {"backing": "memfd"}, id="memfd"),
    pytest.param(lambda directory: {"backing": file(directory)}, id="file"),
    pytest.param(
        lambda directory: {"backing": file(directory), "shared": False}, id="private file"
    ),
    pytest.param(
        lambda _: {"huge_pages": "transparent"},
        id="transparent huge pages",
        marks=pytest.mark.needs_host("transparent-huge-pages"),
    ),
    pytest.param(
        lambda _: {"huge_pages": True},
        id="huge pages",
        marks=pytest.mark.needs_host("a-huge-page-is-free"),
    ),
]


def memory_with(**options: Any) -> GuestMemory:
    """2 MiB of ordinary RAM, and from START on as much with these `options`."""
    memory = GuestMemory()
    memory.add_ram(0, START)
    memory.add_ram(START, SIZE, name="tested", **options)
    return memory


def flat(code: bytes, memory: GuestMemory, **options: Any) -> Machine:
    """A machine that executes `code` in the memory under test."""
    return Machine(code, mode=Mode.PROTECTED, load_address=START, memory=memory, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_executes_reads_and_writes_it(kind: Backing, tmp_path: Path) -> None:
    with flat(INCREMENT, memory_with(**kind(tmp_path))) as machine:
        view = machine.memory.view(COPY, 4)
        machine.memory.write_u32(MARK, 41)
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        assert machine.memory.read_u32(COPY) == 42
        assert bytes(view) == b"\x2a\0\0\0"
        assert machine.vcpus[0].read(COPY, 4) == b"\x2a\0\0\0"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_frozen_thawed_and_forked(kind: Backing, tmp_path: Path) -> None:
    memory = memory_with(**kind(tmp_path))
    with flat(INCREMENT, memory) as machine:
        memory.write_u32(MARK, 41)
        image = memory.freeze()
        before = memory.read(START, SIZE)
        state = machine.vcpus[0].state
        for _ in range(2):
            assert machine.run(timeout=20).outcome is Outcome.HALTED
            assert memory.read_u32(COPY) == 42
            with flat(INCREMENT, image.attach()) as fork:
                fork.vcpus[0].state = state
                assert fork.run(timeout=20).outcome is Outcome.HALTED
                assert fork.memory.read_u32(COPY) == 42
            assert memory.thaw(image) >= 1
            assert memory.read(START, SIZE) == before == image.read(START, SIZE)
            machine.vcpus[0].state = state


@pytest.mark.parametrize("kind", KINDS)
def test_ring_3_runs_in_it(kind: Backing, tmp_path: Path, guests: Path) -> None:
    with Machine(guests / "ring3.elf", memory=memory_with(**kind(tmp_path))) as machine:
        # Its code and stack for ring 3 are linked there.
        assert machine.symbols["user_page"] == START
        assert machine.run(timeout=20).ok, machine.serial.text


def test_a_shared_file_gets_what_the_guest_writes_and_a_private_one_does_not(
    tmp_path: Path,
) -> None:
    path = Path(file(tmp_path))
    for shared, found in ((False, bytes(4)), (True, b"\x2a\0\0\0")):
        with flat(INCREMENT, memory_with(backing=path, shared=shared)) as machine:
            machine.memory.write_u32(MARK, 41)
            assert machine.run(timeout=20).outcome is Outcome.HALTED
            assert machine.memory.read_u32(COPY) == 42
        assert path.read_bytes()[COPY - START :][:4] == found


def test_the_guest_sees_what_others_write_into_a_memfd() -> None:
    memory = memory_with(backing="memfd")
    with flat(WAIT, memory) as machine:
        assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
        region = memory.region_at(START)
        assert region is not None
        assert region.fd is not None
        os.pwrite(region.fd, b"\x01", FLAG - START)
        assert machine.run(timeout=20).outcome is Outcome.HALTED


def test_memory_comes_and_goes_between_runs() -> None:
    memory = GuestMemory()
    memory.add_ram(0, START)
    code = assemble("""
        81 3D 00 10 20 00 2A 00 00 00   cmp dword [0x201000], 42
        75 F4                           jne $-10
        A1 00 30 20 00                  mov eax, [0x203000]
        A3 00 05 00 00                  mov [0x500], eax
        F4                              hlt
        EB E7                           jmp to the beginning
    """)
    with Machine(
        code, mode=Mode.PROTECTED, load_address=0x8000, memory=memory, unclaimed="open-bus"
    ) as machine:
        assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
        region = memory.add_ram(START, SIZE)
        memory.write_u32(MARK, 42)
        memory.write_u32(FLAG, 7)
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        assert memory.read_u32(0x500) == 7

        memory.remove(region)
        assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
        memory.add_ram(START, SIZE)
        assert memory.read_u32(MARK) == 0


def test_a_slot_over_another_is_refused_while_the_machine_lives_on() -> None:
    with flat(INCREMENT, memory_with()) as machine:
        with pytest.raises(ConfigError, match="overlaps.*tested"):
            machine.memory.add_ram(START + SIZE - 4096, 8192, name="second")
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        assert machine.memory.read_u32(COPY) == 1
