"""The guest's time-stamp counter, as arithmetic on the host's.

Source: Intel SDM Vol. 3B, "Time-Stamp Counter" (18.17) and "IA32_TSC_ADJUST MSR" (18.17.3).

All vCPUs read ``host TSC x ratio + offset``, the sum that KVM has the processor do
(KVM_SET_TSC_KHZ, KVM_VCPU_TSC_OFFSET), plus what each has in its own IA32_TSC_ADJUST.  Where the
host ignores an offset, the counter is not `movable`: guests read the host's, and so does this
model, whatever they write.  Where KVM moves the offset itself (a host whose TSC is unstable), it is
asked for each reading.
"""

from __future__ import annotations

from pykvm.errors import ConfigError, HostError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer, unsigned

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Tsc", "signed"]

_LIMIT = 1 << 64
_NS_PER_MS = 1_000_000  # kHz times nanoseconds is millionths of a tick


def signed(value: int) -> int:
    """`value` modulo 2**64, as a signed number of 64 bits.

    >>> signed(2**64 - 1)
    -1
    """
    return (value + (_LIMIT >> 1)) % _LIMIT - (_LIMIT >> 1)


class Tsc:
    """One counter for all vCPUs, and each one's IA32_TSC_ADJUST.

    It counts from 0 when it is made, as at RESET, if it is `movable`.  `host` reads the host's TSC,
    which runs at `host_khz`; the guest's runs at `khz`.  Not thread-safe: `pykvm.clock.Clock` keeps
    it under its lock.  `of_kvm` reads the counter of a vCPU, where KVM keeps the offset.

    Raises ConfigError for a frequency that is not positive, or another than the host's for a
    counter that cannot be moved.

    >>> tsc = Tsc(lambda: 5_000, khz=2_000_000, host_khz=1_000_000)
    >>> tsc.read(), tsc.offset
    (0, -10000)
    """

    def __init__(
        self,
        host: Callable[[], int],
        *,
        khz: int,
        host_khz: int,
        movable: bool = True,
        of_kvm: Callable[[int], int] | None = None,
    ) -> None:
        if khz <= 0 or host_khz <= 0:
            raise ConfigError(f"a TSC frequency is above 0 kHz, not {min(khz, host_khz)}")
        if khz != host_khz and not movable:
            raise ConfigError(
                f"the TSC cannot run at {khz} kHz: this host's KVM shows guests its own, "
                f"which runs at {host_khz} kHz"
            )
        self.khz = khz
        self.host_khz = host_khz
        self.movable = movable
        self._host = host
        self._of_kvm = of_kvm
        self._offset = 0
        self._stopped_at: int | None = None
        self._skipped = 0
        self._adjust: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """RESET: the counter and every IA32_TSC_ADJUST are 0.  INIT leaves both alone."""
        self._adjust.clear()
        if self.movable:
            self.offset = -self._scaled()

    def _scaled(self) -> int:
        ticks = self._host()
        return ticks if self.khz == self.host_khz else ticks * self.khz // self.host_khz

    def _shared(self) -> int:
        """What a vCPU reads that has nothing in its IA32_TSC_ADJUST."""
        if self._stopped_at is not None:
            return self._stopped_at
        return self._scaled() + self._offset

    def _own(self, cpu: int) -> int:
        return self._adjust.get(cpu, 0) if self.movable else 0

    def read(self, cpu: int = 0, away: int = 0) -> int:
        """What RDTSC gives on vCPU `cpu`, `away` nanoseconds from now."""
        here = self._shared() + self._own(cpu) if self._of_kvm is None else self._of_kvm(cpu)
        return (here + self._ticks(away)) % _LIMIT

    def until(self, cpu: int, value: int) -> int:
        """In how many nanoseconds vCPU `cpu` reads `value`, rounded up; negative if it has."""
        return -((self.read(cpu) - value) * _NS_PER_MS // self.khz)

    def _ticks(self, ns: int) -> int:
        return ns * self.khz // _NS_PER_MS

    @property
    def offset(self) -> int:
        """What is added to the host's TSC times the ratio, signed; while stopped, as of now."""
        if self._stopped_at is not None:
            return signed(self._stopped_at - self._scaled())
        return signed(self._offset)

    @offset.setter
    def offset(self, offset: int) -> None:
        if offset and not self.movable:
            raise HostError(
                f"the TSC cannot be offset by {offset}: this host's KVM shows guests its own",
                hint="devices keep guest time all the same; `pykvm info` lists what KVM lacks",
            )
        if self._stopped_at is not None:
            self._stopped_at = self._scaled() + offset
        else:
            self._offset = offset

    def offset_of(self, cpu: int) -> int:
        """The whole offset of vCPU `cpu` as KVM_VCPU_TSC_OFFSET takes it: modulo 2**64."""
        return (self.offset + self._own(cpu)) % _LIMIT

    def stop(self) -> None:
        """Stand still until `start`, if it can.  Stopping twice is harmless."""
        if self.movable and self._stopped_at is None:
            self._stopped_at = self._shared()

    def start(self) -> None:
        """Go on from where it stopped."""
        if self._stopped_at is not None:
            self._offset = self._stopped_at - self._scaled()
            self._stopped_at = None

    def skip(self, ns: int) -> None:
        """Jump forward by `ns` nanoseconds, if it can.  Fractions of a tick add up over jumps."""
        if not self.movable:
            return
        step = self._ticks(self._skipped + ns) - self._ticks(self._skipped)
        # A whole ms has whole ticks.
        self._skipped = (self._skipped + ns) % _NS_PER_MS
        if self._stopped_at is not None:
            self._stopped_at += step
        else:
            self._offset += step

    def state(self) -> tuple[int | None, tuple[tuple[int, int], ...], int]:
        """The counter, if it is ours to move, every IA32_TSC_ADJUST, what skips have left over."""
        counter = self._shared() % _LIMIT if self.movable else None
        return counter, tuple(sorted(self._adjust.items())), self._skipped

    def restore(
        self, counter: int | None, adjust: tuple[tuple[int, int], ...], skipped: int
    ) -> None:
        """Be what `state` gave, from now on.  Raises ConfigError for what it cannot have given."""
        unsigned("IA32_TSC_ADJUST", max((value for _, value in adjust), default=0), 64)
        skipped = integer("what skips have left over", skipped, 0, _NS_PER_MS - 1)
        self._adjust = dict(adjust)
        self._skipped = skipped
        if counter is None or not self.movable:
            return
        if self._stopped_at is not None:
            self._stopped_at = counter
        else:
            self._offset = counter - self._scaled()

    def adjust(self, cpu: int) -> int:
        """What RDMSR of IA32_TSC_ADJUST gives on vCPU `cpu`."""
        return self._adjust.get(cpu, 0)

    def write_adjust(self, cpu: int, value: int) -> None:
        """WRMSR of IA32_TSC_ADJUST: the vCPU's counter moves by as much as the MSR does."""
        self._adjust[cpu] = value % _LIMIT

    def write(self, cpu: int, value: int) -> None:
        """WRMSR of IA32_TSC: the vCPU's IA32_TSC_ADJUST moves by as much as the counter does."""
        self._adjust[cpu] = (self.adjust(cpu) + value - self.read(cpu)) % _LIMIT
