"""`Machine.snapshot`, `reset` and `Snapshot.fork`, on small guests."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pykvm import ConfigError, Machine, Outcome, Placement, Space, StateError
from pykvm.bus.dispatch import Dispatch
from pykvm.devices.line import InterruptLine, Lines
from pykvm.exits import IoIn, IoOut
from pykvm.machine.board import Board
from pykvm.machine.snapshot import MachineState
from pykvm.vcpu import CPU
from pykvm.x86.state import Mode
from support.guest import MakeGuest
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

# Counts in RAM at 0x8000, and writes the count to port 0x91; for ever.
COUNT = """
    FE 06 00 80  inc byte [0x8000]
    A0 00 80     mov al, [0x8000]
    E6 91        out 0x91, al
    EB F5        jmp $-9
"""
# Reads port 0x90 and writes that to 0x91; for ever.
COPY = """
    E4 90        in al, 0x90
    E6 91        out 0x91, al
    EB FA        jmp $-4
"""
# Writes 7 to port 0x90 for a snapshot, then reads port 0x90 and ends with that.
ASK = """
    B0 07        mov al, 7
    E6 90        out 0x90, al
    E4 90        in al, 0x90
    E6 F4        out 0xf4, al
"""


class Port:
    """Counts its reads, keeps what is written to it, and says what it has."""

    name = "port"

    def __init__(self) -> None:
        self.reads = 0
        self.written: tuple[int, ...] = ()

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, offset: int, size: int, value: int) -> None:
        self.written += (value,)

    def state(self) -> tuple[int, tuple[int, ...]]:
        return self.reads, self.written

    def restore(self, state: tuple[int, tuple[int, ...]]) -> None:
        self.reads, self.written = state

    def clone(self) -> Port:
        return Port()


class Mirror:
    """Another one, which has nothing to keep."""

    name = "mirror"
    stateless = True

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def with_port(guest: MakeGuest, listing: str) -> tuple[Machine, Port]:
    machine, port = guest(listing), Port()
    machine.add(port, pio=0x90, length=2)
    return machine, port


def writes(machine: Machine, count: int) -> list[int]:
    """What the guest writes to port 0x91, the next `count` times."""
    written: list[int] = []
    for exit in machine.exits(timeout=20):
        if isinstance(exit, IoOut) and exit.port == 0x91:
            written.append(exit.value)
            if len(written) == count:
                break
    return written


def test_a_reset_brings_back_memory_registers_and_devices(guest: MakeGuest) -> None:
    machine, port = with_port(guest, COUNT)
    assert writes(machine, 3) == [1, 2, 3]
    saved = machine.snapshot()
    regs, seen = machine.vcpus[0].state, port.written
    assert writes(machine, 3) == [4, 5, 6]
    machine.reset(saved)
    assert machine.vcpus[0].state == regs
    assert machine.memory.read(0x8000, 1) == b"\x03"
    assert port.written == seen
    assert writes(machine, 3) == [4, 5, 6]


def test_a_reset_goes_to_the_last_snapshot_unless_told(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    machine.snapshot()
    assert writes(machine, 2) == [1, 2]
    machine.snapshot()
    assert writes(machine, 2) == [3, 4]
    machine.reset()
    assert writes(machine, 2) == [3, 4]


def test_a_reset_goes_to_any_snapshot_in_any_order(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    tree = []
    for _ in range(4):
        tree.append(machine.snapshot())
        writes(machine, 1)
    for number in (2, 0, 3, 1, 1, 3):
        machine.reset(tree[number])
        assert writes(machine, 2) == [number + 1, number + 2]


def test_what_the_host_wrote_goes_back_too(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    view = machine.memory.view(0x9000, 16)
    saved = machine.snapshot()
    view[3] = 1
    machine.memory.write(0x8000, b"\x50")
    machine.vcpus[0].regs.rbx = 5
    machine.reset(saved)
    assert machine.memory.read(0x9000, 16) == bytes(16)
    assert machine.vcpus[0].regs.rbx == 0
    assert writes(machine, 1) == [1]


def test_two_snapshots_of_the_same_are_equal(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    machine.run(until=lambda _: True, timeout=5)
    saved = machine.snapshot()
    writes(machine, 5)
    assert machine.snapshot().digest() != saved.digest()
    machine.reset(saved)
    assert machine.snapshot().digest() == saved.digest()


def test_where_the_clock_has_the_tsc_its_offset_is_no_difference(guest: MakeGuest) -> None:
    """It is what makes the host's TSC the guest's, and the host's runs on."""
    state = guest(COUNT).snapshot().state

    def moved(tsc: int | None, offset: int) -> MachineState:
        changed: MachineState = state.__replace__(
            clock=state.clock.__replace__(tsc=tsc),
            cpus=(state.cpus[0].__replace__(tsc_offset=offset),),
        )
        return changed.at_rest()

    assert moved(100, 7) == moved(200, 8)
    assert moved(None, 7) != moved(None, 8)


def test_a_fork_goes_on_by_itself(guest: MakeGuest) -> None:
    machine, port = with_port(guest, COUNT)
    writes(machine, 3)
    saved = machine.snapshot()
    with saved.fork() as twin, saved.fork() as third:
        assert writes(machine, 2) == [4, 5]
        assert writes(twin, 3) == [4, 5, 6]
        assert twin.devices["port"] is not port
        assert writes(third, 1) == [4]
        twin.reset(saved)
        assert writes(twin, 1) == [4]
    assert writes(machine, 1) == [6]


def test_a_fork_outlives_its_machine(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    writes(machine, 3)
    saved = machine.snapshot()
    machine.close()
    with saved.fork() as twin:
        assert writes(twin, 1) == [4]


def test_a_device_that_says_nothing_of_its_state_is_named(guest: MakeGuest) -> None:
    class Mute:
        name = "mute"

        def read(self, offset: int, size: int) -> int:
            return 0

    machine = guest(COUNT)
    machine.add(Mute(), pio=0x300, length=1)
    with pytest.raises(StateError, match="no snapshot without the state of mute"):
        machine.snapshot()
    machine.remove("mute")
    machine.snapshot()


def test_a_stateless_device_needs_to_say_nothing_more(guest: MakeGuest) -> None:
    class Stateless:
        name = "dice"
        stateless = True

        def read(self, offset: int, size: int) -> int:
            return 4

    machine = guest(COUNT)
    machine.add(Stateless(), pio=0x300, length=1)
    saved = machine.snapshot()
    machine.reset(saved)
    with pytest.raises(ConfigError, match="no second dice for another machine"):
        saved.fork()
    with saved.fork(devices=[Placement(Stateless(), Space.PIO, 0x300, 1)]) as twin:
        assert "dice" in twin.devices


def test_devices_that_came_or_went_are_put_back(guest: MakeGuest) -> None:
    machine, port = with_port(guest, COUNT)
    saved = machine.snapshot()
    machine.remove("port")
    machine.remove("com2")
    machine.add(Port(), pio=0x300, length=2)
    machine.reset(saved)
    assert machine.devices["port"] is port
    assert {range_.first for range_ in machine.bus.ranges if range_.name == "port"} == {0x90}
    assert "com2" in machine.devices


def test_a_snapshot_of_another_machine_is_refused(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    other, _ = with_port(guest, COUNT)
    saved = other.snapshot()
    with pytest.raises(ConfigError, match="is of another machine"):
        machine.reset(saved)


def test_a_reset_without_a_snapshot_says_so(guest: MakeGuest) -> None:
    machine = guest(COUNT)
    with pytest.raises(StateError, match="has no snapshot to be reset to"):
        machine.reset()
    with pytest.raises(ConfigError, match="saved"):
        machine.reset("booted")  # type: ignore[arg-type]
    machine.snapshot()
    with pytest.raises(ConfigError, match="wall"):
        machine.reset(wall="catch-up")


def test_the_out_that_asks_for_a_snapshot_is_not_repeated(guest: MakeGuest) -> None:
    """Others repeat it: nanvix#1497."""
    machine, port = with_port(guest, ASK)
    for exit in machine.exits(timeout=20):
        if exit == IoOut(0x90, 1, b"\x07"):
            break
    saved = machine.snapshot()
    assert port.written == (7,)
    for _ in range(3):
        machine.reset(saved)
        assert machine.run(timeout=20).exit_code == 1
        assert port.written == (7,)
    with saved.fork() as twin:
        assert twin.run(timeout=20).exit_code == 1


def test_a_read_at_which_the_machine_stands_is_answered_first(guest: MakeGuest) -> None:
    machine, port = with_port(guest, COPY)
    exits = machine.exits(timeout=20)
    assert next(exits) == IoIn(0x90, 1)
    saved = machine.snapshot()
    assert port.reads == 1
    assert next(exits) == IoOut(0x91, 1, b"\x01")
    machine.reset(saved)
    assert writes(machine, 2) == [1, 2]


def test_an_answer_by_hand_counts_before_a_snapshot(guest: MakeGuest) -> None:
    machine, port = with_port(guest, COPY)
    for exit in machine.exits(timeout=20):
        assert isinstance(exit, IoIn)
        exit.answer(0x55)
        break
    saved = machine.snapshot()
    assert port.reads == 0
    for _ in range(2):
        machine.reset(saved)
        assert writes(machine, 1) == [0x55]


def test_an_exit_that_ends_the_guest_is_no_place_for_a_snapshot(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, ASK)
    exits = machine.exits(timeout=20)
    for exit in exits:
        if isinstance(exit, IoOut) and exit.port == 0xF4:
            break
    with pytest.raises(StateError, match="the guest ends at the exit at which this machine stands"):
        machine.snapshot()
    assert list(exits) == []
    assert exits.result is not None
    assert exits.result.exit_code == 1


@pytest.mark.parametrize("call", ["snapshot", "reset"])
def test_from_inside_a_run_it_is_refused(guest: MakeGuest, call: str) -> None:
    machine = guest(COUNT)
    machine.snapshot()
    errors = []

    def inside(*_: object) -> bool:
        with pytest.raises(StateError, match="between two runs, and not from inside one") as caught:
            getattr(machine, call)()
        errors.append(caught.value)
        return True

    class Inside:
        name = "inside"
        stateless = True

        def write(self, offset: int, size: int, value: int) -> None:
            inside()

    machine.add(Inside(), pio=0x91, length=1)
    assert machine.run(timeout=20, until=inside).outcome is Outcome.UNTIL
    before = len(errors)

    def on_exit(cpu: CPU, exit: object) -> None:
        inside()
        machine.stop()

    machine.run(timeout=20, on_exit=on_exit)
    assert before >= 1
    assert len(errors) > before


def test_from_another_thread_it_is_refused_while_the_guest_runs(guest: MakeGuest) -> None:
    machine, _ = with_port(guest, COUNT)
    runner = threading.Thread(target=machine.run, kwargs={"timeout": 60})
    runner.start()
    try:
        deadline = time.monotonic() + 20
        while machine.memory.read(0x8000, 1) == b"\0" and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(StateError, match="running in another thread"):
            machine.snapshot()
    finally:
        machine.stop()
        runner.join()
    machine.snapshot()


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_levels_of_lines_go_back(guests: Path, irqchip: str) -> None:
    """A line of the host's and one of a device that does not keep its level."""

    class Driver:
        name = "driver"
        stateless = True
        line: InterruptLine

        def attach(self, lines: Lines, memory: object, clock: object) -> None:
            self.line = lines.own

        def write(self, offset: int, size: int, value: int) -> None:
            pass

    with Machine(guests / "hello.elf", irqchip=irqchip) as machine:
        driver = Driver()
        machine.add(driver, pio=0x300, length=1, irq=10)
        line = machine.line(11)
        line.set(True)
        saved = machine.snapshot()
        digest = saved.digest()
        for _ in range(2):
            line.set(False)
            driver.line.set(True)
            assert machine.snapshot().digest() != digest
            machine.reset(saved)
            assert machine.snapshot().digest() == digest
        # What is a change for the guest is one for the line.
        line.set(False)
        lowered = machine.snapshot().digest()
        assert lowered != digest
        line.set(True)
        assert machine.snapshot().digest() != lowered


def test_a_clock_that_cannot_go_back_is_told_of(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine:
        machine.reset(machine.snapshot())
        told = [note for note in machine.run(timeout=20).notes if "did not go back" in note]
        assert bool(told) is not machine.clock.tsc_movable


def test_what_was_printed_goes_back(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine:
        saved = machine.snapshot()
        first = machine.run(timeout=20).check()
        text = machine.serial.text
        assert text
        machine.reset(saved)
        assert machine.serial.text == ""
        assert machine.run(timeout=20).check().exit_code == first.exit_code
        assert machine.serial.text == text


def test_until_searches_from_where_it_had_come(guests: Path) -> None:
    with Machine(guests / "pit.elf") as machine:
        machine.run(timeout=20, until="PIT: ").check()
        saved = machine.snapshot()
        assert machine.run(timeout=20, until="PIT: ").outcome is not Outcome.UNTIL
        for _ in range(2):
            machine.reset(saved)
            assert machine.run(timeout=20, until="8259").outcome is Outcome.UNTIL


def test_an_interrupted_reset_is_made_good_by_the_next(
    guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, port = with_port(guest, COUNT)
    writes(machine, 2)
    saved = machine.snapshot()
    writes(machine, 2)
    restore = port.restore

    def interrupted(state: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(port, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.reset(saved)
    with pytest.raises(StateError, match="was interrupted"):
        machine.run(timeout=1)
    with pytest.raises(StateError, match="was interrupted"):
        machine.snapshot()
    with pytest.raises(StateError, match="was interrupted"):
        next(machine.exits())
    monkeypatch.setattr(port, "restore", restore)
    machine.reset()
    assert writes(machine, 1) == [3]


@pytest.mark.parametrize(
    ("kind", "step"), [(Dispatch, "rebuild"), (Board, "forget_device")], ids=["bus", "names"]
)
def test_a_device_that_an_interrupted_reset_was_taking_away_is_gone(
    guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    machine = guest(COUNT)
    machine.add(Port(), pio=0x90, length=1)
    saved = machine.snapshot()
    machine.add(Mirror(), pio=0x91, length=1)
    assert writes(machine, 1) == [1]

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.reset(saved)
    machine.reset()
    assert "mirror" not in machine.devices
    assert machine.snapshot().digest() == saved.digest()
    # No device has its port.
    assert machine.run(timeout=20).outcome is Outcome.CRASHED
    machine.reset()
    machine.add(Mirror(), pio=0x91, length=1)
    assert writes(machine, 2) == [1, 2]


# Writes what is at 0x200000, maps that page elsewhere by the entry at RBX, and goes on.
MAP_ANEW = """
    8A 04 25 00 00 20 00        mov al, [0x200000]
    E6 91                       out 0x91, al
    C7 03 83 00 40 00           mov dword [rbx], 0x400083
    0F 01 3C 25 00 00 20 00     invlpg [0x200000]
    8A 04 25 00 00 20 00        mov al, [0x200000]
    E6 91                       out 0x91, al
    EB F5                       jmp $-9
"""


def test_no_translation_outlives_a_reset(guest: MakeGuest) -> None:
    """The page tables change between two snapshots, and nothing is written after the second."""
    machine = guest(MAP_ANEW, mode=Mode.LONG, memory="8M")
    machine.add(Port(), pio=0x90, length=2)
    cpu = machine.vcpus[0]
    walk = cpu.walk(0x200000, access=None)
    assert walk.page_size == 2 << 20
    cpu.regs.rbx = walk.levels[-1].address
    machine.memory.write(0x200000, b"\x01")
    machine.memory.write(0x400000, b"\x02")
    before = machine.snapshot()
    assert writes(machine, 3) == [1, 2, 2]
    after = machine.snapshot()
    for _ in range(3):
        machine.reset(before)
        assert writes(machine, 3) == [1, 2, 2]
        machine.reset(after)
        assert writes(machine, 2) == [2, 2]
