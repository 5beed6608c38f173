"""`run(on_answer=...)`: exits with what the guest got for them."""

from __future__ import annotations

import threading

import pytest

from pykvm import GuestExit, Machine
from pykvm.exits import Exit, IoIn, IoOut, MmioRead, RdMsr, WrMsr
from pykvm.vcpu import CPU
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm


class Odometer:
    """Counts its reads; the tenth ends the run."""

    name = "odometer"
    count = 0

    def read(self, offset: int, size: int) -> int:
        self.count += 1
        if self.count == 10:
            raise GuestExit(self.count)
        return 0x1100 + self.count


READS = """
    66 BA 00 05    mov dx, 0x500
    66 ED          in ax, dx
    E6 80          out 0x80, al
    A1 00 00 00 D0 mov eax, [0xd0000000]
    EB F5          jmp $-9
"""


def test_reads_come_with_what_their_devices_said(guest: MakeGuest) -> None:
    machine = guest(READS, mode="protected", memory="1M")
    device = Odometer()
    machine.add(device, pio=0x500, length=2)
    seen: list[tuple[Exit, bytes | None]] = []

    def note(cpu: CPU, exit: Exit) -> None:
        seen.append((exit, exit.answered))

    result = machine.run(timeout=30, on_answer=note)
    assert result.error is not None  # no device is at 0xd0000000: no answer, no call
    assert seen == [(IoIn(port=0x500, size=2), b"\x01\x11")]


def test_on_exit_comes_before_and_on_answer_after(guest: MakeGuest) -> None:
    machine = guest("E4 60 in al, 0x60\nE6 80 out 0x80, al\nEB FA jmp $-4", unclaimed="open-bus")
    machine.remove("i8042")
    machine.add(Odometer(), pio=0x60, length=1)
    order: list[tuple[str, str, bytes | None]] = []
    result = machine.run(
        timeout=30,
        on_exit=lambda _, exit: order.append(("exit", type(exit).__name__, exit.answered)),
        on_answer=lambda _, exit: order.append(("answer", type(exit).__name__, exit.answered)),
    )
    assert result.exit_code == 10
    assert order[:3] == [
        ("exit", "IoIn", b"\xff"),
        ("answer", "IoIn", b"\x01"),
        ("exit", "IoOut", None),
    ]
    # The last read raised: it has no answer.
    assert order[-1] == ("exit", "IoIn", b"\xff")
    assert len([1 for what, _, _ in order if what == "answer"]) == 9


def test_what_floats_is_answered_with_all_ones(guest: MakeGuest) -> None:
    machine = guest(READS, mode="protected", memory="1M", unclaimed="open-bus")
    device = Odometer()
    machine.add(device, pio=0x500, length=2)
    seen = []
    result = machine.run(
        timeout=30, on_answer=lambda _, exit: seen.append((type(exit), exit.answered))
    )
    assert result.exit_code == 10
    assert seen[:2] == [(IoIn, b"\x01\x11"), (MmioRead, b"\xff\xff\xff\xff")]


def test_msrs(guest: MakeGuest) -> None:
    """IA32_APIC_BASE, which exits with the local APIC in software, and its reserved bits: #GP."""
    machine = guest(
        """
        E4 21                in al, 0x21         # the interrupt controllers come to be
        66 B9 1B 00 00 00    mov ecx, 0x1b
        0F 32                rdmsr
        0F 30                wrmsr
        E6 F4                out 0xf4, al
        """
    )
    seen: list[Exit] = []
    answers: list[bytes | None] = []

    def note(cpu: CPU, exit: Exit) -> None:
        seen.append(exit)
        answers.append(exit.answered)

    machine.run(timeout=30, on_answer=note)
    assert [type(exit) for exit in seen] == [IoIn, RdMsr, WrMsr]
    assert answers[1] is not None
    assert int.from_bytes(answers[1], "little") & ~0xFFF == 0xFEE00000
    assert answers[2] in {b"", None}  # moving the APIC may complete it at once


def test_what_it_raises_comes_out_of_run(guest: MakeGuest) -> None:
    machine = guest("E4 64 in al, 0x64\nEB FC jmp $-2")

    def fail(cpu: CPU, exit: Exit) -> None:
        raise LookupError(threading.current_thread().name)

    with pytest.raises(LookupError, match="MainThread"):
        machine.run(timeout=30, on_answer=fail)


def test_writes_are_not_told_again(guest: MakeGuest) -> None:
    machine = guest("E6 80 out 0x80, al\nE6 F4 out 0xf4, al")
    seen: list[Exit] = []
    machine.run(timeout=30, on_answer=lambda _, exit: seen.append(exit))
    assert seen == []
    assert not IoOut(port=0x80, size=1, data=b"A").awaits_answer


def test_an_exit_that_is_over_has_no_answer(guest: MakeGuest) -> None:
    machine = guest("E4 64 in al, 0x64\nE6 F4 out 0xf4, al")
    seen: list[Exit] = []
    machine.run(timeout=30, on_answer=lambda _, exit: seen.append(exit))
    assert [exit.answered for exit in seen] == [None]


def test_it_is_a_function() -> None:
    with Machine() as machine, pytest.raises(ValueError, match="on_answer"):
        machine.run(timeout=0, on_answer=1)  # type: ignore[arg-type]
