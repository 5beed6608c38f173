"""What a device returns from its reads: a number, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import ConfigError, Placement, Space
from pykvm.bus import Bus
from pykvm.exits import MmioRead
from support.guest import MakeGuest
from support.odd import Sensor

pytestmark = pytest.mark.kvm


# in al, 0x10; then in eax, 0x10 and an access that straddles: ports 0x10 to 0x13.
IN = {
    1: "E4 10  in al, 0x10",
    2: "E5 10  in ax, 0x10",
    4: "66 E5 0E  in eax, 0x0e",
}


@pytest.mark.parametrize("answer", [None, "7", b"\x07", 1.0, [7]], ids=repr)
@pytest.mark.parametrize("size", IN)
@pytest.mark.parametrize("seen", [False, True], ids=["", "on_exit"])
def test_a_device_that_answers_something_else_is_named(
    guest: MakeGuest, answer: Any, size: int, seen: bool
) -> None:
    devices = [Placement(Sensor(answer, width=1), Space.PIO, 0x10, 4)]
    machine = guest(IN[size], devices=devices)
    with pytest.raises(ConfigError, match="device sensor answered a read with ") as raised:
        machine.run(timeout=10, on_exit=(lambda cpu, exit: None) if seen else None)
    assert raised.value.hint == "read(offset, size) has to return an int"


@pytest.mark.parametrize("data", [None, b"", b"123", "1234", [1, 2, 3, 4]], ids=repr)
def test_a_string_of_another_length_is_refused(data: Any) -> None:
    class Strings(Sensor):
        def read_string(self, offset: int, size: int, count: int) -> Any:
            return data

    bus = Bus()
    bus.add_pio(0x10, 1, Strings())
    with pytest.raises(ConfigError, match="device sensor answered 4 reads of 1 bytes with"):
        bus.read_string(0x10, 1, 4)


@pytest.mark.parametrize("answer", [-1, 1 << 64, 1 << 200, 0x1_0000_0007, True], ids=hex)
def test_of_a_number_the_low_bytes_count(guest: MakeGuest, answer: int) -> None:
    machine = guest(
        """
        E4 10        in al, 0x10
        E6 F4        out 0xf4, al
        """
    )
    machine.add(Sensor(answer), pio=0x10, length=1)
    assert machine.run(timeout=10).exit_code == answer & 0xFF


def test_an_answer_by_hand() -> None:
    for value in (1 << 32, -1, b"123", "1234", None, 1.5):
        with pytest.raises(ConfigError):
            MmioRead(address=0xD0000000, size=4).answer(value)  # type: ignore[arg-type]
