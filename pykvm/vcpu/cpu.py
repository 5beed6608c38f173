"""One virtual CPU as its user sees it: registers, memory, breakpoints, and its exits by hand."""

from __future__ import annotations

from functools import cached_property

from pykvm.errors import MemoryRangeError, PykvmError, TranslationError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer, integer, unsigned, wrong
from pykvm.vcpu.kvm_engine import KvmEngine
from pykvm.vcpu.loop import Loop
from pykvm.vcpu.registers import GENERAL, Registers, sregs_of, state_of
from pykvm.x86.state import CpuState, check_record

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Literal

    from pykvm import kvm
    from pykvm.exits import Exit
    from pykvm.memory import GuestMemory
    from pykvm.vcpu.claim import Claim
    from pykvm.vcpu.guest_debug import GuestDebug
    from pykvm.vcpu.saved import VcpuState
    from pykvm.x86.paging import Walk

__all__ = ["CPU"]

PAGE = 4096

_ACCESSES = ("read", "write", "execute", None)


class CPU:
    r"""One vCPU of a machine.

    >>> from pykvm import Machine
    >>> with Machine(b"\xf4", mode="real") as machine:  # needs /dev/kvm
    ...     cpu = machine.vcpus[0]
    ...     cpu, cpu.regs.rsp, cpu.read(cpu.regs.rip, 1)
    (<CPU 0: real mode, at 0x7c00>, 31744, b'\xf4')

    `regs` has the registers by name, `state` all of them as one value.  `read`, `write`,
    `translate` and `walk` take guest-virtual addresses; `memory` is the machine's and takes
    guest-physical ones.  `debug` has breakpoints.  `index` is the vCPU's number; `parked` is True
    while it waits to be started, and `Machine.run` leaves it alone.

    `kvm` has its ioctls, for what pykvm has no method of its own for; `engine` and `loop` are
    pykvm's own.

    A vCPU belongs to one thread at a time: the one that runs it.  Only `kick` may be called from
    others while it runs.
    """

    def __init__(
        self,
        vcpu: kvm.VCPU,
        memory: GuestMemory,
        *,
        ring: tuple[int, int] | None = None,
        claim: Claim | None = None,
    ) -> None:
        """`ring` and `claim` are as for `KvmEngine`, and so is what is raised."""
        #: What executes its instructions: for the rest of pykvm.
        self.engine = KvmEngine(vcpu, ring=ring, claim=claim)
        #: Its ioctls, for what pykvm has no method of its own for.
        self.kvm = vcpu
        #: Its number.
        self.index: int = vcpu.id
        #: True while this vCPU waits to be started: `Machine.run` leaves it alone.
        self.parked = vcpu.id != 0
        self.memory = memory
        self.regs = Registers(self.engine)

    @cached_property
    def loop(self) -> Loop:
        """What runs it: for `Machine`.

        Not made before it is used, since it is a loop of references: where an exception comes
        before anything has this vCPU to close it, it goes at once.
        """
        return Loop(self)

    def close(self) -> None:
        """Free what belongs to this vCPU.  Closing twice is harmless.

        If another thread is in the guest by `raw_exits`, it is kicked out first.
        """
        self.engine.close()

    @property
    def state(self) -> CpuState:
        """All registers as one value.  Assign a value to set them all.

        Raises KVMError if KVM refuses it; the hint says what is wrong.  `CpuState.problems` says so
        beforehand.
        """
        return state_of(self.engine.sregs(), self.engine.regs())

    @state.setter
    def state(self, state: CpuState) -> None:
        check_record("state", state, CpuState)
        self.put(state)

    def put(self, state: CpuState) -> None:
        """Set all registers, as to assign `state` does, to what is known to be sound."""
        self.engine.finish_instruction()
        self.engine.set_sregs(sregs_of(state))
        self.engine.replace_regs({name: getattr(state, name) for name in GENERAL})

    @property
    def debug(self) -> GuestDebug:
        """Breakpoints and single steps of this vCPU (KVM_SET_GUEST_DEBUG)."""
        self.engine.living()
        if self.loop.debug is None:
            from pykvm.vcpu.guest_debug import GuestDebug

            self.loop.debug = GuestDebug(self.engine)
        return self.loop.debug

    def save(self) -> VcpuState:
        """All that its guest can notice of this vCPU, as a value.

        The instruction of the last exit is completed first, so that what it does to a device is
        done once.  The TSC offset is the one of now: guest time belongs to the machine's clock,
        which sets the offsets anew.

        Raises StateError while the vCPU runs, at an exit of `Machine.exits` that was neither
        answered nor taken, and inside an instruction that accesses more; KVMError.
        """
        from pykvm.vcpu.saving import save

        return save(self)

    def load(self, state: VcpuState) -> None:
        """Be in a state of `save`, of this vCPU or of one made like it.

        Breakpoints and single steps are the host's, and stay.  CPUID is no part of the state: KVM
        takes it before the first run only.

        Raises StateError while the vCPU runs; ConfigError for a state that this vCPU cannot be in,
        as does KVMError: nothing is known of its registers then, but another `load` helps.
        """
        from pykvm.vcpu.saving import load

        load(self, state)

    def walk(
        self,
        address: int,
        *,
        access: Literal["read", "write", "execute"] | None = "read",
        user: bool = False,
    ) -> Walk:
        """Translate a guest-virtual address and return every level of the walk.

        `access` is what the guest would do there; None gives the mapping alone.
        """
        from pykvm.x86 import paging

        sregs = self.engine.sregs()
        address = unsigned("address", address, 64)
        if access not in _ACCESSES:
            raise wrong("access", "one of read, write, execute", access)
        return paging.walk(
            self.memory.read,
            address,
            cr0=sregs.cr0,
            cr3=sregs.cr3,
            cr4=sregs.cr4,
            efer=sregs.efer,
            access=access,
            user=user,
        )

    def translate(self, address: int) -> int:
        """Translate a guest-virtual address to its guest-physical one.

        Raises TranslationError, with the level at which the walk failed, if there is none.
        """
        walk = self.walk(address, access=None)
        if walk.physical is None:
            # Most faults begin with the address; others are of a table on the way.
            fault = f": {walk.fault}".replace(f": {address:#x} ", " ", 1)
            raise TranslationError(
                f"virtual address {address:#x}{fault}",
                address=address,
                length=1,
            )
        return walk.physical

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(guest-physical address, length) of the pages of a virtual range."""
        address = unsigned("address", address, 64)
        end = address + integer("length", length, 0)
        while address < end:
            step = min(PAGE - address % PAGE, end - address)
            yield self.translate(address), step
            address += step

    def read(self, address: int, length: int) -> bytes:
        """Read `length` bytes at a guest-virtual address, through the guest's page tables.

        Raises TranslationError where nothing is mapped, MemoryRangeError where the mapping leads
        out of memory.
        """
        return b"".join(self.memory.read(gpa, n) for gpa, n in self._pieces(address, length))

    def write(self, address: int, data: bytes) -> None:
        """Write at a guest-virtual address; page permissions do not bind the host.

        Raises as `read` does, before anything is written.
        """
        view = buffer("data", data).cast("B")
        done = 0
        for gpa, length in list(self._pieces(address, len(view))):
            self.memory.write(gpa, view[done : done + length])
            done += length

    def read_cstring(self, address: int, limit: int = 4096) -> bytes:
        """The bytes from a guest-virtual address up to a NUL, which is left out.

        Raises MemoryRangeError if there is none within `limit` bytes.
        """
        found = bytearray()
        address, limit = unsigned("address", address, 64), integer("limit", limit, 1)
        while len(found) < limit:
            step = min(PAGE - (address + len(found)) % PAGE, limit - len(found))
            piece = self.read(address + len(found), step)
            found += piece
            end = found.find(0, len(found) - len(piece))
            if end >= 0:
                return bytes(found[:end])
        raise MemoryRangeError(
            f"no NUL within {limit} bytes of {address:#x}", address=address, length=limit
        )

    def kick(self) -> bool:
        """From any thread: take this vCPU out of the guest, if it is running.

        Returns whether a run was in progress; if so, it notices the kick exactly once.
        """
        return self.engine.kick()

    def raw_exits(self, timeout: float | None = None) -> Generator[Exit, None, None]:
        """Run this vCPU alone, and yield every VM exit: no device, timer or interrupt takes part.

        The bare loop of the KVM API, to learn from and to measure.  `Machine.exits` is the loop
        with the machine's devices::

            for exit in cpu.raw_exits():
                match exit:
                    case IoOut(port=0x3F8, data=data):
                        print(data)
                    case Hlt():
                        break

        A kick yields `Interrupted`.  Raises TimeoutError after `timeout` seconds, ConfigError for
        an invalid time.
        """
        return self.loop.raw_exits(timeout)

    def __repr__(self) -> str:
        name = f"CPU {self.index}"
        if self.engine.core is None:
            return f"<{name} closed>"
        if self.parked:
            return f"<{name} parked>"
        if self.engine.is_elsewhere:
            return f"<{name} running>"
        try:
            state = self.state
        except PykvmError:
            return f"<{name}>"
        return f"<{name}: {state.mode.value} mode, at {state.linear_rip:#x}>"
