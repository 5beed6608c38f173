"""What devices get by `attach`: interrupt lines, guest memory and guest time.

An irqchip in software is made when the guest first touches it.  Until then a line only remembers
its level, and the clock makes nothing before a device asks it for something: devices that a guest
leaves alone cost nothing.
"""

from __future__ import annotations

from _thread import RLock

from pykvm.bus.device import NamedDevice
from pykvm.devices.line import Unconnected, restore_level
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pykvm.bus import Device, Placement
    from pykvm.clock import Clock, Timer, TimeSource
    from pykvm.devices.line import InterruptLine
    from pykvm.irqchip.base import IrqChip
    from pykvm.memory import GuestMemory

__all__ = ["Attachments", "DeviceLines", "KeptLine", "LateClock", "LateLine"]


class LateLine:
    """A line to an irqchip that is made later: it has, from then on, the level that it has now."""

    __slots__ = ("_level", "_line", "_lock", "irq")

    def __init__(self, irq: int) -> None:
        self.irq = irq
        self._level = False
        self._line: InterruptLine | None = None
        # Re-entrant: what a line leads to may come back to its device.
        self._lock = RLock()

    def set(self, level: bool) -> None:
        """Drive it high or low, from any thread."""
        with self._lock:
            self._level = bool(level)
            if self._line is not None:
                self._line.set(self._level)

    def restore(self, level: bool) -> None:
        """Have that level, and drive nothing."""
        with self._lock:
            self._level = level
            if self._line is not None:
                restore_level(self._line, level)

    def connect(self, line: InterruptLine) -> None:
        """Let it lead to `line`."""
        with self._lock:
            self._line = line
            if self._level:
                line.set(True)


class KeptLine:
    """A line whose level is part of a snapshot, for a device that does not keep it by itself."""

    __slots__ = ("_line", "level")

    def __init__(self, line: InterruptLine) -> None:
        self._line = line
        self.level = False

    def set(self, level: bool) -> None:
        """Drive it high or low, from any thread."""
        self.level = bool(level)
        self._line.set(self.level)

    def restore(self, level: bool) -> None:
        """Have that level, and drive nothing."""
        self.level = level
        restore_level(self._line, level)


class LateClock:
    """The machine's clock, as a `TimeSource`, where it may not exist yet.

    `now` makes it; `timer` also makes the irqchip, without which a run looks at no timer.
    """

    def __init__(self, clock: Callable[[], Clock], make_irqchip: Callable[[], object]) -> None:
        self._clock = clock
        self._make_irqchip = make_irqchip
        #: The clock, once it is made.
        self.source: Clock | None = None

    @property
    def made(self) -> bool:
        """See `TimeSource`."""
        return self.source is not None

    def now(self) -> int:
        """See `TimeSource`."""
        return (self.source or self._clock()).now()

    def timer(self, callback: Callable[[int], None], queue: int = 0) -> Timer:
        """See `TimeSource`."""
        self._make_irqchip()
        return self._clock().timer(callback, queue)


class DeviceLines:
    """The `Lines` of one device, placed with `irq`.

    With `keeps` the device restores their levels by itself.
    """

    def __init__(
        self, irq: int | None, connect: Callable[[int], InterruptLine], *, keeps: bool = False
    ) -> None:
        self.irq = irq
        self._connect = connect
        self._keeps = keeps
        self._own: InterruptLine | None = None
        #: Every line that the device has asked for.
        self.taken: tuple[InterruptLine, ...] = ()

    @property
    def own(self) -> InterruptLine:
        """See `Lines`."""
        if self._own is None:
            self._own = Unconnected() if self.irq is None else self.isa(self.irq)
        return self._own

    def isa(self, irq: int) -> InterruptLine:
        """See `Lines`."""
        line = self._connect(irq)
        if not self._keeps:
            line = KeptLine(line)
        self.taken = (*self.taken, line)
        return line

    @property
    def levels(self) -> tuple[bool, ...]:
        """Those of the lines whose level the device does not keep."""
        return tuple(line.level for line in self.taken if isinstance(line, KeptLine))

    def restore(self, levels: tuple[bool, ...]) -> None:
        """Let the lines have these levels; one that was taken since was low."""
        for number, line in enumerate(self.taken):
            if isinstance(line, KeptLine):
                line.restore(number < len(levels) and levels[number])


class Attachments:
    """The devices of a machine that have `attach`, and what they were given."""

    def __init__(self, memory: GuestMemory, clock: Callable[[], Clock]) -> None:
        self._memory = memory
        self._irqchip: IrqChip | None = None
        self._clock = clock
        self._late_clock = LateClock(clock, self._make_irqchip)
        self._late_lines: list[LateLine] = []
        # Those of `Machine.line`; no device is called so.
        self._host_lines = DeviceLines(None, self._line)
        # By name.  Replaced as a whole: another thread may be looking.
        self._devices: dict[str, tuple[Device, DeviceLines]] = {}

    def use(self, irqchip: IrqChip) -> None:
        """Lines lead to this irqchip."""
        self._irqchip = irqchip

    @property
    def names(self) -> frozenset[str]:
        """Those of the devices that are attached."""
        return frozenset(self._devices)

    def add(self, placements: Iterable[Placement]) -> None:
        """Attach the devices of `placements` that are not yet.

        Raises ConfigError for a device that was placed with two interrupts, and what `attach` does.
        """
        placed: dict[str, tuple[Device, int | None]] = {}
        for placement in placements:
            device, irq = placement.device, placement.irq
            # Not isinstance, which for a protocol costs 20 us, and there are many devices.
            if hasattr(device, "attach"):
                name = device.name
                before = placed.get(name, (device, self.irq_of(name)))[1]
                if irq is not None and before is not None and irq != before:
                    raise ConfigError(f"device {name} has irq={before} already, not {irq}")
                placed[name] = device, before if irq is None else irq
        for name, (device, irq) in placed.items():
            if name not in self._devices:
                self._attach(name, device, irq)

    def irq_of(self, name: str) -> int | None:
        """The interrupt that the device of this name was placed with, if any."""
        known = self._devices.get(name)
        return None if known is None else known[1].irq

    def _attach(self, name: str, device: Device, irq: int | None) -> None:
        lines = DeviceLines(irq, self._line, keeps=isinstance(device, NamedDevice))
        self._devices = {**self._devices, name: (device, lines)}
        device.attach(lines, self._memory, self._time_source())  # type: ignore[union-attr]

    def remove(self, name: str) -> None:
        """The device stands nowhere any more: its lines are low."""
        devices = dict(self._devices)
        known = devices.pop(name, None)
        self._devices = devices
        if known is not None:
            for line in known[1].taken:
                line.set(False)

    def keep(self, names: Collection[str]) -> None:
        """Remove all but these."""
        for name in self.names.difference(names):
            self.remove(name)

    def host_line(self, line: InterruptLine) -> InterruptLine:
        """`line`, for the host to drive: its level is kept beside those of the devices."""
        kept = KeptLine(line)
        self._host_lines.taken = (*self._host_lines.taken, kept)
        return kept

    def state(self) -> tuple[tuple[str, tuple[bool, ...]], ...]:
        """The levels of the lines whose devices do not keep them, by name; "" is the host."""
        by_name = [(name, lines) for name, (_, lines) in sorted(self._devices.items())]
        levels = ((name, lines.levels) for name, lines in (("", self._host_lines), *by_name))
        return tuple((name, of_device) for name, of_device in levels if of_device)

    def restore(self, state: tuple[tuple[str, tuple[bool, ...]], ...]) -> None:
        """Let the lines have these levels, and drive none."""
        known = dict(state)
        self._host_lines.restore(known.get("", ()))
        for name, (_, lines) in self._devices.items():
            lines.restore(known.get(name, ()))

    def waits_for_host(self) -> bool:
        """Whether something outside the machine may make a device interrupt the guest.

        A device that says nothing of it (`receives`) may have a thread of its own.
        """
        return any(
            lines.taken and getattr(device, "receives", True)
            for device, lines in self._devices.values()
        )

    def _line(self, irq: int) -> InterruptLine:
        irqchip = self._irqchip
        if irqchip is None:
            return Unconnected()
        if irqchip.interrupts is not None:
            return irqchip.line(irq)
        line = LateLine(irq)
        self._late_lines.append(line)
        return line

    def _time_source(self) -> TimeSource | None:
        if self._irqchip is None:
            return None
        return self._late_clock if self._irqchip.interrupts is None else self._clock()

    def _make_irqchip(self) -> None:
        if self._irqchip is not None:
            self._irqchip.make()

    def irqchip_made(self, irqchip: IrqChip) -> None:
        """It is no placeholder any more: connect what was attached before."""
        lines, self._late_lines = self._late_lines, []
        for line in lines:
            line.connect(irqchip.line(line.irq))

    def clock_made(self, clock: Clock) -> None:
        """The machine has its clock."""
        self._late_clock.source = clock
