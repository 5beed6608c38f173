"""A machine at one moment: `Machine.snapshot` takes it, `Machine.reset` goes back to it."""

from __future__ import annotations

import time

from pykvm.printable import printable
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.sizes import format_size
from pykvm.values.state import State

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any

    from pykvm.boot import Entry
    from pykvm.bus import Placement
    from pykvm.clock import ClockState
    from pykvm.host.record import HostRecord
    from pykvm.machine.config import MachineConfig
    from pykvm.machine.guest import Guest
    from pykvm.machine.listening import ConsoleState
    from pykvm.machine.machine import Machine
    from pykvm.memory.image import MemoryImage
    from pykvm.values.state import S64, U64, Plain
    from pykvm.vcpu.saved import VcpuState

__all__ = ["DeviceState", "MachineState", "Origin", "PlaceState", "Snapshot"]


class DeviceState(State):
    """What a device of that name said of itself; None for one that is `stateless`."""

    name: str
    state: Plain


class PlaceState(State):
    """Where on the bus a device stands; `irq` is -1 without one."""

    name: str
    space: str
    first: U64
    length: U64
    offset: U64
    irq: S64


class MachineState(State):
    """Everything of a machine but its memory.

    `lines` are the levels of the interrupt lines that devices and the host have, by who has them;
    `places` those of the devices that are not the irqchip's, `clocks` the names of the irqchip's.
    `console` is how far runs have listened to the guest.
    """

    clock: ClockState
    cpus: tuple[VcpuState, ...]
    irqchip: Plain
    lines: tuple[tuple[str, tuple[bool, ...]], ...]
    devices: tuple[DeviceState, ...]
    places: tuple[PlaceState, ...]
    clocks: tuple[str, ...]
    console: ConsoleState

    def at_rest(self) -> MachineState:
        """The same without what runs on by itself, to be compared."""
        irqchip: Any = self.irqchip
        if hasattr(irqchip, "at_rest"):
            irqchip = irqchip.at_rest()
        changed: MachineState = self.__replace__(
            irqchip=irqchip,
            clock=self.clock.__replace__(now=0, tsc=None),
            cpus=tuple(map(self._at_rest, self.cpus)),
        )
        return changed

    def _at_rest(self, cpu: VcpuState) -> VcpuState:
        cpu = cpu.at_rest()
        # The offset makes the host's TSC the clock's, and the host's runs on.
        return cpu if self.clock.tsc is None else cpu.__replace__(tsc_offset=None)


class Origin(NamedTuple):
    """Of a snapshot from a file: the file, the host that it was saved on, and `force` of `load`."""

    path: str
    host: HostRecord
    force: bool


class Snapshot:
    """Everything about a machine that its guest could ever notice, at one moment.

    ::

        saved = machine.snapshot()
        machine.run(until="done")
        machine.reset(saved)  # as if it had not run
        twin = saved.fork()  # a second machine that goes on from there

    `memory` is the guest's memory as it was, `state` all the rest as plain values; two snapshots
    whose `digest()` is equal look the same to the guest.  `parent` is the snapshot that the machine
    came from when this one was taken.  A snapshot is immutable and outlives its machine.  It takes
    the host as much memory as the guest has touched; one taken later from the same machine takes
    what has changed since.
    """

    def __init__(
        self,
        state: MachineState,
        memory: MemoryImage,
        *,
        family: object,
        guest: Guest,
        entry: Entry | None,
        placements: tuple[Placement, ...],
        parent: Snapshot | None,
        cpuid: tuple[bytes, ...],
        tsc_movable: bool,
    ) -> None:
        self.state = state
        self.memory = memory
        self.parent = parent
        #: When it was taken, in seconds since 1970.
        self.taken = time.time()
        #: Shared by the snapshots of one machine and of its forks.
        self.family = family
        self.guest = guest
        self.entry = entry
        #: The devices on the bus of the machine that it was taken from.
        self.placements = placements
        #: What CPUID shows on each vCPU, as struct kvm_cpuid2.
        self.cpuid = cpuid
        #: Whether the guest sees the TSC offset that KVM is given.
        self.tsc_movable = tsc_movable
        #: The file that it was saved to or loaded from last, and that one's id.
        self.file: tuple[str, str] | None = None
        #: Where it was loaded from.
        self.origin: Origin | None = None

    @property
    def config(self) -> MachineConfig:
        """What its machine was made from."""
        return self.guest.config

    def fork(self, *, devices: Iterable[Placement] = (), wall: str = "keep") -> Machine:
        """Make another machine that goes on from here.

        The memory of the two is shared until one of them writes it.

        The devices that pykvm has are made anew.  One of yours has ``clone()``, which returns a new
        device of its kind, or there is one of its name among `devices`.  `wall` is as for
        `Machine.reset`.

        Raises ConfigError, naming the device, if there is neither; HostError and KVMError.
        """
        from pykvm.machine.machine import Machine

        return Machine.from_snapshot(self, devices=devices, wall=wall)

    def save(self, path: str | os.PathLike[str], *, parent: Snapshot | None = None) -> None:
        """Write it to a file, which `load` reads, here or on another host.

        With `parent`, a snapshot that is in a file of the same directory, the file has what differs
        from that one, and needs it to be loaded.

        The file is there whole, and on the disk, or not at all; one that was there before stays as
        it was until then.  Guest memory may hold secrets: only its owner can read the file.

        Raises HostError if it cannot be written (ResourceError for want of memory or descriptors),
        ConfigError for a `parent` without a file, or a path that leads to no regular file.
        """
        from pykvm.machine.snapshot_writing import save

        save(self, path, parent)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, force: bool = False) -> Snapshot:
        """The snapshot in a file of `save`.

        ::

            with Machine.from_snapshot(Snapshot.load("booted.pykvm")) as machine:
                machine.run(timeout=5)

        Memory is mapped, and read as the guest uses it, so the file must stay as it is; `save`
        replaces files and never changes one.  Whether this host can go on with it is found when a
        machine is made of it: that raises HostError with all that the guest would miss here, unless
        `force` is set.

        Raises LoadError for a file that pykvm did not save, or one that is damaged or needs one
        that is not there; ResourceError.
        """
        from pykvm.machine.snapshot_file import load

        return load(path, force=force)

    def digest(self) -> str:
        """A hash of all of it but the time of day: clocks run on, and two looks at one differ."""
        import json
        from hashlib import blake2b

        from pykvm.values.state import encode

        times = [area for cpu in self.state.cpus for area in cpu.time_in_memory()]
        hashed = blake2b(self.memory.digest(but=times), digest_size=32)
        hashed.update(json.dumps(encode(self.state.at_rest()), sort_keys=True).encode())
        return hashed.hexdigest()

    def __repr__(self) -> str:
        name = printable(self.config.name) if self.config.image is not None else "a machine"
        count = len(self.state.cpus)
        return (
            f"<Snapshot of {name}: {count} vCPU{'s' * (count != 1)}, "
            f"{format_size(self.memory.size)}, at {self.state.clock.now / 1e9:.6f} s>"
        )
