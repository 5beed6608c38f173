"""Timers and interrupts during a run: `pykvm.irqchip.Interrupts` for each irqchip."""

from __future__ import annotations

from pykvm.kvm.constants import KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED
from pykvm.kvm.run_page import IF_FLAG, READY_FOR_INTERRUPT_INJECTION, REQUEST_INTERRUPT_WINDOW
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.clock import Clock
    from pykvm.interrupts.pic import Pic8259Pair
    from pykvm.irqchip.injector import Injector
    from pykvm.vcpu import CPU

__all__ = ["KernelInterrupts", "SplitInterrupts", "UserInterrupts"]


# How often to look, in ns, whether the guest has lowered CR8 for an interrupt that waits for it:
# not every KVM has an exit for that.
_PRIORITY_CHECK = 1_000_000


class Timers:
    """The vCPUs' timers: the half of `Interrupts` that is the same for every irqchip."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def run_timers(self, cpu: CPU) -> None:
        """See `Interrupts`."""
        if self.clock.run_due(cpu.index):
            # Those that came due called the vCPU that is looking already.
            cpu.engine.clear_attention()

    def set_alarm(self, cpu: CPU) -> None:
        """See `Interrupts`."""
        cpu.engine.set_alarm(self.clock.alarm(cpu.index))


class UserInterrupts(Timers):
    """The vCPUs' timers and interrupts, all of them in software.

    `waits_for_host` says whether a device could still interrupt because of something outside the
    machine (input to a serial port, say), `nmi_source` whether any could send an NMI; `on_warp` is
    called after a skip.
    """

    can_start = True

    def __init__(
        self,
        clock: Clock,
        injectors: Sequence[Injector],
        *,
        waits_for_host: Callable[[], bool] = lambda: False,
        nmi_source: Callable[[], bool] = lambda: False,
        on_warp: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(clock)
        self._warps = clock.policy == "warp"
        self._fixed_tsc = not clock.tsc_movable
        self._injectors = injectors
        self._waits_for_host = waits_for_host
        self._nmi_source = nmi_source
        self._on_warp = on_warp

    def set_alarm(self, cpu: CPU) -> None:
        """See `Interrupts`."""
        lapic = self._injectors[cpu.index].lapic
        if lapic is not None and lapic.held_by_priority:
            # Some KVMs have no exit for a CR8 that falls (KVM_EXIT_SET_TPR): look again soon.
            due = self.clock.next_deadline(cpu.index)
            soon = self.clock.now() + _PRIORITY_CHECK
            cpu.engine.set_alarm(self.clock.host_deadline(soon if due is None else min(due, soon)))
        else:
            cpu.engine.set_alarm(self.clock.alarm(cpu.index))

    def reset_by_init(self, cpu: CPU) -> bool:
        """See `Interrupts`."""
        return self._injectors[cpu.index].take_init()

    def awake(self, cpu: CPU) -> bool:
        """See `Interrupts`."""
        return self._injectors[cpu.index].awake

    def start(self, cpu: CPU) -> bool:
        """See `Interrupts`."""
        injector = self._injectors[cpu.index]
        if injector.init_pending:
            return True
        if cpu.parked:
            injector.take_sipi()
        return False

    def serve(self, cpu: CPU) -> None:
        """See `Interrupts`."""
        self._injectors[cpu.index].serve()

    def can_wake(self, cpus: Sequence[CPU]) -> bool:
        """See `Interrupts`."""
        return self._any_listens(cpus) and (
            self.clock.earliest(len(self._injectors)) is not None or self._waits_for_host()
        )

    def _any_listens(self, cpus: Sequence[CPU]) -> bool:
        """Whether an interrupt would wake one of them, or an NMI that there may be."""
        halted = False
        for cpu in cpus:
            if not cpu.parked:
                halted = True
                if cpu.engine.page[IF_FLAG]:
                    return True
        return halted and self._nmi_source()

    def warp(self, cpus: Sequence[CPU]) -> bool:
        """See `Interrupts`."""
        if not self._warps or not self._any_listens(cpus):
            return False
        if self._fixed_tsc and self._waits_for_tsc():
            return False
        if not self.clock.warp(len(cpus)):
            return False
        self._on_warp()
        return True

    def _waits_for_tsc(self) -> bool:
        """Whether a guest waits for a TSC that cannot skip anything: it is the host's."""
        for injector in self._injectors:
            if injector.lapic is not None and injector.lapic.timer.deadline:
                return True
        return False

    def dead(self, cpu: CPU) -> bool:
        """Never asked: a halted vCPU waits outside the kernel."""
        return False


class KernelInterrupts(Timers):
    """The vCPUs' timers in software; interrupts are KVM's."""

    #: Parked vCPUs wait for their start-up IPI inside KVM_RUN.
    can_start = False

    def reset_by_init(self, cpu: CPU) -> bool:
        """The kernel carries out INIT."""
        return False

    def awake(self, cpu: CPU) -> bool:
        """HLT waits in the kernel."""
        return True

    def start(self, cpu: CPU) -> bool:
        """Nothing to do."""
        return False

    def serve(self, cpu: CPU) -> None:
        """Nothing to do: KVM injects."""

    def can_wake(self, cpus: Sequence[CPU]) -> bool:
        """Never asked: no vCPU waits outside KVM_RUN."""
        return True

    def warp(self, cpus: Sequence[CPU]) -> bool:
        """Time in the kernel cannot be skipped."""
        return False

    def dead(self, cpu: CPU) -> bool:
        """Whether this vCPU has halted with interrupts off, or was never started."""
        state = cpu.kvm.get_mp_state()
        if state == KVM_MP_STATE_UNINITIALIZED:
            return True
        return state == KVM_MP_STATE_HALTED and not cpu.engine.page[IF_FLAG]


class SplitInterrupts(KernelInterrupts):
    """As `KernelInterrupts`, with an 8259 of ours at the first vCPU."""

    def __init__(self, clock: Clock, pic: Pic8259Pair) -> None:
        super().__init__(clock)
        self._pic = pic

    def serve(self, cpu: CPU) -> None:
        """Hand the kernel the 8259's vector."""
        if cpu.index:
            return
        page = cpu.engine.page
        if self._pic.pending and page[READY_FOR_INTERRUPT_INJECTION]:
            page[READY_FOR_INTERRUPT_INJECTION] = 0
            cpu.engine.interrupt(self._pic.acknowledge())
        page[REQUEST_INTERRUPT_WINDOW] = self._pic.pending
