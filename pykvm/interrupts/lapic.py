"""The local APIC in software (SDM 3A chapter 11, "Advanced Programmable Interrupt Controller").

The chapter is number 10 in older editions.  The APIC shows itself as KVM's own does: version 0x14
with six LVT entries, a timer of 1 GHz, and the bootstrap processor's LINT0 in virtual wire mode
after reset, as firmware would leave it.

KVM's own differs from the manual, and so from this one, where the guest does what it should not:

- it never reports an error: ESR is always 0, and vectors below 16 are accepted and then stuck;
- it keeps what is written to read-only or reserved bits of the ICR and of LVT entries;
- it ignores reserved bits that raise #GP(0) here, and a non-zero EOI, in x2APIC mode;
- LINT0 and LINT1 exist there only as far as the 8259 and KVM_NMI need them.
"""

from __future__ import annotations

from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.lapic_core import PIN_ENTRIES, ApicCore, CpuPort
from pykvm.interrupts.lapic_registers import GpFault
from pykvm.interrupts.lapic_timer import DEFAULT_HZ
from pykvm.interrupts.message import FIXED, LOWEST_PRIORITY, SHORTHAND_SELF, Message
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from pykvm.interrupts.lapic_timer import TscClock

    _Reader = Callable[["LocalApic", int], int]
    _Writer = Callable[["LocalApic", int, int], None]

__all__ = ["CpuPort", "GpFault", "LocalApic"]

PAGE = 0x1000
_WORD = 0xFFFF_FFFF

# Registers that x2APIC mode does not have, and EOI, which cannot be read there.
_XAPIC_ONLY = frozenset((reg.APR, reg.EOI, reg.DFR, reg.ICR_HIGH))


class LocalApic(ApicCore):
    """The local APIC of one processor.

    `read` and `write` are its page (offsets from `address`), `read_msr` and `write_msr` its MSRs,
    `cr8` the task priority as the processor sees it.  `receive` takes a message from elsewhere and
    `set_lint` drives its two pins; those two, `accept` and `trigger` may be called from any thread,
    the rest belongs to the vCPU's.  What software sends goes to ``send(lapic, message)``.

    `on_eoi`, where set, is called as ``on_eoi(vector, level)`` at each end of interrupt; `level`
    says that it is broadcast to the I/O APICs (not called where software suppresses the broadcast).

    Nothing that the guest does raises anything but `GpFault`, and that only from MSRs.
    """

    __slots__ = (
        "_readers",
        "_svr_writable",
        "_writers",
        "_x2apic_writable",
        "send",
        "version",
    )

    name = "lapic"

    def __init__(
        self,
        id: int,
        clock: TscClock,
        port: CpuPort,
        send: Callable[[LocalApic, Message], None],
        *,
        bsp: bool | None = None,
        cpu: int | None = None,
        timer_hz: int = DEFAULT_HZ,
        x2apic: bool = True,
        tsc_deadline: bool = True,
        directed_eoi: bool = False,
        cmci: bool = False,
        physical_bits: int = 52,
    ) -> None:
        """The APIC of the processor whose initial APIC ID is `id` (32 bits).

        `bsp` says whether it is the bootstrap processor's (else: if `id` is 0); `cpu` is the
        vCPU's number to the clock, for deadlines and TSC (else `id`).  `timer_hz` is the timer's
        rate before division.  `x2apic`, `tsc_deadline`, `directed_eoi` and `cmci` are what CPUID,
        the version register and MCG_CAP promise; `physical_bits` is MAXPHYADDR.
        """
        self.send = send
        self.version = reg.version(entries=7 if cmci else 6, directed_eoi=directed_eoi)
        self._svr_writable = reg.SVR_WRITABLE | (reg.SVR_SUPPRESS_EOI if directed_eoi else 0)
        self._readers = self._READERS_WITH_CMCI if cmci else self._READERS
        self._writers = self._WRITERS_WITH_CMCI if cmci else self._WRITERS
        lvt_writable = reg.lvt_writable(cmci=cmci, tsc_deadline=tsc_deadline)
        self._x2apic_writable = reg.x2apic_writable(lvt_writable, self._svr_writable)
        flags = reg.BASE_BSP | reg.BASE_ENABLE | (reg.BASE_X2APIC if x2apic else 0)
        super().__init__(
            id,
            clock,
            port,
            bsp=id == 0 if bsp is None else bsp,
            cpu=id if cpu is None else cpu,
            timer_hz=timer_hz,
            forbidden_base=~((1 << physical_bits) - 1 & ~reg.BASE_FLAGS | flags),
            lvt_writable=lvt_writable,
        )

    # Registers, as a page

    def read(self, offset: int, size: int) -> int:
        """The register at `offset`, in xAPIC mode (SDM 3A 11.4.1).

        Registers are 32 bits wide, 16 bytes apart; a shorter read that lies in one gets its part,
        as KVM has it, and any other that is not 4 bytes at a multiple of 16 gets 0.  In the other
        modes nothing answers.
        """
        if self._base & (reg.BASE_ENABLE | reg.BASE_X2APIC) != reg.BASE_ENABLE:
            return (1 << 8 * size) - 1
        start = offset & 0xF
        if start + size > 4 or not 0 <= offset < PAGE:
            return 0
        reader = self._readers.get(offset >> 4)
        if reader is None:
            self._report(reg.ESR_ILLEGAL_REGISTER)
            return 0
        return reader(self, offset >> 4) >> 8 * start & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the register at `offset`, in xAPIC mode: 4 bytes at a multiple of 16, or nothing."""
        if self._base & (reg.BASE_ENABLE | reg.BASE_X2APIC) != reg.BASE_ENABLE:
            return
        if size != 4 or offset & 0xF or not 0 <= offset < PAGE:
            return
        writer = self._writers.get(offset >> 4)
        if writer is not None:
            writer(self, offset >> 4, value & _WORD)
        elif offset >> 4 not in self._readers:
            self._report(reg.ESR_ILLEGAL_REGISTER)

    def page(self) -> bytes:
        """The registers as KVM_GET_LAPIC lays them out in xAPIC mode (1,024 bytes), unchanged."""
        image = bytearray(0x400)
        for register, reader in self._readers.items():
            effect = register == reg.CURRENT_COUNT
            value = self.timer.peek_count() if effect else reader(self, register)
            image[register << 4 : (register << 4) + 4] = value.to_bytes(4, "little")
        return bytes(image)

    # Registers, as MSRs

    def read_msr(self, index: int) -> int:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.

        Raises GpFault where the processor would (SDM 3A 11.12.1.2), and for every other MSR.
        """
        if index == reg.MSR_APIC_BASE:
            return self._base
        if index == reg.MSR_TSC_DEADLINE and self._has_deadline:
            return self.timer.read_deadline() if self.enabled else 0
        register = index - reg.MSR_X2APIC
        if register == reg.ICR and self.x2apic:
            return self._icr_high << 32 | self._icr
        reader = self._readers.get(register)
        if reader is None or register in _XAPIC_ONLY or not self.x2apic:
            raise GpFault(f"RDMSR of {index:#x}: {self._why(register)}")
        return reader(self, register)

    def write_msr(self, index: int, value: int) -> None:
        """WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.

        Raises GpFault where the processor would (SDM 3A 11.12.1.2), and for every other MSR.
        """
        if index == reg.MSR_APIC_BASE:
            self.base = value
            return
        if index == reg.MSR_TSC_DEADLINE and self._has_deadline:
            if self.enabled:
                self.timer.write_deadline(value)
            return
        register = index - reg.MSR_X2APIC
        allowed = self._x2apic_writable.get(register)
        if allowed is None or not self.x2apic:
            raise GpFault(f"WRMSR of {index:#x}: {self._why(register)}")
        if value & ~allowed:
            raise GpFault(f"WRMSR of {index:#x} = {value:#x}: reserved bits set")
        if register == reg.ICR:
            self._icr_high, value = value >> 32, value & _WORD
        if register == reg.SELF_IPI:
            self._send(Message(0, False, FIXED, value, shorthand=SHORTHAND_SELF))
        else:
            self._writers[register](self, register, value)

    @property
    def _has_deadline(self) -> bool:
        return bool(self._lvt_writable[reg.LVT_TIMER] & reg.LVT_TIMER_DEADLINE)

    def _why(self, register: int) -> str:
        if not 0 <= register < 0x100:
            return "not an MSR of the local APIC"
        if not self.x2apic:
            return "the APIC is not in x2APIC mode"
        return "no register, or not for this access"

    # Readers and writers, by register

    def _read_id(self, register: int) -> int:
        return self.id if self.x2apic else self._xapic_id << 24

    def _read_version(self, register: int) -> int:
        return self.version

    def _read_tpr(self, register: int) -> int:
        return self._tpr

    def _read_nothing(self, register: int) -> int:
        """APR and EOI: no arbitration bus, and write-only."""
        return 0

    def _read_ppr(self, register: int) -> int:
        return self.ppr

    def _read_ldr(self, register: int) -> int:
        return self._ldr

    def _read_dfr(self, register: int) -> int:
        return self._dfr

    def _read_svr(self, register: int) -> int:
        return self._svr

    def _read_isr(self, register: int) -> int:
        return self._isr >> 32 * (register & 7) & _WORD

    def _read_tmr(self, register: int) -> int:
        return self._tmr >> 32 * (register & 7) & _WORD

    def _read_irr(self, register: int) -> int:
        return self._irr >> 32 * (register & 7) & _WORD

    def _read_esr(self, register: int) -> int:
        return self._esr

    def _read_icr(self, register: int) -> int:
        return self._icr

    def _read_icr_high(self, register: int) -> int:
        return self._icr_high

    def _read_initial_count(self, register: int) -> int:
        return self.timer.initial_count

    def _read_current_count(self, register: int) -> int:
        return self.timer.read_current_count()

    def _read_divide(self, register: int) -> int:
        return self.timer.divide

    def _read_lvt(self, register: int) -> int:
        value = self._lvt[register]
        if register in PIN_ENTRIES and self._served[register - reg.LVT_LINT0] >= 0:
            value |= reg.LVT_REMOTE_IRR
        return value

    def _write_id(self, register: int, value: int) -> None:
        self._xapic_id = value >> 24

    def _write_tpr(self, register: int, value: int) -> None:
        self._set_tpr(value & 0xFF)

    def _write_eoi(self, register: int, value: int) -> None:
        self.eoi()

    def _write_ldr(self, register: int, value: int) -> None:
        self._ldr = value & 0xFF00_0000

    def _write_dfr(self, register: int, value: int) -> None:
        self._dfr = value | reg.DFR_FIXED_BITS

    def _write_svr(self, register: int, value: int) -> None:
        self._svr = value & self._svr_writable
        if not value & reg.SVR_ENABLE:
            for entry in self._lvt:
                self._lvt[entry] |= reg.LVT_MASKED
            self.timer.configure(self._lvt[reg.LVT_TIMER])

    def _write_esr(self, register: int, value: int) -> None:
        with self._lock:
            self._esr, self._errors = self._errors, 0
            self._error_armed = True

    def _write_icr(self, register: int, value: int) -> None:
        self._icr = value & reg.ICR_WRITABLE
        self._send(
            Message(
                destination=self._icr_high if self.x2apic else self._icr_high >> 24,
                logical=bool(value & reg.ICR_LOGICAL),
                mode=value >> 8 & 7,
                vector=value & 0xFF,
                level=bool(value & reg.ICR_LEVEL),
                assert_=bool(value & reg.ICR_ASSERT),
                shorthand=value >> 18 & 3,
            )
        )

    def _write_icr_high(self, register: int, value: int) -> None:
        self._icr_high = value & 0xFF00_0000

    def _send(self, message: Message) -> None:
        if message.mode <= LOWEST_PRIORITY and message.vector < 16:
            self._report(reg.ESR_SEND_ILLEGAL_VECTOR)
        self.send(self, message)

    def _write_lvt(self, register: int, value: int) -> None:
        value &= self._lvt_writable[register]
        if not self._svr & reg.SVR_ENABLE:
            value |= reg.LVT_MASKED
        self._lvt[register] = value
        if register == reg.LVT_TIMER:
            self.timer.configure(value)
        elif register in PIN_ENTRIES:
            self._reconsider_pin(register - reg.LVT_LINT0)

    def _write_initial_count(self, register: int, value: int) -> None:
        self.timer.write_initial_count(value)

    def _write_divide(self, register: int, value: int) -> None:
        self.timer.write_divide(value & reg.DIVIDE_WRITABLE)

    _READERS: ClassVar[dict[int, _Reader]] = {
        reg.ID: _read_id,
        reg.VERSION: _read_version,
        reg.TPR: _read_tpr,
        reg.APR: _read_nothing,
        reg.PPR: _read_ppr,
        reg.EOI: _read_nothing,
        reg.LDR: _read_ldr,
        reg.DFR: _read_dfr,
        reg.SVR: _read_svr,
        **dict.fromkeys(range(reg.ISR, reg.ISR + 8), _read_isr),
        **dict.fromkeys(range(reg.TMR, reg.TMR + 8), _read_tmr),
        **dict.fromkeys(range(reg.IRR, reg.IRR + 8), _read_irr),
        reg.ESR: _read_esr,
        reg.ICR: _read_icr,
        reg.ICR_HIGH: _read_icr_high,
        **dict.fromkeys(reg.lvt_registers(cmci=False), _read_lvt),
        reg.INITIAL_COUNT: _read_initial_count,
        reg.CURRENT_COUNT: _read_current_count,
        reg.DIVIDE: _read_divide,
    }
    _WRITERS: ClassVar[dict[int, _Writer]] = {
        reg.ID: _write_id,
        reg.TPR: _write_tpr,
        reg.EOI: _write_eoi,
        reg.LDR: _write_ldr,
        reg.DFR: _write_dfr,
        reg.SVR: _write_svr,
        reg.ESR: _write_esr,
        reg.ICR: _write_icr,
        reg.ICR_HIGH: _write_icr_high,
        **dict.fromkeys(reg.lvt_registers(cmci=False), _write_lvt),
        reg.INITIAL_COUNT: _write_initial_count,
        reg.DIVIDE: _write_divide,
    }
    _READERS_WITH_CMCI: ClassVar[dict[int, _Reader]] = {**_READERS, reg.LVT_CMCI: _read_lvt}
    _WRITERS_WITH_CMCI: ClassVar[dict[int, _Writer]] = {**_WRITERS, reg.LVT_CMCI: _write_lvt}

    def __str__(self) -> str:
        mode = "x2APIC" if self.x2apic else f"xAPIC at {self.address:#x}"
        if not self.enabled:
            mode = "disabled"
        elif not self._svr & reg.SVR_ENABLE:
            mode += ", software-disabled"
        entries = " ".join(
            f"{reg.LVT_NAMES[register]}={self._read_lvt(register):05x}" for register in self._lvt
        )
        return (
            f"local APIC {self.id:#x}{' (BSP)' if self.bsp else ''}: {mode}\n"
            f"  TPR={self._tpr:02x} PPR={self.ppr:02x} SVR={self._svr:03x} "
            f"LDR={self._ldr:08x} DFR={self._dfr:08x} ESR={self._esr:02x} "
            f"ICR={self._icr_high:08x}:{self._icr:08x}\n"
            f"  IRR={_vectors(self._irr)} ISR={_vectors(self._isr)} TMR={_vectors(self._tmr)}\n"
            f"  LVT {entries}\n"
            f"  timer {self.timer}"
        )


def _vectors(bits: int) -> str:
    """The vectors of a 256-bit register: ``{31 80}``."""
    return f"{{{' '.join(f'{n:02x}' for n in range(256) if bits >> n & 1)}}}"
