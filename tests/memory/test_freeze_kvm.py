"""Guests that write, and memory put back to what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pykvm import GuestMemory, Machine, Mode
from pykvm.memory.image import MemoryImage
from pykvm.quirks.probe_vm import (
    LARGE_PAGE,
    OTHER,
    PD,
    PML4,
    PRESENT,
    SCRATCH,
    WRITABLE,
    ProbeVM,
)
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

PAGE = 4096


def contents(memory: GuestMemory) -> dict[str, bytes]:
    return {str(region): memory.read(region.start, region.size) for region in memory.regions}


def contents_of(image: MemoryImage) -> dict[str, bytes]:
    return {str(region): image.read(region.start, region.size) for region in image.regions}


def same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Without the diff of megabytes that pytest would make of it."""
    return one == other


@pytest.fixture
def vm() -> Iterator[ProbeVM]:
    with closing(ProbeVM()) as vm:
        yield vm


#: Ring 3, page tables, several vCPUs, x87 and SSE that ring 0 may have emulated, port strings,
#: devices, a frame of every exception.
GUESTS = (
    "ring3",
    "paging",
    "smp",
    "sse",
    "refused",
    "portstrings",
    "syscall",
    "exceptions",
    "mmio",
)


@pytest.mark.parametrize("name", GUESTS)
def test_whatever_a_guest_wrote_is_found_and_put_back(name: str, guests: Path) -> None:
    vcpus = 2 if name == "smp" else 1
    with Machine(guests / f"{name}.elf", memory="16M", vcpus=vcpus) as machine:
        memory = machine.memory
        first = memory.freeze()
        before = contents(memory)
        assert same(contents_of(first), before)

        machine.run(timeout=30)

        after = contents(memory)
        second = memory.freeze(first)
        assert same(contents_of(second), after), "a page was written and not found"
        assert memory.thaw(first) == len(list(second.changed(first)))
        assert same(contents(memory), before)
        memory.thaw(second)
        assert same(contents(memory), after)


@pytest.mark.parametrize("ring", [0, 3])
def test_a_string_store_across_pages(vm: ProbeVM, ring: int) -> None:
    memory = vm.memory
    image = memory.freeze()
    before = contents(memory)
    at = SCRATCH + 3 * PAGE - 8
    # rep stosq: the end of one page, two pages, and the beginning of a fourth.
    registers = {"rdi": at, "rcx": 2 * PAGE // 8 + 2, "rax": 0x1122334455667788}
    vm.run(bytes.fromhex("F348AB"), ring, registers)
    assert memory.read_u64(at + 2 * PAGE + 8) == 0x1122334455667788
    after = memory.freeze(image)
    changed = {address for address, _ in after.changed(image)}
    written = {at // PAGE * PAGE + n * PAGE for n in range(4)}
    assert written <= changed
    memory.thaw(image)
    assert same(contents(memory), before)


def test_the_log_goes_on_after_every_thaw(vm: ProbeVM) -> None:
    memory = vm.memory
    image = memory.freeze()
    before = contents(memory)
    for number in range(1, 20):
        vm.run(bytes.fromhex("8807"), 3, {"rdi": SCRATCH + 5 * PAGE, "rax": number})
        assert memory.read_u8(SCRATCH + 5 * PAGE) == number
        assert memory.thaw(image) >= 1
        assert same(contents(memory), before)


def test_page_tables_that_the_guest_rewrote(vm: ProbeVM) -> None:
    """What KVM derived from them is not used after they were put back."""
    memory = vm.memory
    memory.write_u8(SCRATCH, 0x0D)
    memory.write_u8(OTHER, 0x0E)
    read = bytes.fromhex("8A06")  # mov al, [rsi]
    entry = OTHER | PRESENT | WRITABLE | 4 | 0x80
    # mov [rdi], rax; mov rax, cr3; mov cr3, rax
    remap = bytes.fromhex("488907 0F20D8 0F22D8")

    def seen() -> int:
        return vm.run(read, 3, {"rsi": SCRATCH}).state.rax & 0xFF

    image = memory.freeze()
    for _ in range(3):
        assert seen() == 0x0D
        vm.run(remap, 0, {"rdi": PD + SCRATCH // LARGE_PAGE * 8, "rax": entry})
        assert seen() == 0x0E
        memory.thaw(image, flush=True)


def test_page_tables_that_the_guest_left_and_came_back_to(vm: ProbeVM) -> None:
    """While CR3 names others, the image is put back; then the guest returns to the first."""
    memory = vm.memory
    other_tables = SCRATCH + 16 * PAGE
    memory.write_u8(SCRATCH, 0x0D)
    memory.write_u8(OTHER, 0x0E)
    memory.write_u64(other_tables, memory.read_u64(PML4))
    image = memory.freeze()
    read = bytes.fromhex("8A06")
    entry = OTHER | PRESENT | WRITABLE | 4 | 0x80
    remap = bytes.fromhex("488907 0F20D8 0F22D8")
    leave = bytes.fromhex("0F22D8")  # mov cr3, rax
    for _ in range(2):
        assert vm.run(read, 3, {"rsi": SCRATCH}).state.rax & 0xFF == 0x0D
        vm.run(remap, 0, {"rdi": PD + SCRATCH // LARGE_PAGE * 8, "rax": entry})
        assert vm.run(read, 3, {"rsi": SCRATCH}).state.rax & 0xFF == 0x0E
        vm.run(leave, 0, {"rax": other_tables})
        memory.thaw(image, flush=True)


def test_forks_of_one_image_and_their_parent(guest: MakeGuest) -> None:
    code = """
        A0 00 05     mov al, [0x500]
        FE C0        inc al
        A2 00 05     mov [0x500], al
        F4           hlt
        EB F5        jmp to the beginning
    """
    machine = guest(code)
    machine.run(timeout=20)
    image = machine.memory.freeze()
    state = machine.vcpus[0].state
    forks = [guest(code, memory=image.attach()) for _ in range(3)]
    for number, fork in enumerate(forks):
        for _ in range(number + 1):
            fork.vcpus[0].state = state
            fork.run(timeout=20)
    machine.run(timeout=20)
    assert machine.memory.read_u8(0x500) == 2
    assert [fork.memory.read_u8(0x500) for fork in forks] == [2, 3, 4]
    assert image.read(0x500, 1) == b"\1"
    for fork in forks:
        assert fork.memory.thaw(image) >= 1
        assert same(contents(fork.memory), contents_of(image))


def test_a_vm_by_hand_without_manual_protection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older way to clear the log gives the same."""
    from pykvm.kvm.vm import VM

    monkeypatch.setattr(VM, "_protect_manually", lambda self: False)
    with closing(ProbeVM()) as vm:
        image = vm.memory.freeze()
        before = contents(vm.memory)
        for number in range(1, 4):
            vm.run(bytes.fromhex("8807"), 3, {"rdi": SCRATCH, "rax": number})
            assert same(contents_of(vm.memory.freeze(image)), contents(vm.memory))
            vm.memory.thaw(image)
            assert same(contents(vm.memory), before)


def test_emulated_stores_in_c(guest: MakeGuest) -> None:
    """An instruction that KVM may refuse, often enough for the core to do it by itself."""
    machine = guest(
        """
        0F 20 C0           mov eax, cr0       SSE on
        66 83 E0 FB        and eax, ~EM
        0F 22 C0           mov cr0, eax
        0F 20 E0           mov eax, cr4
        66 0D 00 06 00 00  or eax, OSFXSR | OSXMMEXCPT
        0F 22 E0           mov cr4, eax
        B9 20 00           mov cx, 32
        BF 00 50           mov di, 0x5000
        0F AE 1D           stmxcsr [di]
        81 C7 00 01        add di, 0x100
        E2 F7              loop
        F4                 hlt
        """,
        mode=Mode.REAL,
    )
    image = machine.memory.freeze()
    machine.run(timeout=20)
    assert machine.memory.read_u32(0x5000 + 31 * 0x100) == 0x1F80
    after = contents(machine.memory)
    assert same(contents_of(machine.memory.freeze(image)), after)
