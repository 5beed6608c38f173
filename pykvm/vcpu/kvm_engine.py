"""KVM as a vCPU's engine: registers in the kvm_run page, and the ways into the guest and out."""

from __future__ import annotations

import time
from errno import EINVAL, ENOMEM

from pykvm._core import by_hand, drive, ffi, hold_vcpu, lib, owned
from pykvm.errors import KVMError, ResourceError, StateError, resource_error
from pykvm.kvm.constants import (
    KVM_SYNC_X86_REGS,
    KVM_SYNC_X86_SREGS,
    KVM_SYNC_X86_VALID_FIELDS,
)
from pykvm.kvm.run_page import (
    CR8,
    DIRTY_REGS,
    EVENTS,
    IF_FLAG,
    INTERRUPT_BITMAP,
    READY_FOR_INTERRUPT_INJECTION,
    REGS,
    REQUEST_INTERRUPT_WINDOW,
    SREGS,
    SYNC_END,
    VALID_REGS,
)
from pykvm.kvm.uapi import (
    KVM_GET_SREGS,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_VCPU_EVENTS,
    kvm_sregs,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.claim import refusal
from pykvm.vcpu.registers import GENERAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn, TypeVar

    from pykvm import kvm
    from pykvm.bus.dispatch import Dispatch
    from pykvm.errors import PykvmError
    from pykvm.exits import Exit, RunPage
    from pykvm.vcpu.claim import Claim
    from pykvm.vcpu.engine import Drive, Engine
    from pykvm.vcpu.saved import VcpuState
    from pykvm.vcpu.transfer import Transfer

    T = TypeVar("T")

__all__ = ["KvmEngine"]

PAGE = 4096

# At the local APIC, for a moment at which nothing comes.
_LOOKS = 100

# What a timer that KVM has not heard of yet is given, in seconds.
_LATE = 0.0005

_NO_INTERRUPTS = bytes(EVENTS - INTERRUPT_BITMAP)

_CR4, _PGE = kvm_sregs.offset_of("cr4"), 1 << 7
_BITMAP = kvm_sregs.offset_of("interrupt_bitmap")


def _no_memory(index: int) -> ResourceError:
    return resource_error(f"no room for the buffers of vCPU {index}", ENOMEM)


def _gone(*, forked: bool) -> PykvmError:
    return refusal(lib.PYKVM_FORKED if forked else lib.PYKVM_SHUT, "", 0)


class _Gone:
    """In place of the kvm_run page of a vCPU that was closed, and its registers: a touch raises."""

    __slots__ = ("_forked",)
    _forked: bool

    def __init__(self, *, forked: bool = False) -> None:
        object.__setattr__(self, "_forked", forked)

    def __getitem__(self, index: object) -> NoReturn:
        raise _gone(forked=self._forked)

    def __setitem__(self, index: object, value: object) -> None:
        raise _gone(forked=self._forked)

    def __getattr__(self, name: str) -> NoReturn:
        raise _gone(forked=self._forked)

    def __setattr__(self, name: str, value: object) -> None:
        raise _gone(forked=self._forked)


class KvmEngine:
    """See `pykvm.vcpu.engine.Engine`."""

    def __init__(
        self,
        vcpu: kvm.VCPU,
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
        self.page: Any = memoryview(vcpu.run_page)
        self._run_page: RunPage | None = None
        self._page_handle = ffi.from_buffer(vcpu.run_page)
        base = ffi.cast("char *", self._page_handle)
        #: Whether the kernel may collect posted writes without an exit.
        self.coalesces = ring is not None
        ring_page, entries = ring or (0, 0)
        ring_at = base + ring_page * PAGE if ring else ffi.NULL
        new, free = lib.pykvm_vcpu_new, lib.pykvm_vcpu_free
        core = owned(new, free, vcpu.fd, base, ring_at, entries)
        if core == ffi.NULL:
            raise _no_memory(self.index)
        #: struct pykvm_vcpu; None once the engine is closed.
        self.core: Any = core
        self._claim = claim
        if claim is not None and lib.pykvm_join(core, claim.core) < 0:
            raise _no_memory(self.index)
        self._forked = False
        self._closing: Any = None
        #: The kvm_run page as the core takes it.
        self.run_address: Any = base
        # The kvm_regs of the page, and the run that they are of.
        self._regs: Any = ffi.cast("struct kvm_regs *", base + REGS)
        self._regs_at = -1
        self._sregs: Any = None
        self._sregs_at = -1
        self._sync_regs: Any = ffi.cast("struct kvm_sync_regs *", base + REGS)
        # From which run on, if any, each exit brings all registers and events into the page, and
        # at which of them what lies there was overtaken by an ioctl.
        self._synced_from: int | None = None
        self._overtaken_at = -1
        self._transfer: Transfer | None = None
        self.timers_stand = False

    def __repr__(self) -> str:
        return f"<KvmEngine of vCPU {self.index}>"

    def close(self) -> None:
        """Free what belongs to this vCPU.  Closing twice is harmless.

        A loop by hand that is inside the guest, in another thread, is taken out first.
        """
        # An exception may come in anywhere: what is not done then, the next call does.
        self._closing = core = self.core or self._closing
        self.core = None
        while core is not None and lib.pykvm_shut(core):
            time.sleep(0.001)  # it is on its way out
        if self._run_page is not None:
            self._run_page.release()
        # Another thread may be in the middle of what it does with the page.  Nothing is released:
        # empty memory takes the place of the page, and stays as long as this.
        self.page = self._regs = self._sync_regs = _Gone(forked=self._forked)
        self.run_address = None
        self.kvm.close()
        self._closing = None

    def forget(self) -> None:
        """In the child of a fork: the vCPU is the parent's, and cannot be used here."""
        core, self.core = self.core, None
        self._forked = True
        # The kvm_run page is the parent's own, not a copy.
        self.page = self._regs = self._sync_regs = _Gone(forked=True)
        if core is not None:
            lib.pykvm_forget(core)
        self.kvm.close()

    def living(self) -> Any:
        """The core.  Raises ClosedError once there is none."""
        if self.core is None:
            raise _gone(forked=self._forked)
        return self.core

    def regs(self) -> Any:
        """See `Engine`."""
        core = self.living()
        runs = core.runs
        if self._regs_at != runs:
            if runs == 0 or not self.page[VALID_REGS] & KVM_SYNC_X86_REGS:
                current = self.kvm.get_regs()
                for name in GENERAL:
                    setattr(self._regs, name, getattr(current, name))
                # From the next KVM_RUN on the kernel does this by itself.
                self.page[VALID_REGS] |= KVM_SYNC_X86_REGS
            self._regs_at = runs
        return self._regs

    def dirty_regs(self) -> None:
        """See `Engine`."""
        self.finish_instruction()
        self.regs()
        self.page[DIRTY_REGS] |= KVM_SYNC_X86_REGS

    def replace_regs(self, values: Mapping[str, int]) -> None:
        """See `Engine`."""
        # All of them: what the page held does not matter.
        self._regs_at = self.living().runs
        for name in GENERAL:
            setattr(self._regs, name, values[name])
        self.page[DIRTY_REGS] |= KVM_SYNC_X86_REGS

    def sregs(self) -> Any:
        """See `Engine`."""
        runs = self.living().runs
        self._settle_sregs()
        if self._sregs_at != runs or self._sregs is None:
            self._sregs = self.kvm.get_sregs()
            self._sregs_at = runs
        return self._sregs

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        self._sregs = None
        self.finish_instruction()
        self._overtaken_at = self.living().runs
        try:
            if isinstance(sregs, bytearray):
                self.kvm.ioctl(KVM_SET_SREGS, sregs)
            else:
                self.kvm.set_sregs(sregs)
        except KVMError as error:
            if error.errno == EINVAL:
                self._explain(error, sregs)
            raise
        self.page[DIRTY_REGS] &= ~KVM_SYNC_X86_SREGS

    def _explain(self, error: KVMError, sregs: Any) -> None:
        """Say what is wrong with the control registers that KVM refused."""
        from pykvm.vcpu.registers import state_of
        from pykvm.x86.consistency import control_problems
        from pykvm.x86.cpuid import CpuidTable

        if isinstance(sregs, bytearray):
            sregs = kvm_sregs.unpack(sregs)
        cpuid = CpuidTable(self.kvm.get_cpuid2())
        error.hint = "; ".join(control_problems(state_of(sregs), cpuid)) or error.hint

    def _settle_sregs(self) -> None:
        """Set the registers that the core has left in the page for the next KVM_RUN."""
        if self.page[DIRTY_REGS] & KVM_SYNC_X86_SREGS:
            self.page[DIRTY_REGS] &= ~KVM_SYNC_X86_SREGS
            self.commit_sregs()

    # At exits that leave no instruction half done (InternalError, Debug), 100,000 times: nothing
    # is completed, nothing copied.

    def sync_regs(self) -> Any:
        """See `Engine`: the one in the kvm_run page."""
        core, page = self.living(), self.page
        runs = core.runs
        self.regs()
        self._settle_sregs()
        if self._synced_from is None:
            # From the next KVM_RUN on the kernel brings them by itself.
            page[VALID_REGS] |= KVM_SYNC_X86_VALID_FIELDS
            self._synced_from = runs + 1
        if runs < self._synced_from or self._overtaken_at == runs:
            self.kvm.ioctl(KVM_GET_SREGS, page[SREGS:EVENTS])
            self.kvm.ioctl(KVM_GET_VCPU_EVENTS, page[EVENTS:SYNC_END])
            self._overtaken_at = -1
        return self._sync_regs

    def commit_regs(self) -> None:
        """See `Engine`."""
        self.page[DIRTY_REGS] |= KVM_SYNC_X86_REGS

    def commit_sregs(self) -> None:
        """KVM_SET_SREGS with the ones in the page."""
        self._sregs = None
        # KVM only ever adds bits to the bitmap in the page, and would inject all of them again.
        self.page[INTERRUPT_BITMAP:EVENTS] = _NO_INTERRUPTS
        self.kvm.ioctl(KVM_SET_SREGS, self.page[SREGS:EVENTS])

    def commit_events(self) -> None:
        """KVM_SET_VCPU_EVENTS with the ones in the page."""
        self.kvm.ioctl(KVM_SET_VCPU_EVENTS, self.page[EVENTS:SYNC_END])

    def finish_instruction(self) -> None:
        """See `Engine`: KVM would overwrite registers when it completes an I/O instruction."""
        core = self.living()
        if core.runs == 0 or (self._regs_at == core.runs and self.page[DIRTY_REGS]):
            return
        exit = self._run_page.current if self._run_page is not None else None
        if exit is not None and exit.awaits_answer and not exit.taken:
            raise StateError(
                f"registers cannot be set while {exit!r} waits for an answer",
                hint="answer it first; after take() a read gives all ones",
            )
        self.end_exit()
        if lib.pykvm_complete(core):
            self.living()
            raise StateError(
                "registers cannot be set in the middle of an instruction that is not done",
                hint="answer the read (and the exits that follow it) first",
            )

    def abandon_instruction(self) -> None:
        """See `Engine`."""
        if lib.pykvm_abandon(self.living()):
            self.living()

    def _settle_regs(self) -> None:
        """Set the general registers that wait in the page for the next KVM_RUN."""
        if self.page[DIRTY_REGS] & KVM_SYNC_X86_REGS:
            self.kvm.ioctl(KVM_SET_REGS, self.page[REGS:SREGS])
            self.page[DIRTY_REGS] &= ~KVM_SYNC_X86_REGS

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG; `pykvm.vcpu.guest_debug` knows what all want of it.

        KVM steps from the RIP that it has now, and forgets the step if that changes: registers
        that wait for the next KVM_RUN are set first.
        """
        self.living()
        self._settle_regs()
        self.kvm.set_guest_debug(control, debugreg)

    @property
    def transfer(self) -> Transfer:
        """What takes and puts the whole state; made at first use, which takes a while."""
        if self._transfer is None:
            from pykvm.vcpu.transfer import Transfer

            self._transfer = Transfer(self.living(), self.kvm)
        return self._transfer

    def settle(self) -> bool:
        """See `Engine`."""
        core = self.living()
        self.end_exit()
        result = lib.pykvm_settle(core)
        if result < 0:
            self.living()
            raise KVMError("KVM_RUN", -result, detail="an instruction cannot be completed")
        if result:
            return True
        self._settle_regs()
        self._settle_sregs()
        return False

    def hand_out(self) -> Exit:
        """See `Engine`."""
        from pykvm.exits import decode

        lib.pykvm_hand_out(self.living())
        return decode(self.run_page)

    def save(self) -> dict[str, Any]:
        """See `Engine`."""
        page, transfer = self.page, self.transfer
        runs_on = transfer.has_lapic and not self.timers_stand
        fields = self._take_still() if runs_on else transfer.take()
        fields["cr8"] = page.cast("Q")[CR8 // 8]
        fields["interrupts_on"] = bool(page[IF_FLAG])
        fields["ready_for_interrupt"] = bool(page[READY_FOR_INTERRUPT_INJECTION])
        fields["wants_interrupt_window"] = bool(page[REQUEST_INTERRUPT_WINDOW])
        return fields

    def _take_still(self) -> dict[str, Any]:
        """With a local APIC of KVM's: what its timer has brought has to be in it.

        Of two looks the second has to find the same, but for the timer, which counts on.
        """
        from pykvm.vcpu.saved import is_still

        for _ in range(_LOOKS):
            fields = self.transfer.take()
            self.deliver_timers()
            if is_still(fields, self.transfer.look()):
                return fields
        raise StateError(
            f"the local APIC of vCPU {self.index} gets interrupts all the time",
            hint="stop what drives its lines from outside, and try again",
        )

    def forget_translations(self) -> None:
        """See `Engine`: KVM flushes a guest's TLB where CR4 changes, and then back (x86.c)."""
        sregs = bytearray(kvm_sregs.size)
        self.kvm.ioctl(KVM_GET_SREGS, sregs)
        sregs[_CR4] ^= _PGE
        sregs[_BITMAP:] = _NO_INTERRUPTS
        self.kvm.ioctl(KVM_SET_SREGS, sregs)

    def deliver_timers(self) -> None:
        """See `Engine`.

        The host's own timer may be late, most of all where the host is a virtual machine itself,
        and KVM is told by that.
        """
        self._deliver_timers()
        if self.transfer.timer_may_be_late():
            time.sleep(_LATE)
            self._deliver_timers()

    def _deliver_timers(self) -> None:
        core = self.living()
        result = lib.pykvm_deliver_timers(core)
        if result < 0 and core.refusal:
            self.refused(core.refusal)
        if result < 0:
            self.failed()
        if result:
            raise StateError(
                f"vCPU {self.index} is about to leave the guest", hint="run the machine on first"
            )

    def get_lapic(self) -> bytes:
        """See `Engine`."""
        return self.transfer.get_lapic()

    def set_lapic(self, registers: bytes | bytearray) -> None:
        """See `Engine`."""
        self.transfer.set_lapic(registers)

    def overwrites(self, state: VcpuState) -> Sequence[tuple[int, int]]:
        """See `Engine`."""
        return self.transfer.overwrites(state)

    def load(self, state: VcpuState, tsc_offset: int | None = None) -> None:
        """See `Engine`."""
        core, page, transfer = self.living(), self.page, self.transfer
        # What KVM has taken once it takes again, from the page: that saves two ioctls.
        by_page = transfer.may_wait(state)
        self.end_exit()
        if lib.pykvm_forget_exit(core):
            self.living()
        self._sregs = None
        self._overtaken_at = self._regs_at = core.runs
        page[DIRTY_REGS] = 0
        transfer.put(state, registers=not by_page, tsc_offset=tsc_offset)
        page[REGS:SREGS] = state.regs
        if by_page:
            page[SREGS:INTERRUPT_BITMAP] = state.sregs[: INTERRUPT_BITMAP - SREGS]
            page[INTERRUPT_BITMAP:EVENTS] = _NO_INTERRUPTS
            page[DIRTY_REGS] = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS
        page.cast("Q")[CR8 // 8] = state.cr8
        page[IF_FLAG] = state.interrupts_on
        page[READY_FOR_INTERRUPT_INJECTION] = state.ready_for_interrupt
        page[REQUEST_INTERRUPT_WINDOW] = state.wants_interrupt_window

    @property
    def run_page(self) -> RunPage:
        """See `Engine`."""
        if self._run_page is None:
            self.living()
            from pykvm.exits import RunPage

            self._run_page = RunPage(self.page)
        return self._run_page

    def end_exit(self) -> None:
        """What was handed out as an exit can no longer be answered."""
        if self._run_page is not None:
            self._run_page.current = None

    def interrupt(self, vector: int) -> None:
        """See `Engine`."""
        error = -lib.pykvm_interrupt(self.core or self.living(), vector)
        if error:
            raise KVMError("KVM_INTERRUPT", error, detail=f"vector {vector:#x}")

    def use(self, dispatch: Dispatch) -> None:
        """See `Engine`."""
        lib.pykvm_set_map(self.living(), dispatch.map)

    def hold(self, run: Callable[[], T], timeout_ns: int | None = None, turn: int = 0) -> T:
        """See `Engine`."""
        core = self.living()
        deadline = 0 if timeout_ns is None else time.monotonic_ns() + timeout_ns
        return hold_vcpu(int(ffi.cast("uintptr_t", core)), deadline, turn, run, self.refused)

    def begin(self, *, surface: bool) -> tuple[Drive, Any, int]:
        """See `Engine`."""
        core = self.living()
        core.surface = surface
        core.native = ffi.NULL  # until the emulator has looked at this run
        return drive, core, int(ffi.cast("uintptr_t", core))

    def begin_by_hand(self) -> int:
        """See `Engine`."""
        core = self.living()
        loop: int = lib.pykvm_by_hand(core)
        if loop < 0:
            self.refused(-loop)
        core.surface = 1
        return loop

    def steps(
        self, loop: int, deadline: int, other: Callable[[int], Exit | None]
    ) -> Callable[[], Exit]:
        """See `Engine`."""
        from pykvm.exits import KINDS

        core = self.living()
        address = int(ffi.cast("uintptr_t", core))
        return by_hand(address, deadline, loop, core, self.run_page, KINDS, other)

    def end_by_hand(self, loop: int) -> None:
        """See `Engine`."""
        if self.core is not None:
            lib.pykvm_by_hand_ends(self.core, loop)

    def check_open(self) -> None:
        """See `Engine`."""
        self.living()

    def not_entered(self) -> NoReturn:
        """See `Engine`."""
        self.refused(self.living().refusal)

    def refused(self, code: int) -> NoReturn:
        """Raise what one of enum pykvm_refusal means."""
        raise refusal(code, f"vCPU {self.index}", self.living().error)

    def failed(self) -> NoReturn:
        """Raise what KVM_RUN returned."""
        raise KVMError(
            "KVM_RUN", self.living().error, hint="the host's kernel log may say why (dmesg)"
        )

    def wait(self) -> int:
        """See `Engine`."""
        return int(lib.pykvm_wait(self.living()))

    def kick(self, turn: int = 0) -> bool:
        """See `Engine`."""
        core = self.core
        return core is not None and lib.pykvm_kick(core, turn) == 1

    def attend(self) -> None:
        """See `Engine`."""
        core = self.core
        if core is not None:
            lib.pykvm_attend(core)

    def clear_attention(self) -> None:
        """See `Engine`."""
        (self.core or self.living()).attention = 0

    @property
    def attended(self) -> bool:
        """See `Engine`."""
        return bool((self.core or self.living()).attention)

    def set_alarm(self, when: int | None) -> None:
        """See `Engine`."""
        core = self.core or self.living()
        lib.pykvm_set_alarm(core, 0 if when is None else when if when > 0 else 1)

    @property
    def is_here(self) -> bool:
        """See `Engine`."""
        core = self.core
        return core is not None and lib.pykvm_is_here(core) == 1

    @property
    def is_elsewhere(self) -> bool:
        """See `Engine`."""
        core = self.core
        return core is not None and lib.pykvm_is_elsewhere(core) == 1


def _is_an_engine(engine: KvmEngine) -> Engine:
    """For the type checker alone."""
    return engine
