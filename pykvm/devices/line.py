"""The wire from a device to an interrupt controller, and the devices that have one."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import wrong

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Inlet", "InterruptLine", "Interrupting", "LineDriver", "Output", "Unconnected"]


class InterruptLine(Protocol):
    """A level-driven interrupt input.  It starts low; a device sets it only when it changes."""

    def set(self, level: bool, /) -> None:
        """Drive the line high or low."""


class Unconnected:
    """A wire that ends nowhere."""

    def set(self, level: bool, /) -> None:
        """Do nothing."""


class Output:
    """The end of a wire at a device, which remembers the `level` it drives.

    >>> class Lamp:
    ...     def set(self, level):
    ...         print("on" if level else "off")
    >>> output = Output()
    >>> output.set(True)
    >>> output.connect(Lamp())
    on
    >>> output.set(True)
    >>> output.set(False)
    off
    """

    def __init__(self, line: InterruptLine | None = None) -> None:
        self.level = False
        #: What it ends at.
        self.line: InterruptLine = Unconnected() if line is None else _checked(line)

    def connect(self, line: InterruptLine) -> None:
        """Drive `line` from now on."""
        self.line = _checked(line)
        if self.level:
            line.set(True)

    def set(self, level: bool) -> None:
        """Drive the wire high or low, which it sees only if that is a change."""
        if level != self.level:
            self.level = level
            self.line.set(level)


def _checked(line: InterruptLine) -> InterruptLine:
    if not callable(getattr(line, "set", None)):
        raise wrong("line", "an interrupt line, as Machine.line gives one", line)
    return line


class Interrupting(Protocol):
    """A device with an interrupt output."""

    def connect(self, line: InterruptLine, /) -> None:
        """Drive `line` with it from now on."""


class Inlet(Protocol):
    """A device that something outside the machine can make interrupt the guest, at any time."""

    @property
    def receives(self) -> bool:
        """Whether it would: the guest has that interrupt enabled."""


class LineDriver(Protocol):
    """A device that drives ISA interrupt lines of the guest's choice."""

    def connect_lines(self, line_of: Callable[[int], InterruptLine], /) -> None:
        """Take lines from `line_of`, by number, when the guest first drives them."""
