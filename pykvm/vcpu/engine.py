"""What executes a vCPU's instructions, as loop, interrupt controllers and emulator see it.

No run loads this: it is for type checkers and for readers.  KVM does it, by
`pykvm.vcpu.kvm_engine.KvmEngine`, the only engine so far.  Another one would have to
give the same: registers in the layout of KVM's structs, a kvm_run page, and the ioctls below.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, NoReturn, TypeVar

    from pykvm.bus.dispatch import Dispatch
    from pykvm.exits import Exit, RunPage
    from pykvm.vcpu.saved import VcpuState

    T = TypeVar("T")
    Reads = Mapping[int, Callable[[int, int], int]]
    Writes = Mapping[int, Callable[[int, int, int], None]]
    Drive = Callable[[int, Reads, Writes, Callable[[object, int], int], bool], int]

__all__ = ["Engine", "Ioctls"]


class Ioctls(Protocol):
    """The state of a vCPU beyond its registers: methods of `pykvm.kvm.VCPU`, where each is told."""

    def nmi(self) -> None:
        """KVM_NMI."""

    def get_cpuid2(self) -> Sequence[Any]:
        """KVM_GET_CPUID2."""

    def get_msrs(self, indices: Iterable[int], *, partial: bool = False) -> dict[int, int]:
        """KVM_GET_MSRS."""

    def set_msrs(self, values: Mapping[int, int], *, partial: bool = False) -> Any:
        """KVM_SET_MSRS."""

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE."""

    def set_debugregs(self, value: Any) -> None:
        """KVM_SET_DEBUGREGS."""

    def set_vcpu_events(self, value: Any) -> None:
        """KVM_SET_VCPU_EVENTS."""

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ."""

    def get_device_attr(self, group: int, attr: int) -> int:
        """KVM_GET_DEVICE_ATTR: the TSC offset."""

    def set_device_attr(self, group: int, attr: int, value: int) -> None:
        """KVM_SET_DEVICE_ATTR."""


class Engine(Protocol):
    """One vCPU's engine.  All but `kick` and `attend` belong to the thread that runs the vCPU."""

    #: Whether guest time stands still for the local APIC's timer too, though KVM's runs on.
    timers_stand: bool

    @property
    def index(self) -> int:
        """The vCPU's number."""

    @property
    def kvm(self) -> Ioctls:
        """State beyond the registers."""

    def regs(self) -> Any:
        """The current struct kvm_regs; call `dirty_regs` before a change."""

    def dirty_regs(self) -> None:
        """The general registers are about to change: the next entry takes them."""

    def sregs(self) -> Any:
        """The current struct kvm_sregs; a change counts once `set_sregs` is called."""

    def set_sregs(self, sregs: Any) -> None:
        """Set segment, table and control registers, given as `sregs` gives them or as bytes."""

    def replace_regs(self, values: Mapping[str, int]) -> None:
        """Set all general registers, whatever they are now."""

    def sync_regs(self) -> Any:
        """The current struct kvm_sync_regs, at an exit that has left no instruction half done.

        A change counts once `commit_regs`, `commit_sregs` or `commit_events` is called for it.
        """

    def commit_regs(self) -> None:
        """Have the general registers of `sync_regs` taken by the next entry."""

    def commit_sregs(self) -> None:
        """Set the kvm_sregs of `sync_regs`."""

    def commit_events(self) -> None:
        """Set the kvm_vcpu_events of `sync_regs`."""

    def finish_instruction(self) -> None:
        """Complete the instruction of the last exit, without entering the guest.

        Raises StateError while a read of it waits for an answer.
        """

    def abandon_instruction(self) -> None:
        """Forget the instruction of the last exit."""

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG, from the registers as they are now."""

    def settle(self) -> bool:
        """Complete the instruction of the last exit; True if there is an exit to deal with first.

        The instruction may access more than it has, or the last run have ended at that exit.  A
        read that was not answered gets all ones.
        """

    def hand_out(self) -> Exit:
        """The exit that `settle` has found, to be dealt with."""

    def save(self) -> dict[str, Any]:
        """What a VcpuState has of the engine, once it is settled."""

    def forget_translations(self) -> None:
        """Forget what page tables led to: the host has rewritten them.  Before `load`."""

    def deliver_timers(self) -> None:
        """Where the local APIC is KVM's: have it take what its timer has brought by now.

        KVM itself does so at the next run only, and does not show it before.  Between two runs.
        """

    def get_lapic(self) -> bytes:
        """Where the local APIC is KVM's: its registers, as `set_lapic` takes them."""

    def set_lapic(self, registers: bytes | bytearray) -> None:
        """Set them, without a timer that has run out interrupting again."""

    def overwrites(self, state: VcpuState) -> Sequence[tuple[int, int]]:
        """Guest memory that is written when this state is loaded: addresses and sizes."""

    def load(self, state: VcpuState, tsc_offset: int | None = None) -> None:
        """Be in that state, whatever the instruction at hand was.

        The TSC offset is the state's, unless another one is given, modulo 2**64.
        """

    @property
    def page(self) -> Any:
        """The kvm_run page as bytes; offsets in it are `pykvm.kvm.run_page`'s."""

    @property
    def run_page(self) -> RunPage:
        """The kvm_run page as `pykvm.exits` reads it."""

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: inject a vector, when the page says that it can be taken."""

    def use(self, dispatch: Dispatch) -> None:
        """Answer accesses by these devices from now on."""

    def hold(self, run: Callable[[], T], timeout_ns: int | None = None, turn: int = 0) -> T:
        """Call `run` with this vCPU as the calling thread's own.

        `turn` is the run of the machine's claim that this is for, 0 if it is for none.  Raises
        StateError, ClosedError, ResourceError, KVMError.
        """

    def begin(self, *, surface: bool) -> tuple[Drive, Any, int]:
        """A loop of the machine's begins, inside `hold`: ``(drive, keep, handle)``.

        ``drive(handle, reads, writes, odd, once)`` runs the guest until there is something to do,
        one of the codes above; as long as it does, a reference to `keep` is held.  It calls the
        methods of the devices that the guest accesses, by slot of the bus, and ``odd(answer,
        slot)`` for the number that an answer which is none of 64 bits stands for.  With `once` it
        returns CALLED after such a call.  With `surface` every exit is EXIT, even if a device could
        answer it.
        """

    def begin_by_hand(self) -> int:
        """A loop by hand begins: its number.  Raises as `hold`."""

    def steps(
        self, loop: int, deadline: int, other: Callable[[int], Exit | None]
    ) -> Callable[[], Exit]:
        """Return a function that holds the vCPU for one exit, and returns it as a value.

        `deadline` is in ns of CLOCK_MONOTONIC, 0 for never.  ``other(code)`` is called for what is
        no single access: it returns an exit, or None to go on.  A loop that another has taken the
        vCPU from gets REFUSED.
        """

    def end_by_hand(self, loop: int) -> None:
        """It is over."""

    def end_exit(self) -> None:
        """What was handed out as an exit can no longer be answered."""

    def check_open(self) -> None:
        """Raise ClosedError once the engine is closed."""

    def not_entered(self) -> NoReturn:
        """Raise why `step` returned REFUSED."""

    def failed(self) -> NoReturn:
        """Raise what was wrong at a code that is none of the others."""

    def wait(self) -> int:
        """Wait outside the guest until `attend`, a kick, the alarm, a tick or the deadline."""

    def kick(self, turn: int = 0) -> bool:
        """From any thread: take the vCPU out of the guest, if it is running for that run.

        Returns whether a run was in progress; if so, it notices the kick exactly once.
        """

    def attend(self) -> None:
        """From any thread: have the loop come to `Handlers.take_attention` before it goes on.

        If the vCPU is not running, its next run begins with that.
        """

    def clear_attention(self) -> None:
        """It is about to look at what `attend` was called for so far."""

    @property
    def attended(self) -> bool:
        """Whether `attend` was called since `clear_attention`."""

    def set_alarm(self, when: int | None) -> None:
        """Come to `Handlers.take_attention` at this host time: ns of CLOCK_MONOTONIC, or never."""

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one that runs this vCPU."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether another thread runs this vCPU: an ioctl would wait for it to leave the guest."""
