"""One virtual CPU: its registers, memory as it sees it, and the loop that runs it."""

from __future__ import annotations

import time
from errno import ENOMEM
from typing import TYPE_CHECKING, Any, Protocol

from pykvm._core import ffi, hold_vcpu, lib
from pykvm.bus import GuestExit, GuestPanic, GuestPowerOff, GuestReset, odd_answer
from pykvm.errors import (
    GuestError,
    KVMError,
    MemoryRangeError,
    ResourceError,
    StateError,
    TranslationError,
    resource_error,
)
from pykvm.kvm.uapi import (
    KVM_GET_SREGS,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_VCPU_EVENTS,
)
from pykvm.result import Ending, Outcome
from pykvm.values.checks import buffer, integer, seconds, unsigned, wrong
from pykvm.vcpu.claim import refusal
from pykvm.vcpu.registers import CONTROL, GENERAL, SEGMENTS, TABLES, Registers
from pykvm.x86.state import CpuState, SegmentRegister, TableRegister, check_record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import Literal, NoReturn, TypeVar

    from pykvm import kvm
    from pykvm.bus.dispatch import Dispatch
    from pykvm.errors import PykvmError
    from pykvm.exits import Exit, RunPage
    from pykvm.memory import GuestMemory
    from pykvm.vcpu.claim import Claim
    from pykvm.vcpu.guest_debug import GuestDebug
    from pykvm.x86.paging import Walk

    T = TypeVar("T")

__all__ = ["CPU", "OVER", "Board"]

PAGE = 4096

# struct kvm_run, from where the register sets begin.
_VALID_REGS = 288
_DIRTY_REGS = 296
_REGS = 304
_SREGS = _REGS + ffi.sizeof("struct kvm_regs")
_EVENTS = _SREGS + ffi.sizeof("struct kvm_sregs")
_BITMAP = _EVENTS - 32  # kvm_sregs.interrupt_bitmap, its last field
_SYNC_END = _REGS + ffi.sizeof("struct kvm_sync_regs")
_SYNC_REGS = 1  # KVM_SYNC_X86_REGS
_SYNC_SREGS = 2  # KVM_SYNC_X86_SREGS
_SYNC_ALL = 7  # and KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS

_EXIT: int = lib.PYKVM_EXIT
_AGAIN: int = lib.PYKVM_AGAIN
_KICKED: int = lib.PYKVM_KICKED
_DEADLINE: int = lib.PYKVM_DEADLINE
_DRAIN: int = lib.PYKVM_DRAIN
_ALARM: int = lib.PYKVM_ALARM
_ATTENTION: int = lib.PYKVM_ATTENTION
_OVER: int = lib.PYKVM_OVER
_REFUSED: int = lib.PYKVM_REFUSED
_READ: int = lib.PYKVM_READ

_RESET_VECTOR = 0xFFFF_FFF0
_DR6_INIT = 0xFFFF_0FF0
_DR7_INIT = 0x400
# KVM_VCPUEVENT_VALID_NMI_PENDING and KVM_VCPUEVENT_VALID_SHADOW: with what stands for them.
_EVENTS_WHOLE = 1 | 4

_SEGMENT_FIELDS = SegmentRegister.__slots__
_LIMIT = 1 << 64
_ACCESSES = ("read", "write", "execute", None)


#: What a vCPU's loop returns when the run has ended without it; nobody sees it.
OVER = Ending(Outcome.STOPPED, "the run is over")


def _no_memory(index: int) -> ResourceError:
    return resource_error(f"no room for the buffers of vCPU {index}", ENOMEM)


def _gone(*, forked: bool) -> PykvmError:
    return refusal(lib.PYKVM_FORKED if forked else lib.PYKVM_SHUT, "", 0)


class _NoPage:
    """In place of the kvm_run page of a vCPU that was closed: a touch raises ClosedError."""

    def __init__(self, *, forked: bool = False) -> None:
        self._forked = forked

    def __getitem__(self, index: object) -> NoReturn:
        raise _gone(forked=self._forked)

    def __setitem__(self, index: object, value: object) -> None:
        raise _gone(forked=self._forked)

    def release(self) -> None:
        """As a memoryview that was released already."""


class Board(Protocol):
    """What the run loop asks of the machine around it."""

    #: Called after each exit that Python sees and at each tick; an Ending ends the run.
    check: Callable[[], Ending | None] | None

    def take_exit(self, cpu: CPU) -> Ending | None:
        """An exit that no device answered by itself."""

    def take_kick(self, cpu: CPU) -> Ending | None:
        """The vCPU was kicked."""

    def take_deadline(self, cpu: CPU) -> Ending:
        """The time is up."""

    def take_tick(self, cpu: CPU) -> Ending | None:
        """Nothing happened for a while, or a signal of the host's did."""

    def take_attention(self, cpu: CPU) -> Ending | None:
        """`CPU.attend` was called, or the alarm went off: look at timers and interrupts."""


class CPU:
    """One vCPU of a machine.

    Iterating gives every VM exit raw, with no device involved::

        for exit in machine.vcpus[0]:
            match exit:
                case Hlt():
                    break

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
        """`ring` is the page and the number of entries of the coalescing ring, if it is used.

        `claim` is the one of the machine for whose runs this vCPU is entered.  Raises
        ResourceError.
        """
        self.kvm = vcpu
        self.index: int = vcpu.id
        #: True while this vCPU waits for somebody to start it: `Machine.run` leaves it alone.
        self.parked = vcpu.id != 0
        # The RIP behind the HLT in which the last run left this vCPU waiting.
        self._halted: int | None = None
        self.memory = memory
        self.regs = Registers(self)
        self.page: Any = memoryview(vcpu.run_page)
        self._run_page: RunPage | None = None
        self._page_handle = ffi.from_buffer(vcpu.run_page)
        base = ffi.cast("char *", self._page_handle)
        #: Whether the kernel may collect writes to sinks without an exit.
        self.coalesces = ring is not None
        ring_page, entries = ring or (0, 0)
        core = lib.pykvm_vcpu_new(
            vcpu.fd, base, base + ring_page * PAGE if ring else ffi.NULL, entries
        )
        if core == ffi.NULL:
            raise _no_memory(self.index)
        self.core: Any = ffi.gc(core, lib.pykvm_vcpu_free)
        self._claim = claim
        if claim is not None and lib.pykvm_join(core, claim.core) < 0:
            raise _no_memory(self.index)
        self._forked = False
        self._closing: Any = None
        #: The kvm_run page as the core takes it.
        self.run_address: Any = base
        self._general: Any = ffi.cast("struct kvm_regs *", base + _REGS)
        self._general_at = -1
        self._special: Any = None
        self._special_at = -1
        self._all: Any = ffi.cast("struct kvm_sync_regs *", base + _REGS)
        # From which run on, if any, each exit brings all registers and events into the page, and
        # at which of them what lies there was overtaken by an ioctl.
        self._all_from: int | None = None
        self._overtaken_at = -1
        self._dispatch: Dispatch | None = None
        self._loop = 0
        #: Called before and after each KVM_RUN of a loop by hand, for a clock that stands still
        #: between them.
        self.timing: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._debug: GuestDebug | None = None
        #: Called as a loop begins: with True if pykvm runs the vCPU, False for a loop by hand, in
        #: which nothing is to take part.
        self.on_loop: Callable[[bool], None] | None = None

    def close(self) -> None:
        """Free what belongs to this vCPU.  Closing twice is harmless.

        A loop by hand that is inside the guest, in another thread, is taken out first.
        """
        # An exception may come in anywhere: what is not done then, the next call does.
        self._closing = core = self.core or self._closing
        self.core = None
        self._loop += 1
        while core is not None and lib.pykvm_shut(core):
            time.sleep(0.001)  # it is on its way out
        if self._run_page is not None:
            self._run_page.release()
        self._general = self._all = self.run_address = None
        page, self.page = self.page, _NoPage(forked=self._forked)
        page.release()
        ffi.release(self._page_handle)
        self.kvm.close()
        self._closing = None

    def forget(self) -> None:
        """In the child of a fork: the vCPU is the parent's, and cannot be used here."""
        core, self.core = self.core, None
        self._forked = True
        # The kvm_run page is the parent's own, not a copy.
        self.page = _NoPage(forked=True)
        if core is not None:
            lib.pykvm_forget(core)
        self.kvm.close()

    def _living(self) -> Any:
        if self.core is None:
            raise _gone(forked=self._forked)
        return self.core

    # -- registers ---------------------------------------------------------------------------

    def general(self) -> Any:
        """The current struct kvm_regs, in the kvm_run page."""
        core = self._living()
        runs = core.runs
        if self._general_at != runs:
            if runs == 0 or not self.page[_VALID_REGS] & _SYNC_REGS:
                current = self.kvm.get_regs()
                for name in GENERAL:
                    setattr(self._general, name, getattr(current, name))
                # From the next KVM_RUN on the kernel does this by itself.
                self.page[_VALID_REGS] |= _SYNC_REGS
            self._general_at = runs
        return self._general

    def left_in_hlt(self) -> None:
        """A run ends while this vCPU waits in HLT: the next goes on waiting."""
        self._halted = self.regs.rip

    def leave_hlt(self) -> bool:
        """A run begins: whether it begins in HLT, as the last has left it.  Asked once."""
        halted, self._halted = self._halted, None
        # Somebody may have set it to work elsewhere.
        return halted is not None and halted == self.regs.rip

    def general_changed(self) -> None:
        """Let the kernel take the general registers from the page at the next KVM_RUN."""
        self._finish_instruction()
        self.general()
        self.page[_DIRTY_REGS] |= _SYNC_REGS

    def special(self) -> Any:
        """The current struct kvm_sregs; a change counts once `set_special` is called."""
        runs = self._living().runs
        self._settle_special()
        if self._special_at != runs or self._special is None:
            self._special = self.kvm.get_sregs()
            self._special_at = runs
        return self._special

    def set_special(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        self._special = None
        self._finish_instruction()
        self._overtaken_at = self._living().runs
        self.kvm.set_sregs(sregs)
        self.page[_DIRTY_REGS] &= ~_SYNC_SREGS

    def _settle_special(self) -> None:
        """Set the special registers that the core has left in the page for the next KVM_RUN."""
        if self.page[_DIRTY_REGS] & _SYNC_SREGS:
            self.page[_DIRTY_REGS] &= ~_SYNC_SREGS
            self.take_special()

    # What follows is for whoever carries on behind an exit that KVM has left no instruction half
    # done at (InternalError, Debug), 100,000 times: nothing is completed, nothing copied.

    def everything(self) -> Any:
        """The current struct kvm_sync_regs, in the kvm_run page.

        What is changed in it counts once `take_general`, `take_special` or `take_events` was called
        for that part.
        """
        core, page = self._living(), self.page
        runs = core.runs
        self.general()
        self._settle_special()
        if self._all_from is None:
            # From the next KVM_RUN on the kernel brings them by itself.
            page[_VALID_REGS] |= _SYNC_ALL
            self._all_from = runs + 1
        if runs < self._all_from or self._overtaken_at == runs:
            self.kvm.ioctl(KVM_GET_SREGS, page[_SREGS:_EVENTS])
            self.kvm.ioctl(KVM_GET_VCPU_EVENTS, page[_EVENTS:_SYNC_END])
            self._overtaken_at = -1
        return self._all

    def take_general(self) -> None:
        """Have the general registers in the page taken at the next KVM_RUN."""
        self.page[_DIRTY_REGS] |= _SYNC_REGS

    def take_special(self) -> None:
        """KVM_SET_SREGS with the ones in the page."""
        self._special = None
        # KVM only ever adds bits to the bitmap in the page, and would inject all of them again.
        self.page[_BITMAP:_EVENTS] = bytes(_EVENTS - _BITMAP)
        self.kvm.ioctl(KVM_SET_SREGS, self.page[_SREGS:_EVENTS])

    def take_events(self) -> None:
        """KVM_SET_VCPU_EVENTS with the ones in the page."""
        self.kvm.ioctl(KVM_SET_VCPU_EVENTS, self.page[_EVENTS:_SYNC_END])

    def _finish_instruction(self) -> None:
        """Complete the I/O instruction behind the last exit, which would overwrite registers."""
        core = self._living()
        if core.runs == 0 or (self._general_at == core.runs and self.page[_DIRTY_REGS]):
            return
        self._end_exit()
        result = lib.pykvm_complete(core)
        if result == 0:
            return
        raise StateError(
            "registers cannot be set in the middle of an instruction that is not done",
            hint="answer the read (and the exits that follow it) first",
        )

    @property
    def state(self) -> CpuState:
        """All registers as one value.  Assign it (edited, or another) to set them all."""
        general = self.general()
        special = self.special()
        values: dict[str, Any] = {name: getattr(general, name) for name in GENERAL}
        values.update((name, getattr(special, name)) for name in CONTROL)
        for name in SEGMENTS:
            segment = getattr(special, name)
            values[name] = SegmentRegister(
                **{field: getattr(segment, field) for field in _SEGMENT_FIELDS}
            )
        for name in TABLES:
            table = getattr(special, name)
            values[name] = TableRegister(base=table.base, limit=table.limit)
        return CpuState(**values)

    @state.setter
    def state(self, state: CpuState) -> None:
        check_record("state", state, CpuState)
        self._finish_instruction()
        special = self.special()
        for name in CONTROL:
            setattr(special, name, getattr(state, name))
        for name in SEGMENTS:
            target, source = getattr(special, name), getattr(state, name)
            for field in _SEGMENT_FIELDS:
                setattr(target, field, getattr(source, field))
        for name in TABLES:
            target, source = getattr(special, name), getattr(state, name)
            target.base, target.limit = source.base, source.limit
        self.set_special(special)
        # All of them: what the page held does not matter.
        self._general_at = self._living().runs
        for name in GENERAL:
            setattr(self._general, name, getattr(state, name))
        self.page[_DIRTY_REGS] |= _SYNC_REGS

    @property
    def can_reset(self) -> bool:
        """Whether there is memory where a processor begins after RESET."""
        return any(
            region.start <= _RESET_VECTOR < region.start + region.size
            for region in self.memory.regions
        )

    def reset_by_init(self) -> None:
        """Do to this vCPU what INIT does to a processor (SDM 3A 10.1 and table 10-1).

        The instruction at hand is given up, and so are events that wait; NMIs are blocked no more.
        """
        from pykvm.x86.state import after_init

        lib.pykvm_abandon(self._living())
        leaf = next((leaf for leaf in self.kvm.get_cpuid2() if leaf.function == 1), None)
        self.state = after_init(self.state, signature=leaf.eax if leaf is not None else 0x600)
        self.kvm.set_debugregs({"db": [0] * 4, "dr6": _DR6_INIT, "dr7": _DR7_INIT})
        self.kvm.set_vcpu_events({"flags": _EVENTS_WHOLE})

    @property
    def debug(self) -> GuestDebug:
        """Breakpoints and single steps of this vCPU (KVM_SET_GUEST_DEBUG)."""
        self._living()
        if self._debug is None:
            from pykvm.vcpu.guest_debug import GuestDebug

            self._debug = GuestDebug(self)
        return self._debug

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG; `debug` knows what all want of it.

        KVM steps from the RIP that it has now, and forgets the step if that changes: registers
        that wait for the next KVM_RUN are set first.
        """
        self._living()
        if self.page[_DIRTY_REGS] & _SYNC_REGS:
            self.kvm.ioctl(KVM_SET_REGS, self.page[_REGS:_SREGS])
            self.page[_DIRTY_REGS] &= ~_SYNC_REGS
        self.kvm.set_guest_debug(control, debugreg)

    # -- memory as the guest sees it ---------------------------------------------------------

    def walk(
        self,
        address: int,
        *,
        access: Literal["read", "write", "execute"] | None = "read",
        user: bool = False,
    ) -> Walk:
        """Translate a guest-virtual address and tell every level of the walk.

        `access` is what the guest would do there, None to ask for the mapping alone.
        """
        from pykvm.x86 import paging

        special = self.special()
        address = unsigned("address", address, 64)
        if access not in _ACCESSES:
            raise wrong("access", "one of read, write, execute", access)
        return paging.walk(
            self.memory.read,
            address,
            cr0=special.cr0,
            cr3=special.cr3,
            cr4=special.cr4,
            efer=special.efer,
            access=access,
            user=user,
        )

    def translate(self, address: int) -> int:
        """The guest-physical address behind a guest-virtual one.

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
        """(guest-physical address, length) of the pages behind a virtual range."""
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

    def cstring(self, address: int, limit: int = 4096) -> bytes:
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

    # -- running -----------------------------------------------------------------------------

    def kick(self, turn: int = 0) -> bool:
        """From any thread: take this vCPU out of the guest, if it is running.

        With `turn` only if it runs for that run of the machine's claim.  Returns whether a run was
        in progress; if so, it notices the kick exactly once.
        """
        core = self.core
        return core is not None and lib.pykvm_kick(core, turn) == 1

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one that runs this vCPU."""
        core = self.core
        return core is not None and lib.pykvm_is_here(core) == 1

    def attend(self) -> None:
        """From any thread: have the run loop come to `Board.take_attention` before it goes on.

        If the vCPU is not running, its next run begins with that.
        """
        core = self.core
        if core is not None:
            lib.pykvm_attend(core)

    def heed(self) -> None:
        """By the vCPU's own thread: it is about to look at what `attend` was called for so far."""
        self._living().attention = 0

    def set_alarm(self, when: int | None) -> None:
        """By the vCPU's own thread: come to `Board.take_attention` at this host time.

        `when` is in nanoseconds of CLOCK_MONOTONIC; None for never.
        """
        lib.pykvm_set_alarm(self._living(), 0 if when is None else max(when, 1))

    def use(self, dispatch: Dispatch) -> None:
        """Answer exits by these devices from now on."""
        self._dispatch = dispatch
        lib.pykvm_set_map(self._living(), dispatch.map)

    def hold(self, run: Callable[[], T], timeout_ns: int | None = None, turn: int = 0) -> T:
        """Call `run` with this vCPU as the calling thread's own: see `loop`.

        `turn` is the run of the machine's claim that this is for, 0 if it is for none.  Raises
        StateError, ClosedError, ResourceError, KVMError.
        """
        core = self._living()
        deadline = 0 if timeout_ns is None else time.monotonic_ns() + timeout_ns
        return hold_vcpu(int(ffi.cast("uintptr_t", core)), deadline, turn, run, self._refused)

    def _refused(self, code: int) -> NoReturn:
        raise refusal(code, f"vCPU {self.index}", self._living().error)

    def exits(self, timeout: float | None = None) -> Generator[Exit, None, None]:
        """Run, and yield every VM exit as a value; no device takes part.

        A kick yields `Interrupted`.  After `timeout` seconds TimeoutError is raised.  Raises
        ConfigError for a time that is none.
        """
        from pykvm.exits import Interrupted, decode

        core, step, timing = self._living(), lib.pykvm_step, self.timing
        limit = None if timeout is None else int(seconds("timeout", timeout) * 1e9)
        deadline = 0 if limit is None else time.monotonic_ns() + limit
        refused = lib.pykvm_by_hand(core)
        if refused:
            self._refused(refused)
        self._loop = loop = self._loop + 1
        try:
            page = self.run_page
            core.surface = 1
            self.uncoalesce()
            if self.on_loop is not None:
                self.on_loop(False)
            while self._loop == loop:
                if timing is None:
                    code = step(core, deadline)
                else:
                    timing[0]()
                    code = step(core, deadline)
                    timing[1]()
                if code == _EXIT:
                    yield decode(page)
                elif code == _KICKED:
                    page.current = None
                    yield Interrupted()
                elif code == _DEADLINE:
                    raise TimeoutError(f"vCPU {self.index} still runs after {timeout} s")
                elif code == _AGAIN:
                    continue
                elif code == _DRAIN:
                    # Of a run that an exception ended.
                    if self._dispatch is not None:
                        self._dispatch.deliver()
                elif code == _ATTENTION:
                    core.attention = 0
                    continue
                elif code == _REFUSED:
                    self._refused(core.refusal)
                else:
                    self.failed()
            self._living()
            raise StateError("another loop has taken this vCPU over")
        except ValueError:
            self._living()  # `close`, in another thread, has released the kvm_run page
            raise
        finally:
            if self._loop == loop:
                lib.pykvm_by_hand_ends(core)

    def __iter__(self) -> Iterator[Exit]:
        return self.exits()

    @property
    def run_page(self) -> RunPage:
        """The kvm_run page as `pykvm.exits` reads it."""
        if self._run_page is None:
            self._living()
            from pykvm.exits import RunPage

            self._run_page = RunPage(self.page)
        return self._run_page

    def _end_exit(self) -> None:
        """What was handed out as an exit can no longer be answered."""
        if self._run_page is not None:
            self._run_page.current = None

    def uncoalesce(self) -> None:
        """Make every write exit: the kernel is to collect none."""
        if self._dispatch is not None:
            self._dispatch.coalesce(False)

    def failed(self) -> None:
        """Raise what KVM_RUN returned."""
        raise KVMError(
            "KVM_RUN",
            self._living().error,
            hint="the host's kernel log may say why (dmesg)",
        )

    def loop(self, board: Board, *, surface: bool = False) -> Ending:
        """Run until an Ending, inside `hold`.

        With `surface` every exit goes to `board.take_exit`, else only those that no device
        answers.  What a device raises passes, but for GuestExit and its siblings in `pykvm.bus`.
        """
        core, run, dispatch = self._living(), lib.pykvm_run, self._dispatch
        if dispatch is None:
            raise StateError("no devices were given to this vCPU")
        self._loop += 1
        self._end_exit()
        core.surface = surface
        core.native = ffi.NULL  # until the emulator has looked at this run
        if self.on_loop is not None:
            self.on_loop(True)
        if self._debug is not None and (self._debug.hit is not None or self._debug.stepping):
            self._debug.begin(self.state.linear_rip)
        dispatch.coalesce(not surface)
        reads, writes, check = dispatch.reads, dispatch.writes, board.check
        # offset, size and value, the first three words of struct pykvm_vcpu
        access = memoryview(ffi.buffer(core, 24)).cast("Q")
        ending: Ending | None
        try:
            if dispatch.waiting:
                dispatch.deliver()
            while True:
                code = run(core)
                if code >= 0:
                    writes[code](access[0], access[1], access[2])
                elif code <= _READ:
                    answer = reads[_READ - code](access[0], access[1])
                    try:
                        access[2] = answer
                    except (TypeError, ValueError):
                        access[2] = self._odd_answer(answer, _READ - code)
                elif code == _DRAIN:
                    dispatch.deliver()
                else:
                    ending = self._special_case(board, code)
                    if ending is not None:
                        return ending
                if check is not None:
                    ending = check()
                    if ending is not None:
                        return ending
        except GuestExit as exit:
            return Ending(
                Outcome.EXITED, f"the guest exited with code {exit.code}", exit_code=exit.code
            )
        except GuestReset as reset:
            return Ending(Outcome.RESET, f"the guest asked for a reset ({reset.how})")
        except GuestPowerOff as off:
            return Ending(Outcome.EXITED, f"the guest powered itself off ({off.how})", exit_code=0)
        except GuestPanic as panic:
            return self.panicked(panic)

    def panicked(self, panic: GuestPanic) -> Ending:
        """The end of a guest that told of its own death."""
        error = GuestError(
            panic.kind, panic.cause, registers=dict(self.regs), console=panic.console
        )
        return Ending(Outcome.CRASHED, f"the guest crashed: {error.message}", error=error)

    def _special_case(self, board: Board, code: int) -> Ending | None:
        if code == _EXIT:
            return board.take_exit(self)
        if code == _AGAIN:
            return board.take_tick(self)
        if code in (_ATTENTION, _ALARM):
            self.core.attention = 0
            return board.take_attention(self)
        if code == _KICKED:
            return board.take_kick(self)
        if code == _DEADLINE:
            return board.take_deadline(self)
        if code == _OVER:
            return OVER
        self.failed()
        return None

    def _odd_answer(self, answer: object, slot: int) -> int:
        """A number is taken modulo the size; anything else is a fault of the device."""
        range_ = self._dispatch.bus.by_slot.get(slot) if self._dispatch else None
        return odd_answer(range_.name if range_ else "?", answer) % _LIMIT

    def __repr__(self) -> str:
        return f"<CPU {self.index}{' parked' if self.parked else ''}>"
