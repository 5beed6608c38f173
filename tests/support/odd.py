"""Values of many types, to be given where they do not belong."""

from __future__ import annotations

import enum
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any


class Seven:
    def __index__(self) -> int:
        return 7


class Odd:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Sensor:
    """A device with any answer, name and width."""

    def __init__(self, answer: Any = 7, name: Any = "sensor", width: Any = 8) -> None:
        self.answer, self.name, self.width = answer, name, width

    def read(self, offset: int, size: int) -> Any:
        return self.answer


class Level(enum.IntEnum):
    HIGH = 1


#: Values of many types; what a check does not take of them, it has to refuse by name.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1 << 200, -(1 << 200), 10**5000, 1.0, 1.5, 1e300,
    math.nan, math.inf, -math.inf, "", "x", "1", "0x10", "a\0b", "x" * 100_000, b"", b"x",
    b"x" * 100_000, bytearray(b"x"), memoryview(b"xy"), [], [1], ["a"], (), (1, 2), {}, {"a": 1},
    {1}, range(3), object(), Odd(), Odd, int, len, Seven(), Level.HIGH,
    Decimal("1.5"), Fraction(1, 3), 1j, Ellipsis, NotImplemented,
]  # fmt: skip
