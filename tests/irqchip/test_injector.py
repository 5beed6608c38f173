"""From a local APIC into a vCPU: what is injected, when, and what wakes it."""

from __future__ import annotations

import pytest
from interrupts.fakes import FakeClock
from irqchip.fake_cpu import CR8, REQUEST_WINDOW, FakeCpu

from pykvm.interrupts import LocalApic, Message
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.pic import Pic8259Pair
from pykvm.irqchip.injector import Injector
from pykvm.x86.entry import reset

TPR = reg.TPR << 4
EOI = reg.EOI << 4
SVR = reg.SVR << 4


def make(index: int = 0) -> tuple[Injector, FakeCpu, LocalApic]:
    cpu = FakeCpu(index)
    injector = Injector(cpu)  # type: ignore[arg-type]
    lapic = LocalApic(index, FakeClock(), injector, lambda source, message: None)
    lapic.write(SVR, 4, 0x1FF)
    injector.lapic = lapic
    return injector, cpu, lapic


def window(cpu: FakeCpu) -> bool:
    return bool(cpu.engine.page[REQUEST_WINDOW])


class TestServe:
    def test_nothing_to_do(self) -> None:
        injector, cpu, _ = make()
        cpu.leave()
        cpu.engine.page[REQUEST_WINDOW] = 1
        injector.serve()
        assert cpu.kvm.injected == []
        assert not window(cpu)

    def test_a_processor_that_is_ready_is_injected_at_once(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave()
        assert lapic.accept(0x31)
        injector.serve()
        assert cpu.kvm.injected == [0x31]
        assert not window(cpu)

    def test_a_processor_that_is_not_ready_gets_a_window_first(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave(ready=False)
        lapic.accept(0x31)
        injector.serve()
        assert cpu.kvm.injected == []
        assert window(cpu)
        cpu.leave()
        injector.serve()
        assert cpu.kvm.injected == [0x31]
        assert not window(cpu)

    def test_one_interrupt_at_a_time(self) -> None:
        """KVM takes a second one before the first is delivered, and loses one of the two."""
        injector, cpu, lapic = make()
        cpu.leave()
        lapic.accept(0x31)
        injector.serve()
        lapic.accept(0x51)
        injector.serve()
        injector.serve()
        assert cpu.kvm.injected == [0x31]
        assert window(cpu)
        cpu.leave()
        injector.serve()
        assert cpu.kvm.injected == [0x31, 0x51]

    def test_the_next_of_a_higher_class_asks_for_its_window(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave(ready=False)
        lapic.accept(0x31)
        lapic.accept(0x51)
        cpu.leave()
        injector.serve()
        assert cpu.kvm.injected == [0x51]
        assert not window(cpu), "0x31 waits for the EOI of 0x51"
        lapic.write(EOI, 4, 0)
        cpu.leave(ready=False)
        injector.serve()
        assert window(cpu)

    def test_cr8_holds_back(self) -> None:
        injector, cpu, lapic = make()
        lapic.accept(0x51)
        cpu.leave(cr8=5)
        injector.serve()
        assert cpu.kvm.injected == []
        assert not window(cpu)
        assert lapic.held_by_priority
        cpu.leave(cr8=4)
        injector.serve()
        assert cpu.kvm.injected == [0x51]
        assert not lapic.held_by_priority

    def test_nmis_come_whatever_the_flags_say(self) -> None:
        injector, cpu, _ = make()
        cpu.leave(ready=False, interrupts_on=False)
        injector.request_nmi()
        injector.serve()
        assert cpu.kvm.injected == ["nmi"]
        injector.serve()
        assert cpu.kvm.injected == ["nmi"]

    def test_one_nmi_waits_for_the_one_in_service_and_no_more(self) -> None:
        injector, cpu, _ = make()
        for _ in range(1000):
            injector.request_nmi()
        injector.serve()
        assert cpu.kvm.injected == ["nmi", "nmi"]

    def test_without_an_apic_there_are_nmis_only(self) -> None:
        cpu = FakeCpu()
        injector = Injector(cpu)  # type: ignore[arg-type]
        cpu.leave()
        injector.before_access()
        injector.after_access()
        injector.request_nmi()
        injector.serve()
        assert cpu.kvm.injected == ["nmi"]
        assert not injector.awake


class TestThe8259:
    @pytest.fixture
    def wired(self) -> tuple[Injector, FakeCpu, Pic8259Pair]:
        injector, cpu, lapic = make()

        class Wire:
            def set(self, level: bool, /) -> None:
                lapic.set_lint(0, level)

        pic = Pic8259Pair(Wire())
        lapic.write(reg.LVT_LINT0 << 4, 4, 7 << 8)
        for offset, value in ((0, 0x11), (1, 0x20), (1, 4), (1, 1), (1, 0)):
            pic.master.write(offset, 1, value)
        injector.pic = pic
        return injector, cpu, pic

    def test_the_8259s_vector_is_injected(
        self, wired: tuple[Injector, FakeCpu, Pic8259Pair]
    ) -> None:
        injector, cpu, pic = wired
        line = pic.line(3)
        line.set(True)
        assert cpu.attended == 1
        cpu.leave()
        assert injector.awake
        injector.serve()
        assert cpu.kvm.injected == [0x23]
        assert pic.master.read(0, 1) == 0, "no longer in IRR"

    def test_the_8259_comes_before_the_local_apic(
        self, wired: tuple[Injector, FakeCpu, Pic8259Pair]
    ) -> None:
        injector, cpu, pic = wired
        assert injector.lapic is not None
        injector.lapic.accept(0xE0)
        pic.line(3).set(True)
        cpu.leave()
        injector.serve()
        assert cpu.kvm.injected == [0x23]
        assert window(cpu), "0xe0 is next"

    def test_a_request_that_is_gone_is_not_fetched(
        self, wired: tuple[Injector, FakeCpu, Pic8259Pair]
    ) -> None:
        injector, cpu, pic = wired
        cpu.leave(ready=False)
        pic.line(3).set(True)
        injector.serve()
        assert window(cpu)
        pic.master.write(1, 1, 0xFF)
        cpu.leave()
        injector.serve()
        assert cpu.kvm.injected == []
        assert not window(cpu)

    def test_a_message_that_says_extint_fetches_a_spurious_vector(
        self, wired: tuple[Injector, FakeCpu, Pic8259Pair]
    ) -> None:
        injector, cpu, _ = wired
        assert injector.lapic is not None
        injector.lapic.receive(Message(0, False, 7, 0))
        cpu.leave()
        injector.serve()
        injector.serve()
        assert cpu.kvm.injected == [0x27]


class TestWaking:
    def test_an_interrupt_wakes_who_has_interrupts_on(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave(interrupts_on=False)
        lapic.accept(0x31)
        assert cpu.attended == 1
        assert not injector.awake
        cpu.leave(interrupts_on=True)
        assert injector.awake

    def test_not_below_the_task_priority(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave(cr8=3)
        lapic.accept(0x31)
        assert not injector.awake

    def test_an_nmi_wakes_anyone_halted(self) -> None:
        injector, cpu, _ = make()
        cpu.leave(interrupts_on=False)
        assert not injector.awake
        injector.request_nmi()
        assert cpu.attended == 1
        assert injector.awake

    def test_only_a_start_up_ipi_wakes_who_waits_for_one(self) -> None:
        injector, cpu, _ = make(index=1)
        cpu.leave(interrupts_on=True)
        injector.request_nmi()
        injector.wake()
        awake = [injector.awake]
        injector.request_sipi(0x9A)
        awake.append(injector.awake)
        assert awake == [False, True]
        assert injector.take_sipi()
        assert not cpu.parked
        assert (cpu.state.cs.base, cpu.state.cs.selector, cpu.state.rip) == (0x9A000, 0x9A00, 0)
        injector.serve()
        assert cpu.kvm.injected == ["nmi"], "which waited"


class TestInit:
    def test_it_resets_the_apic_and_parks(self) -> None:
        injector, cpu, lapic = make(index=1)
        cpu.parked = False
        lapic.accept(0x31)
        cpu.engine.page[REQUEST_WINDOW] = 1
        cpu.engine.page[CR8] = 7
        injector.request_nmi()
        injector.request_init()
        awake, pending = [injector.awake], [injector.init_pending]
        assert injector.take_init()
        awake.append(injector.awake)
        pending.append(injector.init_pending)
        assert awake == pending == [True, False]
        assert [cpu.parked, window(cpu)] == [True, False]
        assert cpu.engine.page[CR8] == 0
        assert lapic.read(SVR, 4) == 0xFF
        assert not injector.take_init(), "once is enough"
        assert cpu.inits == 1

    @pytest.mark.parametrize("firmware", [True, False])
    def test_the_first_processor_goes_to_its_reset_vector_instead(self, firmware: bool) -> None:
        """If anything is there; otherwise the run ends, with its registers as they were."""
        injector, cpu, _ = make(index=0)
        if firmware:
            cpu.memory.add_rom(0xFFFF_F000, bytes(4096))
        injector.request_init()
        assert injector.take_init()
        assert not cpu.parked
        assert cpu.inits == firmware

    def test_it_ends_the_nmis_before_it_and_not_those_after_it(self) -> None:
        injector, cpu, _ = make(index=1)
        cpu.parked = False
        injector.request_nmi()
        injector.request_init()
        injector.request_nmi()
        injector.request_sipi(0x10)
        assert injector.take_init()
        assert injector.take_sipi()
        injector.serve()
        assert cpu.kvm.injected == ["nmi"]

    def test_a_start_up_ipi_right_after_init_counts(self) -> None:
        injector, cpu, _ = make(index=1)
        cpu.parked = False
        injector.request_init()
        injector.request_sipi(0x10)
        assert injector.take_init()
        assert injector.awake
        assert injector.take_sipi()
        assert cpu.state.cs.base == 0x10000

    def test_a_start_up_ipi_before_init_is_dropped(self) -> None:
        injector, cpu, _ = make(index=1)
        injector.request_sipi(0x10)
        injector.request_init()
        assert injector.take_init()
        assert not injector.take_sipi()
        assert cpu.parked

    def test_a_processor_that_runs_takes_no_start_up_ipi(self) -> None:
        injector, cpu, _ = make(index=1)
        cpu.parked = False
        injector.request_sipi(0x10)
        assert cpu.attended == 0
        assert not injector.take_sipi()
        assert cpu.state == reset()

    def test_the_last_start_up_ipi_counts(self) -> None:
        injector, cpu, _ = make(index=1)
        injector.request_sipi(0x10)
        injector.request_sipi(0x20)
        assert injector.take_sipi()
        assert cpu.state.cs.base == 0x20000
        assert not injector.take_sipi()


class TestTaskPriority:
    def test_cr8_is_known_before_an_access_and_tpr_after_it(self) -> None:
        injector, cpu, lapic = make()
        cpu.leave(cr8=6)
        injector.before_access()
        assert lapic.read(TPR, 4) == 0x60
        lapic.write(TPR, 4, 0x23)
        injector.after_access()
        assert cpu.engine.page[CR8] == 2
        injector.before_access()
        assert lapic.read(TPR, 4) == 0x23, "the sub-class, which CR8 has not, is kept"

    def test_an_interrupt_from_elsewhere_makes_the_processor_look(self) -> None:
        """What its APIC knows of CR8 is from the last exit."""
        _, cpu, lapic = make()
        lapic.cr8 = 8
        lapic.accept(0x31)
        assert cpu.attended == 1


def test_an_interrupt_wakes_as_the_flags_are_that_kvm_left() -> None:
    injector, cpu, lapic = make()
    lapic.accept(0x51)
    for on in (True, False):
        cpu.leave(interrupts_on=on)
        assert injector.awake is on
