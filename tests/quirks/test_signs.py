"""When this host is asked for its quirks: at the first sign that the guest may meet one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pykvm import CPU, Machine, Outcome, ResourceError, Snapshot, quirks
from pykvm.exits import Hlt
from pykvm.quirks.probe_vm import KERNEL, beginning, lay_out
from pykvm.quirks.signs import LSTAR, Signs
from support.listing import assemble

pytestmark = pytest.mark.kvm

WRITES_LSTAR = """
    B9 82 00 00 C0   mov ecx, LSTAR
    B8 00 A0 00 00   mov eax, 0xA000
    31 D2            xor edx, edx
    0F 30            wrmsr
    FF C0            inc eax
    0F 30            wrmsr
    F4               hlt
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """What became of each question; the answer is that this host has none."""
    answers: list[frozenset[str]] = []

    def found(quirks: Iterable[quirks.Quirk] | None = None) -> frozenset[str]:
        answers.append(frozenset())
        return answers[-1]

    monkeypatch.setattr(quirks, "found", found)
    return answers


def test_a_kernel_that_stays_in_ring_0(guests: Path, asked: list[object]) -> None:
    with Machine(guests / "pvh.elf") as machine:
        assert machine.run(timeout=20).exit_code == 0
    assert asked == []


@pytest.mark.parametrize("irqchip", ["none", "user"])
def test_a_guest_that_sets_lstar(asked: list[object], irqchip: str) -> None:
    """It is asked once, and where the host has none no write exits from then on."""
    with Machine(assemble(WRITES_LSTAR), mode="long", quirks="on", irqchip=irqchip) as machine:
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED
        assert result.exits["WrMsr"] == 1
        assert machine.vcpus[0].kvm.get_msrs([LSTAR]) == {LSTAR: 0xA001}
    assert len(asked) == 1


@pytest.fixture
def with_idt() -> Iterator[Machine]:
    """A machine that is about to halt in 64-bit mode, with an IDT."""
    with Machine(memory="8M", quirks="on", irqchip="none") as machine:
        lay_out(machine.memory)
        machine.memory.write(KERNEL, b"\xf4")
        machine.vcpus[0].state = beginning(0)
        yield machine


def test_a_guest_that_has_an_idt_in_64_bit_mode(asked: list[object], with_idt: Machine) -> None:
    assert asked == []
    assert with_idt.run(timeout=20).outcome is Outcome.HALTED
    assert len(asked) == 1


LOADS_AN_IDT = """
    B9 0A 00 00 00            mov ecx, 10
    E6 80              again: out 0x80, al
    E2 FC                     loop again
    0F 01 1C 25 00 A0 00 00   lidt [0xA000]
    E6 80                     out 0x80, al
    F4                        hlt
"""


@pytest.mark.parametrize(("limit", "looks"), [(0x6E, 1), (0x6F, 2)])
def test_a_guest_that_loads_an_idt(
    asked: list[object], monkeypatch: pytest.MonkeyPatch, limit: int, looks: int
) -> None:
    """It is looked at when it begins, and when there is something to see."""
    looked = []
    look = Signs.look

    def count(signs: Signs, cpu: CPU) -> None:
        looked.append(cpu)
        look(signs, cpu)

    monkeypatch.setattr(Signs, "look", count)
    with Machine(assemble(LOADS_AN_IDT), mode="long", quirks="on", irqchip="none") as machine:
        machine.memory.write(0xA000, limit.to_bytes(2, "little") + bytes(8))
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED
        assert result.exits["IoOut"] == 11
    assert len(looked) == looks
    assert len(asked) == looks - 1


def test_a_loop_by_hand_asks_nothing(asked: list[object], with_idt: Machine) -> None:
    assert next(with_idt.vcpus[0].raw_exits()) == Hlt()
    assert asked == []


def test_a_triple_fault_of_a_guest_without_an_idt(asked: list[object]) -> None:
    with Machine(b"\x0f\x0b", mode="long", quirks="on", irqchip="none") as machine:
        assert machine.run(timeout=20).outcome is Outcome.CRASHED
    assert len(asked) == 1


def test_where_no_vm_is_to_be_had_the_run_says_so(
    monkeypatch: pytest.MonkeyPatch, with_idt: Machine
) -> None:
    """The next run asks again."""

    def refuse(quirks: object = None) -> frozenset[str]:
        raise ResourceError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(quirks, "found", refuse)
        with pytest.raises(ResourceError, match="no more"):
            with_idt.run(timeout=20)
    assert with_idt.run(timeout=20).outcome is Outcome.HALTED


@pytest.fixture(params=["none", "user"])
def saved(request: pytest.FixtureRequest) -> Iterator[Snapshot]:
    """A guest with an IDT in 64-bit mode, about to write LSTAR twice and halt."""
    with Machine(memory="8M", quirks="on", irqchip=request.param) as machine:
        lay_out(machine.memory)
        machine.memory.write(KERNEL, assemble(WRITES_LSTAR))
        machine.vcpus[0].state = beginning(0)
        yield machine.snapshot()


def test_for_a_guest_with_an_idt_in_a_snapshot_it_is_asked_at_once(
    asked: list[object], saved: Snapshot
) -> None:
    """And where this host has none nothing is watched."""
    with saved.fork() as machine:
        assert len(asked) == 1
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED
        assert "WrMsr" not in result.exits
        assert machine.vcpus[0].kvm.get_msrs([LSTAR]) == {LSTAR: 0xA001}
    assert len(asked) == 1


@pytest.fixture
def has_syscall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is that SYSCALL is wrong here."""
    monkeypatch.setattr(quirks, "found", lambda quirks=None: frozenset({"syscall"}))


def test_on_a_host_with_the_quirk_each_write_exits_from_the_first_on(
    has_syscall: None, saved: Snapshot
) -> None:
    with saved.fork() as machine:
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED
        assert result.exits["WrMsr"] == 2
        assert machine.vcpus[0].kvm.get_msrs([LSTAR]) == {LSTAR: 0xA001}


def test_a_loop_by_hand_from_a_snapshot_sees_no_write(has_syscall: None, saved: Snapshot) -> None:
    with saved.fork() as machine:
        assert next(machine.vcpus[0].raw_exits(timeout=20)) == Hlt()
        assert machine.vcpus[0].kvm.get_msrs([LSTAR]) == {LSTAR: 0xA001}
