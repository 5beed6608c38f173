"""The vCPUs of a machine: where they start, and how a run ends for all of them."""

from __future__ import annotations

import threading

import pytest

from pykvm import Machine, Outcome
from pykvm.exits import IoOut
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm


def test_an_empty_machine_starts_as_after_power_on(kvm: None) -> None:
    with Machine(memory="1M", devices=[]) as machine:
        state = machine.vcpus[0].state
        assert (state.cs.selector, state.cs.base, state.rip) == (0xF000, 0xFFFF0000, 0xFFF0)
        machine.memory.write(0x1000, b"\xb0\x2a\xe6\x10\xf4")
        machine.vcpus[0].state = real_mode(ip=0x1000)
        assert next(machine.vcpus[0].raw_exits()) == IoOut(port=0x10, size=1, data=b"*")


def test_a_parked_vcpu_runs_once_it_is_started(guest: MakeGuest) -> None:
    """Two vCPUs count in the same memory; each halts, and the run ends when both have."""
    machine = guest(
        """
        B9 E8 03               mov cx, 1000
        F0 FF 06 00 05         lock inc word [0x500]
        E2 F9                  loop $-5
        F4                     hlt
        """,
        vcpus=2,
    )
    second = machine.vcpus[1]
    assert second.parked
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    assert machine.memory.read_u16(0x500) == 1000

    for cpu in machine.vcpus:
        cpu.state = real_mode(ip=0x7C00)
        cpu.parked = False
    result = machine.run(timeout=20)
    assert result.outcome is Outcome.HALTED
    assert "every vCPU" in result.sentence
    assert machine.memory.read_u16(0x500) == 3000


def stop_until(ended: threading.Event, machine: Machine) -> None:
    """Stop it again and again: a stop before its run has begun is none."""
    while not ended.wait(0.01):
        machine.stop()


@pytest.mark.parametrize("which", [0, 1])
def test_several_vcpus_end_together(guest: MakeGuest, which: int) -> None:
    """Whichever exits or spins: the run has one end, and takes all of them out of the guest."""
    machine = guest("FA EB FE  cli; jmp $", vcpus=3)
    machine.memory.write(0x2000, b"\xb0\x07\xe6\xf4")
    for cpu in machine.vcpus:
        cpu.state = real_mode(ip=0x7C00)
        cpu.parked = False
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    ended = threading.Event()
    stopper = threading.Thread(target=stop_until, args=(ended, machine))
    stopper.start()
    try:
        assert machine.run(timeout=60).outcome is Outcome.STOPPED
    finally:
        ended.set()
        stopper.join()
    machine.vcpus[which].state = real_mode(ip=0x2000)
    result = machine.run(timeout=60)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 7)


def test_an_exception_on_another_vcpus_thread_comes_out_of_run(guest: MakeGuest) -> None:
    class Bad:
        name = "bad"

        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError(threading.get_ident())

    machine = guest("FA EB FE  cli; jmp $", vcpus=2)
    machine.add(Bad(), pio=0x10, length=1)
    machine.memory.write(0x2000, b"\xe6\x10\xf4")
    machine.vcpus[1].state = real_mode(ip=0x2000)
    machine.vcpus[1].parked = False
    with pytest.raises(ZeroDivisionError) as caught:
        machine.run(timeout=20)
    assert caught.value.args[0] != threading.get_ident()
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
