"""Interrupt controllers in the kernel, or half of them: how runs end, and what time does."""

from __future__ import annotations

import threading
import time

import pytest

from pykvm import ConfigError, HostError, Machine, Mode, Outcome
from support.guest import MakeGuest
from support.slowness import longer

pytestmark = pytest.mark.kvm

CHIPS = ("kernel", "split")

HALT = """
    FA           cli
    F4           hlt
    EB FC        jmp $-2
"""
WAIT = """
    FB           sti
    F4           hlt
    EB FC        jmp $-2
"""

# The LAPIC timer from 0xffffffff down, a tick a nanosecond; its count at 0x500, for ever.
COUNT_DOWN = """
    C7 05 F0 00 E0 FE FF 01 00 00      mov dword [0xfee000f0], 0x1ff
    C7 05 E0 03 E0 FE 0B 00 00 00      mov dword [0xfee003e0], 0xb
    C7 05 20 03 E0 FE 30 00 01 00      mov dword [0xfee00320], 0x10030
    C7 05 80 03 E0 FE FF FF FF FF      mov dword [0xfee00380], 0xffffffff
    A1 90 03 E0 FE                     mov eax, [0xfee00390]
    A3 00 05 00 00                     mov [0x500], eax
    EB F4                              jmp $-10
"""


@pytest.mark.parametrize("irqchip", CHIPS)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_halt_with_interrupts_off_ends_the_run(
    guest: MakeGuest, irqchip: str, vcpus: int
) -> None:
    """KVM does not come back from that HLT; a tick sees it."""
    result = guest(HALT, irqchip=irqchip, vcpus=vcpus).run(timeout=30)

    assert result.outcome is Outcome.HALTED
    assert result.exits == {}


@pytest.mark.parametrize("irqchip", CHIPS)
def test_a_halt_with_interrupts_on_waits(guest: MakeGuest, irqchip: str) -> None:
    machine = guest(WAIT, irqchip=irqchip)
    assert machine.run(timeout=0.2).outcome is Outcome.TIMEOUT
    threading.Timer(0.05, machine.stop).start()
    assert machine.run(timeout=30).outcome is Outcome.STOPPED


@pytest.mark.parametrize("irqchip", ["user", *CHIPS])
def test_a_device_drives_its_line_whichever_is_there(guest: MakeGuest, irqchip: str) -> None:
    """Serial input wakes a halted guest through the 8259: IRQ 4, vector 0x24."""
    machine = guest(
        """
        31 C0                  xor ax, ax
        8E D8                  mov ds, ax
        C7 06 90 00 3C 7C      mov word [0x90], 0x7c3c
        C7 06 92 00 00 00      mov word [0x92], 0
        B0 11 E6 20            icw1
        B0 20 E6 21            icw2
        B0 04 E6 21            icw3
        B0 01 E6 21            icw4
        B0 EF E6 21            ocw1: IRQ 4 alone
        BA FB 03 B0 03 EE      lcr: 8 bits
        BA FC 03 B0 08 EE      mcr: OUT2
        BA F9 03 B0 01 EE      ier: received data
        FB                     sti
        F4                     hlt
        EB FD                  jmp $-1
        90 90                  nop
        BA F8 03               mov dx, 0x3f8
        EC                     in al, dx
        E6 F4                  out 0xf4, al
        """,
        irqchip=irqchip,
    )
    threading.Timer(0.1, machine.serial.send, (b"\x07",)).start()
    assert machine.run(timeout=30).exit_code == 7


@pytest.mark.parametrize(("clock", "hidden"), [("paused", True), ("realtime", False)])
@pytest.mark.parametrize("irqchip", CHIPS)
def test_what_passes_between_two_runs(
    guest: MakeGuest, irqchip: str, clock: str, hidden: bool
) -> None:
    machine = guest(COUNT_DOWN, mode=Mode.PROTECTED, irqchip=irqchip, clock=clock)

    def now(machine: Machine) -> int:
        return machine.memory.read_u32(0x500)

    def count() -> int:
        machine.memory.write_u32(0x500, 0)
        assert machine.run(timeout=longer(5), until=now).outcome is Outcome.UNTIL
        return now(machine)

    count()
    before = count()
    away = min(longer(0.4), 1)
    time.sleep(away)
    passed = before - count()
    # A run of a tick shows as that, however late the host is with it, or as that and the sleep.
    assert passed > 0
    assert (passed < away * 1e9) is hidden


@pytest.mark.parametrize("irqchip", CHIPS)
def test_time_in_the_kernel_cannot_be_skipped(irqchip: str) -> None:
    with pytest.raises(ConfigError, match="clock='warp' does not go with irqchip="):
        Machine(irqchip=irqchip, clock="warp")


def test_there_is_no_other() -> None:
    with pytest.raises(ConfigError, match="irqchip is one of user, kernel, split, none"):
        Machine(irqchip="pic")
    with pytest.raises(ConfigError, match="clock is one of realtime, paused, warp"):
        Machine(clock="slow")


def test_no_interrupt_controller_at_all(guest: MakeGuest) -> None:
    machine = guest(WAIT, irqchip="none")
    assert machine.run(timeout=30).outcome is Outcome.HALTED
    assert "pit" not in machine.devices


def test_an_offset_or_a_frequency_that_the_host_does_not_give_is_an_error(kvm: None) -> None:
    with Machine() as machine:
        clock = machine.clock
        host_khz = clock.tsc_khz
        if clock.tsc_movable:
            clock.tsc_offset = 1 << 40
            assert clock.tsc_offset == pytest.approx(1 << 40, rel=1e-3)
        else:
            with pytest.raises(HostError, match="offset"):
                clock.tsc_offset = 1 << 40
        movable = clock.tsc_movable
    if not movable:
        with pytest.raises(ConfigError, match="cannot run at"):
            Machine(tsc_khz=host_khz * 2)
    with Machine(tsc_khz=host_khz) as machine:
        assert machine.clock.tsc_khz == host_khz
