"""What a device is to the bus, and where it stands."""

from __future__ import annotations

from operator import index

from pykvm.errors import ConfigError
from pykvm.layout import CASCADE_IRQ, ISA_IRQS
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import integer, show, unsigned, wrong
from pykvm.values.enumeration import Enum
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Device",
    "NamedDevice",
    "Placement",
    "PostedDevice",
    "Readable",
    "Space",
    "Writable",
    "check_device",
    "check_irq",
    "check_placement",
    "odd_answer",
]


_IRQS = "a PC's devices have interrupts 0 to 15 but 2"


class Space(Enum):
    """The two address spaces that a device can stand in."""

    PIO = "port"
    MMIO = "address"

    @property
    def bits(self) -> int:
        """How many bits an address has."""
        return 16 if self is Space.PIO else 64

    @property
    def size(self) -> int:
        """How many addresses it has; an access past the last goes on at 0."""
        return 1 << self.bits


class Readable(Protocol):
    """A device that answers reads.

    Without `read`, reads give all ones, as from an empty bus.
    """

    @property
    def name(self) -> str:
        """What messages and `Bus.remove` call it."""

    def read(self, offset: int, size: int, /) -> int:
        """The value of `size` bytes (1, 2, 4 or 8) at `offset`, little-endian.

        Of what is returned, the low `size` bytes count: a device may give a whole register.
        """


class Writable(Protocol):
    """A device that takes writes.

    Without `write` and `posted`, writes are ignored.
    """

    @property
    def name(self) -> str:
        """What messages and `Bus.remove` call it."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Take `value`, of `size` bytes (1, 2, 4 or 8), at `offset`."""


class PostedDevice(Protocol):
    """A device whose writes are posted: collected while the guest runs, and delivered in bulk.

    For devices that only record.  They get every write, in order, before Python sees the next
    exit, and cannot stop the guest at one of them.
    """

    @property
    def name(self) -> str:
        """What messages and `Bus.remove` call it."""

    def posted(self, writes: Sequence[tuple[int, int, int]], /) -> None:
        """Take `writes`: (offset, size, value) each, oldest first."""


# Any of the three will do.  A device may also say `width`, the most bytes it takes at once (1, 2, 4
# or 8, else 8): the bus splits larger accesses, as an ISA bus does for an 8-bit card.  One that
# hands out much data through a port may have `read_string(offset, size, count)` beside `read`: it
# gives the bytes of `count` reads at once.
Device = Readable | Writable | PostedDevice


class NamedDevice:
    """The repr of pykvm's own devices: class, name and a few words on the state.

    >>> class Lamp(NamedDevice):
    ...     name = "lamp"
    ...
    ...     def _summary(self) -> str:
    ...         return "on"
    >>> Lamp()
    <Lamp lamp: on>
    """

    name: str

    def _summary(self) -> str:
        """What to say beside the name; empty for nothing."""
        return ""

    def __repr__(self) -> str:
        # A device that is half made, as in a traceback of its `__init__`, has no name yet.
        name = getattr(self, "name", "")
        return f"<{f'{type(self).__name__} {name}: {self._summary()}'.rstrip(': ')}>"


class Placement(NamedTuple):
    """A device and where it is to stand: `length` addresses of `space` from `address` on.

    `offset` is what the device sees at `address`, for a device with registers in several places.
    `irq` is the ISA interrupt (0 to 15 but 2) that it drives, by a line that its `attach` gets
    (`pykvm.devices.line`); it stands in one of its placements, or in all.
    """

    device: Device
    space: Space
    address: int
    length: int
    offset: int = 0
    irq: int | None = None

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name


def placed(
    device: Device, *, pio: int | None, mmio: int | None, length: int | None, irq: int | None
) -> Placement:
    """The placement that these ask for.  Raises ConfigError unless they do."""
    name = check_device(device)
    if (pio is None) == (mmio is None):
        raise ConfigError(f"device {name}: give either pio= or mmio=")
    size = length if length is not None else getattr(device, "length", None)
    if size is None:
        raise ConfigError(
            f"device {name}: length= is missing",
            hint="say how many ports or bytes it takes, or give the device a `length`",
        )
    if mmio is not None:
        return Placement(device, Space.MMIO, mmio, size, irq=irq)
    assert pio is not None
    return Placement(device, Space.PIO, pio, size, irq=irq)


def check_placement(placement: Placement) -> None:
    """Raise ConfigError unless it is one, of something with a name, at addresses that there are."""
    if not isinstance(placement, Placement):
        raise wrong(
            "each of the devices",
            "a Placement",
            placement,
            hint="as Placement(device, Space.PIO, 0x80, 1)",
        )
    name, space = check_device(placement.device), placement.space
    if not isinstance(space, Space):
        raise wrong(f"{name}: space", "Space.PIO or Space.MMIO", space)
    first, length, offset = placement.address, placement.length, placement.offset
    if not (
        type(first) is type(length) is type(offset) is int
        and 0 <= first < first + length <= space.size
        and 0 <= offset < 1 << 64
    ):
        first = unsigned(f"{name}: the first {space.value}", first, space.bits)
        integer(f"{name}: length", length, 1, space.size - first)
        unsigned(f"{name}: offset", offset, 64)
    if placement.irq is not None:
        check_irq(f"{name}: irq", placement.irq)
        if not hasattr(placement.device, "attach"):
            raise ConfigError(
                f"device {name} drives no interrupt: irq={placement.irq} is of no use to it",
                hint="give it attach(self, lines, memory, clock), and have it keep lines.own",
            )


def check_irq(what: str, irq: object) -> int:
    """`irq`, if that is an ISA interrupt for a device.  Raises ConfigError."""
    number = integer(what, irq, 0, ISA_IRQS - 1, hint=_IRQS)
    if number == CASCADE_IRQ:
        raise ConfigError(f"{what}={number}: the second 8259 has it", hint=_IRQS)
    return number


def check_device(device: Device) -> str:
    """The device's name.  Raises ConfigError if it has none."""
    if isinstance(device, type):
        raise ConfigError(
            f"{device.__name__} is a class, and no device yet",
            hint=f"make one: {device.__name__}()",
        )
    name = getattr(device, "name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"{show(device)} is no device: it has no name", hint="give it one: name = 'sensor'"
        )
    return name


def odd_answer(device: str, answer: object) -> int:
    """What a device returned from `read`, if that stands for an int.  Raises ConfigError."""
    try:
        return index(answer)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(
            f"device {device} answered a read with {show(answer)}",
            hint="read(offset, size) has to return an int",
        ) from None
