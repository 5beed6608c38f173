"""Random trees of images, beside plain bytes."""

from __future__ import annotations

import gc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    rule,
    run_state_machine_as_test,
)

from pykvm._core import lib
from pykvm.memory import GuestMemory
from pykvm.memory.image import MemoryImage
from support.slots import FakeVM

PAGE = 4096
#: Name, start, pages and kind: a word of the bitmap and more, more than fits one leaf, so many that
#: they become a file, ROM, and one above 4 GiB that touches nothing.
LAYOUT = {
    "low": (0, 65, "ram"),
    "next": (65 * PAGE, 3, "ram"),
    "large": (0x10_0000, 700, "ram"),
    "rom": (0xFFFF_0000, 16, "rom"),
    "memfd": (0x1_0000_0000, 130, "memfd"),
}
Contents = dict[str, bytes]

names = st.sampled_from(sorted(LAYOUT))
fractions = st.floats(0, 1, exclude_max=True)
small = st.sampled_from([1, 2, 4, 8, 100, PAGE, PAGE + 1, 3 * PAGE])
lengths = small | st.sampled_from([64 * PAGE, 300 * PAGE])
values = st.integers(0, 255) | st.just(0)


class World:
    """A memory, the VM that it is attached to, and what it should hold."""

    def __init__(self, memory: GuestMemory, model: dict[str, bytearray]) -> None:
        self.memory = memory
        self.model = model
        self.vm = FakeVM()
        self.views: list[tuple[str, int, memoryview]] = []
        memory.attach(self.vm)

    def add(self, name: str) -> None:
        start, pages, kind = LAYOUT[name]
        if kind == "rom":
            self.memory.add_rom(start, b"\x55" * (pages * PAGE), name=name)
            self.model[name] = bytearray(b"\x55" * (pages * PAGE))
        else:
            backing = "memfd" if kind == "memfd" else "anonymous"
            self.memory.add_ram(start, pages * PAGE, name=name, backing=backing)
            self.model[name] = bytearray(pages * PAGE)

    def place(self, name: str, fraction: float, length: int) -> tuple[int, int, int] | None:
        """An offset in the region, the address, and a length that fits; None without the region."""
        if name not in self.model:
            return None
        size = len(self.model[name])
        offset = int(fraction * size)
        return offset, LAYOUT[name][0] + offset, min(length, size - offset)

    def contents(self) -> Contents:
        return {name: bytes(data) for name, data in self.model.items()}

    def check(self) -> None:
        assert {region.name for region in self.memory.regions} == set(self.model)
        for name, data in self.model.items():
            held = self.memory.read(LAYOUT[name][0], len(data))
            assert held == data, (name, differing(held, bytes(data)))
        assert len(self.vm.slots) == len(self.model)


def differing(one: bytes, other: bytes) -> list[int]:
    """The pages that differ."""
    pages = range(len(one) // PAGE)
    return [n for n in pages if one[n * PAGE :][:PAGE] != other[n * PAGE :][:PAGE]]


class Trees(RuleBasedStateMachine):
    """Any order of writes, freezes, thaws and forks."""

    worlds: Bundle[World] = Bundle("worlds")
    images: Bundle[tuple[MemoryImage, Contents]] = Bundle("images")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[World] = []

    @initialize(target=worlds, absent=st.sets(names, max_size=4))
    def begin(self, absent: set[str]) -> World:
        world = World(GuestMemory(), {})
        for name in LAYOUT:
            if name not in absent:
                world.add(name)
        self.all.append(world)
        return world

    @rule(world=worlds, name=names, at=fractions, length=small, value=values, rom=st.booleans())
    def host_writes(
        self, world: World, name: str, at: float, length: int, value: int, rom: bool
    ) -> None:
        if found := world.place(name, at, length):
            offset, address, length = found
            rom = rom or LAYOUT[name][2] == "rom"
            world.memory.write(address, bytes([value]) * length, rom=rom)
            world.model[name][offset : offset + length] = bytes([value]) * length

    @rule(world=worlds, name=names, at=fractions, length=lengths, value=values)
    def host_fills(self, world: World, name: str, at: float, length: int, value: int) -> None:
        if found := world.place(name, at, length):
            offset, address, length = found
            world.memory.fill(address, length, value, rom=True)
            world.model[name][offset : offset + length] = bytes([value]) * length

    @rule(world=worlds, name=names, at=fractions, value=st.integers(0, (1 << 64) - 1))
    def host_stores(self, world: World, name: str, at: float, value: int) -> None:
        found = world.place(name, at, 8)
        if found and found[2] == 8 and LAYOUT[name][2] != "rom":
            offset, address, _ = found
            world.memory.write_u64(address, value)
            world.model[name][offset : offset + 8] = value.to_bytes(8, "little")

    @rule(world=worlds, name=names, at=fractions, value=values)
    def host_exchanges(self, world: World, name: str, at: float, value: int) -> None:
        found = world.place(name, at, 16)
        if found and LAYOUT[name][2] != "rom":
            offset, address = found[0] & ~15, found[1] & ~15
            old = bytes(world.model[name][offset : offset + 16])
            assert world.memory.compare_exchange(address, old, bytes([value]) * 16) == old
            world.model[name][offset : offset + 16] = bytes([value]) * 16

    @rule(world=worlds, name=names, at=fractions, length=small, value=values)
    def guest_writes(self, world: World, name: str, at: float, length: int, value: int) -> None:
        found = world.place(name, at, length)
        if found and LAYOUT[name][2] != "rom":
            offset, address, length = found
            world.vm.guest_writes(world.memory, address, bytes([value]) * length)
            world.model[name][offset : offset + length] = bytes([value]) * length

    @rule(world=worlds, name=names, at=fractions, length=lengths)
    def take_view(self, world: World, name: str, at: float, length: int) -> None:
        found = world.place(name, at, length)
        if found and LAYOUT[name][2] != "rom":
            offset, address, length = found
            world.views.append((name, offset, world.memory.view(address, length)[length // 2 :]))
            name, offset, view = world.views[-1]
            world.views[-1] = (name, offset + length // 2, view)

    @rule(world=worlds, at=fractions, value=values, dies=st.booleans())
    def write_view(self, world: World, at: float, value: int, dies: bool) -> None:
        if not world.views:
            return
        name, offset, view = world.views[int(at * len(world.views))]
        place = int(at * len(view))
        view[place] = value
        if name in world.model:
            world.model[name][offset + place] = value
        if dies:
            world.views.remove((name, offset, view))

    @rule(target=images, world=worlds, parent=st.none() | images)
    def freeze(
        self, world: World, parent: tuple[MemoryImage, Contents] | None
    ) -> tuple[MemoryImage, Contents]:
        image = world.memory.freeze(parent and parent[0])
        world.check()
        return image, world.contents()

    @rule(world=worlds, saved=images, flush=st.booleans())
    def thaw(self, world: World, saved: tuple[MemoryImage, Contents], flush: bool) -> None:
        image, contents = saved
        # A view of a region that goes is a view of nothing; and so it is if it comes back.
        gone = {region.key for region in world.memory.regions} - {r.key for r in image.regions}
        world.views = [view for view in world.views if view[0] not in {key[0] for key in gone}]
        before = world.contents()
        deleted = world.vm.deleted
        copied = world.memory.thaw(image, flush=flush)
        world.model = {name: bytearray(data) for name, data in contents.items()}
        world.check()
        least = sum(
            len(differing(data, contents[name]))
            for name, data in before.items()
            if name in contents
        )
        assert copied >= least
        if flush and copied:
            assert world.vm.deleted > deleted
        assert world.memory.thaw(image) == 0 or world.views or gone

    @rule(target=worlds, saved=images)
    def fork(self, saved: tuple[MemoryImage, Contents]) -> World:
        image, contents = saved
        world = World(image.attach(), {name: bytearray(data) for name, data in contents.items()})
        world.check()
        self.all.append(world)
        return world

    @rule(world=worlds, name=names)
    def add(self, world: World, name: str) -> None:
        if name not in world.model:
            world.add(name)

    @rule(world=worlds, name=names)
    def remove(self, world: World, name: str) -> None:
        for region in world.memory.regions:
            if region.name == name:
                world.memory.remove(region)
                del world.model[name]
                world.views = [view for view in world.views if view[0] != name]

    @rule(world=worlds)
    def attach_to_another_vm(self, world: World) -> None:
        world.memory.detach()
        world.vm = FakeVM()
        world.memory.attach(world.vm)

    @rule(saved=images)
    def look(self, saved: tuple[MemoryImage, Contents]) -> None:
        image, contents = saved
        assert {region.name for region in image.regions} == set(contents)
        for name, data in contents.items():
            assert image.read(LAYOUT[name][0], len(data)) == data
        pages = dict(image.pages())
        assert b"".join(pages[key] for key in sorted(pages)).count(0) <= sum(
            data.count(0) for data in contents.values()
        )
        assert set(pages) == {
            LAYOUT[name][0] + page * PAGE
            for name, data in contents.items()
            for page in differing(data, bytes(len(data)))
        }

    @rule(one=images, other=images)
    def compare(
        self, one: tuple[MemoryImage, Contents], other: tuple[MemoryImage, Contents]
    ) -> None:
        assert (one[0].digest() == other[0].digest()) == (one[1] == other[1])
        expected = {
            LAYOUT[name][0] + page * PAGE: data[page * PAGE :][:PAGE]
            for name, data in one[1].items()
            for page in differing(data, other[1].get(name, bytes(len(data))))
        }
        assert dict(one[0].changed(other[0])) == expected

    @rule(saved=consumes(images))
    def forget(self, saved: tuple[MemoryImage, Contents]) -> None:
        del saved

    def teardown(self) -> None:
        for world in self.all:
            world.check()
            world.memory.close()


def test_any_order_of_writes_freezes_thaws_and_forks() -> None:
    run_state_machine_as_test(Trees, settings=settings(max_examples=60, stateful_step_count=30))


def test_images_that_nothing_refers_to_give_back_their_pages() -> None:
    gc.collect()
    before = lib.pykvm_frames()
    with GuestMemory() as memory:
        memory.add_ram(0, 64 * PAGE)
        kept = memory.freeze()
        for number in range(1, 200):
            memory.write_u8(number % 64 * PAGE, number)
            last = memory.freeze()
        # One for each page that differs from the first image, and no more.
        assert lib.pykvm_frames() - before <= 64
        memory.thaw(kept)
        del last
        gc.collect()
        assert lib.pykvm_frames() == before
