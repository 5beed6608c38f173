"""Calling functions of a guest's on a machine that stands: `Machine.call`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm import (
    ConfigError,
    GuestError,
    GuestFailed,
    Machine,
    Outcome,
    RunStopped,
    RunTimeout,
    StateError,
    TranslationError,
    UnknownSymbol,
)
from support.guest import MakeGuest
from support.slowness import longer

pytestmark = pytest.mark.kvm


@pytest.fixture(params=["user", "split", "kernel"])
def machine(guests: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """It waits in HLT, with interrupts on."""
    with Machine(guests / "callee.elf", irqchip=request.param) as machine:
        machine.run(timeout=longer(10), until="waiting\n").check()
        machine.run(timeout=longer(0.1))
        yield machine


def test_arguments_and_results(machine: Machine) -> None:
    call = machine.call
    assert call("checksum", b"abc", 3) == 0x126
    assert call("checksum", bytes(range(256)) * 4, 1024) == 4 * 255 * 128
    assert call("eight", 1, 2, 3, 4, 5, 6, 7, 8) == 204
    assert call("eight", *[-1] * 8) == (1 << 64) - 36
    assert call("minus_one", returns="s32") == -1
    assert call("minus_one", returns="u8") == 255
    assert call("minus_one", returns=None) is None
    assert call("name_of", 7, returns="cstring") == b"seven"
    assert call("name_of", 1, returns=4) == b"anot"
    assert call(machine.symbols["checksum"], b"\x07", 1) == 7
    assert machine.memory.read(machine.symbols["calls"], 4) == b"\x03\0\0\0"


def test_a_bytearray_has_what_was_written(machine: Machine) -> None:
    one, other = bytearray(b"stressed"), bytearray(b"odd number")
    machine.call("reverse", one, len(one), returns=None)
    machine.call("reverse", other, 3, returns=None)
    assert (bytes(one), bytes(other)) == (b"desserts", b"ddo number")


def test_devices_answer(machine: Machine) -> None:
    assert machine.call("say", "héllo") == 1
    assert machine.serial.text.endswith("waiting\nhéllo\n")


def test_registers_are_what_they_were_and_the_guest_goes_on(machine: Machine) -> None:
    cpu = machine.vcpus[0]
    machine.call("minus_one")  # KVM shows all events from now on
    before, stack = cpu.save(), cpu.read(cpu.regs.rsp, 64)
    code = cpu.read(cpu.regs.rip, 16)
    machine.call("checksum", b"abc", 3)
    after = cpu.save()
    for field in ("regs", "sregs", "xsave", "debugregs", "events", "mp_state", "halted", "lapic"):
        assert getattr(after, field) == getattr(before, field), field
    assert (cpu.read(cpu.regs.rsp, 64), cpu.read(cpu.regs.rip, 16)) == (stack, code)
    assert machine.run(timeout=longer(0.1)).outcome in (Outcome.TIMEOUT, Outcome.HALTED)


def test_with_reset_nothing_stays(machine: Machine) -> None:
    assert machine.call("checksum", b"abc", 3, reset=True) == 0x126
    assert machine.memory.read(machine.symbols["calls"], 4) == bytes(4)


def test_ends_are_told_apart(machine: Machine) -> None:
    with pytest.raises(GuestError) as crash:
        machine.call("wander")
    assert crash.value.kind == "triple fault"
    with pytest.raises(RunTimeout, match=r"spin has not returned within 0\.1 s: it is at 0x10"):
        machine.call("spin", timeout=0.1)
    with pytest.raises(GuestFailed, match="leave did not return: the guest exited with code 3"):
        machine.call("leave", 3)
    stopping = threading.Timer(0.1, machine.vcpus[0].kick)
    stopping.start()
    with pytest.raises(RunStopped, match="spin was stopped"):
        machine.call("spin", timeout=longer(10))
    stopping.join()
    assert machine.call("checksum", b"abc", 3) == 0x126


def test_what_halts(guests: Path) -> None:
    """Where HLT is an exit; in KVM's irqchip it waits there."""
    with Machine(guests / "callee.elf") as machine:
        machine.run(timeout=longer(10), until="waiting\n").check()
        with pytest.raises(GuestFailed, match="halts has halted"):
            machine.call("halts")
    with Machine(guests / "callee.elf", irqchip="kernel") as machine:
        machine.run(timeout=longer(10), until="waiting\n").check()
        with pytest.raises(RunTimeout):
            machine.call("halts", timeout=0.1)


def test_before_it_was_ever_run(guests: Path) -> None:
    with Machine(guests / "callee.elf") as machine:
        machine.vcpus[0].regs.rsp = 0x200000
        assert machine.call("eight", 1, 2, 3, 4, 5, 6, 7, 8) == 204
        assert machine.run(timeout=longer(10), until="waiting\n").ok


def test_wrong_use(machine: Machine, guest: MakeGuest) -> None:
    with pytest.raises(UnknownSymbol):
        machine.call("nothing")
    with pytest.raises(ConfigError, match="argument 1 of a call does not fit"):
        machine.call("eight", 0, 1 << 64)
    with pytest.raises(ConfigError, match=r"argument 0 of a call is an integer.*, not 1\.5"):
        machine.call("eight", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="returns is u8"):
        machine.call("minus_one", returns="float")
    with pytest.raises(ConfigError, match="returns is u8"):
        machine.call("minus_one", returns=-1)
    with pytest.raises(TranslationError):
        machine.call(0x7FFF_FFFF_0000)
    with pytest.raises(ConfigError, match="vcpu"):
        machine.call("minus_one", vcpu=1)
    machine.vcpus[0].regs.rsp = 0
    with pytest.raises(StateError, match="has no stack"):
        machine.call("minus_one")
    with pytest.raises(StateError, match="not in 64-bit mode"):
        guest("F4  hlt").call(0x7C00)
