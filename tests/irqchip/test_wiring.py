"""How a PC's interrupt controllers and clocks are wired: from a device's tick to the processor."""

from __future__ import annotations

import pytest
from clock.fake_host import Host
from irqchip.fake_cpu import FakeCpu

from pykvm.devices.uart import Uart16550
from pykvm.interrupts import lapic_registers as reg
from pykvm.irqchip.injector import Injector
from pykvm.irqchip.places import PLACES
from pykvm.irqchip.wiring import ApicPage, Both, Platform
from support.attach import attach
from support.lines import Line

EOI = reg.EOI << 4
SVR = reg.SVR << 4
LINT0 = reg.LVT_LINT0 << 4
LINT1 = reg.LVT_LINT1 << 4
EXTINT = 7 << 8
NMI = 4 << 8
MASKED = 1 << 16
LEVEL = 1 << 15

MS = 1_000_000


class Board:
    """A platform whose processors run nothing; `vectors` is what they would be given."""

    def __init__(self, cpus: int = 1) -> None:
        self.host = Host()
        self.clock = self.host.clock()
        self.cpus = [FakeCpu(index) for index in range(cpus)]
        self.injectors = [Injector(cpu) for cpu in self.cpus]  # type: ignore[arg-type]
        self.current = 0
        self.platform = Platform(self.clock, self.injectors, lambda: self.injectors[self.current])
        for injector, lapic in zip(self.injectors, self.platform.lapics, strict=True):
            injector.lapic = lapic
            lapic.write(SVR, 4, 0x1FF)
        self.injectors[0].pic = self.platform.pic

    def write(self, name: str, offset: int, value: int, size: int = 1) -> None:
        device = self.platform.devices[name]
        device.write(offset, size, value)  # type: ignore[union-attr]

    def init_pic(self, mask: int = 0) -> None:
        """IRQ 0 is vector 0x20, IRQ 8 0x28; IRQs in `mask` are masked."""
        for name, words in (
            ("pic-master", (0x20, 4, 1, mask & 0xFF)),
            ("pic-slave", (0x28, 2, 1, mask >> 8)),
        ):
            self.write(name, 0, 0x11)
            for word in words:
                self.write(name, 1, word)

    def route(self, pin: int, entry: int) -> None:
        """Set a redirection entry of the I/O APIC."""
        for half in (1, 0):
            self.platform.ioapic.write(0, 4, 0x10 + 2 * pin + half)
            self.platform.ioapic.write(0x10, 4, entry >> 32 * half & 0xFFFF_FFFF)

    def start_pit(self, count: int) -> None:
        self.write("pit", 3, 0x34)
        self.write("pit", 0, count & 0xFF)
        self.write("pit", 0, count >> 8)

    def advance(self, ns: int) -> None:
        self.host.now += ns
        self.clock.run_due(0)

    def taken(self, index: int = 0) -> object:
        """What processor `index` takes now, with interrupts on; None for nothing."""
        cpu = self.cpus[index]
        cpu.kvm.injected.clear()
        cpu.leave()
        self.injectors[index].serve()
        return cpu.kvm.injected[0] if cpu.kvm.injected else None


@pytest.fixture
def board() -> Board:
    return Board()


class TestIrq0:
    def test_the_pit_ticks_through_the_8259_and_lint0(self, board: Board) -> None:
        board.init_pic()
        board.start_pit(1193)
        assert board.taken() is None
        board.advance(2 * MS)
        assert board.taken() == 0x20

    def test_after_reset_lint0_is_a_virtual_wire_and_can_be_cut(self, board: Board) -> None:
        board.platform.lapics[0].write(LINT0, 4, EXTINT | MASKED)
        board.init_pic()
        board.start_pit(1193)
        board.advance(2 * MS)
        assert board.taken() is None
        board.platform.lapics[0].write(LINT0, 4, EXTINT)
        assert board.taken() == 0x20

    def test_the_pit_is_on_pin_2_of_the_io_apic(self, board: Board) -> None:
        board.init_pic(mask=0xFFFF)
        board.route(2, 0x40)
        board.start_pit(1193)
        board.advance(2 * MS)
        assert board.taken() == 0x40
        assert board.taken() is None, "until its EOI"

    def test_pin_0_is_not_connected(self, board: Board) -> None:
        board.init_pic(mask=0xFFFF)
        board.route(0, 0x40)
        board.start_pit(1193)
        board.advance(2 * MS)
        assert board.taken() is None

    def test_the_hpet_reaches_the_pins_that_have_no_isa_irq(self, board: Board) -> None:
        """All but 0 and 8, which legacy replacement has, and 2, the cascade."""
        assert board.platform.hpet.read(0x104, 4) == 0xFFFEFA
        board.route(20, 0x61)
        board.write("hpet", 0x100, 20 << 9 | 0x4, 4)
        board.write("hpet", 0x108, board.platform.hpet.counter + 500_000, 8)
        board.write("hpet", 0x10, 1, 4)
        board.advance(6 * MS)
        assert board.platform.lapics[0].interrupt == 0x61

    def test_the_hpet_in_legacy_replacement_takes_it_from_the_pit(self, board: Board) -> None:
        board.init_pic(mask=0xFFFF)
        board.route(2, 0x40)
        board.start_pit(1193)
        board.write("hpet", 0x100, 0x4, 4)
        board.write("hpet", 0x108, board.platform.hpet.counter + 500_000, 8)
        board.write("hpet", 0x10, 3, 4)
        board.advance(4 * MS)
        assert board.taken() is None, "the 8254 is cut off"
        board.advance(2 * MS)
        assert board.taken() == 0x40

    def test_the_hpet_in_legacy_replacement_takes_irq_8_from_the_clock(self, board: Board) -> None:
        board.init_pic(mask=0xFFFF)
        board.route(8, 0x48)
        for index, value in ((0xA, 0x26), (0xB, 0x42)):
            board.write("rtc", 0, index)
            board.write("rtc", 1, value)
        board.advance(2 * MS)
        assert board.taken() == 0x48
        board.platform.lapics[0].eoi()
        board.write("rtc", 0, 0xC)
        assert board.platform.rtc.read(1, 1) & 0xC0 == 0xC0

        board.write("hpet", 0x10, 3, 4)
        board.advance(2 * MS)
        assert board.taken() is None
        board.write("hpet", 0x120, 0x4, 4)
        board.write("hpet", 0x128, board.platform.hpet.counter + 100, 8)
        board.advance(MS)
        assert board.taken() == 0x48


class TestLines:
    def test_an_irq_reaches_both_controllers(self, board: Board) -> None:
        board.init_pic()
        board.route(5, 0x45)
        board.platform.line(5).set(True)
        assert board.taken() == 0x25
        assert board.taken() == 0x45

    def test_irq_9_goes_through_the_slave(self, board: Board) -> None:
        board.init_pic()
        board.platform.line(9).set(True)
        assert board.taken() == 0x29

    def test_both_ends_see_the_level(self) -> None:
        one, other = Line(), Line()
        both = Both(one, other)
        both.set(True)
        both.set(False)
        assert one.changes == other.changes == [True, False]

    def test_a_serial_port_interrupts_when_it_can_send(self, board: Board) -> None:
        board.init_pic(mask=0xFFFF)
        board.route(4, 0x44)
        uart = Uart16550("com1")
        attach(uart, board.platform.line(4))
        uart.write(4, 1, 0x08)  # OUT2
        uart.write(1, 1, 0x02)  # THRE
        assert board.taken() == 0x44

    def test_a_serial_port_interrupts_when_it_has_received(self, board: Board) -> None:
        board.init_pic()
        uart = Uart16550("com1")
        attach(uart, board.platform.line(4))
        uart.write(4, 1, 0x08)
        uart.write(1, 1, 0x01)
        assert board.taken() is None
        uart.send("x")
        assert board.taken() == 0x24


class TestEndOfInterrupt:
    def test_a_level_that_stays_comes_again_after_the_eoi_and_not_before(
        self, board: Board
    ) -> None:
        board.route(10, 0x4A | LEVEL)
        line = board.platform.ioapic.line(10)
        line.set(True)
        assert board.taken() == 0x4A
        assert board.taken() is None
        board.write("lapic", EOI, 0, 4)
        assert board.taken() == 0x4A
        line.set(False)
        board.write("lapic", EOI, 0, 4)
        assert board.taken() is None

    def test_an_edge_does_not_come_again_after_the_eoi(self, board: Board) -> None:
        board.route(10, 0x4A)
        board.platform.ioapic.line(10).set(True)
        assert board.taken() == 0x4A
        board.write("lapic", EOI, 0, 4)
        assert board.taken() is None

    def test_the_eoi_of_any_processor_reaches_the_io_apic(self) -> None:
        board = Board(cpus=2)
        board.route(10, 1 << 56 | 0x4A | LEVEL)
        board.platform.ioapic.line(10).set(True)
        assert board.taken(0) is None
        assert board.taken(1) == 0x4A
        board.current = 1
        board.write("lapic", EOI, 0, 4)
        assert board.taken(1) == 0x4A


class TestPage:
    def test_each_processor_finds_its_own_registers(self) -> None:
        board = Board(cpus=3)
        page = board.platform.devices["lapic"]
        for index in range(3):
            board.current = index
            assert page.read(reg.ID << 4, 4) == index << 24  # type: ignore[union-attr]

    def test_an_ipi_from_one_to_the_other(self) -> None:
        board = Board(cpus=2)
        board.write("lapic", reg.ICR_HIGH << 4, 1 << 24, 4)
        board.write("lapic", reg.ICR << 4, 0x4051, 4)
        assert board.taken(0) is None
        assert board.taken(1) == 0x51
        assert board.cpus[1].attended

    def test_tpr_and_cr8_are_one(self, board: Board) -> None:
        board.write("lapic", reg.TPR << 4, 0x70, 4)
        assert board.cpus[0].page[16] == 7
        board.cpus[0].page[16] = 3
        assert board.platform.devices["lapic"].read(reg.TPR << 4, 4) == 0x30  # type: ignore[union-attr]

    def test_a_processor_without_an_apic_finds_nothing(self) -> None:
        page = ApicPage(lambda: Injector(FakeCpu()))  # type: ignore[arg-type]
        page.write(EOI, 4, 0)
        assert page.read(EOI, 4) == -1


class TestNmiSource:
    def test_no_nmi_source_after_reset(self, board: Board) -> None:
        assert not board.platform.has_nmi_source()

    def test_a_pin_of_the_local_apic_is_an_nmi_source(self, board: Board) -> None:
        board.platform.lapics[0].write(LINT1, 4, NMI)
        assert board.platform.has_nmi_source()
        board.platform.lapics[0].write(LINT1, 4, NMI | MASKED)
        assert not board.platform.has_nmi_source()

    def test_an_entry_of_the_io_apic_is_an_nmi_source(self, board: Board) -> None:
        board.route(2, NMI)
        assert board.platform.has_nmi_source()
        board.start_pit(1193)
        board.advance(2 * MS)
        assert board.taken() == "nmi"
        board.route(2, NMI | MASKED)
        assert not board.platform.has_nmi_source()


def test_every_device_has_its_place(board: Board) -> None:
    assert sorted(board.platform.devices) == sorted(PLACES)
