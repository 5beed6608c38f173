"""More than one vCPU: starting, stopping, and interrupts between them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pykvm import Machine, Outcome
from pykvm.interrupts.message import FIXED, INIT, NMI, STARTUP, Message
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest
from support.interrupts import COUNT, END, VECTOR, count, listen, put_handler
from support.listing import assemble

pytestmark = pytest.mark.kvm

SPIN = "EB FE  jmp $"
SLEEP = """
    F4                       hlt
    EB FD                    jmp $-1
"""
COUNTING = 0x8000
# Counts for ever, in the word at 0x510.
COUNTER = """
    2E FF 06 10 05           inc word [cs:0x510]
    EB F9                    jmp $-5
"""
END_WITH_0 = """
    B0 00                    mov al, 0
    E6 F4                    out 0xf4, al
"""


def icr(low: int, destination: int) -> str:
    """Send an interrupt to an x2APIC."""
    return f"""
        66 B9 30 08 00 00        mov ecx, 0x830
        66 B8 {low.to_bytes(4, "little").hex(" ")}        mov eax, low
        66 BA {destination.to_bytes(4, "little").hex(" ")}        mov edx, destination
        0F 30                    wrmsr
    """


def start(machine: Machine, index: int, listing: str, address: int = COUNTING) -> None:
    """Have vCPU `index` run a listing from the beginning of the next run on."""
    machine.memory.write(address, assemble(listing))
    cpu = machine.vcpus[index]
    state = real_mode(ip=address, sp=0x7000 - 0x400 * index)
    cpu.state = state
    cpu.parked = False


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.001)


class Running:
    """A run in a thread of its own."""

    def __init__(self, machine: Machine, timeout: float = 40) -> None:
        self.machine = machine
        self._thread = threading.Thread(target=self._run, args=(timeout,))

    def _run(self, timeout: float) -> None:
        self.result = self.machine.run(timeout=timeout)

    def __enter__(self) -> Running:
        self._thread.start()
        wait_for(lambda: "running" in repr(self.machine))
        return self

    def __exit__(self, *error: object) -> None:
        self.machine.stop()
        self._thread.join()


def counter(machine: Machine) -> int:
    return machine.memory.read_u16(0x510)


def goes_on(machine: Machine) -> None:
    before = counter(machine)
    wait_for(lambda: counter(machine) != before)


class TestStarting:
    def test_parked_until_init_and_sipi(self, guest: MakeGuest) -> None:
        machine = guest(SPIN, vcpus=2)
        platform = listen(machine)
        machine.memory.write(COUNTING, assemble(COUNTER.replace("2E ", "2E ")))
        # SIPI starts at 0800:0000, where cs:0x510 is 0x8510.
        with Running(machine):
            time.sleep(0.02)
            assert machine.memory.read_u16(0x8510) == 0
            platform.apics.deliver(Message(1, False, INIT, 0))
            platform.apics.deliver(Message(1, False, STARTUP, COUNTING >> 12))
            wait_for(lambda: machine.memory.read_u16(0x8510) > 0)
        assert not machine.vcpus[1].parked

    def test_init_parks_who_runs(self, guest: MakeGuest) -> None:
        machine = guest(SPIN, vcpus=2)
        platform = listen(machine)
        start(machine, 1, COUNTER)
        with Running(machine):
            goes_on(machine)
            platform.apics.deliver(Message(1, False, INIT, 0))
            wait_for(lambda: machine.vcpus[1].parked)
            before = counter(machine)
            time.sleep(0.05)
            assert counter(machine) == before
            platform.apics.deliver(Message(1, False, STARTUP, COUNTING >> 12))
            wait_for(lambda: machine.memory.read_u16(0x8510) > 0)

    def test_a_start_up_ipi_to_who_runs_is_ignored(self, guest: MakeGuest) -> None:
        machine = guest(SPIN, vcpus=2)
        platform = listen(machine)
        start(machine, 1, COUNTER)
        with Running(machine):
            goes_on(machine)
            platform.apics.deliver(Message(1, False, STARTUP, 9))
            goes_on(machine)
        assert machine.vcpus[1].state.cs.base == 0

    def test_a_thousand_inits_to_who_waits_already(self, guest: MakeGuest) -> None:
        machine = guest(
            "BB E8 03                 mov bx, 1000"
            + icr(0x500, 1)
            + """
            4B                       dec bx
            75 E9                    jnz $-21
        """
            + END_WITH_0,
            vcpus=2,
        )
        listen(machine, x2apic=True)
        assert machine.run(timeout=40).exit_code == 0
        assert machine.vcpus[1].parked

    def test_an_nmi_does_not_start_who_was_never_started(self, guest: MakeGuest) -> None:
        machine = guest(SPIN, vcpus=2)
        platform = listen(machine, vector=2)
        with Running(machine):
            platform.apics.deliver(Message(1, False, NMI, 0))
            time.sleep(0.05)
            assert machine.vcpus[1].parked
            # It keeps it for later.
            machine.memory.write(0x9000, assemble(SPIN))
            platform.apics.deliver(Message(1, False, STARTUP, 9))
            wait_for(lambda: count(machine) == 1)

    def test_init_to_the_first_is_a_reset(self, guest: MakeGuest) -> None:
        machine = guest(icr(0x500, 0) + SPIN, vcpus=2)
        listen(machine, x2apic=True)
        assert machine.run(timeout=40).outcome is Outcome.RESET

    def test_init_in_the_middle_of_a_string_instruction(self, guest: MakeGuest) -> None:
        """Twenty times: it has to come between two parts of one instruction."""
        machine = guest(SPIN, vcpus=2)
        platform = listen(machine)
        start(
            machine,
            1,
            """
            2E FF 06 10 05           inc word [cs:0x510]
            B8 00 20                 mov ax, 0x2000
            8E C0                    mov es, ax
            BA F8 03                 mov dx, 0x3f8
            31 FF                    xor di, di
            B9 00 F0                 mov cx, 0xf000
            F3 6C                    rep insb
            EB F7                    jmp $-7
            """,
        )
        with Running(machine) as running:
            for number in range(1, 21):
                wait_for(
                    lambda number=number: (
                        machine.memory.read_u16(0x8510) + counter(machine) == number
                    )
                )
                time.sleep(0.001)
                platform.apics.deliver(Message(1, False, INIT, 0))
                wait_for(lambda: machine.vcpus[1].parked)
                platform.apics.deliver(Message(1, False, STARTUP, COUNTING >> 12))
        assert running.result.outcome is Outcome.STOPPED


class TestInterrupts:
    def test_one_wakes_another_that_halted(self, guest: MakeGuest) -> None:
        machine = guest(
            "BB 14 00                 mov bx, 20"
            + icr(VECTOR, 1)
            + """
            A1 00 05                 mov ax, [0x500]
            3B 06 20 05              cmp ax, [0x520]
            74 F7                    je $-7
            A3 20 05                 mov [0x520], ax
            4B                       dec bx
            75 DD                    jnz $-33
        """
            + END_WITH_0,
            vcpus=2,
        )
        listen(machine, END, x2apic=True)
        start(machine, 1, "FB  sti\n" + SLEEP)
        result = machine.run(timeout=40)
        assert result.exit_code == 0, result
        assert count(machine) == 20

    def test_an_nmi_to_one_that_halted_with_interrupts_off(self, guest: MakeGuest) -> None:
        machine = guest(
            icr(0x400, 1)
            + """
            83 3E 00 05 00           cmp word [0x500], 0
            74 F9                    je $-5
        """
            + END_WITH_0,
            vcpus=2,
        )
        listen(machine, COUNT, vector=2, x2apic=True)
        start(machine, 1, "FA  cli\n" + SLEEP)
        assert machine.run(timeout=40).exit_code == 0
        assert count(machine) == 1

    def test_to_all_but_oneself(self, guest: MakeGuest) -> None:
        machine = guest(SPIN, vcpus=3)
        platform = listen(machine, "F0 FF 06 00 05  lock inc word [0x500]\nCF  iret")
        for index in (1, 2):
            start(machine, index, "FB  sti\n" + SLEEP)
        with Running(machine):
            time.sleep(0.02)
            platform.apics.deliver(Message(0xFF, False, FIXED, VECTOR))
            wait_for(lambda: count(machine) == 2)
            assert platform.lapics[0].interrupt == VECTOR, "its interrupts are off"

    def test_all_asleep_for_good(self, guest: MakeGuest) -> None:
        machine = guest("FB  sti\n" + SLEEP, vcpus=3)
        for index in (1, 2):
            start(machine, index, "FB  sti\n" + SLEEP)
        result = machine.run(timeout=40)
        assert result.outcome is Outcome.HALTED
        assert "every vCPU" in str(result)


class TestTogether:
    def test_stop_and_timeout_reach_those_that_sleep(self, guest: MakeGuest) -> None:
        machine = guest("FB  sti\n" + SLEEP, vcpus=3)
        platform = listen(machine)
        platform.lapics[1].write(0x3E0, 4, 0xB)
        platform.lapics[1].write(0x320, 4, VECTOR)
        platform.lapics[1].write(0x380, 4, 4_000_000_000)
        for index in (1, 2):
            start(machine, index, "FB  sti\n" + SLEEP)
        timer = threading.Timer(0.1, machine.stop)
        timer.start()
        result = machine.run(timeout=40)
        timer.join()
        assert result.outcome is Outcome.STOPPED
        assert result.seconds < 3
        assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT

    def test_stopped_all_stand_still_and_then_go_on(self, guest: MakeGuest) -> None:
        machine = guest(COUNTER, vcpus=2)
        machine.memory.write(0x9000, assemble(COUNTER.replace("10 05", "12 05")))
        cpu = machine.vcpus[1]
        cpu.state = real_mode(ip=0x9000)
        cpu.parked = False
        for _ in range(5):
            before = after = machine.memory.read(0x510, 4)
            # Each gets a processor of the host's some time.
            while before[:2] == after[:2] or before[2:] == after[2:]:
                machine.run(timeout=0.05)
                after = machine.memory.read(0x510, 4)
            time.sleep(0.005)
            assert machine.memory.read(0x510, 4) == after

    def test_a_slow_device_keeps_no_other_vcpu_out_of_the_guest(self, guest: MakeGuest) -> None:
        machine = guest("E4 E8  in al, 0xe8\n" + END_WITH_0, vcpus=2)
        start(machine, 1, COUNTER)

        class Slow:
            name = "slow"
            progress = 0

            def read(self, offset: int, size: int) -> int:
                goes_on(machine)
                Slow.progress += 1
                return 0

        machine.add(Slow(), pio=0xE8, length=1)
        assert machine.run(timeout=40).exit_code == 0
        assert Slow.progress == 1


class TestLocks:
    """guests/locks.c: a ticket lock, and an interrupt to the next processor in each round."""

    def test_nothing_is_lost(self, guests: Path) -> None:
        with Machine(guests / "locks.elf", vcpus=3, args=["3", "60"]) as machine:
            result = machine.run(timeout=50)
            line = "locks: 3 processors, the lock taken 180 times\n"
            assert (machine.serial.text, result.exit_code) == (line, 0), result

    def test_nothing_is_lost_when_it_is_stopped_again_and_again(self, guests: Path) -> None:
        with Machine(guests / "locks.elf", vcpus=2, args=["2", "150"]) as machine:
            runs = 1
            while (result := machine.run(timeout=0.02)).outcome is Outcome.TIMEOUT:
                runs += 1
                assert runs < 1000
            assert result.exit_code == 0, result
            assert machine.serial.text == "locks: 2 processors, the lock taken 300 times\n"
            assert runs > 2

    @pytest.mark.soak
    @pytest.mark.timeout(300)
    def test_for_a_minute(self, guests: Path) -> None:
        with Machine(guests / "locks.elf", vcpus=4, args=["4", "1000000"]) as machine:
            address = machine.symbols["counter"]
            until = time.monotonic() + 60
            taken = 0
            while time.monotonic() < until:
                assert machine.run(timeout=2).outcome is Outcome.TIMEOUT
                before, taken = taken, machine.memory.read_u64(address)
                assert taken > before, "no vCPU gets on"


def test_put_handler_is_where_the_table_says(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    put_handler(machine, COUNT, vector=3)
    assert machine.memory.read(machine.memory.read_u32(12), 5) == assemble(COUNT)
