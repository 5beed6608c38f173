"""Whether this host can go on with the guest of a machine that comes from a file."""

from __future__ import annotations

from pykvm.errors import LoadError
from pykvm.host.record import HostRecord, check_host
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import System
    from pykvm.machine.board import Board
    from pykvm.machine.guest import Guest
    from pykvm.machine.snapshot import Snapshot

__all__ = ["fit"]


def fit(saved: Snapshot, guest: Guest, system: System, board: Board) -> Guest:
    """Check this host, and show the board's vCPUs the CPUID tables that the guest knows.

    Raises HostError with all that the guest would miss here.  If it was loaded by force, these are
    remarks of the guest that this returns.
    """
    origin = saved.origin
    assert origin is not None
    here = HostRecord.of(
        system,
        shown=bytes(board.vcpus[0].kvm.get_cpuid2_packed()),
        irqchip=guest.irqchip,
        tsc_khz=board.vcpus[0].kvm.get_tsc_khz(),
        tsc_movable=board.clock.tsc_movable,
    )
    missing = check_host(origin.host, here, origin.path, force=origin.force)
    _check_devices(saved, board)
    for cpu, table in zip(board.vcpus, saved.cpuid, strict=True):
        if bytes(cpu.kvm.get_cpuid2_packed()) != table:
            cpu.kvm.set_cpuid2(table)
    return guest._replace(remarks=guest.remarks + missing)


def _check_devices(saved: Snapshot, board: Board) -> None:
    """Raise LoadError for the state of a device that is not there."""
    there = {placement.name for placement in saved.placements} | board.irqchip_names
    unknown = [entry.name for entry in saved.state.devices if entry.name not in there]
    if unknown:
        raise LoadError(f"{saved.origin and saved.origin.path}: no place for {', '.join(unknown)}")
