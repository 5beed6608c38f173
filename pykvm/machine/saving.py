"""From a machine to its snapshot and back: what is saved, and in which order it is put back.

The order and its reasons are in docs/snapshots.md.
"""

from __future__ import annotations

import time

from pykvm.bus import Placement
from pykvm.errors import ConfigError, StateError
from pykvm.irqchip.tsc_offset import follow_tsc_writes, show_tscs
from pykvm.machine.snapshot import DeviceState, MachineState, PlaceState, Snapshot
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.saving import at_one_time, load
from pykvm.x86.registers import CR0

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pykvm.bus import Device
    from pykvm.machine.board import Board
    from pykvm.machine.listening import ConsoleState
    from pykvm.quirks.derived_mappings import DerivedMappings
    from pykvm.vcpu import CPU
    from pykvm.vcpu.saved import VcpuState

__all__ = ["capture", "clones", "put_back"]

_SECOND = 1_000_000_000


def capture(board: Board, console: ConsoleState) -> MachineState:
    """What there is of a machine beside its memory.

    No vCPU runs, and none stops at an exit that was not handled.  Raises StateError for a device
    that does not say what its state is.
    """
    board.dispatch.deliver()
    # KVM_GET_MP_STATE has KVM take the INITs and start-up IPIs that wait at a local APIC: first.
    cpus = at_one_time(tuple(cpu.save() for cpu in board.vcpus))
    follow_tsc_writes(board.vcpus, board.clock)
    clock = board.clock.state()
    irqchip = board.irqchip.state() if board.irqchip is not None else None
    return MachineState(
        clock=clock,
        cpus=cpus,
        irqchip=irqchip,
        lines=board.attachments.state(),
        devices=tuple(_states(sorted(board.devices.values(), key=lambda one: one.name))),
        places=tuple(map(_place_of, placements_of(board))),
        clocks=tuple(sorted(board.irqchip_names & board.devices.keys())),
        console=console,
    )


def _states(devices: Iterable[Device]) -> list[DeviceState]:
    states, mute = [], []
    for device in devices:
        if hasattr(device, "state") and hasattr(device, "restore"):
            states.append(DeviceState(device.name, device.state()))
        elif getattr(device, "stateless", False):
            states.append(DeviceState(device.name, None))
        else:
            mute.append(device.name)
    if mute:
        raise StateError(
            f"no snapshot without the state of {', '.join(mute)}",
            hint="a device says what its state is by state() and restore(state), or has "
            "`stateless = True` (docs/devices.md)",
        )
    return states


def placements_of(board: Board) -> tuple[Placement, ...]:
    """The devices on the bus and their places, but for those of the irqchip, which has its own."""
    own = board.irqchip_names
    return tuple(
        Placement(
            range_.device,
            range_.space,
            range_.first,
            range_.last - range_.first + 1,
            range_.offset,
            board.attachments.irq_of(range_.name),
        )
        for range_ in board.bus.ranges
        if range_.name not in own
    )


def _place_of(placement: Placement) -> PlaceState:
    irq = -1 if placement.irq is None else placement.irq
    return PlaceState(
        placement.name,
        placement.space.value,
        placement.address,
        placement.length,
        placement.offset,
        irq,
    )


def put_back(
    board: Board,
    saved: Snapshot,
    derived: DerivedMappings | None,
    *,
    anew: bool,
    same_bus: bool,
    wall: str,
) -> None:
    """Make a machine what it was when `saved` was taken; no vCPU runs.

    `derived` is what KVM knows of this guest's page tables: None before the first run.
    With `same_bus` the devices stand where they stood.  If an exception interrupts it, it may be
    called again, with `anew`.
    """
    state = saved.state
    # What the guest has written since is of no time that it will remember.
    board.dispatch.discard()
    if not same_bus:
        # Before memory: a device may stand where memory was.
        _replace_devices(board, saved)
    if anew:
        # The bus may have changed without the vCPUs.
        board.follow_bus()
    _thaw(board, saved, derived, anew=anew)
    catch_up = 0 if wall == "keep" else max(round((time.time() - saved.taken) * _SECOND), 0)
    # Deadlines are times of this clock, and the TSC is made of it.
    board.clock.restore(state.clock, catch_up=catch_up)
    clock = board.clock
    for cpu, of_cpu in zip(board.vcpus, state.cpus, strict=True):
        # KVM computes the time of a TSC deadline when the deadline is set, by the offset of then.
        load(cpu, of_cpu, clock.vcpu_tsc_offset(cpu.index) if clock.tsc_movable else None)
    board.was_reset = True
    _show_time(board)
    if state.irqchip is not None and board.irqchip is not None:
        # Placeholders have no state: the devices that stand for them do.
        board.irqchip.make()
    for entry in state.devices:
        if entry.state is not None:
            device: Any = board.devices[entry.name]
            # To compare is cheaper: a device that is restored publishes all its registers anew.
            # And `==` is cheaper than `!=`, which a class that has only `__eq__` makes of it.
            if anew or not device.state() == entry.state:  # noqa: SIM201
                device.restore(entry.state)
    board.attachments.restore(state.lines)
    # Over the local APICs, which those in KVM send to, and over the lines, whose levels they know.
    if board.irqchip is not None:
        board.irqchip.restore(state.irqchip)


def _show_time(board: Board) -> None:
    """Guest time was set: what KVM shows of it has to follow.

    Where time stands still, that waits for the next run: until its `restore` the irqchip has the
    timers of the last one.
    """
    show_tscs(board.vcpus, board.clock)
    if board.irqchip is not None and board.clock.running:
        board.irqchip.resume()


def _thaw(board: Board, saved: Snapshot, derived: DerivedMappings | None, *, anew: bool) -> None:
    """Put memory back, and have no processor translate by page tables that are no more.

    With `anew` an exception may have come after the copy and before that.
    """
    if derived is None:
        board.memory.thaw(saved.memory)
        return
    flush = derived.may_be_stale()
    copied = board.memory.thaw(saved.memory, flush=flush)
    if copied and flush:
        derived.forgotten()
    elif (copied or anew) and not derived.are_counted:
        # That they changed is not seen: neither the guest nor KVM has written them.
        for cpu, of_cpu in zip(board.vcpus, saved.state.cpus, strict=True):
            if _has_paging(cpu, of_cpu):
                cpu.engine.forget_translations()


def _has_paging(cpu: CPU, saved: VcpuState) -> bool:
    """Whether a vCPU translates by page tables, now or when it was saved."""
    return bool((saved.cr0 | cpu.engine.sregs().cr0) & CR0.PG)


def _replace_devices(board: Board, saved: Snapshot) -> None:
    """Put the devices back on the bus that stood there, and take others off it."""
    for name in (board.irqchip_names & board.devices.keys()).difference(saved.state.clocks):
        board.remove(name)
    wanted, here = (_by_name(places) for places in (saved.placements, placements_of(board)))
    for name in board.devices.keys() - here.keys() - board.irqchip_names:
        # An exception came while it was taken off the bus.
        board.forget_device(name)
    for name, places in here.items():
        if not _same_places(places, wanted.get(name, [])):
            board.remove(name)
    for name, places in wanted.items():
        if name not in board.devices:
            board.place(places)


def _by_name(placements: Iterable[Placement]) -> dict[str, list[Placement]]:
    names: dict[str, list[Placement]] = {}
    for placement in placements:
        names.setdefault(placement.name, []).append(placement)
    return names


def _same_places(some: list[Placement], others: list[Placement]) -> bool:
    """Whether a device stands where another one of its name does."""
    return {_place_of(place) for place in some} == {_place_of(place) for place in others}


def clones(
    saved: Snapshot, made: Iterable[Placement], given: Iterable[Placement]
) -> list[Placement]:
    """The placements of a new machine: those that are `made` for it or `given`, else clones.

    Raises ConfigError for a device that is none of these.
    """
    fresh = {placement.name: placement.device for placement in made}
    fresh |= {placement.name: placement.device for placement in given}
    placements, missing = [], []
    for old in saved.placements:
        if old.name not in fresh and hasattr(old.device, "clone"):
            fresh[old.name] = old.device.clone()
        if old.name in fresh:
            placements.append(old._replace(device=fresh[old.name]))
        elif old.name not in missing:
            missing.append(old.name)
    if missing:
        raise ConfigError(
            f"no second {', '.join(missing)} for another machine",
            hint="give a device clone(), which returns a new one of its kind, or pass one of that "
            "name: fork(devices=[Placement(...)])",
        )
    return placements
