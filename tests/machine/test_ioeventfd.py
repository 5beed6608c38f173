"""Guest writes that go to an eventfd instead of a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm import ConfigError, KVMError, Machine, Mode
from support.listing import assemble

pytestmark = pytest.mark.kvm

TWO_OUTS = assemble("""
    B0 41        mov al, 'A'
    E6 50        out 0x50, al
    B0 42        mov al, 'B'
    E6 50        out 0x50, al
    B0 00        mov al, 0
    E6 F4        out 0xf4, al
""")
STORE = assemble("""
    C7 05 00 00 00 D0 07 00 00 00   mov dword [0xd0000000], 7
    B0 00                           mov al, 0
    E6 F4                           out 0xf4, al
""")


class Bell:
    name = "bell"
    length = 8

    def __init__(self) -> None:
        self.rung: list[int] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.rung.append(value)


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def told(event: int) -> int:
    try:
        return os.eventfd_read(event)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize(
    ("value", "events", "writes"), [(None, 2, []), (0x41, 1, [0x42]), (0x43, 0, [0x41, 0x42])]
)
def test_writes_of_the_value_go_to_the_eventfd_and_others_to_the_device(
    event: int, value: int | None, events: int, writes: list[int]
) -> None:
    bell = Bell()
    with Machine(TWO_OUTS, mode=Mode.REAL) as machine:
        machine.add(bell, pio=0x50)
        machine.ioeventfd(event, pio=0x50, length=1, value=value)
        assert machine.run(timeout=20).exit_code == 0
    assert (told(event), bell.rung) == (events, writes)


def test_it_ends(event: int) -> None:
    bell = Bell()
    with Machine(TWO_OUTS, mode=Mode.REAL) as machine:
        machine.add(bell, pio=0x50)
        end = machine.ioeventfd(event, pio=0x50, length=1)
        with pytest.raises(KVMError, match="already takes these writes"):
            machine.ioeventfd(event, pio=0x50, length=1)
        end()
        end()
        assert machine.run(timeout=20).exit_code == 0
    end()
    assert (told(event), bell.rung) == (0, [0x41, 0x42])


def test_a_physical_address(event: int) -> None:
    with Machine(STORE, mode=Mode.PROTECTED) as machine:
        machine.ioeventfd(event, mmio=0xD000_0000, length=4, value=7)
        assert machine.run(timeout=20).exit_code == 0
    assert told(event) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"length": 1}, "either pio= or mmio="),
        ({"pio": 1, "mmio": 1, "length": 1}, "either pio= or mmio="),
        ({"pio": 1 << 16, "length": 1}, "pio"),
        ({"pio": 1, "length": 8}, "length"),
        ({"mmio": 1, "length": 3}, "length"),
        ({"mmio": 1, "length": 1, "value": 256}, "value"),
    ],
)
def test_wrong_values(given: dict[str, Any], words: str) -> None:
    with Machine() as machine, pytest.raises(ConfigError, match=words):
        machine.ioeventfd(0, **given)
