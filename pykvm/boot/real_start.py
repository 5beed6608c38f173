"""Where real-mode code starts and where its stack is, as people write it: segment:offset."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.values.frozen import NamedTuple

__all__ = ["RealAddress", "RealStart"]


class RealAddress(NamedTuple):
    """A real-mode address: a selector and an offset, 16 bits each.

    >>> RealAddress.parse("07C0:0010").linear == 0x7C10
    True
    >>> str(RealAddress(0, 0x7C00))
    '0000:7c00'
    """

    segment: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> RealAddress:
        """Read SEGMENT:OFFSET, two hexadecimal numbers with or without 0x.

        Raises ConfigError for anything else.
        """
        parts = text.split(":")
        try:
            numbers = [int(part, 16) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) != 2 or not all(0 <= number <= 0xFFFF for number in numbers):
            raise ConfigError(
                f"{text!r} is no real-mode address: SEGMENT:OFFSET, two hexadecimal numbers of "
                "16 bits",
                hint="as 07C0:0000",
            )
        return cls(*numbers)

    @property
    def linear(self) -> int:
        """The address that it stands for (SDM 3B 21.1.1)."""
        return (self.segment << 4) + self.offset

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.offset:04x}"


class RealStart(NamedTuple):
    """How the caller wants a real-mode image to start; None leaves it to the image."""

    entry: RealAddress | None = None
    stack: RealAddress | None = None
