"""Regions, and the slots that a VM sees them by."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.errors import ClosedError, ConfigError, HostError, KVMError, StateError
from pykvm.memory import GuestMemory, Region, host_memory
from support.resources import descriptors
from support.slots import FakeVM

READONLY = 2


def slot_of(region: Region) -> tuple[int, int, int, int]:
    return (2 if region.readonly else 0, region.start, region.size, region.host_address)


def mapped() -> int:
    """How much this process has mapped, in units of 32 MiB: what else moves is far smaller.

    Garbage of earlier tests is none of it: the collector may come by at any time.
    """
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return round(pages * 4096 / (32 << 20))


def test_regions_are_sorted_and_describe_themselves() -> None:
    with GuestMemory() as memory:
        high = memory.add_ram(0x10_0000, 0x2000, name="high")
        low = memory.add_ram(0, 0x1000, name="low")
        rom = memory.add_rom(0xF_0000, b"BIOS", name="bios")
        assert memory.regions == (low, rom, high)
        assert memory.size == 0x4000
        assert (high.start, high.size, high.end) == (0x10_0000, 0x2000, 0x10_2000)
        assert (rom.kind, rom.readonly, rom.size) == ("rom", True, 0x1000)
        assert (low.kind, low.readonly, low.backing) == ("ram", False, "anonymous")
        assert str(rom) == "bios 0xf0000-0xf1000"
        assert {region.slot for region in memory.regions} == {0, 1, 2}


def test_attach_gives_every_region_to_the_vm() -> None:
    vm = FakeVM()
    with GuestMemory() as memory:
        ram = memory.add_ram(0, 0x4000)
        rom = memory.add_rom(0xFFFF_0000, bytes(0x1_0000))
        memory.attach(vm)
        assert vm.slots == {ram.slot: slot_of(ram), rom.slot: slot_of(rom)}
        assert vm.slots[rom.slot][0] == READONLY


def test_a_region_added_later_goes_live_at_once_and_leaves_with_remove() -> None:
    vm = FakeVM()
    with GuestMemory() as memory:
        memory.attach(vm)
        first = memory.add_ram(0, 0x1000)
        second = memory.add_ram(0x1000, 0x1000)
        assert set(vm.slots) == {first.slot, second.slot}
        memory.remove(first)
        assert set(vm.slots) == {second.slot}
        assert memory.regions == (second,)
        third = memory.add_ram(0x8000, 0x1000)
        assert third.slot == first.slot, "the freed slot is taken again"


def test_a_slot_that_kvm_refuses_leaves_no_region() -> None:
    vm = FakeVM(refused=1)
    with GuestMemory() as memory:
        memory.attach(vm)
        first = memory.add_ram(0, 0x1000)
        before = mapped()
        with pytest.raises(KVMError):
            memory.add_ram(0x10_0000, 64 << 20)
        assert memory.regions == (first,)
        assert mapped() == before
        vm.refused = None
        memory.add_ram(0x10_0000, 0x1000)


def test_a_refused_attach_leaves_no_slot() -> None:
    vm = FakeVM(refused=2)
    with GuestMemory() as memory:
        for index in range(4):
            memory.add_ram(index * 0x1000, 0x1000)
        with pytest.raises(KVMError):
            memory.attach(vm)
        assert vm.slots == {}
        memory.attach(FakeVM())


def test_attach_twice_is_refused() -> None:
    with GuestMemory() as memory:
        memory.attach(FakeVM())
        with pytest.raises(StateError, match="already"):
            memory.attach(FakeVM())


def test_detach_deletes_the_slots_and_keeps_the_bytes() -> None:
    vm, other = FakeVM(), FakeVM()
    with GuestMemory() as memory:
        memory.add_ram(0, 0x1000)
        memory.write(0, b"kept")
        memory.attach(vm)
        memory.detach()
        memory.detach()
        assert vm.slots == {}
        memory.attach(other)
        assert memory.read(0, 4) == b"kept"


def test_close_deletes_the_slots_and_unmaps() -> None:
    vm = FakeVM()
    before = mapped()
    memory = GuestMemory()
    memory.attach(vm)
    memory.add_ram(0, 64 << 20, backing="memfd")
    memory.add_rom(0x1000_0000, b"x")
    assert mapped() > before
    memory.close()
    memory.close()
    assert vm.slots == {}
    assert mapped() == before
    assert memory.closed
    assert memory.regions == ()


def test_close_after_the_vm_is_closed() -> None:
    vm = FakeVM()
    memory = GuestMemory()
    memory.add_ram(0, 0x1000)
    memory.attach(vm)
    vm.closed = True
    memory.close()
    assert memory.closed


def test_forgetting_to_close_is_harmless() -> None:
    vm = FakeVM()
    before = mapped()
    memory = GuestMemory()
    memory.add_ram(0, 64 << 20)
    memory.attach(vm)
    del memory
    gc.collect()
    assert vm.slots == {}
    assert mapped() == before


def test_every_use_after_close_is_a_clear_error() -> None:
    memory = GuestMemory()
    region = memory.add_ram(0, 0x1000)
    memory.close()
    uses: list[Callable[[], object]] = [
        lambda: memory.read(0, 1),
        lambda: memory.read(0, 0),
        lambda: memory.write(0, b"x"),
        lambda: memory.view(0, 1),
        lambda: memory.fill(0, 1),
        lambda: memory.find(b"x"),
        lambda: memory.read_u64(0),
        lambda: memory.write_u64(0, 0),
        lambda: memory.read_cstring(0),
        lambda: memory.read_into(0, bytearray(1)),
        lambda: memory.add_ram(0, 0x1000),
        lambda: memory.remove(region),
        lambda: memory.attach(FakeVM()),
        lambda: region.mapping.slice(0, 1),
        lambda: region.mapping.find(b"x", 0, 1),
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()


def test_a_view_outlives_close_and_then_frees_the_memory() -> None:
    before = mapped()
    memory = GuestMemory()
    memory.add_ram(0, 64 << 20)
    memory.write(0x1000, b"still here")
    view = memory.view(0x1000, 10)
    memory.close()
    view[:5] = b"STILL"
    assert bytes(view) == b"STILL here"
    assert mapped() > before
    view.release()
    gc.collect()
    assert mapped() == before


def test_a_thousand_memories_leak_nothing() -> None:
    def once() -> None:
        memory = GuestMemory()
        memory.add_ram(0, 64 << 20)
        memory.add_ram(0x1000_0000, 0x1000, backing="memfd")
        memory.add_rom(0xFFFF_0000, b"rom")
        memory.close()

    once()
    before = mapped(), descriptors()
    for _ in range(1000):
        once()
    assert (mapped(), descriptors()) == before


@pytest.mark.parametrize(
    ("start", "size", "message"),
    [
        (0, 0, "at least one page"),
        (0, -4096, "at least one page"),
        (0, 4097, "multiples of 0x1000"),
        (0x800, 0x1000, "multiples of 0x1000"),
        (-0x1000, 0x1000, "physical addresses are 0 to 0xfffffffffffff"),
        ((1 << 52) - 0x1000, 0x2000, "physical addresses are"),
        (0, 1 << 43, "at most 0x7fffffff000"),
    ],
)
def test_places_that_make_no_sense(start: int, size: int, message: str) -> None:
    with GuestMemory() as memory, pytest.raises(ConfigError, match=message):
        memory.add_ram(start, size)


@pytest.mark.parametrize(
    ("start", "size"),
    [(0x1000, 0x1000), (0, 0x2000), (0x2000, 0x1000), (0x3000, 0x5000), (0, 0x10000)],
)
def test_overlap_names_both_regions_and_all_addresses(start: int, size: int) -> None:
    with GuestMemory() as memory:
        memory.add_ram(0x1000, 0x3000, name="main")
        with pytest.raises(ConfigError) as caught:
            memory.add_ram(start, size, name="extra")
        assert str(caught.value) == (
            f"extra {start:#x}-{start + size:#x} overlaps main 0x1000-0x4000"
        )
        assert len(memory.regions) == 1


def test_more_memory_than_the_host_has_is_refused_with_numbers() -> None:
    asked = (host_memory()["MemTotal"] + host_memory()["SwapTotal"]) // 4096 * 4096 + 4096
    with GuestMemory() as memory:
        with pytest.raises(HostError, match=r"GiB of guest memory asked for, .* GiB available"):
            memory.add_ram(0, asked)
        with pytest.raises(HostError, match="asked for"):
            memory.add_ram(0, asked, backing="memfd")
        assert memory.regions == ()


def test_the_regions_together_must_fit_the_host() -> None:
    part = host_memory()["MemTotal"] * 2 // 3 // 4096 * 4096
    with GuestMemory() as memory, pytest.raises(HostError, match="asked for"):
        memory.add_ram(0, part)
        memory.add_ram(1 << 45, part)


def test_a_shared_file_is_not_counted_against_the_hosts_memory(tmp_path: Path) -> None:
    size = host_memory()["MemTotal"] * 2 // 4096 * 4096
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.truncate(size)
    with GuestMemory() as memory:
        memory.add_ram(0, size, backing=path)
        memory.add_ram(1 << 45, 4096)
        with pytest.raises(HostError, match="asked for"):
            memory.add_ram(1 << 46, size, backing=path, shared=False)


def test_overcommit_takes_more_than_the_host_has() -> None:
    asked = host_memory()["MemTotal"] * 4 // 4096 * 4096
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, asked)
        memory.write_u64(asked - 8, 7)
        assert memory.read_u64(asked - 8) == 7


def test_remove_refuses_what_is_not_there() -> None:
    with GuestMemory() as memory, GuestMemory() as other:
        region = other.add_ram(0, 0x1000)
        with pytest.raises(ConfigError, match="ram 0x0-0x1000.* is not"):
            memory.remove(region)
        other.remove(region)
        with pytest.raises(ConfigError, match="no longer"):
            other.remove(region)


def test_a_file_shared_gets_the_writes(tmp_path: Path) -> None:
    path = tmp_path / "ram.img"
    path.write_bytes(b"before" + bytes(0x2000 - 6))
    with GuestMemory() as memory:
        region = memory.add_ram(0, 0x2000, backing=path)
        assert region.backing == str(path)
        assert memory.read(0, 6) == b"before"
        memory.write(0, b"after!")
        assert path.read_bytes()[:6] == b"after!"


def test_a_file_private_keeps_the_writes_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "ram.img"
    path.write_bytes(b"before" + bytes(0x2000 - 6))
    path.chmod(0o400)
    with GuestMemory() as memory:
        memory.add_ram(0, 0x2000, backing=str(path), shared=False)
        memory.write(0, b"after!")
        assert memory.read(0, 6) == b"after!"
    assert path.read_bytes()[:6] == b"before"


def test_a_file_too_short_is_refused_before_it_can_kill_us(tmp_path: Path) -> None:
    path = tmp_path / "short.img"
    path.write_bytes(bytes(0x1001))
    with GuestMemory() as memory:
        with pytest.raises(ConfigError, match=r"short.img holds 0x1001 bytes.*0x2000"):
            memory.add_ram(0, 0x2000, backing=path)
        memory.add_ram(0, 0x1000, backing=path)


@pytest.mark.parametrize("name", ["absent.img", "directory"])
def test_a_file_that_cannot_be_mapped(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with GuestMemory() as memory, pytest.raises(HostError, match=name):
        memory.add_ram(0, 0x1000, backing=tmp_path / name)


def test_memfd_can_be_mapped_by_another_process() -> None:
    with GuestMemory() as memory:
        region = memory.add_ram(0, 0x2000, backing="memfd")
        assert region.fd is not None
        with mmap.mmap(region.fd, 0x2000) as theirs:
            theirs[0x1000:0x1005] = b"hello"
            assert memory.read(0x1000, 5) == b"hello"
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 0x1000)
        fd = region.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_rom_holds_its_data_padded_with_zeros() -> None:
    with GuestMemory() as memory:
        rom = memory.add_rom(0xF000, b"\xea\x5b\xe0", size=0x2000)
        assert rom.size == 0x2000
        assert memory.read(0xF000, 5) == b"\xea\x5b\xe0\0\0"
        with pytest.raises(ConfigError, match="read-only memory"):
            memory.write(0xF000, b"x")
        with pytest.raises(ConfigError, match="read-only memory"):
            memory.write_u32(0xF000, 1)
        with pytest.raises(ConfigError, match="read-only memory"):
            memory.fill(0xF000, 1)
        with pytest.raises(TypeError, match="read-only"):
            memory.view(0xF000, 1)[0] = 1
        memory.write(0xF000, b"new", rom=True)
        assert memory.read(0xF000, 3) == b"new"
        with pytest.raises(ConfigError, match="do not fit"):
            memory.add_rom(0x10_0000, bytes(0x1001), size=0x1000)
        with pytest.raises(ConfigError, match="at least one page"):
            memory.add_rom(0x10_0000, b"")


def test_huge_pages_that_are_not_reserved() -> None:
    host = host_memory()
    if not host.get("Hugepagesize"):
        pytest.skip("this kernel has no huge pages")
    wanted = (host["HugePages_Free"] + 1) * host["Hugepagesize"]
    with GuestMemory(overcommit=True) as memory:
        with pytest.raises(HostError, match=r"huge pages of .* asked for, .* free\n.*nr_hugepages"):
            memory.add_ram(0, wanted, huge_pages=True)
        with pytest.raises(HostError, match="huge pages"):
            memory.add_ram(0, wanted, huge_pages=True, backing="memfd")
        with pytest.raises(ConfigError, match="multiple of the huge page size"):
            memory.add_ram(0, 0x1000, huge_pages=True)


def test_transparent_huge_pages() -> None:
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        pytest.skip("this kernel has no transparent huge pages")
    with GuestMemory() as memory:
        memory.add_ram(0, 8 << 20, huge_pages="transparent")
        memory.write_u64((8 << 20) - 8, 1)
        assert memory.read_u64((8 << 20) - 8) == 1


def test_huge_pages_takes_three_values(tmp_path: Path) -> None:
    with GuestMemory() as memory:
        with pytest.raises(ConfigError, match="huge_pages is"):
            memory.add_ram(0, 0x1000, huge_pages="always")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not the file"):
            memory.add_ram(0, 0x1000, huge_pages=True, backing=tmp_path / "x")


@pytest.mark.kvm
def test_a_real_vm_takes_and_gives_back_every_kind_of_region(tmp_path: Path) -> None:
    from pykvm.kvm import System

    path = tmp_path / "ram.img"
    path.write_bytes(bytes(0x4000))
    with System() as system, system.create_vm() as vm, GuestMemory() as memory:
        memory.add_ram(0, 0x10_0000)
        memory.attach(vm)
        memory.add_ram(0x10_0000, 0x4000, backing="memfd")
        memory.add_ram(0x20_0000, 0x4000, backing=path)
        memory.add_ram(0x30_0000, 0x4000, backing=path, shared=False)
        memory.add_rom(0xFFFF_0000, b"rom")
        for region in memory.regions:
            memory.remove(region)
        assert memory.regions == ()
        memory.add_ram(0, 0x10_0000)
