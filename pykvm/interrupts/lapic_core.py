"""What a local APIC does with interrupts: accepting, ordering, serving (SDM 3A chapter 11).

The registers that software sees are in `pykvm.interrupts.lapic`.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.errors import ConfigError
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.lapic_registers import GpFault
from pykvm.interrupts.lapic_timer import ApicTimer
from pykvm.interrupts.message import EXTINT, FIXED, INIT, LOWEST_PRIORITY, NMI, STARTUP
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.interrupts.lapic_timer import ApicTimerState, TscClock
    from pykvm.interrupts.message import Message
    from pykvm.values.state import U8, U32, U64, U256

__all__ = ["ApicCore", "CpuPort", "LocalApicState"]

PIN_ENTRIES = (reg.LVT_LINT0, reg.LVT_LINT1)

# Of an LVT entry, what says that the pin passes an 8259's output on.
_EXTINT_BITS, _EXTINT = reg.LVT_MASKED | 7 << 8, EXTINT << 8


class LocalApicState(State):
    """The registers and pins of a local APIC.

    `lvt` is in the order of `lapic_registers.lvt_registers`.  `errors` are those that ESR does not
    show yet, the next of which interrupts if `error_armed`.  `served` is the vector that a level
    on each pin was accepted as, until its EOI (remote IRR), and `extint` whether an ExtINT message
    waits.
    """

    base: U64
    xapic_id: U8
    tpr: U8
    svr: U32
    ldr: U32
    dfr: U32
    esr: U32
    errors: U32
    error_armed: bool
    icr: U32
    icr_high: U32
    irr: U256
    isr: U256
    tmr: U256
    lvt: tuple[U32, ...]
    pins: tuple[bool, bool]
    served: tuple[U8 | None, U8 | None]
    extint: bool
    timer: ApicTimerState


class CpuPort(Protocol):
    """What an APIC asks of its processor.

    Each may be called from any thread, with no lock of the APIC's held.
    """

    def request_nmi(self) -> None:
        """A non-maskable interrupt arrived."""

    def request_init(self) -> None:
        """An INIT arrived.  The processor answers it with `LocalApic.init`, in its own thread."""

    def request_sipi(self, vector: int, /) -> None:
        """A start-up IPI arrived: begin at page `vector`, if waiting for it."""

    def wake(self) -> None:
        """`LocalApic.interrupt` or `LocalApic.extint` has become something; look at them."""


class ApicCore:
    """The state of one local APIC and all that changes it but the guest's accesses.

    See `pykvm.interrupts.lapic.LocalApic`.
    """

    __slots__ = (
        "_base",
        "_dfr",
        "_error_armed",
        "_errors",
        "_esr",
        "_extint",
        "_forbidden_base",
        "_icr",
        "_icr_high",
        "_irr",
        "_isr",
        "_ldr",
        "_lock",
        "_lvt",
        "_lvt_writable",
        "_pins",
        "_port",
        "_served",
        "_svr",
        "_tmr",
        "_tpr",
        "_xapic_id",
        "bsp",
        "id",
        "on_eoi",
        "timer",
    )

    def __init__(
        self,
        id: int,
        clock: TscClock,
        port: CpuPort,
        *,
        bsp: bool,
        cpu: int,
        timer_hz: int,
        forbidden_base: int,
        lvt_writable: dict[int, int],
    ) -> None:
        """`forbidden_base` is the reserved bits of IA32_APIC_BASE; else as for `LocalApic`."""
        self.id = id
        self.bsp = bsp
        self.on_eoi: Callable[[int, bool], object] | None = None
        self.timer = ApicTimer(clock, self._timer_fired, cpu=cpu, hz=timer_hz)
        self._port = port
        self._forbidden_base = forbidden_base
        self._lvt_writable = lvt_writable
        # Guards IRR, TMR, the errors and the pins, which other threads change, and whatever must
        # change together with them.  Never held while anyone else is called.
        self._lock = allocate_lock()
        # The wires are outside: their levels outlive a reset.
        self._pins = [False, False]
        self.reset()

    # Reset and mode

    def reset(self) -> None:
        """Power-on state (SDM 3A 11.4.7.1)."""
        self._base = reg.DEFAULT_ADDRESS | reg.BASE_ENABLE | (reg.BASE_BSP if self.bsp else 0)
        self._xapic_id = self.id & 0xFF
        self.timer.missed = 0
        self._reset_registers()

    def init(self) -> None:
        """The state after INIT: as after power-on, but base and APIC ID stay (SDM 3A 11.4.7.3)."""
        self._reset_registers()

    def _reset_registers(self) -> None:
        self.timer.reset()
        with self._lock:
            self._irr = self._isr = self._tmr = 0
            self._tpr = 0
            self._svr = 0xFF
            self._ldr = reg.x2apic_ldr(self.id) if self.x2apic else 0
            self._dfr = 0xFFFF_FFFF
            self._esr = self._errors = 0
            self._error_armed = True
            self._icr = self._icr_high = 0
            self._lvt = dict.fromkeys(self._lvt_writable, reg.LVT_MASKED)
            if self.bsp:
                self._lvt[reg.LVT_LINT0] = EXTINT << 8
            # The vector that a level on the pin was accepted as, until its EOI: remote IRR.
            self._served = [-1, -1]
            self._extint = False

    def state(self) -> LocalApicState:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            low, high = (None if vector < 0 else vector for vector in self._served)
            return LocalApicState(
                self._base,
                self._xapic_id,
                self._tpr,
                self._svr,
                self._ldr,
                self._dfr,
                self._esr,
                self._errors,
                self._error_armed,
                self._icr,
                self._icr_high,
                self._irr,
                self._isr,
                self._tmr,
                tuple(self._lvt.values()),
                (self._pins[0], self._pins[1]),
                (low, high),
                self._extint,
                self.timer.state(),
            )

    def restore(self, state: LocalApicState) -> None:
        """See `pykvm.values.state.Stateful`."""
        self._check_mode(expect(state, LocalApicState).base)
        entries = len(self._lvt_writable)
        integer("entries of the local vector table", len(state.lvt), entries, entries)
        self.timer.restore(state.timer)
        with self._lock:
            self._base = state.base
            self._xapic_id = state.xapic_id
            self._tpr = state.tpr
            self._svr = state.svr
            self._ldr = state.ldr
            self._dfr = state.dfr
            self._esr = state.esr
            self._errors = state.errors
            self._error_armed = state.error_armed
            self._icr = state.icr
            self._icr_high = state.icr_high
            self._irr = state.irr
            self._isr = state.isr
            self._tmr = state.tmr
            self._lvt = {
                register: value & writable
                for (register, writable), value in zip(
                    self._lvt_writable.items(), state.lvt, strict=True
                )
            }
            self._pins = list(state.pins)
            self._served = [-1 if vector is None else vector for vector in state.served]
            self._extint = state.extint

    def _check_mode(self, base: int) -> None:
        """Raise ConfigError unless IA32_APIC_BASE can have this value."""
        x2apic_of_none = base & reg.BASE_X2APIC and not base & reg.BASE_ENABLE
        if base & self._forbidden_base or x2apic_of_none:
            raise ConfigError(f"this local APIC has no mode for IA32_APIC_BASE = {base:#x}")

    @property
    def base(self) -> int:
        """IA32_APIC_BASE.  Setting it raises GpFault where WRMSR would (SDM 3A 11.12.5).

        The registers stay as they are while it disables the APIC, as in KVM; the manual lets them
        be lost or not (11.4.3).
        """
        return self._base

    @base.setter
    def base(self, value: int) -> None:
        before = self._base
        enable, x2apic = value & reg.BASE_ENABLE, value & reg.BASE_X2APIC
        if value & self._forbidden_base:
            raise GpFault(f"IA32_APIC_BASE = {value:#x}: reserved bits set")
        if x2apic and not enable:
            raise GpFault(f"IA32_APIC_BASE = {value:#x}: x2APIC mode of a disabled APIC")
        if before & reg.BASE_X2APIC and enable and not x2apic:
            raise GpFault(f"IA32_APIC_BASE = {value:#x}: from x2APIC mode back to xAPIC mode")
        if x2apic and not before & reg.BASE_ENABLE:
            raise GpFault(f"IA32_APIC_BASE = {value:#x}: from disabled straight to x2APIC mode")
        self._base = value
        changed = before ^ value
        if enable and changed & reg.BASE_ENABLE:
            self._xapic_id = self.id & 0xFF
        if changed & reg.BASE_X2APIC:
            self._ldr = reg.x2apic_ldr(self.id) if x2apic else 0
            self._icr_high &= 0xFF00_0000
        if changed & reg.BASE_ENABLE:
            for pin in (0, 1):
                self._sample(pin, self._pins[pin], changed=False)
            self._wake_if_due()

    @property
    def address(self) -> int:
        """Where the page of registers stands in xAPIC mode."""
        return self._base & ~reg.BASE_FLAGS

    @property
    def enabled(self) -> bool:
        """Whether IA32_APIC_BASE enables it: a disabled one takes no messages at all."""
        return bool(self._base & reg.BASE_ENABLE)

    @property
    def software_enabled(self) -> bool:
        """Whether it is enabled, by the spurious-interrupt vector register too."""
        return bool(self._svr & reg.SVR_ENABLE and self._base & reg.BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """Whether it is in x2APIC mode."""
        return bool(self._base & reg.BASE_X2APIC)

    # The processor's side

    @property
    def ppr(self) -> int:
        """The processor priority (SDM 3A 11.8.3.1)."""
        tpr, serving = self._tpr, self._serving
        return serving if serving > tpr & 0xF0 else tpr

    @property
    def interrupt(self) -> int | None:
        """The vector that the processor would get if it took interrupts now; None for none."""
        irr = self._irr
        if irr and self._base & reg.BASE_ENABLE:
            vector = irr.bit_length() - 1
            priority = vector & 0xF0
            # More than `ppr`, of which only the class counts.
            if priority > self._tpr & 0xF0 and not (self._isr and priority <= self._serving):
                return vector
        return None

    @property
    def held_by_priority(self) -> bool:
        """Whether an interrupt waits for nothing but a lower task priority."""
        irr = self._irr
        return bool(irr) and self.interrupt is None and irr.bit_length() - 1 & 0xF0 > self._serving

    @property
    def _serving(self) -> int:
        """The priority class in service, 0 for none."""
        return self._isr.bit_length() - 1 & 0xF0 if self._isr else 0

    def wants(self, cr8: int) -> bool:
        """Whether the processor has something to take, with this task priority in its CR8."""
        if cr8 != self._tpr >> 4:
            self.cr8 = cr8
        if self._irr and self.interrupt is not None:
            return True
        low, high = self._pins
        if not (low or high):
            return self._extint
        return (low and self._lvt[reg.LVT_LINT0] & _EXTINT_BITS == _EXTINT) or self.extint

    def acknowledge(self) -> int:
        """Take the interrupt: its vector, which is in service from now on.

        The spurious vector, and nothing in service, if there is none (SDM 3A 11.9).
        """
        with self._lock:
            vector = self.interrupt
            if vector is None:
                return self._svr & 0xFF
            bit = 1 << vector
            self._irr ^= bit
            self._isr |= bit
            return vector

    @property
    def extint(self) -> bool:
        """Whether an 8259 asks this processor to fetch a vector from it.

        By LINT0 or LINT1 in ExtINT mode, by an ExtINT message, or by LINT0 as the INTR pin of a
        disabled APIC (SDM 3A 11.4.3).  Taking it is `acknowledge_extint` and the 8259's
        acknowledge cycle; this APIC's IRR and ISR have no part in it.
        """
        if self._extint:
            return True
        if not self._base & reg.BASE_ENABLE:
            return self._pins[0]
        lvt = self._lvt
        low, high = self._pins
        return (low and lvt[reg.LVT_LINT0] & _EXTINT_BITS == _EXTINT) or (
            high and lvt[reg.LVT_LINT1] & _EXTINT_BITS == _EXTINT
        )

    def acknowledge_extint(self) -> None:
        """Forget the ExtINT message, if there was one.  A pin stays as it is driven."""
        self._extint = False

    @property
    def lint0_extint(self) -> bool:
        """Whether LINT0 passes an 8259's output on, whatever its level: virtual wire mode."""
        passes = self._lvt[reg.LVT_LINT0] & _EXTINT_BITS == _EXTINT
        return passes or not self._base & reg.BASE_ENABLE

    @property
    def has_nmi_pin(self) -> bool:
        """Whether LINT0 or LINT1 is an NMI input."""
        return any(
            self._lvt[entry] >> 8 & 7 == NMI and not self._lvt[entry] & reg.LVT_MASKED
            for entry in PIN_ENTRIES
        )

    @property
    def cr8(self) -> int:
        """The task-priority class, as CR8 holds it (SDM 3A 11.8.6)."""
        return self._tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._set_tpr((value & 0xF) << 4)

    def _set_tpr(self, value: int) -> None:
        lowered = value < self._tpr
        self._tpr = value
        if lowered and self._irr:
            self._wake_if_due()

    def eoi(self) -> None:
        """End of the interrupt of highest priority in service, if any (SDM 3A 11.8.5)."""
        isr = self._isr
        if not isr:
            return
        vector = isr.bit_length() - 1
        bit = 1 << vector
        with self._lock:
            self._isr = isr ^ bit
            level = bool(self._tmr & bit)
        if vector in self._served:
            self._release_pins(vector)
        if self.on_eoi is not None and not (level and self._svr & reg.SVR_SUPPRESS_EOI):
            self.on_eoi(vector, level)
        if self._irr:
            self._wake_if_due()

    # The system's side

    def receive(self, message: Message) -> bool:
        """Take a message that is addressed to this APIC (SDM 3A 11.6.1, 11.8).

        False if it was refused: this APIC is disabled, or the vector below 16.
        """
        mode, vector = message.mode, message.vector
        if mode <= LOWEST_PRIORITY:
            if message.assert_ or not message.level:
                return self._accept(vector, message.level) is not None
        elif not self._base & reg.BASE_ENABLE:
            return False
        elif mode == STARTUP:
            self._port.request_sipi(vector)
        elif mode != INIT or message.assert_ or not message.level:
            self._request(mode)
        return True

    def accept(self, vector: int, level: bool = False) -> bool:
        """Take a fixed interrupt: set its IRR bit, and its TMR bit to the trigger mode `level`.

        True if it is pending now and was not before.  Vectors below 16 are an error.
        """
        return self._accept(vector, level) is True

    def _accept(self, vector: int, level: bool) -> bool | None:
        """As `accept`; None if it was refused."""
        if not (self._svr & reg.SVR_ENABLE and self._base & reg.BASE_ENABLE):
            return None
        if vector < 16:
            self._report(reg.ESR_RECEIVE_ILLEGAL_VECTOR)
            return None
        bit = 1 << vector
        with self._lock:
            fresh = not self._irr & bit
            self._irr |= bit
            if level:
                self._tmr |= bit
            elif self._tmr & bit:
                self._tmr ^= bit
        # Not the task priority: the processor may have lowered its CR8 without an exit.
        if fresh and not (self._isr and vector & 0xF0 <= self._serving):
            self._port.wake()
        return fresh

    def _request(self, mode: int) -> None:
        """Pass on what bypasses IRR and ISR.  There is no system management mode for an SMI."""
        if mode == NMI:
            self._port.request_nmi()
        elif mode == INIT:
            self._port.request_init()
        elif mode == EXTINT:
            self._extint = True
            self._port.wake()

    def trigger(self, register: int) -> bool:
        """Signal a local source by its LVT entry's number: LVT_THERMAL, LVT_PERFORMANCE, ...

        True if an interrupt is pending that was not before, or the processor was asked otherwise.
        The performance counters' entry masks itself (SDM 3A 11.5.1).
        """
        lvt = self._lvt.get(register, reg.LVT_MASKED)
        if lvt & reg.LVT_MASKED or not self._base & reg.BASE_ENABLE:
            return False
        if register == reg.LVT_PERFORMANCE:
            self._lvt[register] = lvt | reg.LVT_MASKED
        mode = lvt >> 8 & 7
        if mode == FIXED:
            return self._accept(lvt & 0xFF, False) is True
        self._request(mode)
        return True

    def _timer_fired(self) -> bool:
        return self.trigger(reg.LVT_TIMER)

    def set_lint(self, pin: int, level: bool) -> None:
        """Drive LINT0 (`pin` 0) or LINT1 (SDM 3A 11.5.1).

        Of the local APIC's sources only these two can be level-triggered.  While the APIC is
        disabled they are the processor's INTR and NMI pins (11.4.3).
        """
        with self._lock:
            if self._pins[pin] == level:
                return
            self._pins[pin] = level
        if level or self._lvt[PIN_ENTRIES[pin]] & _EXTINT_BITS != _EXTINT:
            self._sample(pin, level, changed=True)

    def _sample(self, pin: int, level: bool, *, changed: bool) -> None:
        """Act on the level of a pin that changed, or whose LVT entry or remote IRR did."""
        if not self._base & reg.BASE_ENABLE:
            if level and changed:
                if pin == 0:
                    self._port.wake()
                else:
                    self._port.request_nmi()
            return
        lvt = self._lvt[PIN_ENTRIES[pin]]
        if lvt & reg.LVT_MASKED:
            return
        mode = lvt >> 8 & 7
        if mode == EXTINT:
            # Always active high and level-triggered: the pin is then INTR.
            if level:
                self._port.wake()
        elif level == bool(lvt & reg.LVT_ACTIVE_LOW):
            return
        elif mode != FIXED:
            if changed:
                self._request(mode)
        elif not lvt & reg.LVT_LEVEL:
            if changed:
                self._accept(lvt & 0xFF, False)
        elif self._claim(pin, lvt & 0xFF) and self._accept(lvt & 0xFF, True) is None:
            self._served[pin] = -1

    def _claim(self, pin: int, vector: int) -> bool:
        """Set the pin's remote IRR; False if it was set."""
        with self._lock:
            if self._served[pin] >= 0:
                return False
            self._served[pin] = vector
            return True

    def _release_pins(self, vector: int) -> None:
        """Clear the remote IRR that `vector` stands for; a pin that is still high asks again."""
        for pin in (0, 1):
            if self._served[pin] == vector:
                self._served[pin] = -1
                self._sample(pin, self._pins[pin], changed=False)

    def _reconsider_pin(self, pin: int) -> None:
        """Act on a new LVT entry: only a fixed, level-triggered one keeps its remote IRR."""
        if self._lvt[PIN_ENTRIES[pin]] & (reg.LVT_LEVEL | 0x700) != reg.LVT_LEVEL:
            self._served[pin] = -1
        self._sample(pin, self._pins[pin], changed=False)

    def _wake_if_due(self) -> None:
        if self.interrupt is not None or self.extint:
            self._port.wake()

    def _report(self, error: int) -> None:
        """Log an error; the first since ESR was written interrupts (SDM 3A 11.5.3)."""
        with self._lock:
            self._errors |= error
            armed, self._error_armed = self._error_armed, False
        if armed:
            self.trigger(reg.LVT_ERROR)

    # Addressing

    def answers_to(self, destination: int, logical: bool) -> bool:
        """Whether a message to `destination` is for this APIC, broadcasts aside (SDM 3A 11.6.2)."""
        if self._base & reg.BASE_X2APIC:
            if not logical:
                return destination == self.id
            same_cluster = self._ldr >> 16 == destination >> 16
            return same_cluster and bool(self._ldr & destination & 0xFFFF)
        if not logical:
            return destination == (self._xapic_id if destination <= 0xFF else self.id)
        logical_id = self._ldr >> 24
        model = self._dfr >> 28
        if model == reg.DFR_FLAT:
            return bool(logical_id & destination)
        if model == reg.DFR_CLUSTER:
            return logical_id >> 4 == destination >> 4 and bool(logical_id & destination & 0xF)
        return False
