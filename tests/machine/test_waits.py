"""Runs that wait for something, on real machines: what ends them, what they say if it does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykvm import GuestError, GuestFailed, Machine, Outcome, RunStopped, RunTimeout
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

# Prints the text at the end, over and over.
SAYS = """
    BE 0E 7C     mov si, 0x7c0e
    BA F8 03     mov dx, 0x3f8
    AC           lodsb
    EE           out dx, al
    3C 0A        cmp al, 10
    75 FA        jne $-4
    EB F2        jmp 0x7c00
"""


def says(guest: MakeGuest, text: bytes) -> Machine:
    data = " ".join(f"{byte:02X}" for byte in text)
    return guest(f"{SAYS}    {data}   its text\n")


def test_a_pattern_ends_the_run_at_its_last_byte(guest: MakeGuest) -> None:
    machine = says(guest, b"3 tests passed\n")
    pattern = re.compile(r"(\d+) tests? pass")
    result = machine.run(timeout=10, until=["FAIL", pattern]).check()

    assert result.outcome is Outcome.UNTIL
    assert machine.serial.text == "3 tests pass"
    assert result.matched is pattern
    assert result.match is not None
    assert result.match[1] == "3"
    # And on to the next one.
    assert machine.run(timeout=10, until=re.compile(rb"\d")).ok
    assert machine.serial.text == "3 tests passed\n3"


def test_what_was_said_before_the_run_counts(guest: MakeGuest) -> None:
    machine = says(guest, b"ready\n")
    machine.run(timeout=10, until=lambda machine: "ready\nr" in machine.serial.text).check()
    result = machine.run(timeout=10, until="ready\n").check()
    # It had been said: the guest was not entered, and is not asked to say it again.
    assert result.exits == {}
    assert machine.serial.text == "ready\nr"
    machine.run(timeout=10, until="ready\n").check()
    assert machine.serial.text == "ready\nready\n"


def test_a_text_that_must_not_come(guest: MakeGuest) -> None:
    machine = says(guest, b"PANIC!\n")
    result = machine.run(timeout=10, until="ok", fail="PANIC")

    assert result.outcome is Outcome.FAILED
    assert not result.ok
    assert machine.serial.text == "PANIC"
    with pytest.raises(GuestFailed, match=r"the guest failed: it said 'PANIC' at 0x7c0\w"):
        result.check()
    # Without `until`, too; and the machine can run on.
    assert machine.run(timeout=10, fail=[re.compile("PAN"), b"NIC"]).matched == re.compile("PAN")
    assert machine.run(timeout=10, fail=lambda machine: True).outcome is Outcome.FAILED


def test_a_wait_that_does_not_come_true(guest: MakeGuest) -> None:
    machine = says(guest, b"working\n")
    # The time is up once it has said so, however busy this host is.
    machine.run(timeout=60, until=lambda machine: "working\n" in machine.serial.text)
    result = machine.run(timeout=0.01, until=["ready", re.compile("do+ne")])
    assert result.outcome is Outcome.TIMEOUT
    with pytest.raises(RunTimeout) as raised:
        result.check()
    for told in (str(result), str(raised.value)):
        assert re.match(r"the guest was still running after 0\.01 s at 0x7c[01]\w", told)
        assert "\nawaited: 'ready' or re.compile('do+ne')\n" in told
        assert "\nThe last lines of its console:\nworking" in told


def test_an_end_before_the_awaited_text(guest: MakeGuest) -> None:
    machine = guest("""
        B0 00        mov al, 0
        E6 F4        out 0xf4, al
    """)
    result = machine.run(timeout=10, until="never")
    assert (result.exit_code, result.ok) == (0, False)
    with pytest.raises(GuestFailed, match="the guest exited with code 0\nawaited: 'never'"):
        result.check()
    assert result.check(expect=0) is result


def test_a_crash_of_any_guest_has_its_console(guests: Path, guest: MakeGuest) -> None:
    with Machine(guests / "wild.elf") as machine:
        result = machine.run(timeout=10)
        assert str(result).endswith("\nThe last lines of its console:\nstoring to nowhere")
        with pytest.raises(GuestError) as raised:
            result.check()
        assert raised.value.console == result.console == "storing to nowhere"
        assert raised.value.result is result
    # One that has only a debug console.
    machine = guest("""
        B0 41        mov al, 'A'
        E6 E9        out 0xe9, al
        E6 99        out 0x99, al
    """)
    assert machine.run(timeout=10).console == "A"


def test_a_halted_guest_that_was_to_do_more(guest: MakeGuest) -> None:
    machine = guest("FA F4  cli, hlt")
    result = machine.run(timeout=10)
    assert str(result).startswith("the guest halted with nothing to wake it at 0x7c02 (")
    with pytest.raises(GuestFailed, match="expected: exit code 0"):
        result.check()
    result.check(expect=Outcome.HALTED)


def test_where_each_vcpu_is(guest: MakeGuest) -> None:
    machine = guest("EB FE  jmp $", vcpus=2)
    result = machine.run(timeout=0.05)
    assert [(place.vcpu, place.doing) for place in result.places] == [(0, "running"), (1, "parked")]
    assert result.places[0].address == 0x7C00
    assert "\nvCPU 0 is at 0x7c00\nvCPU 1 is parked" in str(result)


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_a_vcpu_that_waits_in_hlt(guest: MakeGuest, irqchip: str) -> None:
    machine = guest("FB F4 EB FC  sti, hlt, jmp $-2", irqchip=irqchip)
    machine.line(1)  # something that might wake it
    result = machine.run(timeout=0.05)
    assert result.outcome is Outcome.TIMEOUT
    assert [place.doing for place in result.places] == ["halted"]
    assert "after 0.05 s, halted at 0x7c02 (" in str(result)


def test_stopping_is_told_apart(guest: MakeGuest) -> None:
    machine = guest("EB FE  jmp $")
    result = machine.run(timeout=10, until=lambda machine: machine.stop() and False)
    assert result.outcome is Outcome.STOPPED
    with pytest.raises(RunStopped, match="stopped by the host at 0x7c00"):
        result.check()


def test_a_text_needs_a_serial_port(guest: MakeGuest) -> None:
    machine = guest("F4  hlt", devices=[])
    with pytest.raises(ValueError, match="no serial port"):
        machine.run(timeout=10, until="x")
    assert machine.run(timeout=10, until=lambda machine: False).outcome is Outcome.HALTED


def test_accesses_that_went_nowhere_are_counted(guest: MakeGuest) -> None:
    listing = """
        B0 41        mov al, 'A'
        E6 99        out 0x99, al
        E6 99        out 0x99, al
        E7 9A        out 0x9a, ax
        E4 98        in al, 0x98
        F4           hlt
        EB F5        jmp $-9
    """
    machine = guest(listing, unclaimed="open-bus")
    result = machine.run(timeout=10)
    assert result.outcome is Outcome.HALTED
    assert (result.unclaimed.reads, result.unclaimed.writes) == (1, 3)
    assert result.unclaimed.places == (
        "write of 0x41 (1 byte) at port 0x99",
        "write of 0x41 (2 bytes) at port 0x9a",
        "read of 1 byte at port 0x98",
    )
    assert "\n1 read and 3 writes went nowhere: write of 0x41 (1 byte) at port 0x99" in str(result)
    # Each run counts its own, wherever they are looked at.
    again = machine.run(timeout=10, on_exit=lambda cpu, exit: None)
    assert again.outcome is Outcome.HALTED
    assert (again.unclaimed.reads, again.unclaimed.writes) == (1, 3)


def test_a_guest_cannot_make_many_places_of_them(guest: MakeGuest) -> None:
    # Writes to ports 0x1000, 0x1001, ... 0x103f.
    machine = guest(
        """
        BA 00 10     mov dx, 0x1000
        EE           out dx, al
        42           inc dx
        80 FA 40     cmp dl, 0x40
        75 F9        jne $-5
        F4           hlt
        """,
        unclaimed="open-bus",
    )
    result = machine.run(timeout=10)
    assert result.unclaimed.writes == 64
    assert [place[-6:] for place in result.unclaimed.places] == [f"0x100{n}" for n in range(8)]


# HLT, then count the rounds at 0x500.
SLEEPER = """
    FB           sti
    F4           hlt
    FF 06 00 05  inc word [0x500]
    EB F9        jmp 0x7c01
"""


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_a_guest_that_sleeps_goes_on_sleeping_in_the_next_run(
    guest: MakeGuest, irqchip: str
) -> None:
    machine = guest(SLEEPER, irqchip=irqchip)
    machine.line(1)  # something that might wake it
    for _ in range(3):
        result = machine.run(timeout=0.02)
        assert result.outcome is Outcome.TIMEOUT
        assert [place.doing for place in result.places] == ["halted"]
    assert machine.memory.read_u16(0x500) == 0


def test_setting_a_sleeper_to_work_elsewhere(guest: MakeGuest) -> None:
    machine = guest(SLEEPER)
    machine.line(1)
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
    machine.vcpus[0].regs.rip = 0x7C02 + 4  # the jump: to sleep again
    machine.vcpus[0].regs.rip = 0x7C00
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
    machine.memory.write(0x7C00, bytes.fromhex("b0 07 e6 f4"))  # mov al, 7; out 0xf4, al
    machine.vcpus[0].regs.rip = 0x7C00
    assert machine.run(timeout=10).exit_code == 7


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_a_function_is_asked_while_the_guest_sleeps(guest: MakeGuest, irqchip: str) -> None:
    machine = guest(SLEEPER, irqchip=irqchip)
    machine.line(1)
    asked: list[bool] = []

    def often(machine: Machine) -> bool:
        asked.append(True)
        return len(asked) == 4

    machine.run(timeout=60, until=often).check()
    assert len(asked) == 4
