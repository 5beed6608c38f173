"""The local APIC: registers, priorities, pins, errors, modes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from interrupts.fakes import Board

from pykvm.bus import Bus, Space
from pykvm.interrupts import GpFault, LocalApic, Message
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.message import EXTINT, FIXED, INIT, NMI, SMI, STARTUP

ENABLED = 0x1FF
LVT_EXTINT = 0x700
LVT_NMI = 0x400


def write(lapic: LocalApic, register: int, value: int) -> None:
    lapic.write(register << 4, 4, value)


def read(lapic: LocalApic, register: int) -> int:
    return lapic.read(register << 4, 4)


def vectors(lapic: LocalApic, first: int) -> set[int]:
    """The vectors in ISR, TMR or IRR."""
    words = (read(lapic, first + i) for i in range(8))
    bits = sum(word << 32 * i for i, word in enumerate(words))
    return {n for n in range(256) if bits >> n & 1}


def due(lapic: LocalApic) -> int | None:
    """What the processor would take now.  A function, for mypy takes a property to be constant."""
    return lapic.interrupt


def extint(lapic: LocalApic) -> bool:
    return lapic.extint


@pytest.fixture
def board() -> Board:
    """One processor whose APIC software has enabled."""
    board = Board()
    write(board.lapic, reg.SVR, ENABLED)
    return board


@pytest.fixture
def lapic(board: Board) -> LocalApic:
    return board.lapic


def x2apic(lapic: LocalApic) -> LocalApic:
    lapic.base |= reg.BASE_X2APIC
    return lapic


class TestPowerOn:
    def test_registers(self) -> None:
        """SDM 3A 11.4.7.1, but for the bootstrap processor's LINT0: virtual wire, as in KVM."""
        first, second = Board((0, 5)).lapics
        expected = {
            reg.ID: 0x05000000,
            reg.VERSION: 0x00050014,
            reg.DFR: 0xFFFFFFFF,
            reg.SVR: 0xFF,
            **dict.fromkeys(range(reg.LVT_TIMER, reg.LVT_ERROR + 1), reg.LVT_MASKED),
        }
        for register in range(0x40):
            assert read(second, register) == expected.get(register, 0), hex(register)
        assert read(first, reg.LVT_LINT0) == LVT_EXTINT
        assert (first.base, second.base) == (0xFEE00900, 0xFEE00800)
        assert not first.software_enabled

    def test_page(self, lapic: LocalApic) -> None:
        write(lapic, reg.TPR, 0x35)
        lapic.accept(0x61)
        page = lapic.page()
        assert len(page) == 0x400
        for register in range(0x40):
            word = int.from_bytes(page[register << 4 : (register << 4) + 4], "little")
            assert word == read(lapic, register), hex(register)
            assert page[(register << 4) + 4 : (register << 4) + 16] == bytes(12)

    def test_features_show_in_version(self) -> None:
        lapic = Board(directed_eoi=True, cmci=True).lapic
        assert read(lapic, reg.VERSION) == 0x01060014
        assert read(lapic, reg.LVT_CMCI) == reg.LVT_MASKED

    def test_reset_after_use(self) -> None:
        board = Board((3,))
        lapic = board.lapic
        fresh = (lapic.page(), lapic.base)
        write(lapic, reg.SVR, ENABLED)
        write(lapic, reg.ID, 0x77000000)
        for register in range(0x40):
            write(lapic, register, 0x00033344)
        lapic.base = 0x12345800
        lapic.reset()
        assert (lapic.page(), lapic.base) == fresh
        assert board.clock.deadline is None

    def test_init_keeps_id_and_base(self, lapic: LocalApic) -> None:
        """SDM 3A 11.4.7.3."""
        write(lapic, reg.ID, 0x09000000)
        lapic.base = 0x12345900
        write(lapic, reg.TPR, 0x20)
        lapic.accept(0x55)
        lapic.init()
        assert read(lapic, reg.ID) == 0x09000000
        assert lapic.base == 0x12345900
        assert read(lapic, reg.TPR) == 0
        assert vectors(lapic, reg.IRR) == set()
        assert read(lapic, reg.SVR) == 0xFF

    def test_init_in_x2apic_mode(self) -> None:
        lapic = x2apic(Board((0x21,)).lapic)
        lapic.write_msr(0x808, 0x20)
        lapic.init()
        assert lapic.x2apic
        assert lapic.read_msr(0x802) == 0x21
        assert lapic.read_msr(0x80D) == 0x20002
        assert lapic.read_msr(0x808) == 0


class TestPage:
    @pytest.mark.parametrize(
        ("register", "kept"),
        [
            (reg.ID, 0xFF000000),
            (reg.TPR, 0xFF),
            (reg.LDR, 0xFF000000),
            (reg.SVR, 0x3FF),
            (reg.ICR_HIGH, 0xFF000000),
            (reg.LVT_TIMER, 0x700FF),
            (reg.LVT_THERMAL, 0x107FF),
            (reg.LVT_PERFORMANCE, 0x107FF),
            (reg.LVT_LINT0, 0x1A7FF),
            (reg.LVT_LINT1, 0x1A7FF),
            (reg.LVT_ERROR, 0x100FF),
            (reg.DIVIDE, 0xB),
        ],
    )
    def test_reserved_bits_read_0(self, lapic: LocalApic, register: int, kept: int) -> None:
        write(lapic, register, 0xFFFFFFFF)
        assert read(lapic, register) == kept
        write(lapic, reg.SVR, ENABLED)
        write(lapic, register, 0)
        assert read(lapic, register) == 0

    def test_dfr_keeps_its_ones(self, lapic: LocalApic) -> None:
        write(lapic, reg.DFR, 0x00000000)
        assert read(lapic, reg.DFR) == 0x0FFFFFFF

    def test_timer_without_deadline_mode(self) -> None:
        lapic = Board(tsc_deadline=False).lapic
        write(lapic, reg.LVT_TIMER, 0xFFFFFFFF)
        assert read(lapic, reg.LVT_TIMER) == 0x300FF
        with pytest.raises(GpFault):
            lapic.read_msr(0x6E0)
        with pytest.raises(GpFault):
            lapic.write_msr(0x6E0, 1)

    def test_icr_reads_back(self, lapic: LocalApic) -> None:
        write(lapic, reg.ICR_HIGH, 0xAB123456)
        write(lapic, reg.ICR, 0xFFF3F7FF & ~0x700)
        assert read(lapic, reg.ICR_HIGH) == 0xAB000000
        assert read(lapic, reg.ICR) == 0x0000C0FF, "delivery status is always idle"

    def test_read_only_registers(self, lapic: LocalApic) -> None:
        before = lapic.page()
        for register in (reg.VERSION, reg.APR, reg.PPR, *range(reg.ISR, reg.IRR + 8), 0x39):
            write(lapic, register, 0xFFFFFFFF)
        assert lapic.page() == before
        write(lapic, reg.ESR, 0)
        assert read(lapic, reg.ESR) == 0, "they are not reserved"

    @pytest.mark.parametrize("offset", [0x81, 0x82, 0x84, 0x88, 0x8C, 0x8F])
    def test_misplaced_writes_do_nothing(self, lapic: LocalApic, offset: int) -> None:
        lapic.write(offset, 4, 0x30)
        assert read(lapic, reg.TPR) == 0

    @pytest.mark.parametrize("size", [1, 2, 8])
    def test_writes_of_other_sizes_do_nothing(self, lapic: LocalApic, size: int) -> None:
        lapic.write(0x80, size, 0x30)
        assert read(lapic, reg.TPR) == 0

    def test_narrow_reads(self, lapic: LocalApic) -> None:
        assert [lapic.read(0x30 + i, 1) for i in range(5)] == [0x14, 0x00, 0x05, 0x00, 0]
        assert lapic.read(0x32, 2) == 0x0005
        assert lapic.read(0x33, 2) == 0
        assert lapic.read(0x30, 8) == 0
        assert lapic.read(0x2000, 4) == 0

    def test_on_a_bus(self, lapic: LocalApic) -> None:
        bus = Bus()
        bus.add_mmio(lapic.address, 0x1000, lapic)
        bus.write(Space.MMIO, 0xFEE00080, 4, 0x42)
        assert bus.read(Space.MMIO, 0xFEE00080, 4) == 0x42

    @pytest.mark.parametrize("base", [0xFEE00000, 0xFEE00C00])
    def test_not_there_in_the_other_modes(self, lapic: LocalApic, base: int) -> None:
        lapic.base = base
        write(lapic, reg.TPR, 0x30)
        assert lapic.read(0x80, 4) == 0xFFFFFFFF
        assert lapic.read(0x80, 1) == 0xFF
        assert lapic.cr8 == 0


class TestX2Apic:
    def test_registers(self) -> None:
        lapic = x2apic(Board((0x123,)).lapic)
        readable = {}
        for index in range(0x800, 0x900):
            with suppress(GpFault):
                readable[index] = lapic.read_msr(index)
        assert readable == {
            0x802: 0x123,
            0x803: 0x50014,
            0x808: 0,
            0x80A: 0,
            0x80D: 0x00120008,
            0x80F: 0xFF,
            **dict.fromkeys(range(0x810, 0x829), 0),
            0x830: 0,
            **dict.fromkeys((0x832, 0x833, 0x834, 0x836, 0x837), 0x10000),
            0x835: LVT_EXTINT,
            0x838: 0,
            0x839: 0,
            0x83E: 0,
        }

    def test_cmci(self) -> None:
        lapic = x2apic(Board(cmci=True).lapic)
        lapic.write_msr(0x80F, ENABLED)
        lapic.write_msr(0x82F, 0x33)
        assert lapic.read_msr(0x82F) == 0x33
        assert lapic.trigger(reg.LVT_CMCI)
        assert due(lapic) == 0x33

    @pytest.mark.parametrize(
        ("index", "reserved"),
        [
            (0x808, 0x100),
            (0x80B, 1),
            (0x80F, 0x400),
            (0x80F, 0x1000),
            (0x828, 1),
            (0x830, 1 << 13),
            (0x830, 1 << 20),
            (0x832, 0x80000),
            (0x833, 0x2000),
            (0x835, 0x20000),
            (0x837, 0x100),
            (0x838, 1 << 32),
            (0x83E, 4),
            (0x83F, 0x100),
        ],
    )
    def test_reserved_bits_fault(self, index: int, reserved: int) -> None:
        lapic = x2apic(Board().lapic)
        before = lapic.page()
        with pytest.raises(GpFault, match="reserved"):
            lapic.write_msr(index, reserved)
        assert lapic.page() == before

    @pytest.mark.parametrize("index", [0x802, 0x803, 0x80A, 0x80D, 0x80E, 0x810, 0x831, 0x839])
    def test_read_only(self, index: int) -> None:
        lapic = x2apic(Board().lapic)
        with pytest.raises(GpFault):
            lapic.write_msr(index, 0)

    def test_read_only_bits_do_not_fault(self) -> None:
        lapic = x2apic(Board().lapic)
        lapic.write_msr(0x80F, ENABLED)
        lapic.write_msr(0x835, 0x15040)
        lapic.write_msr(0x832, 0x11040)
        assert lapic.read_msr(0x835) == 0x10040
        assert lapic.read_msr(0x832) == 0x10040

    @pytest.mark.parametrize("index", [0x808, 0x7FF, 0x900, 0x10])
    def test_not_in_xapic_mode(self, lapic: LocalApic, index: int) -> None:
        with pytest.raises(GpFault):
            lapic.read_msr(index)
        with pytest.raises(GpFault):
            lapic.write_msr(index, 0)

    def test_icr_is_one_register(self) -> None:
        board = Board((0, 1))
        lapic = x2apic(board.lapic)
        other = x2apic(board.lapics[1])
        other.write_msr(0x80F, ENABLED)
        lapic.write_msr(0x830, 1 << 32 | 0x5041)
        assert lapic.read_msr(0x830) == 1 << 32 | 0x4041
        assert due(other) == 0x41

    def test_self_ipi(self) -> None:
        lapic = x2apic(Board().lapic)
        lapic.write_msr(0x80F, ENABLED)
        lapic.write_msr(0x83F, 0x80)
        assert due(lapic) == 0x80
        with pytest.raises(GpFault):
            lapic.read_msr(0x83F)

    def test_eoi(self) -> None:
        lapic = x2apic(Board().lapic)
        lapic.write_msr(0x80F, ENABLED)
        lapic.accept(0x80)
        lapic.acknowledge()
        lapic.write_msr(0x80B, 0)
        assert lapic.ppr == 0
        with pytest.raises(GpFault):
            lapic.read_msr(0x80B)


class TestBase:
    X2, XAPIC, OFF, INVALID = 0xFEE00C00, 0xFEE00800, 0xFEE00000, 0xFEE00400

    @pytest.mark.parametrize(
        ("path", "last_works"),
        [
            ((XAPIC,), True),
            ((X2,), True),
            ((OFF,), True),
            ((INVALID,), False),
            ((X2, X2), True),
            ((X2, OFF), True),
            ((X2, XAPIC), False),
            ((X2, INVALID), False),
            ((OFF, XAPIC), True),
            ((OFF, X2), False),
            ((OFF, INVALID), False),
            ((X2, OFF, XAPIC, X2), True),
        ],
    )
    def test_transitions(self, path: tuple[int, ...], last_works: bool) -> None:
        """SDM 3A figure 11-27."""
        lapic = Board().lapic
        *first, last = path
        for base in first:
            lapic.write_msr(0x1B, base)
        before = lapic.base
        if last_works:
            lapic.write_msr(0x1B, last)
            assert lapic.read_msr(0x1B) == last
        else:
            with pytest.raises(GpFault):
                lapic.write_msr(0x1B, last)
            assert lapic.base == before

    @pytest.mark.parametrize("bit", [0, 7, 9, 52, 63])
    def test_reserved_bits(self, bit: int) -> None:
        lapic = Board().lapic
        with pytest.raises(GpFault, match="reserved"):
            lapic.base |= 1 << bit

    def test_without_x2apic(self) -> None:
        with pytest.raises(GpFault):
            Board(x2apic=False).lapic.base |= reg.BASE_X2APIC

    def test_relocation(self, lapic: LocalApic) -> None:
        lapic.base = 0x1_2345_6900
        assert lapic.address == 0x1_2345_6000

    def test_disabled_hides_what_is_pending(self, board: Board) -> None:
        lapic = board.lapic
        lapic.accept(0x40)
        lapic.base = self.OFF
        assert due(lapic) is None
        assert not lapic.accept(0x50)
        lapic.receive(Message(0, False, NMI, 0))
        assert board.port.requests == []
        board.port.wakes = 0
        lapic.base = self.XAPIC
        assert due(lapic) == 0x40
        assert board.port.wakes == 1

    def test_enabling_restores_the_id(self, lapic: LocalApic) -> None:
        write(lapic, reg.ID, 0x55000000)
        lapic.base = self.OFF
        lapic.base = self.XAPIC
        assert read(lapic, reg.ID) == 0

    def test_xapic_state_stays_across_to_x2apic(self, lapic: LocalApic) -> None:
        write(lapic, reg.TPR, 0x33)
        write(lapic, reg.LVT_ERROR, 0x44)
        x2apic(lapic)
        assert lapic.read_msr(0x808) == 0x33
        assert lapic.read_msr(0x837) == 0x44


def ended(lapic: LocalApic) -> list[tuple[int, bool]]:
    """What is told of the ends of two interrupts, a level and an edge above it."""
    calls: list[tuple[int, bool]] = []
    lapic.on_eoi = lambda vector, level: calls.append((vector, level))
    for vector, level in ((0x40, True), (0x50, False)):
        lapic.accept(vector, level)
        lapic.acknowledge()
    lapic.eoi()
    lapic.eoi()
    return calls


class TestPriority:
    def test_highest_first_and_nesting(self, lapic: LocalApic) -> None:
        for vector in (0x31, 0x52, 0x38):
            assert lapic.accept(vector)
        assert lapic.acknowledge() == 0x52
        assert (vectors(lapic, reg.IRR), vectors(lapic, reg.ISR)) == ({0x31, 0x38}, {0x52})
        assert read(lapic, reg.PPR) == 0x50
        assert due(lapic) is None
        lapic.accept(0x5F)
        assert due(lapic) is None, "the same class does not nest"
        lapic.accept(0x60)
        assert lapic.acknowledge() == 0x60
        write(lapic, reg.EOI, 0)
        assert (vectors(lapic, reg.ISR), due(lapic)) == ({0x52}, None)
        write(lapic, reg.EOI, 0)
        assert [lapic.acknowledge(), due(lapic)] == [0x5F, None]

    @pytest.mark.parametrize(
        ("tpr", "in_service", "ppr"),
        [
            (0x00, None, 0x00),
            (0x35, None, 0x35),
            (0x35, 0x2F, 0x35),
            (0x35, 0x3F, 0x35),
            (0x35, 0x41, 0x40),
            (0x05, 0x21, 0x20),
        ],
    )
    def test_ppr(self, lapic: LocalApic, tpr: int, in_service: int | None, ppr: int) -> None:
        """SDM 3A 11.8.3.1; of equal classes TPR shows, as in KVM."""
        if in_service is not None:
            lapic.accept(in_service)
            lapic.acknowledge()
        write(lapic, reg.TPR, tpr)
        assert read(lapic, reg.PPR) == ppr

    @pytest.mark.parametrize(("tpr", "held"), [(0x3F, False), (0x40, True), (0x4F, True)])
    def test_tpr_holds_back(self, lapic: LocalApic, tpr: int, held: bool) -> None:
        write(lapic, reg.TPR, tpr)
        lapic.accept(0x40)
        assert (due(lapic) is None) == held

    def test_cr8(self, lapic: LocalApic) -> None:
        lapic.cr8 = 0xA
        assert read(lapic, reg.TPR) == 0xA0
        write(lapic, reg.TPR, 0x3C)
        assert lapic.cr8 == 3

    def test_wake(self, board: Board) -> None:
        """Once for each change that may make something deliverable, and for nothing else."""
        lapic, port = board.lapic, board.port

        def wakes() -> int:
            count, port.wakes = port.wakes, 0
            return count

        lapic.accept(0x40)
        assert wakes() == 1
        lapic.accept(0x40)
        assert wakes() == 0, "it waits already"
        lapic.acknowledge()
        lapic.accept(0x41)
        assert wakes() == 0, "held back by 0x40"
        write(lapic, reg.EOI, 0)
        assert wakes() == 1
        write(lapic, reg.TPR, 0x50)
        assert wakes() == 0
        lapic.accept(0x45)
        assert wakes() == 1, "CR8 may be lower by now, and the processor has to look"
        held = [lapic.held_by_priority]
        lapic.cr8 = 3
        held.append(lapic.held_by_priority)
        assert held == [True, False]
        assert wakes() == 1

    def test_spurious(self, lapic: LocalApic) -> None:
        """The interrupt went away between the request and the acknowledge (SDM 3A 11.9)."""
        write(lapic, reg.SVR, 0x1EF)
        lapic.accept(0x40)
        lapic.cr8 = 4
        assert lapic.acknowledge() == 0xEF
        assert vectors(lapic, reg.ISR) == set()
        assert vectors(lapic, reg.IRR) == {0x40}

    def test_eoi_with_nothing_in_service(self, lapic: LocalApic) -> None:
        calls: list[object] = []
        lapic.on_eoi = lambda vector, level: calls.append((vector, level))
        before = lapic.page()
        write(lapic, reg.EOI, 0)
        assert lapic.page() == before
        assert calls == []

    def test_trigger_mode(self, lapic: LocalApic) -> None:
        lapic.accept(0x40, level=True)
        lapic.accept(0x41, level=False)
        assert vectors(lapic, reg.TMR) == {0x40}
        lapic.accept(0x40, level=False)
        assert vectors(lapic, reg.TMR) == set()

    def test_eoi_broadcast(self, lapic: LocalApic) -> None:
        assert ended(lapic) == [(0x50, False), (0x40, True)]

    def test_eoi_broadcast_suppressed(self) -> None:
        lapic = Board(directed_eoi=True).lapic
        write(lapic, reg.SVR, 0x11FF)
        assert read(lapic, reg.SVR) == 0x11FF
        assert ended(lapic) == [(0x50, False)]
        assert vectors(lapic, reg.ISR) == set()

    def test_eoi_callback_may_interrupt_again(self, lapic: LocalApic) -> None:
        """As an I/O APIC does whose pin is still high."""
        lapic.on_eoi = lambda vector, level: lapic.accept(vector, level)
        lapic.accept(0x40, level=True)
        lapic.acknowledge()
        lapic.eoi()
        assert due(lapic) == 0x40


class TestSoftwareDisable:
    def test_lvt_masks_stay_set(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_ERROR, 0x44)
        write(lapic, reg.SVR, 0xFF)
        assert read(lapic, reg.LVT_ERROR) == 0x10044
        write(lapic, reg.LVT_ERROR, 0x45)
        assert read(lapic, reg.LVT_ERROR) == 0x10045
        write(lapic, reg.SVR, ENABLED)
        assert read(lapic, reg.LVT_ERROR) == 0x10045

    def test_what_still_works(self, board: Board) -> None:
        """SDM 3A 11.4.7.2: what is pending stays; NMI, INIT and SIPI come, fixed does not."""
        lapic = board.lapic
        lapic.accept(0x40)
        write(lapic, reg.SVR, 0xFF)
        assert not lapic.accept(0x50)
        assert due(lapic) == 0x40
        for mode in (NMI, INIT, STARTUP):
            lapic.receive(Message(0, False, mode, 9))
        assert board.port.requests == ["nmi", "init", ("sipi", 9)]


class TestErrors:
    def esr(self, lapic: LocalApic) -> int:
        write(lapic, reg.ESR, 0)
        return read(lapic, reg.ESR)

    def test_receive_illegal_vector(self, lapic: LocalApic) -> None:
        assert not lapic.accept(15)
        assert read(lapic, reg.ESR) == 0, "latched by a write only"
        assert self.esr(lapic) == reg.ESR_RECEIVE_ILLEGAL_VECTOR
        assert read(lapic, reg.ESR) == reg.ESR_RECEIVE_ILLEGAL_VECTOR
        assert self.esr(lapic) == 0
        assert vectors(lapic, reg.IRR) == set()

    def test_send_illegal_vector(self, lapic: LocalApic) -> None:
        write(lapic, reg.ICR, 0x40005)
        both = reg.ESR_SEND_ILLEGAL_VECTOR | reg.ESR_RECEIVE_ILLEGAL_VECTOR
        assert self.esr(lapic) == both

    def test_sipi_vectors_are_not_illegal(self, board: Board) -> None:
        write(board.lapic, reg.ICR, 0x605)
        assert self.esr(board.lapic) == 0
        assert board.port.requests == [("sipi", 5)]

    @pytest.mark.parametrize("register", [0x00, 0x04, 0x0C, 0x29, 0x2F, 0x3A, 0x3F, 0xFF])
    def test_illegal_register(self, lapic: LocalApic, register: int) -> None:
        assert read(lapic, register) == 0
        assert self.esr(lapic) == reg.ESR_ILLEGAL_REGISTER
        write(lapic, register, 0x80)
        assert self.esr(lapic) == reg.ESR_ILLEGAL_REGISTER

    def test_interrupt_once_until_esr_is_written(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_ERROR, 0xE0)
        lapic.accept(1)
        assert lapic.acknowledge() == 0xE0
        lapic.eoi()
        lapic.accept(1)
        assert due(lapic) is None
        assert self.esr(lapic) == reg.ESR_RECEIVE_ILLEGAL_VECTOR
        lapic.accept(1)
        assert due(lapic) == 0xE0

    def test_illegal_error_vector(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_ERROR, 0x05)
        read(lapic, 0x3F)
        both = reg.ESR_ILLEGAL_REGISTER | reg.ESR_RECEIVE_ILLEGAL_VECTOR
        assert self.esr(lapic) == both
        assert due(lapic) is None


class TestLocalSources:
    def test_masked(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_THERMAL, 0x10050)
        assert not lapic.trigger(reg.LVT_THERMAL)
        assert due(lapic) is None

    def test_performance_masks_itself(self, board: Board) -> None:
        write(board.lapic, reg.LVT_PERFORMANCE, LVT_NMI)
        assert board.lapic.trigger(reg.LVT_PERFORMANCE)
        assert not board.lapic.trigger(reg.LVT_PERFORMANCE)
        assert board.port.requests == ["nmi"]
        assert read(board.lapic, reg.LVT_PERFORMANCE) == 0x10400

    def test_no_such_entry(self, lapic: LocalApic) -> None:
        assert not lapic.trigger(reg.LVT_CMCI)


class TestPins:
    def test_virtual_wire(self) -> None:
        """As after reset: the 8259's output reaches the processor through LINT0."""
        board = Board((0, 1))
        first, second = board.lapics
        assert (first.lint0_extint, second.lint0_extint) == (True, False)
        assert not extint(first)
        first.set_lint(0, True)
        second.set_lint(0, True)
        assert (extint(first), extint(second)) == (True, False)
        assert (board.ports[0].wakes, board.ports[1].wakes) == (1, 0)
        assert first.interrupt is None
        first.set_lint(0, False)
        assert not extint(first)

    def test_virtual_wire_masked(self, board: Board) -> None:
        lapic = board.lapic
        lapic.set_lint(0, True)
        write(lapic, reg.LVT_LINT0, 0x10700)
        assert not extint(lapic)
        board.port.wakes = 0
        write(lapic, reg.LVT_LINT0, 0x700)
        assert extint(lapic)
        assert board.port.wakes == 1

    def test_pins_of_a_disabled_apic(self, board: Board) -> None:
        """INTR and NMI (SDM 3A 11.4.3)."""
        lapic = board.lapic
        write(lapic, reg.LVT_LINT0, 0x10000)
        lapic.base = 0xFEE00000
        board.port.wakes = 0
        lapic.set_lint(0, True)
        lapic.set_lint(1, True)
        assert extint(lapic)
        assert lapic.lint0_extint
        assert board.port.wakes == 1
        assert board.port.requests == ["nmi"]

    def test_nmi_edge(self, board: Board) -> None:
        write(board.lapic, reg.LVT_LINT1, LVT_NMI)
        for level in (True, True, False, True):
            board.lapic.set_lint(1, level)
        assert board.port.requests == ["nmi", "nmi"]

    def test_nmi_active_low(self, board: Board) -> None:
        write(board.lapic, reg.LVT_LINT1, LVT_NMI | reg.LVT_ACTIVE_LOW)
        board.lapic.set_lint(1, True)
        assert board.port.requests == []
        board.lapic.set_lint(1, False)
        assert board.port.requests == ["nmi"]

    def test_fixed_edge(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_LINT0, 0x40)
        lapic.set_lint(0, True)
        assert lapic.acknowledge() == 0x40
        lapic.eoi()
        assert due(lapic) is None
        lapic.set_lint(0, False)
        lapic.set_lint(0, True)
        assert due(lapic) == 0x40
        assert vectors(lapic, reg.TMR) == set()

    def test_fixed_level(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_LINT1, 0x8040)
        lapic.set_lint(1, True)
        assert read(lapic, reg.LVT_LINT1) == 0xC040, "remote IRR"
        assert vectors(lapic, reg.TMR) == {0x40}
        assert lapic.acknowledge() == 0x40
        lapic.set_lint(1, False)
        lapic.set_lint(1, True)
        assert due(lapic) is None, "only EOI lets it ask again"
        lapic.eoi()
        assert lapic.acknowledge() == 0x40
        lapic.set_lint(1, False)
        lapic.eoi()
        assert due(lapic) is None
        assert read(lapic, reg.LVT_LINT1) == 0x8040

    def test_level_unmasked_later(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_LINT0, 0x18040)
        lapic.set_lint(0, True)
        assert due(lapic) is None
        write(lapic, reg.LVT_LINT0, 0x8040)
        assert due(lapic) == 0x40

    def test_refused_level_does_not_stick(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_LINT0, 0x8005)
        lapic.set_lint(0, True)
        assert read(lapic, reg.LVT_LINT0) == 0x8005
        write(lapic, reg.LVT_LINT0, 0x8045)
        assert due(lapic) == 0x45

    def test_edge_mode_clears_remote_irr(self, lapic: LocalApic) -> None:
        write(lapic, reg.LVT_LINT0, 0x8040)
        lapic.set_lint(0, True)
        write(lapic, reg.LVT_LINT0, 0x0040)
        assert read(lapic, reg.LVT_LINT0) == 0x0040

    def test_extint_message(self, board: Board) -> None:
        board.lapic.receive(Message(0, False, EXTINT, 0))
        assert extint(board.lapic)
        board.lapic.acknowledge_extint()
        assert not extint(board.lapic)

    def test_smi_is_dropped(self, board: Board) -> None:
        before = board.lapic.page()
        board.lapic.receive(Message(0, False, SMI, 0))
        board.lapic.receive(Message(0, False, 3, 0x40))
        assert board.lapic.page() == before
        assert board.port.requests == []
        assert board.port.wakes == 0


def test_dump(lapic: LocalApic) -> None:
    lapic.accept(0x41)
    lapic.acknowledge()
    lapic.accept(0x31, level=True)
    write(lapic, reg.LVT_TIMER, 0x20055)
    write(lapic, reg.INITIAL_COUNT, 1000)
    assert str(lapic) == (
        "local APIC 0x0 (BSP): xAPIC at 0xfee00000\n"
        "  TPR=00 PPR=40 SVR=1ff LDR=00000000 DFR=ffffffff ESR=00 ICR=00000000:00000000\n"
        "  IRR={31} ISR={41} TMR={31}\n"
        "  LVT timer=20055 thermal=10000 performance=10000 LINT0=00700 LINT1=10000 error=10000\n"
        "  timer periodic, 1000 of 1000, /2"
    )
    assert Message(3, True, FIXED, 0x41, level=True, assert_=False).__str__() == (
        "fixed 0x41 level deassert to logical 0x3"
    )
