"""Freeze, thaw and fork where something fails, or an exception comes, at every step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from pykvm.memory import GuestMemory
from pykvm.memory.image import MemoryImage
from support.child import lines_of
from support.slots import FakeVM

PAGE = 4096


class Stop(Exception):
    """What a handler of a signal raises."""


def is_finalizer(frame: FrameType | None) -> bool:
    """Whether it is called by `__del__`, out of which no exception comes."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupted(call: Callable[[], object]) -> Iterator[None]:
    """Make `call` again and again, interrupted before its first instruction, its second, ...

    Yields after each that was interrupted, and ends after the first that was not.
    """
    for number in range(1, 1_000_000):
        left = number

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if "/pykvm/memory/" not in frame.f_code.co_filename or is_finalizer(frame):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if not left:
                    raise Stop
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
            return
        except Stop:
            pass
        finally:
            sys.settrace(before)
        yield


def make() -> tuple[GuestMemory, FakeVM]:
    memory, vm = GuestMemory(), FakeVM()
    memory.add_ram(0, 4 * PAGE)
    memory.add_rom(0xFFFF_0000, b"rom")
    memory.attach(vm)
    memory.write(PAGE, b"begin")
    return memory, vm


def held(memory: GuestMemory) -> list[tuple[str, bytes]]:
    regions = memory.regions
    return [(str(region), memory.read(region.start, region.size)) for region in regions]


def content(image: MemoryImage) -> list[tuple[str, bytes]]:
    return [(str(region), image.read(region.start, region.size)) for region in image.regions]


def disturb(memory: GuestMemory, vm: FakeVM, number: int) -> None:
    """Change pages by every way there is, and the layout."""
    vm.guest_writes(memory, 2 * PAGE, bytes([number % 255 + 1]))
    memory.write(3 * PAGE, bytes([number % 255 + 1]))
    memory.view(PAGE, 1)[0] = number % 255 + 1
    if number % 2 and len(memory.regions) == 2:
        memory.add_ram(1 << 32, PAGE, name="more")


def test_an_interrupted_freeze_changes_nothing() -> None:
    memory, vm = make()
    first = memory.freeze()
    before = held(memory)
    number = 0
    disturb(memory, vm, number)
    for _ in interrupted(memory.freeze):
        after = held(memory)
        second = memory.freeze()
        assert content(second) == after
        memory.thaw(first)
        assert held(memory) == before
        memory.thaw(second)
        assert held(memory) == after
        number += 1
        disturb(memory, vm, number)
    assert number > 100
    memory.close()


def test_an_interrupted_first_freeze_misses_nothing() -> None:
    memory, vm = make()

    def anew() -> None:
        nonlocal memory, vm
        memory.freeze()

    number = 0
    for _ in interrupted(anew):
        number += 1
        vm.guest_writes(memory, 2 * PAGE, b"guest")
        assert content(memory.freeze()) == held(memory)
        memory.close()
        memory, vm = make()
    assert number > 100
    memory.close()


def test_an_interrupted_thaw_is_completed_by_the_next() -> None:
    memory, vm = make()
    first = memory.freeze()
    before = held(memory)
    disturb(memory, vm, 1)
    second = memory.freeze()
    after = held(memory)
    images = [(first, before), (second, after)]
    number = 0

    def thaw() -> None:
        memory.thaw(images[number % 2][0], flush=True)

    disturb(memory, vm, 0)
    for _ in interrupted(thaw):
        # To the image that it was about, or to the other.
        image, wanted = images[number // 2 % 2]
        memory.thaw(image, flush=True)
        assert held(memory) == wanted
        assert {slot[1] for slot in vm.slots.values()} == {r.start for r in memory.regions}
        number += 1
        disturb(memory, vm, number)
    assert number > 100
    memory.close()


def test_translations_are_forgotten_after_an_interrupted_thaw() -> None:
    memory, vm = make()
    image = memory.freeze()
    memory.write(PAGE, b"again")
    for _ in interrupted(lambda: memory.thaw(image, flush=True)):
        changed = memory.read(PAGE, 5) != b"again"
        memory.thaw(image, flush=True)
        assert vm.deleted >= changed
        assert memory.read(PAGE, 5) == b"begin"
        memory.write(PAGE, b"again")
        vm.deleted = 0
    memory.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda memory: memory.write(3 * PAGE - 2, b"data"),
        lambda memory: memory.write_u32(PAGE, 7),
        lambda memory: memory.fill(PAGE, PAGE, 7),
        lambda memory: memory.view(PAGE, 4).__setitem__(0, 7),
        lambda memory: memory.compare_exchange(2 * PAGE, bytes(16), b"7" * 16),
    ],
)
def test_an_interrupted_write_is_seen(write: Callable[[GuestMemory], object]) -> None:
    memory, _ = make()
    image = memory.freeze()
    before = held(memory)
    for _ in interrupted(lambda: write(memory)):
        memory.thaw(image)
        assert held(memory) == before
    memory.close()


def test_an_interrupted_fork_leaves_nothing() -> None:
    memory, _ = make()
    image = memory.freeze()
    number = 0
    for _ in interrupted(lambda: image.attach().close()):
        number += 1
    assert number > 100
    with image.attach() as fork:
        assert held(fork) == held(memory)
    memory.close()


BEGIN = """
import os, pathlib, resource, sys
from pykvm.errors import HostError, ResourceError
from pykvm._core import lib
from pykvm.memory import GuestMemory
from pykvm.memory.image import MemoryImage
PAGE = 4096

def limited(what, limit, call):
    old = resource.getrlimit(what)
    resource.setrlimit(what, (limit, old[1]))
    try:
        return call()
    except HostError as error:
        return error
    finally:
        resource.setrlimit(what, old)

def used():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * PAGE

def descriptors():
    return len(os.listdir("/proc/self/fd"))

memory = GuestMemory()
memory.add_ram(0, 4096 * PAGE)
memory.fill(0, 4096 * PAGE, 1)
"""


def run(program: str) -> list[str]:
    """In a process of its own, whose limits they are."""
    return lines_of(BEGIN + program)


def test_no_descriptor_to_load_the_code_that_freezes() -> None:
    lines = run("""
del sys.modules["pykvm.memory.image"]
print(repr(limited(resource.RLIMIT_NOFILE, 3, memory.freeze)))
""")
    assert "ResourceError" in lines[0]
    assert "Too many open files" in lines[0]


def test_no_memory_for_the_pages_of_a_child() -> None:
    """With a little more each time, until there is enough."""
    lines = run("""
first = memory.freeze()
memory.fill(0, 4096 * PAGE, 2)
memory.write_u8(7 * PAGE, 9)
wanted = memory.read(0, 4096 * PAGE)
failed = 0
least = used()
for more in range(0, 64 << 20, 1 << 20):
    frames = lib.pykvm_frames()
    second = limited(resource.RLIMIT_AS, least + more, memory.freeze)
    if not isinstance(second, HostError):
        break
    assert isinstance(second, ResourceError) and "memory" in str(second), second
    assert lib.pykvm_frames() == frames
    assert memory.read(0, 4096 * PAGE) == wanted
    failed += 1
assert second.read(0, 4096 * PAGE) == wanted
memory.thaw(first)
assert memory.read(0, 4096 * PAGE) == b"\\1" * 4096 * PAGE
memory.thaw(second)
assert memory.read(0, 4096 * PAGE) == wanted
print(failed > 0)
""")
    assert lines == ["True"]


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("RLIMIT_NOFILE, descriptors()", "Too many open files"),
        ("RLIMIT_FSIZE, 1000 * PAGE", "File too large"),
        ("RLIMIT_AS, used() + (1 << 20)", "Cannot allocate memory"),
    ],
)
def test_no_file_for_the_pages_of_the_first(limit: str, named: str) -> None:
    lines = run(f"""
before = descriptors(), used()
error = limited(resource.{limit.replace("descriptors()", "3")}, memory.freeze)
print(error)
assert (descriptors(), used() - before[1] < 1 << 20) == (before[0], True)
image = memory.freeze()
assert image.read(0, 4096 * PAGE) == b"\\1" * 4096 * PAGE
memory.write_u8(0, 2)
assert memory.thaw(image) == 1
""")
    assert lines[0].startswith("cannot freeze guest memory")
    assert named in lines[0]


@pytest.mark.parametrize(
    "limit", ["RLIMIT_NOFILE, 3", "RLIMIT_FSIZE, 1000 * PAGE", "RLIMIT_AS, used() + (1 << 20)"]
)
def test_no_means_for_a_fork(limit: str) -> None:
    lines = run(f"""
first = memory.freeze()
memory.fill(0, 2048 * PAGE, 2)
child = memory.freeze()
wanted = memory.read(0, 4096 * PAGE)
before = descriptors(), used()
error = limited(resource.{limit}, child.attach)
print(isinstance(error, HostError))
del error
assert (descriptors(), used() - before[1] < 1 << 20) == (before[0], True)
with child.attach() as fork:
    assert fork.read(0, 4096 * PAGE) == wanted
assert memory.read(0, 4096 * PAGE) == wanted
""")
    assert lines == ["True"]
