"""`Machine.exits`: the run that stops at every exit, with devices, timers and interrupts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pykvm import ClosedError, ConfigError, Machine, Outcome, StateError
from pykvm.exits import Debug, Hlt, IoIn, IoOut, MmioRead, MmioWrite, RdMsr
from pykvm.x86.entry import real_mode
from support.debugging import BREAKPOINTS, STEPS
from support.guest import MakeGuest
from support.irqchips import IRQCHIPS
from support.ring_3 import INT_N_ERROR
from support.slowness import longer

pytestmark = pytest.mark.kvm

# Reads port 0x90, adds one and writes that to 0x91; ends with what it read.
READ_AND_WRITE = """
    E4 90        in al, 0x90
    88 C3        mov bl, al
    FE C0        inc al
    E6 91        out 0x91, al
    88 D8        mov al, bl
    E6 F4        out 0xf4, al
"""


class Port:
    """Reads as 7; keeps what is written."""

    name = "port"

    def __init__(self) -> None:
        self.written: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 7

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)


@pytest.fixture
def port() -> Port:
    return Port()


def with_port(guest: MakeGuest, port: Port, listing: str = READ_AND_WRITE) -> Machine:
    machine = guest(listing)
    machine.add(port, pio=0x90, length=2)
    return machine


def test_devices_answer_what_is_left_to_them(guest: MakeGuest, port: Port) -> None:
    exits = with_port(guest, port).exits(timeout=longer(20))
    assert list(exits) == [IoIn(0x90, 1), IoOut(0x91, 1, b"\x08"), IoOut(0xF4, 1, b"\x07")]
    assert exits.result is not None
    assert exits.result.exit_code == 7
    assert exits.result.exits == {"IoIn": 1, "IoOut": 2}
    assert port.written == [8]


def test_an_answer_keeps_the_exit_from_its_device(guest: MakeGuest, port: Port) -> None:
    exits = with_port(guest, port).exits(timeout=longer(20))
    for exit in exits:
        match exit:
            case IoIn(port=0x90):
                exit.answer(0x20)
                assert exit.taken
            case IoOut(port=0x91):
                exit.take()
                assert exit.taken
    assert exits.result is not None
    assert exits.result.exit_code == 0x20
    assert port.written == []


def test_a_read_that_is_taken_and_not_answered_gives_all_ones(guest: MakeGuest, port: Port) -> None:
    exits = with_port(guest, port).exits(timeout=longer(20))
    next(exits).take()
    assert list(exits) == [IoOut(0x91, 1, b"\x00"), IoOut(0xF4, 1, b"\xff")]


def test_an_exit_is_over_once_the_next_is_asked_for(guest: MakeGuest, port: Port) -> None:
    exits = with_port(guest, port).exits(timeout=longer(20))
    first = next(exits)
    before = first.is_over
    next(exits)
    assert [before, first.is_over] == [False, True]
    with pytest.raises(StateError, match="is over: the vCPU has run on"):
        first.take()


def test_registers_cannot_be_set_while_a_read_waits(guest: MakeGuest, port: Port) -> None:
    """The device could not be asked any more."""
    machine = with_port(guest, port)
    exits = machine.exits(timeout=longer(20))
    first = next(exits)
    with pytest.raises(StateError, match=r"while IoIn\(.*\) waits for an answer"):
        machine.vcpus[0].regs.rbx = 1
    first.take()
    machine.vcpus[0].regs.rbx = 1
    assert list(exits) == [IoOut(0x91, 1, b"\x00"), IoOut(0xF4, 1, b"\xff")]


def test_what_was_taken_stays_taken_when_a_register_is_set(guest: MakeGuest, port: Port) -> None:
    machine = with_port(guest, port)
    exits = machine.exits(timeout=longer(20))
    next(exits)
    next(exits).take()
    machine.vcpus[0].regs.rbx = 1
    assert list(exits) == [IoOut(0xF4, 1, b"\x01")]
    assert port.written == []


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_leaving_the_loop_loses_no_exit(guest: MakeGuest, port: Port, stop_at: int) -> None:
    machine = with_port(guest, port)
    for number, _ in enumerate(machine.exits(timeout=longer(20))):
        if number == stop_at:
            break
    assert machine.run(timeout=longer(20)).exit_code == 7
    assert port.written == [8]


def test_an_exit_that_was_answered_before_the_loop_was_left(guest: MakeGuest, port: Port) -> None:
    machine = with_port(guest, port)
    read = next(machine.exits(timeout=longer(20)))
    assert isinstance(read, IoIn)
    read.answer(0x30)
    assert machine.run(timeout=longer(20)).exit_code == 0x30


def test_registers_may_be_set_at_a_write(guest: MakeGuest, port: Port) -> None:
    """Which completes the instruction; the device gets what was written all the same."""
    machine = with_port(guest, port)
    exits = machine.exits(timeout=longer(20))
    next(exits)
    assert isinstance(next(exits), IoOut)
    machine.vcpus[0].regs.rbx = 0x33
    assert next(exits) == IoOut(0xF4, 1, b"\x33")
    assert port.written == [8]


def test_a_loop_by_hand_takes_over(guest: MakeGuest, port: Port) -> None:
    machine = with_port(guest, port)
    exits = machine.exits(timeout=longer(20))
    assert [next(exits), next(exits)] == [IoIn(0x90, 1), IoOut(0x91, 1, b"\x08")]
    assert next(machine.vcpus[0].raw_exits(timeout=longer(20))) == IoOut(0xF4, 1, b"\x07")
    assert port.written == [], "the write was the loop's to answer"


@pytest.mark.needs_host(BREAKPOINTS)
def test_a_breakpoint_is_an_exit_and_the_guest_goes_on_past_it(guest: MakeGuest) -> None:
    machine = guest("43  inc bx\n90  nop\n88 D8  mov al, bl\nE6 F4  out 0xf4, al")
    machine.vcpus[0].debug.set_breakpoints("test", [0x7C01])
    exits = machine.exits(timeout=longer(20))
    first = next(exits)
    assert isinstance(first, Debug)
    assert first.pc == 0x7C01
    assert list(exits) == [IoOut(0xF4, 1, b"\x01")]


@pytest.mark.needs_host(STEPS)
def test_every_instruction(guest: MakeGuest) -> None:
    machine = guest("90  nop\n90  nop\nE6 F4  out 0xf4, al")
    machine.vcpus[0].debug.single_step(True)
    exits = machine.exits(timeout=longer(20))
    assert [next(exits).pc for _ in range(2)] == [0x7C01, 0x7C02]  # type: ignore[attr-defined]
    assert isinstance(next(exits), IoOut)


def test_hlt_waits_for_an_interrupt_and_may_be_skipped(guest: MakeGuest) -> None:
    """Nothing could wake it; who takes the exit goes on after the instruction."""
    machine = guest("F4  hlt\nE6 F4  out 0xf4, al")
    exits = machine.exits(timeout=longer(20))
    assert list(exits) == [Hlt()]
    assert exits.result is not None
    assert exits.result.outcome is Outcome.HALTED
    machine = guest("F4  hlt\nE6 F4  out 0xf4, al")
    exits = machine.exits(timeout=longer(20))
    for exit in exits:
        if isinstance(exit, Hlt):
            exit.take()
    assert exits.result is not None
    assert exits.result.outcome is Outcome.EXITED


def test_rdmsr_of_the_local_apic(guest: MakeGuest) -> None:
    listing = """
        66 B9 1B 00 00 00    mov ecx, 0x1b
        0F 32                rdmsr
        E6 F4                out 0xf4, al
    """
    machine = guest(listing, clock="paused")
    exits = machine.exits(timeout=longer(20))
    exit = next(exits)
    assert isinstance(exit, RdMsr)
    exit.answer(0x42)
    assert list(exits) == [IoOut(0xF4, 1, b"\x42")]


def test_timeout_counts_the_time_that_the_guest_runs(guest: MakeGuest) -> None:
    machine = guest("E6 80  out 0x80, al\nEB FE  jmp $")
    limit = longer(0.5)
    exits = machine.exits(timeout=limit)
    next(exits).take()
    time.sleep(limit)
    assert list(exits) == []
    assert exits.result is not None
    assert exits.result.outcome is Outcome.TIMEOUT
    assert exits.result.sentence == f"the guest was still running after {limit:g} s"
    assert exits.result.places[0].address == 0x7C02
    assert list(exits) == [], "it stays over"


def test_stop_from_another_thread(guest: MakeGuest) -> None:
    machine = guest("EB FE  jmp $")
    threading.Timer(0.05, machine.stop).start()
    exits = machine.exits(timeout=longer(20))
    assert list(exits) == []
    assert exits.result is not None
    assert exits.result.outcome is Outcome.STOPPED


def test_until(guest: MakeGuest) -> None:
    """The exit that made it true is the last; what was written is there."""
    machine = guest("BA F8 03 B0 21  mov dx, 0x3f8; mov al, '!'\nEE  out dx, al\nEB FD  jmp $-1")
    exits = machine.exits(timeout=longer(20), until="!!!")
    assert len(list(exits)) == 3
    assert exits.result is not None
    assert exits.result.ok
    assert machine.serial.text == "!!!"


def test_a_device_may_raise(guest: MakeGuest) -> None:
    class Raising(Port):
        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError

    machine = with_port(guest, Raising())
    exits = machine.exits(timeout=longer(20))
    assert [next(exits), next(exits)] == [IoIn(0x90, 1), IoOut(0x91, 1, b"\x08")]
    with pytest.raises(ZeroDivisionError):
        next(exits)
    assert next(exits) == IoOut(0xF4, 1, b"\x07")


def test_memory_stands_still_between_two_exits(guest: MakeGuest) -> None:
    """Of two vCPUs, one exits and one counts."""
    machine = guest("E6 80  out 0x80, al\nEB FC  jmp $-2", vcpus=2, unclaimed="open-bus")
    machine.memory.write(0x2000, bytes.fromhex("FF 06 00 05 EB FA"))  # inc word [0x500]; jmp
    machine.vcpus[1].state = real_mode(ip=0x2000)
    machine.vcpus[1].parked = False
    exits = machine.exits(timeout=longer(60))
    for _ in range(20):
        assert next(exits) == IoOut(0x80, 1, b"\x00")
        assert exits.cpu is machine.vcpus[0]
        seen = machine.memory.read_u16(0x500)
        time.sleep(0.001)
        assert machine.memory.read_u16(0x500) == seen


def test_exits_of_both_vcpus_come_each_once(guest: MakeGuest) -> None:
    count = """
        FE C0        inc al
        E6 80        out 0x80, al
        3C 0A        cmp al, 10
        75 F8        jne $-6
        F4           hlt
    """
    machine = guest(count, vcpus=2, unclaimed="open-bus", irqchip="none")
    machine.vcpus[1].state = machine.vcpus[0].state
    machine.vcpus[1].parked = False
    exits = machine.exits(timeout=longer(60))
    seen: dict[int, list[int]] = {0: [], 1: []}
    for exit in exits:
        if isinstance(exit, IoOut):
            seen[exits.cpu.index] += exit.data
    assert exits.result is not None
    assert exits.result.outcome is Outcome.HALTED
    assert seen == {0: list(range(1, 11)), 1: list(range(1, 11))}


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize(
    ("name", "vcpus"), [("pit", 1), ("lapic_timer", 1), ("ioapic", 1), ("hpet", 1), ("smp", 2)]
)
def test_guests_of_interrupts_do_what_they_do_in_a_run(
    guests: Path, name: str, vcpus: int, irqchip: str
) -> None:
    image = guests / f"{name}.elf"
    with Machine(image, vcpus=vcpus, irqchip=irqchip) as machine:
        exits = machine.exits(timeout=longer(60))
        kinds = {type(exit) for exit in exits}
        assert exits.result is not None
        exits.result.check()
    assert {IoOut, IoIn} <= kinds


@pytest.mark.parametrize(
    ("how", "outcome"),
    [("reset", Outcome.RESET), ("off", Outcome.EXITED), ("panic", Outcome.CRASHED)],
)
def test_a_guest_ends_as_in_a_run(guests: Path, how: str, outcome: Outcome) -> None:
    with Machine(guests / "ends.elf", args=[how]) as machine:
        expected = machine.run(timeout=longer(20))
    with Machine(guests / "ends.elf", args=[how]) as machine:
        exits = machine.exits(timeout=longer(20))
        for _ in exits:
            pass
        assert exits.result is not None
        assert exits.result.outcome is expected.outcome
        assert exits.result.sentence == expected.sentence


def test_mmio(guests: Path) -> None:
    with Machine(guests / "mmio.elf", unclaimed="open-bus") as machine:
        kinds = {type(exit) for exit in machine.exits(timeout=longer(20))}
    assert MmioWrite in kinds or MmioRead in kinds


def test_wrong_use(guest: MakeGuest) -> None:
    machine = guest(READ_AND_WRITE)
    with pytest.raises(ConfigError, match="timeout"):
        machine.exits(timeout="5")  # type: ignore[arg-type]
    exits = machine.exits()
    with pytest.raises(StateError, match="no exit has been asked for"):
        _ = exits.cpu
    machine.close()
    with pytest.raises(ClosedError):
        machine.exits()
    with pytest.raises(ClosedError):
        next(exits)


@pytest.mark.parametrize(
    "name", ["syscall3", pytest.param("int80", marks=pytest.mark.needs_host(INT_N_ERROR))]
)
def test_breakpoints_of_workarounds_are_not_shown(guests: Path, name: str) -> None:
    """Where this host gets system calls wrong, pykvm sets some for itself."""
    with Machine(guests / f"{name}.elf", quirks="on") as machine:
        exits = machine.exits(timeout=longer(60))
        assert not any(isinstance(exit, Debug) for exit in exits)
        assert exits.result is not None
        exits.result.check()


def test_unclaimed_accesses_are_counted_over_the_whole_run(guest: MakeGuest) -> None:
    """Also while another call of `run` is refused."""
    listing = "E6 90  out 0x90, al\nE6 90  out 0x90, al\nE6 F4  out 0xf4, al"
    machine = guest(listing, unclaimed="open-bus")
    exits = machine.exits(timeout=longer(20))
    assert len(list(exits)) == 3
    assert exits.result is not None
    assert exits.result.unclaimed.writes == 2
    machine = guest("E6 90  out 0x90, al\nEB FC  jmp $-2", unclaimed="open-bus")

    looks: list[Machine] = []

    def refused(machine: Machine) -> bool:
        looks.append(machine)
        if len(looks) < 3:
            return False
        with pytest.raises(StateError):
            machine.run(timeout=1)
        return True

    assert machine.run(timeout=longer(20), until=refused).unclaimed.writes > 0
