"""Freeze, thaw and fork, one thing at a time."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm._core import ffi
from pykvm.errors import ClosedError, ConfigError, LoadError, MemoryRangeError
from pykvm.memory import GuestMemory
from pykvm.memory.image import MemoryImage, Section
from support.slots import LOG, READONLY, FakeVM

PAGE = 4096
AT = 5 * PAGE
Write = Callable[[GuestMemory], object]


def through(memory: GuestMemory, length: int = 8) -> memoryview:
    return memory.view(AT, length)


def foreign(memory: GuestMemory) -> None:
    """As another part of the process does that knows the address."""
    ctypes.memset(memory.regions[0].host_address + AT, 7, 1)
    memory.mark_dirty(AT, 1)


def read_into_a_view(memory: GuestMemory) -> None:
    with Path(__file__).open("rb", buffering=0) as file:
        file.readinto(through(memory))


WAYS: dict[str, Write] = {
    "write": lambda memory: memory.write(AT, b"data"),
    "write across regions": lambda memory: memory.write(16 * PAGE - 1, b"data"),
    "fill": lambda memory: memory.fill(AT, 2 * PAGE, 7),
    "write_u8": lambda memory: memory.write_u8(AT, 7),
    "write_u16": lambda memory: memory.write_u16(AT, 7),
    "write_u32": lambda memory: memory.write_u32(AT + 4, 7),
    "write_u64": lambda memory: memory.write_u64(AT + 8, 7),
    "write_u64 across pages": lambda memory: memory.write_u64(AT - 3, ~0 & (1 << 64) - 1),
    "write_u32 across regions": lambda memory: memory.write_u32(16 * PAGE - 2, 0x7070707),
    "write_cstring": lambda memory: memory.write_cstring(AT, "text"),
    "compare_exchange": lambda memory: memory.compare_exchange(AT, bytes(16), b"7" * 16),
    "ROM": lambda memory: memory.write(0xFFFF_0000, b"new", rom=True),
    "fill ROM": lambda memory: memory.fill(0xFFFF_0000, 1, 7, rom=True),
    "a view": lambda memory: through(memory).__setitem__(0, 7),
    "a slice of a view": lambda memory: through(memory)[3:].__setitem__(0, 7),
    "a cast of a view": lambda memory: through(memory).cast("Q").__setitem__(0, 7),
    "a buffer of a view": lambda memory: ffi.from_buffer(through(memory)).__setitem__(0, b"7"),
    "a file read into a view": read_into_a_view,
    "mark_dirty": foreign,
}


def make(backing: str = "anonymous") -> GuestMemory:
    memory = GuestMemory()
    memory.add_ram(0, 16 * PAGE, backing=backing)
    memory.add_ram(16 * PAGE, 4 * PAGE, name="next")
    memory.add_rom(0xFFFF_0000, b"rom")
    memory.write(0x100, b"begin")
    return memory


def held(memory: GuestMemory) -> list[bytes]:
    return [memory.read(region.start, region.size) for region in memory.regions]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_every_way_to_write_is_seen(way: Write, backing: str) -> None:
    with make(backing) as memory:
        first = memory.freeze()
        before = held(memory)
        way(memory)
        after = held(memory)
        assert after != before
        second = memory.freeze(first)
        assert memory.thaw(first) == len(list(second.changed(first))) >= 1
        assert held(memory) == before
        memory.thaw(second)
        assert held(memory) == after


def test_a_view_is_dirty_as_long_as_it_lives_and_once_more() -> None:
    with make() as memory:
        view = memory.view(AT, 2 * PAGE)
        part = view[PAGE:].cast("I")
        image = memory.freeze()
        for number in range(1, 4):
            part[0] = number
            assert memory.thaw(image) == 1
            assert memory.read_u32(AT + PAGE) == 0
        del view
        part[0] = 5
        del part
        assert memory.thaw(image) == 1
        assert memory.read_u32(AT + PAGE) == 0
        assert not memory.regions[0].mapping.pages.mark_views()


def test_views_that_come_and_go_are_forgotten() -> None:
    with make() as memory:
        kept = memory.view(AT, 1)
        for _ in range(10_000):
            memory.view(0, 8)
        assert len(memory.regions[0].mapping.pages._views) < 200
        kept[0] = 1


def test_the_guest_is_logged_from_the_first_freeze_on() -> None:
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)
        assert {slot[0] for slot in vm.slots.values()} == {0, READONLY}
        vm.guest_writes(memory, AT, b"before")
        image = memory.freeze()
        assert [slot[0] for slot in vm.slots.values()] == [LOG, LOG, READONLY]
        memory.add_ram(1 << 32, PAGE, name="later")
        assert vm.slots[3][0] == LOG
        assert image.read(AT, 6) == b"before"
        vm.guest_writes(memory, 1 << 32, b"gone")
        vm.guest_writes(memory, AT, b"after!")
        memory.detach()
        memory.attach(vm)
        assert memory.thaw(image) == 1
        assert memory.read(AT, 6) == b"before"
        assert len(memory.regions) == 3


def test_a_vm_that_is_closed_first_takes_its_log_along() -> None:
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)
        image = memory.freeze()
        vm.guest_writes(memory, AT, b"guest")
        vm.closed = True
        memory.detach()
        memory.thaw(image)
        assert memory.read(AT, 5) == bytes(5)


def test_an_interrupted_start_of_the_log_is_begun_anew() -> None:
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)

        def refuse(*_: object) -> None:
            raise KeyboardInterrupt

        vm.set_user_memory_region = refuse  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            memory.freeze()
        del vm.set_user_memory_region
        vm.guest_writes(memory, AT, b"guest")
        image = memory.freeze()
        assert image.read(AT, 5) == b"guest"


def test_translations_are_forgotten_if_anything_was_copied() -> None:
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)
        image = memory.freeze()
        memory.thaw(image, flush=True)
        assert vm.deleted == 0
        memory.write_u8(AT, 1)
        memory.thaw(image)
        assert vm.deleted == 0
        memory.write_u8(AT, 1)
        memory.thaw(image, flush=True)
        assert vm.deleted == 1
        assert set(vm.slots) == {0, 1, 2}


def test_a_thaw_interrupted_before_it_flushed_does_so_next_time() -> None:
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)
        image = memory.freeze()
        memory.write_u8(AT, 1)
        vm.refused = 3
        with pytest.raises(Exception, match="KVM_SET_USER_MEMORY_REGION"):
            memory.thaw(image, flush=True)
        vm.refused = None
        assert memory.thaw(image, flush=True) == 0
        assert vm.deleted == 1


def test_the_layout_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"file" * 1024)
    vm = FakeVM()
    with make() as memory:
        memory.attach(vm)
        disk = memory.add_ram(1 << 32, PAGE, name="disk", backing=path, shared=False)
        image = memory.freeze()
        before, layout = held(memory), [str(region) for region in memory.regions]
        memory.remove(disk)
        memory.remove(memory.regions[1])
        memory.add_ram(17 * PAGE, PAGE, name="other")
        memory.add_ram(1 << 32, 2 * PAGE, name="disk")
        memory.thaw(image)
        assert [str(region) for region in memory.regions] == layout
        assert held(memory) == before
        assert len(vm.slots) == 4
        fresh = GuestMemory()
        fresh.thaw(image)
        assert held(fresh) == before
        fresh.close()


def test_a_shared_file_is_put_back_and_a_private_one_left_alone(tmp_path: Path) -> None:
    shared, private = tmp_path / "shared", tmp_path / "private"
    for path in (shared, private):
        path.write_bytes(b"before" + bytes(PAGE - 6))
    with GuestMemory() as memory:
        memory.add_ram(0, PAGE, name="shared", backing=shared)
        memory.add_ram(PAGE, PAGE, name="private", backing=private, shared=False)
        image = memory.freeze()
        memory.write(PAGE, b"after!")
        # Another process writes to the file.
        shared.write_bytes(b"after!" + bytes(PAGE - 6))
        assert memory.thaw(image) == 2
        assert shared.read_bytes()[:6] == private.read_bytes()[:6] == b"before"
        with image.attach() as fork:
            fork.write(0, b"mine")
            assert shared.read_bytes()[:6] == b"before"


def test_another_process_may_have_written_to_the_memfd() -> None:
    with GuestMemory() as memory:
        region = memory.add_ram(0, 64 * PAGE, backing="memfd")
        memory.write_u8(PAGE, 1)
        assert region.fd is not None
        image = memory.freeze()
        os.pwrite(region.fd, b"\1", 9 * PAGE)
        assert memory.thaw(image) == 1
        assert memory.read_u8(9 * PAGE) == 0
        # To look for writes does not fill the holes.
        assert os.fstat(region.fd).st_blocks * 512 <= 4 * PAGE


def test_a_fork_shares_nothing_it_should_not() -> None:
    with make() as memory:
        memory.write(AT, b"parent")
        image = memory.freeze()
        with image.attach() as fork, image.attach() as other:
            memory.write(AT, b"later!")
            assert fork.read(AT, 6) == b"parent"
            fork.write(AT, b"fork..")
            assert other.read(AT, 6) == b"parent"
            assert memory.read(AT, 6) == b"later!"
            child = fork.freeze(image)
            assert {address for address, _ in child.changed(image)} == {AT}
            with child.attach() as grandchild:
                assert grandchild.read(AT, 6) == b"fork.."
                assert grandchild.thaw(image) == 1
                assert grandchild.read(AT, 6) == b"parent"
        assert image.read(AT, 6) == b"parent"


def test_a_fork_outlives_its_image_and_its_parent() -> None:
    memory = GuestMemory()
    memory.add_ram(0, 1024 * PAGE)
    memory.fill(0, 1024 * PAGE, 7)
    fork = memory.freeze().attach()
    memory.close()
    assert fork.read(0, 1024 * PAGE) == b"\7" * 1024 * PAGE
    fork.close()


@pytest.mark.parametrize("pages", [100, 2000])
def test_a_fork_of_a_child_with_many_changes(pages: int) -> None:
    """Few pages are copied to each fork, many become a file that all map."""
    with GuestMemory() as memory:
        memory.add_ram(0, 4096 * PAGE)
        for page in range(0, 4096, 8):
            memory.write_u8(page * PAGE, 1)
        first = memory.freeze()
        for page in range(pages):
            memory.write_u8(2 * page * PAGE + 1, 2)
        memory.fill(8 * PAGE, PAGE)
        child = memory.freeze(first)
        for _ in range(2):
            with child.attach() as fork:
                assert fork.read(0, 4096 * PAGE) == memory.read(0, 4096 * PAGE)
                assert fork.thaw(first) == pages
                assert fork.freeze().digest() == first.digest()


@pytest.mark.parametrize("number", [0, 1, 62, 63, 64, 4095, 4096, 4097])
def test_any_page_between_any_two_images(number: int) -> None:
    """Ancestors, descendants and siblings; pages at the edges of words, leaves and nodes."""
    at = number * PAGE
    with GuestMemory() as memory:
        memory.add_ram(0, 4098 * PAGE)
        memory.fill(0, 300 * PAGE, 1)
        root = memory.freeze()
        images = [root]
        for value in (2, 3, 0):
            memory.thaw(root)
            memory.write_u64(at, value)
            images.append(memory.freeze(root))
            memory.write_u64(at + 8, value)
            images.append(memory.freeze(images[-1]))
        values = [image.read(at, 16) for image in images]
        for one, here in zip(images, values, strict=True):
            for other, there in zip(images, values, strict=True):
                memory.thaw(one)
                assert memory.read(at, 16) == here
                assert memory.thaw(other) <= 1
                assert memory.read(at, 16) == there
                found = [address for address, _ in other.changed(one)]
                assert found == ([at] if here != there else [])


def test_what_another_thread_writes_meanwhile_is_found() -> None:
    """Half of it is in the image or none; what came after it is found by the next."""
    with make() as memory:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                memory.write_u64(number % 16 * PAGE, number)
                memory.fill(16 * PAGE + number % 4 * PAGE, PAGE, number % 256)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(300):
                memory.freeze()
        finally:
            stop.set()
            thread.join()
        image = memory.freeze()
        assert [image.read(r.start, r.size) for r in memory.regions] == held(memory)


def own_memory() -> int:
    """Bytes that this process has to itself: what it has written, and what no file has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(
        int(line.split()[1]) * 1024
        for line in lines
        if line.startswith(("Anonymous:", "Private_Hugetlb:"))
    )


@pytest.mark.parametrize("changed", [0, 100, 8192])
def test_a_fork_takes_the_pages_that_it_writes(changed: int) -> None:
    """256 MiB, of which the image has many; it is read from end to end, and 100 pages written."""
    size, written = 256 << 20, 100
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, size)
        memory.fill(0, size // 4, 1)
        image = memory.freeze()
        memory.fill(size // 8, changed * PAGE, 2)
        image = memory.freeze(image)
        # The first fork of a child with many changes makes the file that all others map.
        image.attach().close()
        before = own_memory()
        with image.attach() as fork:
            assert fork.find(b"\3") is None
            for page in range(written):
                fork.write_u8(page * 50 * PAGE, 7)
            assert own_memory() - before <= written * PAGE + (2 << 20)
            assert memory.read_u8(0) == 1


def test_digest_is_of_layout_and_bytes() -> None:
    with make() as memory, make("memfd") as other:
        image = memory.freeze()
        assert other.freeze().digest() == image.digest()
        assert len(image.digest()) == 32
        other.write_u8(AT, 1)
        assert other.freeze().digest() != image.digest()
        other.write_u8(AT, 0)
        assert other.freeze().digest() == image.digest()
        other.add_ram(1 << 32, PAGE, name="more")
        assert other.freeze().digest() != image.digest()


def test_an_image_from_another_and_what_differs() -> None:
    with make() as memory:
        memory.fill(0, 10 * PAGE, 5)
        parent = memory.freeze()
        memory.remove(memory.regions[1])
        memory.add_ram(1 << 32, 3 * PAGE, name="new")
        memory.write((1 << 32) + PAGE, b"new")
        memory.fill(2 * PAGE, PAGE)
        memory.write(AT, b"child")
        child = memory.freeze()
        placements = [region.key for region in child.regions]
        derived = parent.derive(placements, child.changed(parent))
        assert derived.digest() == child.digest()
        assert list(derived.changed(child)) == []
        with derived.attach() as fork:
            assert held(fork) == held(memory)
    assert parent.read(AT, 2) == b"\5\5"


def test_pages_and_regions_that_cannot_be() -> None:
    with make() as memory:
        image = memory.freeze()
    placements = [region.key for region in image.regions]
    for pages in ([(1, bytes(PAGE))], [(0, b"")], [(1 << 40, bytes(PAGE))]):
        with pytest.raises(LoadError):
            image.derive(placements, pages)
    for other in [("x", 1, PAGE, "ram"), ("x", 0, PAGE, "ram"), ("x", 1 << 32, 0, "ram")]:
        with pytest.raises(LoadError, match="x"):
            image.derive([*placements, other], [])  # type: ignore[list-item]


def test_read_of_an_image() -> None:
    with make() as memory:
        memory.write(16 * PAGE - 3, b"across")
        image = memory.freeze()
        memory.fill(0, 20 * PAGE, 7)
        assert image.read(16 * PAGE - 5, 10) == b"\0\0across\0\0"
        assert image.read(0, 0) == b""
        with pytest.raises(MemoryRangeError, match="0x14000"):
            image.read(19 * PAGE, 2 * PAGE)
        assert repr(image).startswith("<MemoryImage: ram 0x0-0x10000, next")
        assert image.size == memory.size


def test_an_image_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"#" * PAGE + b"ram".ljust(4 * PAGE, b"\0") + b"rom".ljust(PAGE, b"\1"))
    sections = [
        Section("rom", 0xFFFF_0000, PAGE, "rom", 5 * PAGE),
        Section("ram", 0, 4 * PAGE, "ram", PAGE),
    ]
    with path.open("rb") as file:
        image = MemoryImage.from_file(file.fileno(), sections)
    assert [address for address, _ in image.pages()] == [0, 0xFFFF_0000]
    with image.attach() as fork, GuestMemory() as built:
        built.add_ram(0, 4 * PAGE)
        built.add_rom(0xFFFF_0000, b"rom".ljust(PAGE, b"\1"))
        built.write(0, b"ram")
        assert built.freeze().digest() == image.digest() == fork.freeze().digest()
        fork.write(PAGE, b"new")
        assert fork.thaw(image) == 1
        assert fork.read(0, PAGE * 4) == b"ram".ljust(4 * PAGE, b"\0")
        built.write(PAGE, b"new")
        built.thaw(image)
        assert built.freeze().digest() == image.digest()
    assert path.read_bytes()[PAGE : PAGE + 3] == b"ram"


@pytest.mark.parametrize(
    "section",
    [
        Section("ram", 0, 2 * PAGE, "ram", 0),
        Section("ram", 0, PAGE, "ram", PAGE),
        Section("ram", 0, PAGE, "ram", 1),
        Section("ram", 0, PAGE, "ram", -PAGE),
        Section("ram", 1, PAGE, "ram", 0),
        Section("ram", 0, 0, "ram", 0),
        Section("ram", 0, 1 << 60, "ram", 0),
    ],
)
def test_sections_that_cannot_be(tmp_path: Path, section: Section) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, pytest.raises(LoadError, match="ram"):
        MemoryImage.from_file(file.fileno(), [section])


def test_a_first_freeze_can_share_with_a_parent() -> None:
    from pykvm._core import lib

    with make() as memory, make() as twin:
        for each in (memory, twin):
            for page in range(16):
                each.write_u8(page * PAGE, page + 1)
        image = memory.freeze()
        frames = lib.pykvm_frames()
        assert twin.freeze(image).digest() == image.digest()
        assert lib.pykvm_frames() == frames


def test_wrong_use() -> None:
    memory = make()
    image = memory.freeze()
    with pytest.raises(ConfigError, match="image"):
        memory.thaw("image")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="parent"):
        memory.freeze("image")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="flush"):
        memory.thaw(image, flush=1)  # type: ignore[arg-type]
    with pytest.raises(MemoryRangeError):
        memory.mark_dirty(1 << 40, 1)
    memory.close()
    for use in (memory.freeze, lambda: memory.thaw(image), lambda: memory.mark_dirty(0, 1)):
        with pytest.raises(ClosedError):
            use()
    assert image.read(0x100, 5) == b"begin"
