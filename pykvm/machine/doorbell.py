"""Guest writes that KVM turns into a write to an eventfd: `Machine.ioeventfd`."""

from __future__ import annotations

from functools import partial

from pykvm.bus import Space
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.machine.board import Board

__all__ = ["ring"]

_LENGTHS = {Space.PIO: (1, 2, 4), Space.MMIO: (1, 2, 4, 8)}


def ring(
    board: Board, fd: int, *, pio: int | None, mmio: int | None, length: int, value: int | None
) -> Callable[[], None]:
    """See `Machine.ioeventfd`."""
    fd = checks.integer("fd", fd, 0, 0x7FFF_FFFF)
    if (pio is None) == (mmio is None):
        raise ConfigError("ioeventfd: give either pio= or mmio=")
    space, address = (Space.PIO, pio) if mmio is None else (Space.MMIO, mmio)
    address = checks.unsigned("pio" if mmio is None else "mmio", address, space.bits)
    length = checks.integer("length", length)
    checks.one_of("length", length, _LENGTHS[space])
    if value is not None:
        value = checks.unsigned("value", value, 8 * length)
    vm = board.vm
    assert vm is not None
    assign = partial(vm.ioeventfd, fd, address, length, pio=space is Space.PIO, datamatch=value)
    assign()
    assigned = [True]

    def end() -> None:
        if assigned and not board.claim.closed:
            assign(deassign=True)
            assigned.clear()

    return end
