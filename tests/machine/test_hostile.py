"""Guests that mean harm, or are simply broken: every run ends, with an outcome and in bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import HostError, Machine, Mode, Outcome
from pykvm.exits import InternalError
from support.guest import MakeGuest
from support.guest_code import CODE, ENDINGS

pytestmark = pytest.mark.kvm


@settings(max_examples=150)
@given(
    CODE,
    st.sampled_from(list(Mode)),
    st.sampled_from(["stop", "open-bus"]),
    st.booleans(),
)
def test_random_code_comes_to_an_end(
    pieces: list[bytes], mode: Mode, unclaimed: str, traced: bool
) -> None:
    # A NOP first: code that begins as an ELF file does would be taken for one.
    with Machine(
        b"\x90" + b"".join(pieces),
        mode=mode,
        memory="2M",
        load_address=0x10000,
        unclaimed=unclaimed,
    ) as machine:
        seen = 0

        def count(cpu: object, exit: object) -> None:
            nonlocal seen
            seen += 1

        for _ in range(3):
            result = machine.run(timeout=0.01, on_exit=count if traced else None)
            assert result.outcome in ENDINGS, result
            assert str(result)
            assert (result.error is not None) == (result.outcome is Outcome.CRASHED)
        assert str(machine.vcpus[0].state)
        assert machine.vcpus[0].regs.rip >= 0


def test_output_without_end_is_kept_in_bounds(guest: MakeGuest) -> None:
    machine = guest(
        """
        BA F8 03     mov dx, 0x3f8
        EE           out dx, al
        E6 E9        out 0xe9, al
        E6 80        out 0x80, al
        EB F9        jmp $-5
        """
    )
    log = machine.serial
    for _ in range(3):
        assert machine.run(timeout=0.2).outcome is Outcome.TIMEOUT
    assert 0 < len(log.output) <= 1 << 20


def test_a_wild_jump_is_a_crash_with_its_place(guest: MakeGuest) -> None:
    machine = guest("E9 FB 83 FF 1F   jmp 0x20000000", mode=Mode.PROTECTED)
    result = machine.run(timeout=10)

    assert result.outcome is Outcome.CRASHED
    assert isinstance(result.exit, InternalError)
    assert result.error is not None
    assert result.error.kind == "wild jump"
    assert "no memory at 0x20000000" in str(result)


def test_crashing_is_no_end_of_the_machine(guest: MakeGuest) -> None:
    """A triple fault stays one, and new registers bring the vCPU back to life."""
    machine = guest(
        """
        0F 01 1D 09 7C 00 00   lidt [0x7c09]
        0F 0B                  ud2
        00 00 00 00 00 00
        """,
        mode=Mode.PROTECTED,
    )
    fresh = machine.vcpus[0].state
    first = machine.run(timeout=10)
    assert first.outcome is Outcome.CRASHED
    machine.memory.write(0x7C00, b"\xb0\x00\xe6\xf4")
    machine.vcpus[0].state = fresh
    assert machine.run(timeout=10).exit_code == 0


def test_more_memory_than_the_host_has(kvm: None) -> None:
    with pytest.raises(HostError, match="memory"):
        Machine(memory="1T")
