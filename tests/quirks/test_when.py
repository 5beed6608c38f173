"""Which guests are asked about: those whose code shows that they may have a ring 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import boot
from pykvm.machine.guest import may_meet_quirks
from pykvm.x86.state import Mode
from support.boot import load
from support.listing import assemble

HARMLESS = """
    0F 01 10                lgdt [rax]
    0F 01 D8                vmrun
    0F 01 F9                rdtscp
    B9 80 00 00 C0          mov ecx, EFER
    0F 01                   the end of the code
"""


def flat(code: bytes) -> boot.Image:
    return load(code, mode=Mode.LONG)


@pytest.mark.parametrize(
    "code",
    [
        "0F 01 18                lidt [rax]",
        "0F 01 5C 24 08          lidt [rsp + 8]",
        "0F 01 98 00 10 00 00    lidt [rax + 0x1000]",
        "0F 01 1D 00 00 00 00    lidt [rip]",
        "B9 82 00 00 C0          mov ecx, LSTAR",
    ],
)
def test_code_with_lidt_or_lstar_may_meet_quirks(code: str) -> None:
    assert may_meet_quirks(flat(assemble(code)))
    assert may_meet_quirks(flat(assemble(HARMLESS) + assemble(code)))


def test_code_without_lidt_or_lstar_does_not() -> None:
    assert not may_meet_quirks(flat(assemble(HARMLESS)))


def test_data_like_lstar_does_not_count() -> None:
    image = flat(assemble("B9 82 00 00 C0   mov ecx, LSTAR"))
    (segment,) = image.segments
    assert not may_meet_quirks(image._replace(segments=(segment._replace(executable=False),)))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hello", False), ("args", False), ("out0", False), ("mmio", False),
        ("syscall", True), ("int80", True), ("exceptions", True), ("faults", True),
    ],
)  # fmt: skip
def test_which_of_our_guests_may_meet_quirks(guests: Path, name: str, asked: bool) -> None:
    assert may_meet_quirks(load(guests / f"{name}.elf")) == asked
