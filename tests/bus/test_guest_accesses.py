"""Accesses of a real guest that are more than one size at one place: split, repeated, refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pykvm import Mode, Outcome
from pykvm.bus import Placement, Space
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

RAM = 4 << 20


class Recorder:
    """Keeps the writes it gets, and answers reads with 0x11, 0x22 and so on from offset 0 up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        answer = bytes(0x11 * (offset + at + 1) & 0xFF for at in range(size))
        return int.from_bytes(answer, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Ramp:
    """Answers 1, 2, 3 and so on, whatever the size of the read."""

    name = "ramp"

    def __init__(self) -> None:
        self.value = 0
        self.sizes: set[int] = set()

    def read(self, offset: int, size: int) -> int:
        self.sizes.add(size)
        self.value += 1
        return self.value


def test_a_port_access_that_straddles_two_devices_and_a_hole(guest: MakeGuest) -> None:
    low, high = Recorder("low"), Recorder("high")
    machine = guest(
        """
        BA 11 01             mov dx, 0x111
        66 B8 44 33 22 11    mov eax, 0x11223344
        66 EF                out dx, eax
        66 ED                in eax, dx
        66 A3 00 05          mov [0x500], eax
        F4                   hlt
        """,
        devices=[Placement(low, Space.PIO, 0x110, 2), Placement(high, Space.PIO, 0x112, 2)],
    )
    result = machine.run(timeout=20)

    assert result.outcome is Outcome.HALTED, result
    assert (result.exits["IoOut"], result.exits["IoIn"]) == (1, 1)
    assert (low.writes, high.writes) == ([(1, 1, 0x44)], [(0, 2, 0x2233)])
    assert (low.reads, high.reads) == ([(1, 1)], [(0, 2)])
    assert machine.memory.read(0x500, 4) == b"\x22\x11\x22\xff"


@pytest.mark.parametrize("seam", [0xD000_0012, 0xD000_1000], ids=["within a page", "of two pages"])
def test_an_mmio_access_that_straddles_two_devices(guest: MakeGuest, seam: int) -> None:
    low, high = Recorder("low"), Recorder("high")
    address = (seam - 2).to_bytes(4, "little").hex(" ")
    machine = guest(
        f"""
        B8 44 33 22 11       mov eax, 0x11223344
        A3 {address}         mov [seam - 2], eax
        A1 {address}         mov eax, [seam - 2]
        A3 00 05 00 00       mov [0x500], eax
        F4                   hlt
        """,
        mode=Mode.PROTECTED,
        devices=[
            Placement(low, Space.MMIO, seam - 2, 2),
            Placement(high, Space.MMIO, seam, 2),
        ],
    )
    result = machine.run(timeout=20)

    assert result.outcome is Outcome.HALTED, result
    assert (low.writes, high.writes) == ([(0, 2, 0x3344)], [(0, 2, 0x1122)])
    assert (low.reads, high.reads) == ([(0, 2)], [(0, 2)])
    assert machine.memory.read(0x500, 4) == b"\x11\x22\x11\x22"


def test_an_access_that_straddles_ram_and_a_device(guest: MakeGuest) -> None:
    device = Recorder("after-ram")
    machine = guest(
        """
        B8 44 33 22 11       mov eax, 0x11223344
        A3 FE FF 3F 00       mov [0x3ffffe], eax
        A1 FE FF 3F 00       mov eax, [0x3ffffe]
        A3 00 05 00 00       mov [0x500], eax
        F4                   hlt
        """,
        mode=Mode.PROTECTED,
        memory=RAM,
        devices=[Placement(device, Space.MMIO, RAM, 4)],
    )
    result = machine.run(timeout=20)

    assert result.outcome is Outcome.HALTED, result
    assert machine.memory.read(RAM - 2, 2) == b"\x44\x33"
    assert device.writes == [(0, 2, 0x1122)]
    assert machine.memory.read(0x500, 4) == b"\x44\x33\x11\x22"


@pytest.mark.parametrize(
    ("size", "instruction"), [(1, "F3 6C"), (2, "F3 6D"), (4, "66 F3 6D")], ids=["b", "w", "d"]
)
def test_rep_ins_from_a_device(guest: MakeGuest, size: int, instruction: str) -> None:
    ramp = Ramp()
    machine = guest(
        f"""
        BF FE 0F             mov di, 0x0ffe
        B9 05 00             mov cx, 5
        BA 10 01             mov dx, 0x110
        {instruction}        rep ins
        89 3E 00 05          mov [0x500], di
        F4                   hlt
        """,
        devices=[Placement(ramp, Space.PIO, 0x110, size)],
    )
    result = machine.run(timeout=20)

    assert result.outcome is Outcome.HALTED, result
    assert ramp.sizes == {size}
    assert ramp.value == 5
    read = b"".join(value.to_bytes(size, "little") for value in range(1, 6))
    assert machine.memory.read(0xFFE, 6 * size) == read + bytes(size)
    assert machine.memory.read_u16(0x500) == 0xFFE + 5 * size


def test_rep_ins_downwards(guest: MakeGuest) -> None:
    ramp = Ramp()
    machine = guest(
        """
        FD                   std
        BF 04 10             mov di, 0x1004
        B9 03 00             mov cx, 3
        BA 10 01             mov dx, 0x110
        F3 6D                rep insw
        F4                   hlt
        """,
        devices=[Placement(ramp, Space.PIO, 0x110, 2)],
    )
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    assert machine.memory.read(0x1000, 6) == b"\x03\0\x02\0\x01\0"


def test_rep_ins_of_more_than_a_page(guest: MakeGuest) -> None:
    ramp = Ramp()
    machine = guest(
        """
        BF 00 20             mov di, 0x2000
        B9 00 18             mov cx, 0x1800
        BA 10 01             mov dx, 0x110
        F3 6D                rep insw
        F4                   hlt
        """,
        devices=[Placement(ramp, Space.PIO, 0x110, 2)],
    )
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    expected = b"".join(value.to_bytes(2, "little") for value in range(1, 0x1801))
    assert machine.memory.read(0x2000, 0x3000) == expected


def test_rep_outs_to_a_device(guest: MakeGuest) -> None:
    device = Recorder("device")
    machine = guest(
        """
        BE 00 06             mov si, 0x600
        B9 03 00             mov cx, 3
        BA 10 01             mov dx, 0x110
        F3 6F                rep outsw
        F4                   hlt
        """,
        devices=[Placement(device, Space.PIO, 0x110, 2)],
    )
    machine.memory.write(0x600, b"\x01\x02\x03\x04\x05\x06")
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    assert device.writes == [(0, 2, 0x0201), (0, 2, 0x0403), (0, 2, 0x0605)]


def test_a_device_that_raises_in_a_read_can_be_asked_again(guest: MakeGuest) -> None:
    class Moody:
        name = "moody"
        answer: Callable[[], int]

        def read(self, offset: int, size: int) -> int:
            return self.answer()

    def refuse() -> int:
        raise LookupError("not today")

    moody = Moody()
    moody.answer = refuse
    machine = guest(
        """
        E4 10                in al, 0x10
        E4 10                in al, 0x10
        A2 00 05             mov [0x500], al
        F4                   hlt
        """,
        devices=[Placement(moody, Space.PIO, 0x10, 1)],
    )
    with pytest.raises(LookupError, match="not today"):
        machine.run(timeout=20)
    moody.answer = lambda: 0x2A
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    assert machine.memory.read_u8(0x500) == 0x2A
