"""From a software local APIC into a vCPU, where KVM has no interrupt controller of its own.

Source: Documentation/virt/kvm/api.rst, 4.16 (KVM_INTERRUPT), 4.64 (KVM_NMI) and 5 (struct kvm_run:
request_interrupt_window, ready_for_interrupt_injection, if_flag, cr8).
"""

from __future__ import annotations

from pykvm.kvm.run_page import (
    CR8,
    IF_FLAG,
    READY_FOR_INTERRUPT_INJECTION,
    REQUEST_INTERRUPT_WINDOW,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State
from pykvm.vcpu.reset import can_reset, reset_by_init
from pykvm.x86.entry import after_start_up

if TYPE_CHECKING:
    from pykvm.interrupts.lapic import LocalApic
    from pykvm.interrupts.pic import Pic8259Pair
    from pykvm.values.state import U2, U8
    from pykvm.vcpu import CPU

__all__ = ["Injector", "InjectorState"]

# One NMI is being handled and one may wait (SDM 3A 6.7.1).
_NMIS = 2


class InjectorState(State):
    """What a processor was sent and has not taken: NMIs, an INIT, the page of a start-up IPI."""

    nmis: U2 = 0
    init: bool = False
    sipi: U8 | None = None


class Injector:
    """The processor end of a local APIC: a `CpuPort`.

    The requests come from any thread and only note what is wanted; `serve` and `awake` belong to
    the vCPU's own, outside the guest.
    """

    def __init__(self, cpu: CPU) -> None:
        self.cpu = cpu
        self.lapic: LocalApic | None = None
        #: The 8259 pair, on the processor whose LINT0 it drives.
        self.pic: Pic8259Pair | None = None
        self._nmis = 0
        #: Whether an INIT waits to be carried out.
        self.init_pending = False
        self._sipi: int | None = None

    def state(self) -> InjectorState:
        """See `pykvm.values.state.Stateful`."""
        return InjectorState(self._nmis, self.init_pending, self._sipi)

    def restore(self, state: InjectorState) -> None:
        """See `pykvm.values.state.Stateful`."""
        integer("NMIs that wait", state.nmis, 0, _NMIS)
        self._nmis, self.init_pending, self._sipi = state.nmis, state.init, state.sipi

    def request_nmi(self) -> None:
        """See `CpuPort`."""
        self._nmis = min(self._nmis + 1, _NMIS)
        self.cpu.engine.attend()

    def request_init(self) -> None:
        """See `CpuPort`."""
        # It clears what came before it; an NMI after it waits (SDM 3A 9.4.1).
        self._sipi = None
        self._nmis = 0
        self.init_pending = True
        self.cpu.engine.attend()

    def request_sipi(self, vector: int) -> None:
        """See `CpuPort`."""
        # Ignored by a processor that does not wait for one (SDM 3A 9.4.4).
        if self.cpu.parked or self.init_pending:
            self._sipi = vector
            self.cpu.engine.attend()

    def wake(self) -> None:
        """See `CpuPort`."""
        self.cpu.engine.attend()

    def before_access(self) -> None:
        """The guest accesses its local APIC: let that know the task priority in CR8."""
        lapic, cr8 = self.lapic, self.cpu.engine.page[CR8]
        if lapic is not None and lapic.cr8 != cr8:
            lapic.cr8 = cr8

    def after_access(self) -> None:
        """The guest may have written TPR: let KVM know."""
        if self.lapic is not None:
            self.cpu.engine.page[CR8] = self.lapic.cr8

    def take_init(self) -> bool:
        """Whether an INIT came; then it is carried out.

        But for the first processor of a machine where nothing stands at the reset vector: there it
        ends the run.
        """
        if not self.init_pending:
            return False
        # First of all: a start-up IPI that follows at once is not to be missed.
        self.cpu.parked = self.cpu.index != 0
        self.init_pending = False
        if self.lapic is not None:
            self.lapic.init()
            self.cpu.engine.page[CR8] = 0
        self.cpu.engine.page[REQUEST_INTERRUPT_WINDOW] = 0
        if self.cpu.parked or can_reset(self.cpu):
            reset_by_init(self.cpu)
        return True

    def take_sipi(self) -> bool:
        """Whether a start-up IPI came to this waiting processor; then it stands where that says."""
        vector, self._sipi = self._sipi, None
        if vector is None:
            return False
        self.cpu.state = after_start_up(self.cpu.state, vector)
        self.cpu.parked = False
        if self._nmis:
            self.cpu.engine.attend()
        return True

    @property
    def awake(self) -> bool:
        """Whether a halted processor would go on."""
        if self.init_pending:
            return True
        if self.cpu.parked:
            # A processor that waits for a start-up IPI keeps an NMI for later (SDM 3A 9.4.1).
            return self._sipi is not None
        lapic, page = self.lapic, self.cpu.engine.page
        takes = page[IF_FLAG] and lapic is not None and lapic.wants(page[CR8])
        return bool(takes or self._nmis)

    def serve(self) -> None:
        """Give KVM what it can take now, and ask for a window for what it cannot."""
        page, lapic = self.cpu.engine.page, self.lapic
        while self._nmis:
            self._nmis -= 1
            self.cpu.kvm.nmi()
        if lapic is None or not lapic.wants(page[CR8]):
            page[REQUEST_INTERRUPT_WINDOW] = 0
            return
        if page[READY_FOR_INTERRUPT_INJECTION]:
            page[READY_FOR_INTERRUPT_INJECTION] = 0
            # KVM's own irqchip asks the 8259 first, too.
            if self.pic is not None and lapic.extint:
                lapic.acknowledge_extint()
                vector = self.pic.acknowledge()
            else:
                vector = lapic.acknowledge()
            self.cpu.engine.interrupt(vector)
        page[REQUEST_INTERRUPT_WINDOW] = lapic.wants(page[CR8])
