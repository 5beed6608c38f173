"""The debug console at port 0xe9, as Bochs invented it and QEMU's isa-debugcon has it."""

from __future__ import annotations

from pykvm.bus.device import NamedDevice
from pykvm.devices.stream import OUTPUT_LIMIT, OutputLog
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DebugConsole"]


class DebugConsole(OutputLog, NamedDevice):
    """Every byte written is printed; a read gives 0xe9, so that a guest can tell it is there.

    >>> console = DebugConsole()
    >>> console.posted([(0, 1, ord("h")), (0, 1, ord("i"))])
    >>> console.text
    'hi'
    """

    def __init__(self, name: str = "debugcon", *, limit: int = OUTPUT_LIMIT) -> None:
        super().__init__(limit=limit)
        self.name = name

    def read(self, offset: int, size: int) -> int:
        """Tell that the console is there."""
        return 0xE9

    def posted(self, writes: Sequence[tuple[int, int, int]]) -> None:
        """Print the low byte of each write."""
        self.emit(bytes([value & 0xFF for _, _, value in writes]))
