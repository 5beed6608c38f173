"""The ACPI power management timer.

Source: ACPI Specification 6.5, section 4.8.3.3 "Power Management Timer (PM_TMR)" and 4.8.2.1
"Power Management Timer"; on a PC, the chipset's PM1 block at 0x600 has it at offset 8.

A counter at three times the 8254's frequency that cannot be stopped, written or reset.
`pykvm.devices.acpi_pm` has the interrupt at each change of its top bit (TMR_STS, 4.8.3.1.1).
"""

from __future__ import annotations

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import Counter, Rule
from pykvm.clock import ticks_at
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.bus.published import Published
    from pykvm.clock import TimeSource

__all__ = ["PM_TIMER_HZ", "AcpiPmTimer"]

PM_TIMER_HZ = 3_579_545
SECOND = 1_000_000_000  # ns


class AcpiPmTimer(NamedDevice):
    """PM_TMR: 4 bytes at offset 0, on a PC at port 0x608.

    It has 24 bits (it wraps after 4.7 s) or 32 (after 20 minutes), as the FADT's flag TMR_VAL_EXT
    says; E_TMR_VAL, the upper 8, is 0 with 24.

    >>> from pykvm.clock import Clock
    >>> clock = Clock("warp")
    >>> timer = AcpiPmTimer(clock)
    >>> clock.warp_to(1_000_000_000)
    >>> timer.read(0, 4)
    3579545
    """

    #: It is a function of guest time.
    stateless = True

    def __init__(self, clock: TimeSource, *, bits: int = 32, name: str = "pm-timer") -> None:
        """Raises ConfigError for another number of bits."""
        if bits not in (24, 32):
            raise ConfigError(f"{name}: a PM timer has 24 or 32 bits, not {bits}")
        self.name = name
        self.bits = bits
        self._clock = clock

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        published.lay_out([(0, 4)])
        if published.knows(self._clock):
            published.set(0, Rule(Counter(PM_TIMER_HZ, SECOND), mask=(1 << self.bits) - 1))

    @property
    def value(self) -> int:
        """What the timer counts now."""
        return ticks_at(self._clock.now(), PM_TIMER_HZ) & (1 << self.bits) - 1

    def read(self, offset: int, size: int) -> int:
        """`size` bytes of the count; past its 4 bytes there is nothing."""
        return self.value >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The timer is read-only: writes do nothing."""

    def reset(self) -> None:
        """RESET: the timer counts on."""

    def __str__(self) -> str:
        return f"{self.name}: {self.bits} bits at {self.value:#x}"
