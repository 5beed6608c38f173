"""The state of interrupt controllers in KVM, saved and loaded into the same machine and a twin."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import ConfigError, Machine, Outcome
from pykvm.devices.line import Output
from pykvm.irqchip.kernel import KernelIrqChip, KernelIrqChipState
from pykvm.irqchip.tsc_offset import kvmclock, restore_kvmclock
from pykvm.values.state import decode, encode
from pykvm.vcpu.kvm_engine import KvmEngine
from support.guest import MakeGuest
from support.interrupts import COUNT, VECTOR, count, put_handler
from support.saving import Saved, differing

if TYPE_CHECKING:
    from pykvm.devices.line import Lines

pytestmark = pytest.mark.kvm

IRQ = 5
#: The first 8259 at vectors 0x40 to 0x47, with IRQ 5 alone; then it waits for interrupts for ever.
LISTEN = """
    B0 11 E6 20              mov al, 0x11 ; out 0x20, al
    B0 40 E6 21              mov al, 0x40 ; out 0x21, al
    B0 04 E6 21              mov al, 4    ; out 0x21, al
    B0 01 E6 21              mov al, 1    ; out 0x21, al
    B0 DF E6 21              mov al, 0xdf ; out 0x21, al
    E6 80                    out 0x80, al
    FB                       sti
    F4                       hlt
    EB FD                    jmp $-1
"""
END = """
    FF 06 00 05              inc word [0x500]
    50                       push ax
    B0 20 E6 20              mov al, 0x20 ; out 0x20, al
    58                       pop ax
    CF                       iret
"""


class Button:
    """A device with a line."""

    name = "button"

    def __init__(self) -> None:
        self.line = Output()

    def attach(self, lines: Lines, memory: object, clock: object) -> None:
        self.line.attach(lines)

    def read(self, offset: int, size: int) -> int:
        return 0


class Whole:
    """A machine's memory, vCPUs, irqchip, and the level of its button."""

    def __init__(self, machine: Machine) -> None:
        self.saved = Saved(machine)
        self.level = button(machine).line.level
        self.irqchip = chip(machine).state()

    def load(self, machine: Machine) -> None:
        button(machine).line.restore(self.level)
        self.saved.load(machine)
        chip(machine).restore(self.irqchip)


def chip(machine: Machine) -> KernelIrqChip:
    irqchip = machine._board.irqchip
    assert isinstance(irqchip, KernelIrqChip)
    return irqchip


def chips(machine: Machine) -> Any:
    """The irqchip, be it kernel or split."""
    return machine._board.irqchip


def button(machine: Machine) -> Button:
    device = machine.devices["button"]
    assert isinstance(device, Button)
    return device


@pytest.fixture
def listening(guest: MakeGuest) -> Callable[..., Machine]:
    def make(listing: str = LISTEN, **options: Any) -> Machine:
        machine = guest(listing, irqchip="kernel", **options)
        machine.add(Button(), pio=0x90, length=1, irq=IRQ)
        put_handler(machine, END, vector=0x40 + IRQ)
        return machine

    return make


def settle(machine: Machine) -> None:
    """Let it run until it has dealt with what there is."""
    assert machine.run(timeout=0.1).outcome in (Outcome.TIMEOUT, Outcome.HALTED)


@pytest.mark.parametrize("where", ["itself", "twin"])
def test_a_line_that_is_high_brings_no_second_interrupt(
    listening: Callable[..., Machine], where: str
) -> None:
    machine = listening()
    settle(machine)
    button(machine).line.set(True)
    settle(machine)
    assert count(machine) == 1
    state = Whole(machine)
    button(machine).line.set(False)
    settle(machine)

    other = machine if where == "itself" else listening()
    for _ in range(2):
        state.load(other)
        settle(other)
        assert count(other) == 1
        # The next edge is one.
        button(other).line.set(False)
        button(other).line.set(True)
        settle(other)
        assert count(other) == 2


def test_nor_does_the_io_apic_send_a_message_for_it(listening: Callable[..., Machine]) -> None:
    """It is driven anew with every input masked: IRR of the local APIC does not show it."""
    machine, twin = listening(), listening()
    cpu, vm = machine.vcpus[0], machine._board.vm
    assert vm is not None
    lapic = bytearray(cpu.kvm.get_lapic())
    put(lapic, SVR, 0x1FF)
    cpu.kvm.set_lapic(lapic)
    ioapic = vm.get_irqchip(2)
    ioapic.chip.ioapic.redirtbl[IRQ].bits = VECTOR
    vm.set_irqchip(ioapic)
    button(machine).line.set(True)
    assert waits(cpu.kvm.get_lapic())
    lapic = bytearray(cpu.kvm.get_lapic())
    put(lapic, IRR + VECTOR // 32 * 0x10, 0)  # as if the guest had dealt with it
    cpu.kvm.set_lapic(lapic)
    state = Whole(machine)
    for other in (twin, machine):
        for _ in range(2):
            button(other).line.set(False)
            state.load(other)
            assert not waits(other.vcpus[0].kvm.get_lapic())
            button(other).line.set(False)
            button(other).line.set(True)
            assert waits(other.vcpus[0].kvm.get_lapic())


@pytest.mark.parametrize("where", ["itself", "twin"])
def test_a_line_that_is_low_is_low_again(listening: Callable[..., Machine], where: str) -> None:
    machine = listening()
    settle(machine)
    state = Whole(machine)
    other = machine if where == "itself" else listening()
    settle(other)
    for expected in (1, 1):
        button(other).line.set(True)
        state.load(other)
        settle(other)
        assert count(other) == 0
        button(other).line.set(True)
        settle(other)
        assert count(other) == expected


MASKED = LISTEN.replace("FB   ", "90   ").replace("F4   ", "90   ")


@pytest.mark.parametrize("where", ["itself", "twin"])
def test_an_interrupt_that_waits_comes_once(listening: Callable[..., Machine], where: str) -> None:
    """In the 8259's IRR, while the guest has interrupts off."""
    machine = listening()
    assert machine.run(until=lambda m: m.vcpus[0].regs.rip > 0x7C14, timeout=20).ok
    button(machine).line.set(True)
    state = Whole(machine)
    assert count(machine) == 0
    other = machine if where == "itself" else listening()
    for _ in range(2):
        state.load(other)
        settle(other)
        assert count(other) == 1


def test_what_is_restored_is_saved_again(listening: Callable[..., Machine]) -> None:
    machine, twin = listening(), listening()
    settle(machine)
    button(machine).line.set(True)
    vm = machine._board.vm
    assert vm is not None
    ioapic = vm.get_irqchip(2)
    for pin in (3, 5):
        ioapic.chip.ioapic.redirtbl[pin].bits = 0x0100_0000_0000_8041 + pin
    vm.set_irqchip(ioapic)
    state = Whole(machine)
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            again = Whole(other)
            assert at_rest(again.irqchip) == at_rest(state.irqchip)
            assert again.level == state.level
            assert not differing(again.saved.vcpus[0], state.saved.vcpus[0])


def at_rest(state: KernelIrqChipState) -> tuple[object, ...]:
    """Without for how long the 8254 has counted."""
    return (state.timers, state.pic_master, state.pic_slave, state.ioapic, state.pit.registers)


def test_the_8254_goes_on_in_its_mode(listening: Callable[..., Machine]) -> None:
    machine, twin = listening(), listening()
    vm = machine._board.vm
    assert vm is not None
    pit = vm.get_pit2()
    for channel, mode in zip(pit.channels, (2, 3, 0), strict=True):
        channel.mode, channel.count, channel.gate = mode, 0x8000 + mode, 1
    vm.set_pit2(pit)
    state = chip(machine).state()
    chip(twin).restore(state)
    assert chip(twin).state().pit.registers == state.pit.registers
    found = twin._board.vm.get_pit2()  # type: ignore[union-attr]
    assert [channel.mode for channel in found.channels] == [2, 3, 0]


def test_a_state_that_is_none(listening: Callable[..., Machine]) -> None:
    irqchip = chip(listening())
    state = irqchip.state()
    fields = {name: getattr(state, name) for name in KernelIrqChipState.__fields__}
    for name in ("pic_master", "pic_slave", "ioapic"):
        with pytest.raises(ConfigError, match="has 3 bytes"):
            irqchip.restore(KernelIrqChipState(**fields | {name: b"abc"}))
    irqchip.restore(state)


WAIT = """
    FB           sti
    F4           hlt
    B0 03        mov al, 3
    E6 F4        out 0xf4, al
"""
SPIN = """
    FA           cli
    E6 80        out 0x80, al
    EB FC        jmp $-2
"""
SVR, LVTT, TMICT, TMCCT, TDCR = 0xF0, 0x320, 0x380, 0x390, 0x3E0
IRR = 0x200


def put(lapic: bytearray, register: int, value: int) -> None:
    lapic[register : register + 4] = value.to_bytes(4, "little")


def get(lapic: bytes | bytearray, register: int) -> int:
    return int.from_bytes(lapic[register : register + 4], "little")


def waits(lapic: bytes | bytearray) -> bool:
    """Whether VECTOR is in its IRR."""
    return bool(get(lapic, IRR + VECTOR // 32 * 0x10) >> VECTOR % 32 & 1)


def start_timer(machine: Machine, ticks: int, left: int | None = None) -> None:
    """Have a timer of so many ticks run out when those that are left have gone by: nanoseconds."""
    cpu = machine.vcpus[0]
    lapic = bytearray(cpu.kvm.get_lapic())
    for register, value in ((SVR, 0x1FF), (TDCR, 0xB), (LVTT, VECTOR)):
        put(lapic, register, value)
    put(lapic, TMICT, ticks)
    put(lapic, TMCCT, ticks if left is None else left)
    cpu.kvm.set_lapic(lapic)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_timer_that_has_run_out_since_the_guest_was_left(guest: MakeGuest, irqchip: str) -> None:
    """KVM_GET_LAPIC does not show it: neither its count nor an interrupt."""
    machine, twin = (guest(WAIT, irqchip=irqchip) for _ in range(2))
    put_handler(machine, COUNT)
    start_timer(machine, 1_000_000)
    time.sleep(0.02)
    state = Saved(machine)
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            assert other.run(timeout=20).exit_code == 3
            assert count(other) == 1


def taken(machine: Machine) -> None:
    """A timer runs out, and the guest takes its interrupt."""
    cpu = machine.vcpus[0]
    start_timer(machine, 1_000_000)
    time.sleep(0.02)
    cpu.engine.deliver_timers()
    lapic = bytearray(cpu.kvm.get_lapic())
    assert waits(lapic)
    put(lapic, IRR + VECTOR // 32 * 0x10, 0)
    cpu.engine.set_lapic(lapic)


def brings_none(machine: Machine) -> bool:
    time.sleep(0.02)
    machine.vcpus[0].engine.deliver_timers()
    return not waits(machine.vcpus[0].kvm.get_lapic())


def test_a_timer_whose_interrupt_was_taken_brings_no_other(guest: MakeGuest) -> None:
    """KVM would start it anew, with a count of 0."""
    machine, twin = (guest(SPIN, irqchip="kernel") for _ in range(2))
    taken(machine)
    assert brings_none(machine)
    state = Saved(machine)
    assert state.vcpus[0].lapic is not None
    assert get(state.vcpus[0].lapic, TMICT) == 1_000_000
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            assert brings_none(other)
            assert not differing(other.vcpus[0].save(), state.vcpus[0])


def test_nor_does_it_once_time_goes_on(guest: MakeGuest) -> None:
    machine = guest(SPIN, irqchip="kernel", clock="paused")
    taken(machine)
    for _ in range(3):
        chips(machine).pause()
        chips(machine).resume()
        assert brings_none(machine)


def test_a_timer_goes_on_from_where_it_was(guest: MakeGuest) -> None:
    machine, twin = (guest(WAIT, irqchip="kernel") for _ in range(2))
    start_timer(machine, 0x7000_0000)
    state = Saved(machine)
    lapic = state.vcpus[0].lapic
    assert lapic is not None
    left = get(lapic, TMCCT)
    assert 0 < left <= 0x7000_0000
    time.sleep(0.05)
    before = time.monotonic_ns()
    state.load(twin)
    now = get(twin.vcpus[0].kvm.get_lapic(), TMCCT)
    passed = time.monotonic_ns() - before
    assert left - passed - 1000 < now <= left


@pytest.mark.parametrize(
    ("timer", "expected"), [("none", 1), ("taken", 1), ("running", 1), ("masked", 1), ("over", 2)]
)
def test_a_timer_that_may_be_late_is_given_time(
    guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, timer: str, expected: int
) -> None:
    """The host's is, if the host is a VM that does not run: then its interrupt would be lost."""
    machine = guest(SPIN, irqchip="kernel")
    if timer == "taken":
        taken(machine)
    elif timer != "none":
        start_timer(machine, 0x7000_0000 if timer == "running" else 1_000_000)
        time.sleep(0.02)
    if timer == "masked":
        lapic = bytearray(machine.vcpus[0].kvm.get_lapic())
        put(lapic, LVTT, 1 << 16 | VECTOR)
        machine.vcpus[0].kvm.set_lapic(lapic)
    engine = machine.vcpus[0].engine
    assert isinstance(engine, KvmEngine)
    passes: list[None] = []
    once = engine._deliver_timers
    monkeypatch.setattr(KvmEngine, "_deliver_timers", lambda _: passes.append(once()))
    engine.deliver_timers()
    assert len(passes) == expected
    assert waits(engine.get_lapic()) is (timer == "over")


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize("where", ["itself", "twin"])
def test_time_that_stands_still(guest: MakeGuest, irqchip: str, where: str) -> None:
    """The timer runs out in KVM while the machine stands, and that is no time of the guest's."""
    machine = guest(SPIN, irqchip=irqchip, clock="paused")
    start_timer(machine, 0x7000_0000)
    chips(machine).pause()
    start_timer(machine, 0x7000_0000, left=1000)
    time.sleep(0.01)
    state, timers = Saved(machine), chips(machine).state()
    (stopped,) = timers.timers
    assert 0 < int.from_bytes(stopped.count, "little") <= 0x7000_0000

    other = machine if where == "itself" else guest(SPIN, irqchip=irqchip, clock="paused")
    for _ in range(2):
        state.load(other)
        chips(other).restore(timers)
        assert chips(other).state() == timers
        before = time.monotonic_ns()
        chips(other).resume()
        other.vcpus[0].engine.deliver_timers()
        lapic = other.vcpus[0].kvm.get_lapic()
        passed = time.monotonic_ns() - before
        assert not waits(lapic)
        left = int.from_bytes(stopped.count, "little") - passed - 1000
        assert left < get(lapic, TMCCT) <= int.from_bytes(stopped.count, "little")


def test_a_timer_that_ran_out_before_time_stood_still(guest: MakeGuest) -> None:
    machine = guest(WAIT, irqchip="kernel", clock="paused")
    put_handler(machine, COUNT)
    start_timer(machine, 1_000_000)
    time.sleep(0.02)
    chips(machine).pause()
    assert machine.run(timeout=20).exit_code == 3
    assert count(machine) == 1


def test_what_comes_while_time_stands_still_is_not_lost(
    listening: Callable[..., Machine],
) -> None:
    machine = listening(clock="paused")
    settle(machine)
    button(machine).line.set(True)
    settle(machine)
    assert count(machine) == 1


def test_messages_that_come_while_time_stands_still(guest: MakeGuest) -> None:
    machine = guest(WAIT, irqchip="kernel", clock="paused")
    put_handler(machine, COUNT)
    lapic = bytearray(machine.vcpus[0].kvm.get_lapic())
    put(lapic, SVR, 0x1FF)
    machine.vcpus[0].kvm.set_lapic(lapic)
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert machine.send_msi(0xFEE0_0000, VECTOR)
    assert machine.run(timeout=20).exit_code == 3
    assert count(machine) == 1


def test_kvmclock_goes_on_from_where_it_was(guest: MakeGuest) -> None:
    machine, twin = guest(SPIN), guest(SPIN)
    for each in (machine, twin):
        assert each._board.vm is not None
    restore_kvmclock(machine._board.vm, 3_600_000_000_000)  # type: ignore[arg-type]
    then = kvmclock(machine._board.vm)  # type: ignore[arg-type]
    before = time.monotonic_ns()
    restore_kvmclock(twin._board.vm, then)  # type: ignore[arg-type]
    now = kvmclock(twin._board.vm)  # type: ignore[arg-type]
    passed = time.monotonic_ns() - before
    assert then <= now <= then + 2 * passed + 1_000_000


def test_a_state_goes_through_a_file(listening: Callable[..., Machine]) -> None:
    machine = listening(clock="paused")
    settle(machine)
    state = chip(machine).state()
    assert state.timers
    assert decode(json.loads(json.dumps(encode(state))), KernelIrqChipState) == state
