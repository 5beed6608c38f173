"""What a machine gives a device by `attach`, for tests without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.clock import TimeSource
    from pykvm.devices.line import Attaching, InterruptLine

__all__ = ["attach", "isa_lines"]


class _Lines:
    def __init__(
        self, own: InterruptLine | None, isa: Callable[[int], InterruptLine] | None = None
    ) -> None:
        self.irq = None if own is None else 4
        self._own = own
        self._isa = isa

    @property
    def own(self) -> InterruptLine:
        assert self._own is not None, "the device was placed without irq="
        return self._own

    def isa(self, irq: int, /) -> InterruptLine:
        assert self._isa is not None
        return self._isa(irq)


def attach(
    device: Attaching,
    line: InterruptLine | None = None,
    *,
    clock: TimeSource | None = None,
    memory: Any = None,
) -> None:
    """Attach a device to its line, if it has one, and to these."""
    device.attach(_Lines(line), memory, clock)


def isa_lines(device: Attaching, isa: Callable[[int], InterruptLine]) -> None:
    """Attach a device that drives ISA lines of the guest's choice."""
    device.attach(_Lines(None, isa), None, None)  # type: ignore[arg-type]
