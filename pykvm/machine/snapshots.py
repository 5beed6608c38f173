"""The snapshots of one machine: taking them, and going back to one."""

from __future__ import annotations

from functools import partial

from pykvm.errors import ConfigError, StateError
from pykvm.machine.saving import capture, placements_of, put_back
from pykvm.machine.snapshot import Snapshot
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import one_of, wrong
from pykvm.vcpu.saving import show_all_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pykvm.boot import Entry
    from pykvm.machine.board import Board
    from pykvm.machine.guest import Guest
    from pykvm.machine.runs import Runs
    from pykvm.quirks.derived_mappings import DerivedMappings

    T = TypeVar("T")

__all__ = ["WALL", "Snapshots", "check_snapshot", "check_wall"]

#: What a reset may do to the guest's clocks.
WALL = ("keep", "host")


def check_snapshot(saved: object) -> None:
    """Raise ConfigError unless it is one."""
    if not isinstance(saved, Snapshot):
        raise wrong("saved", "a Snapshot, as machine.snapshot() takes one", saved)


def check_wall(wall: object) -> None:
    """Raise ConfigError unless it is one of `WALL`."""
    one_of("wall", wall, WALL)


class Snapshots:
    """Takes and puts back the state of a machine that is not running."""

    def __init__(
        self,
        board: Board,
        guest: Guest,
        entry: Entry | None,
        runs: Runs,
    ) -> None:
        self._board = board
        self._guest = guest
        self._entry = entry
        self._runs = runs
        #: The one that the machine was in last: the parent of the next.
        self.last: Snapshot | None = None
        # One that a reset was to bring back, and has not wholly.
        self._unfinished: Snapshot | None = None
        # The last one that a reset went to, and the ranges of the bus after that.
        self._stood: tuple[Snapshot, object] | None = None
        self._events_shown = False
        self._derived_made: DerivedMappings | None = None
        #: What the snapshots of this machine have in common with those of its forks.
        self.family = object()
        self._tables: tuple[bytes, ...] = ()
        runs.check = self._check_whole

    def take(self) -> Snapshot:
        """See `Machine.snapshot`."""
        return self._alone("a snapshot is taken", self._take)

    def begin(self, saved: Snapshot, wall: str) -> None:
        """Make a new machine what `saved` is, and one of its family."""
        self.family = saved.family
        # Of a VM that never ran KVM has derived nothing: this host need not be asked for a quirk.
        self._alone("a machine begins", partial(self._reset, saved, wall, is_new=True))

    def reset(self, saved: Snapshot | None, wall: str) -> None:
        """See `Machine.reset`."""
        if saved is not None:
            check_snapshot(saved)
        check_wall(wall)
        saved = saved or self._unfinished or self.last
        if saved is None:
            raise StateError(
                "this machine has no snapshot to be reset to",
                hint="take one where it is to come back to: saved = machine.snapshot()",
            )
        if saved.family is not self.family:
            raise ConfigError(
                f"{saved!r} is of another machine",
                hint="reset goes to snapshots of this machine, and to those that it was forked "
                "from; for others, saved.fork() makes a machine",
            )
        self._alone("a machine is reset", partial(self._reset, saved, wall))

    def prepare(self) -> None:
        """For states of vCPUs to be taken: have the exits at which the machine stands handled."""
        self._alone("a function of the guest's is called", self._prepare)

    def _prepare(self) -> None:
        self._check_whole()
        self._show_events()
        self._runs.settle()

    def _check_whole(self) -> None:
        """Raise StateError if a reset was interrupted and the machine is nothing whole."""
        if self._unfinished is not None:
            raise StateError(
                "the last reset of this machine was interrupted",
                hint="reset it again: machine.reset()",
            )

    def _alone(self, what: str, call: Callable[[], T]) -> T:
        claim = self._board.claim
        if claim.is_mine:
            raise StateError(
                f"{what} between two runs, and not from inside one (a device, on_exit, until)",
                hint="call stop() there, and do it where run() has returned",
            )
        if claim.running:
            raise StateError(
                f"{what} between two runs, and this machine is running in another thread",
                hint="stop() it, and do it once its run() has returned",
            )
        return claim.hold(call)

    def _take(self) -> Snapshot:
        self._prepare()
        board = self._board
        state = capture(board, self._runs.listening.state())
        memory = board.memory.freeze(None if self.last is None else self.last.memory)
        self.last = Snapshot(
            state,
            memory,
            family=self.family,
            guest=self._guest,
            entry=self._entry,
            placements=placements_of(board),
            parent=self.last,
            cpuid=self._cpuid(),
            tsc_movable=board.clock.tsc_movable,
        )
        return self.last

    def _cpuid(self) -> tuple[bytes, ...]:
        """The tables of the vCPUs, which stay what they are from the first run on."""
        if not self._tables:
            self._tables = tuple(bytes(cpu.kvm.get_cpuid2_packed()) for cpu in self._board.vcpus)
        return self._tables

    def _reset(self, saved: Snapshot, wall: str, *, is_new: bool = False) -> None:
        self._show_events()
        anew = self._unfinished is not None
        self._unfinished = saved
        # The table of ranges is a new one after each change.
        ranges = self._board.bus.by_slot
        same_bus = self._stood is not None and self._stood[0] is saved and self._stood[1] is ranges
        derived = None if is_new else self._derived()
        put_back(self._board, saved, derived, anew=anew, same_bus=same_bus, wall=wall)
        self._stood = saved, self._board.bus.by_slot
        self._runs.listening.restore(saved.state.console)
        self.last = saved
        self._unfinished = None

    def _show_events(self) -> None:
        """Once: have KVM show what of a vCPU it keeps to itself otherwise."""
        vm = self._board.vm
        if vm is not None and not self._events_shown:
            show_all_events(vm)
            self._events_shown = True

    def _derived(self) -> DerivedMappings:
        """Made for the first reset, which asks this host for a quirk."""
        if self._derived_made is None:
            from pykvm.quirks.derived_mappings import DerivedMappings

            assert self._board.vm is not None
            self._derived_made = DerivedMappings(self._board.vm)
        return self._derived_made
