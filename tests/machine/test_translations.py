"""What a reset has KVM forget of page tables, also one that comes after an interrupted one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.machine.saving import _thaw
from pykvm.memory import GuestMemory
from pykvm.x86.registers import CR0
from support.slots import FakeVM


class Engine:
    """Counts how often it is to forget translations; the first time may be interrupted."""

    def __init__(self, cr0: int, interrupted: bool = False) -> None:
        self.cr0, self.interrupted = cr0, interrupted
        self.forgot = 0

    def sregs(self) -> Any:
        return SimpleNamespace(cr0=self.cr0)

    def forget_translations(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        self.forgot += 1


class Derived:
    """What KVM has derived of page tables: countable or not, stale or not."""

    def __init__(self, *, counted: bool = False, stale: bool = False) -> None:
        self.are_counted, self.stale = counted, stale

    def may_be_stale(self) -> bool:
        return self.stale

    def forgotten(self) -> None:
        self.stale = False


Reset = Callable[..., None]


@pytest.fixture
def memory() -> Any:
    memory, vm = GuestMemory(), FakeVM()
    memory.add_ram(0, 4 << 12)
    memory.attach(vm)
    yield memory
    memory.close()


def resets(memory: GuestMemory, *engines: Engine, saved_cr0: int = 0) -> Reset:
    """Put memory back to what it is now, by `_thaw`."""
    board: Any = SimpleNamespace(
        memory=memory, vcpus=[SimpleNamespace(engine=engine) for engine in engines]
    )
    cpus = [SimpleNamespace(cr0=saved_cr0) for _ in engines]
    saved: Any = SimpleNamespace(memory=memory.freeze(), state=SimpleNamespace(cpus=cpus))

    def reset(derived: Derived | None, *, anew: bool = False) -> None:
        _thaw(board, saved, derived, anew=anew)  # type: ignore[arg-type]

    return reset


def test_each_vcpu_that_pages_forgets_if_a_page_came_back(memory: GuestMemory) -> None:
    engines = Engine(CR0.PE | CR0.PG), Engine(CR0.PE)
    reset = resets(memory, *engines)
    reset(Derived())
    assert [engine.forgot for engine in engines] == [0, 0]
    memory.write_u8(0, 1)
    reset(Derived())
    assert [engine.forgot for engine in engines] == [1, 0]


def test_one_that_paged_when_it_was_saved_forgets_too(memory: GuestMemory) -> None:
    engine = Engine(CR0.PE)
    reset = resets(memory, engine, saved_cr0=CR0.PE | CR0.PG)
    memory.write_u8(0, 1)
    reset(Derived())
    assert engine.forgot == 1


@pytest.mark.parametrize("number", [0, 1])
def test_what_an_interrupted_reset_did_not_flush_the_next_does(
    memory: GuestMemory, number: int
) -> None:
    """By then no page differs any more: the copy was made before the interruption."""
    engines = [Engine(CR0.PG, interrupted=index == number) for index in range(2)]
    reset = resets(memory, *engines)
    memory.write_u8(0, 1)
    with pytest.raises(KeyboardInterrupt):
        reset(Derived())
    assert memory.read_u8(0) == 0
    reset(Derived(), anew=True)
    assert [engine.forgot for engine in engines] == [1 + number, 1]


def test_where_kvm_counts_what_it_derived_the_slots_are_made_anew(memory: GuestMemory) -> None:
    engine, derived = Engine(CR0.PG), Derived(counted=True, stale=True)
    reset = resets(memory, engine)
    memory.write_u8(0, 1)
    reset(derived)
    assert (engine.forgot, derived.stale) == (0, False)
    # It knows nothing: there is nothing to forget.
    memory.write_u8(0, 1)
    reset(derived, anew=True)
    assert engine.forgot == 0


def test_of_a_vm_that_never_ran_nothing_is_forgotten(memory: GuestMemory) -> None:
    engine = Engine(CR0.PG)
    reset = resets(memory, engine)
    memory.write_u8(0, 1)
    reset(None, anew=True)
    assert engine.forgot == 0
