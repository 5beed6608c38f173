"""The wire from a device to an interrupt controller, and how a device comes by it."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import wrong

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.clock import TimeSource
    from pykvm.memory import GuestMemory

__all__ = [
    "Attaching",
    "InterruptLine",
    "Lines",
    "Output",
    "Unconnected",
    "edge_of",
    "restore_level",
]


class InterruptLine(Protocol):
    """A level-driven interrupt input.  It starts low; a device sets it only when it changes.

    It may also have ``restore(level)``: be as if it had been driven there (`restore_level`); and
    ``edge()``: fall and rise, of a line that is high (`edge_of`).
    """

    def set(self, level: bool, /) -> None:
        """Drive the line high or low."""


def restore_level(line: InterruptLine, level: bool) -> None:
    """Let `line` have a level that the device drove before its state was saved.

    The input sees no change: what an interrupt controller has made of that level is its own state.
    """
    restore = getattr(line, "restore", None)
    if restore is not None:
        restore(level)


def edge_of(line: InterruptLine) -> Callable[[], None]:
    """What lets `line`, which is high, fall and rise."""

    def fall_and_rise() -> None:
        line.set(False)
        line.set(True)

    edge: Callable[[], None] = getattr(line, "edge", fall_and_rise)
    return edge


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
        self._edge = edge_of(self.line)

    def connect(self, line: InterruptLine) -> None:
        """Drive `line` from now on."""
        self.line = _checked(line)
        self._edge = edge_of(line)
        if self.level:
            line.set(True)

    def attach(self, lines: Lines) -> None:
        """Drive the device's own line from now on, if it was placed with one."""
        if lines.irq is not None:
            self.connect(lines.own)

    def set(self, level: bool) -> None:
        """Drive the wire high or low, which it sees only if that is a change."""
        if level != self.level:
            self.level = level
            self.line.set(level)

    def rise(self) -> None:
        """Show the wire a rise, for which it falls first if it is high."""
        if self.level:
            self._edge()
        else:
            self.set(True)

    def state(self) -> bool:
        """The level."""
        return self.level

    def restore(self, state: bool) -> None:
        """Have that level, without driving the wire."""
        self.level = state
        restore_level(self.line, state)


def _checked(line: InterruptLine) -> InterruptLine:
    if not callable(getattr(line, "set", None)):
        raise wrong("line", "an interrupt line, as Machine.line gives one", line)
    return line


class Lines(Protocol):
    """The interrupt lines of one device: `attach` gets them."""

    @property
    def irq(self) -> int | None:
        """The `irq` that the device was placed with, if any."""

    @property
    def own(self) -> InterruptLine:
        """The line of that interrupt.

        Without `irq`, or in a machine without interrupt controllers, it leads nowhere.
        """

    def isa(self, irq: int, /) -> InterruptLine:
        """A line to ISA interrupt `irq` (0 to 15 but 2), for a device that drives several."""


class Attaching(Protocol):
    """A device that interrupts, reaches into guest memory, or does something in its own time.

    It may also have `receives`: whether something outside the machine, a keyboard say, could make
    it interrupt the guest now.  As long as one does, a guest in HLT is waited for; a device that
    drives a line and does not say, could at any time.
    """

    @property
    def name(self) -> str:
        """What messages and `Bus.remove` call it."""

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None, /) -> None:
        """Take these, and keep what is needed.  Called before the device is put in its place.

        `clock` is None in a machine whose timers do not run (``irqchip="none"``).
        """
