"""What drives an input of an interrupt controller."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["InputDriver"]


class InputDriver:
    """One of the drivers of an input: the input is asserted while any of them is.

    An `InterruptLine`.  It calls ``drive(number, step)`` with the number of the input, and 1 when
    it starts to assert it, -1 when it stops, or 0 when it stops and starts again at once; setting
    the level that it has does nothing.
    ``count(number, step)`` is called instead where the controller knows the level already.
    """

    __slots__ = ("_count", "_drive", "_level", "_number")

    def __init__(
        self,
        drive: Callable[[int, int], None],
        count: Callable[[int, int], None],
        number: int,
    ) -> None:
        self._drive = drive
        self._count = count
        self._number = number
        self._level = False

    def set(self, level: bool) -> None:
        """Assert the input, or stop doing so."""
        if bool(level) != self._level:
            self._level = not self._level
            self._drive(self._number, 1 if level else -1)

    def edge(self) -> None:
        """See `pykvm.devices.line.edge_of`."""
        if self._level:
            self._drive(self._number, 0)
        else:
            self.set(True)

    def restore(self, level: bool) -> None:
        """Have that level.  What the controller saw of it is the controller's own state."""
        if bool(level) != self._level:
            self._level = not self._level
            self._count(self._number, 1 if level else -1)
