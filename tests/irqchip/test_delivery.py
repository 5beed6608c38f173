"""What the run loop asks of clock and interrupts, on a host whose time stands still."""

from __future__ import annotations

import pytest
from clock.fake_host import Host
from irqchip.fake_cpu import FakeCpu

from pykvm.clock import Clock
from pykvm.interrupts import LocalApic
from pykvm.interrupts import lapic_registers as reg
from pykvm.irqchip.delivery import UserInterrupts
from pykvm.irqchip.injector import Injector

MS = 1_000_000
HOUR = 3600 * 1_000_000_000


class Board:
    """Some vCPUs with their local APICs, on one clock."""

    def __init__(self, cpus: int = 1, policy: str = "realtime", *, movable: bool = True) -> None:
        self.host = Host()
        self.clock: Clock = self.host.clock(policy, movable=movable)
        self.cpus = [FakeCpu(index) for index in range(cpus)]
        self.injectors = [Injector(cpu) for cpu in self.cpus]  # type: ignore[arg-type]
        for index, injector in enumerate(self.injectors):
            injector.lapic = LocalApic(index, self.clock, injector, lambda source, message: None)
            injector.lapic.write(reg.SVR << 4, 4, 0x1FF)
        self.waits_for_host = False
        self.nmi_source = False
        self.keeper = UserInterrupts(
            self.clock,
            self.injectors,
            waits_for_host=lambda: self.waits_for_host,
            nmi_source=lambda: self.nmi_source,
        )

    def lapic(self, index: int = 0) -> LocalApic:
        lapic = self.injectors[index].lapic
        assert lapic is not None
        return lapic

    def run_timers(self, index: int = 0) -> int | None:
        """Run them, and the alarm that was set."""
        self.keeper.run_timers(self.cpus[index])  # type: ignore[arg-type]
        self.keeper.set_alarm(self.cpus[index])  # type: ignore[arg-type]
        return self.cpus[index].alarms[-1]

    def warp(self) -> bool:
        return self.keeper.warp(self.cpus)  # type: ignore[arg-type]

    def can_wake(self) -> bool:
        return self.keeper.can_wake(self.cpus)  # type: ignore[arg-type]


def ignore(when: int) -> None:
    pass


class TestTimers:
    def test_no_timer_no_alarm(self) -> None:
        board = Board()
        assert board.run_timers() is None

    def test_the_alarm_is_the_next_deadline_in_the_hosts_time(self) -> None:
        board = Board()
        board.clock.timer(ignore).arm(5 * MS)
        assert board.run_timers() == board.host.now + 5 * MS

    def test_what_is_due_runs_and_the_alarm_is_the_next_one(self) -> None:
        board = Board()
        ran: list[int] = []
        board.clock.timer(ran.append).arm(5 * MS)
        board.clock.timer(ran.append).arm(9 * MS)
        board.host.now += 7 * MS
        assert board.run_timers() == board.host.now + 2 * MS
        assert ran == [5 * MS]

    def test_each_vcpu_has_its_own(self) -> None:
        board = Board(cpus=2)
        board.clock.timer(ignore, 1).arm(5 * MS)
        assert board.run_timers(0) is None
        assert board.run_timers(1) == board.host.now + 5 * MS

    def test_an_apic_timer_reaches_its_processor(self) -> None:
        board = Board()
        board.lapic().write(reg.LVT_TIMER << 4, 4, 0x41)
        board.lapic().write(reg.DIVIDE << 4, 4, 0xB)
        board.lapic().write(reg.INITIAL_COUNT << 4, 4, 3 * MS)
        assert board.run_timers() == board.host.now + 3 * MS
        board.host.now += 3 * MS
        assert board.run_timers() is None
        board.cpus[0].leave()
        board.keeper.serve(board.cpus[0])  # type: ignore[arg-type]
        assert board.cpus[0].kvm.injected == [0x41]

    def test_while_cr8_holds_an_interrupt_back_it_is_looked_at(self) -> None:
        """On a KVM that has no exit for a lower CR8."""
        board = Board()
        board.lapic().cr8 = 5
        board.lapic().accept(0x41)
        assert board.run_timers() == board.host.now + MS
        board.clock.timer(ignore).arm(MS // 2)
        assert board.run_timers() == board.host.now + MS // 2
        board.lapic().cr8 = 0
        board.clock.run_due(0)
        board.host.now += MS
        assert board.run_timers() is None


class TestCanWake:
    def test_nothing_wakes_without_a_timer(self) -> None:
        board = Board()
        board.cpus[0].leave()
        assert not board.can_wake()

    def test_a_timer_wakes_who_has_interrupts_on(self) -> None:
        board = Board()
        board.clock.timer(ignore).arm(HOUR)
        board.cpus[0].leave(interrupts_on=False)
        assert not board.can_wake()
        board.cpus[0].leave(interrupts_on=True)
        assert board.can_wake()

    def test_input_from_outside_wakes_who_has_interrupts_on(self) -> None:
        board = Board()
        board.waits_for_host = True
        board.cpus[0].leave(interrupts_on=False)
        assert not board.can_wake()
        board.cpus[0].leave(interrupts_on=True)
        assert board.can_wake()

    def test_an_nmi_needs_no_interrupts_but_a_reason(self) -> None:
        board = Board()
        board.nmi_source = True
        board.cpus[0].leave(interrupts_on=False)
        assert not board.can_wake(), "nothing that could raise it"
        board.waits_for_host = True
        assert board.can_wake()

    def test_the_timer_of_one_may_wake_another(self) -> None:
        board = Board(cpus=2)
        for cpu in board.cpus:
            cpu.parked = False
        board.clock.timer(ignore, 1).arm(HOUR)
        board.cpus[0].leave(interrupts_on=True)
        board.cpus[1].leave(interrupts_on=False)
        assert board.can_wake()

    def test_who_was_never_started_counts_for_nothing(self) -> None:
        board = Board(cpus=2)
        board.clock.timer(ignore).arm(HOUR)
        board.cpus[0].leave(interrupts_on=False)
        board.cpus[1].leave(interrupts_on=True)
        assert not board.can_wake()
        board.cpus[0].parked = True
        board.nmi_source = True
        assert not board.can_wake()


class TestWarp:
    def test_no_warp_under_other_policies(self) -> None:
        for policy in ("realtime", "paused"):
            board = Board(policy=policy)
            board.cpus[0].leave()
            board.clock.timer(ignore).arm(HOUR)
            assert not board.warp()
            assert board.clock.now() == 0

    def test_warps_to_the_earliest_deadline_of_all_vcpus(self) -> None:
        board = Board(cpus=3, policy="warp")
        board.cpus[0].leave()
        for queue, when in ((0, 3 * HOUR), (2, HOUR)):
            board.clock.timer(ignore, queue).arm(when)
        assert board.warp()
        assert board.clock.now() == HOUR

    @pytest.mark.parametrize("movable", [False, True])
    def test_no_warp_past_a_deadline_of_a_tsc_that_cannot_move(self, movable: bool) -> None:
        board = Board(policy="warp", movable=movable)
        board.cpus[0].leave()
        lapic = board.lapic()
        lapic.write(reg.LVT_TIMER << 4, 4, 0x40041)
        lapic.write_msr(reg.MSR_TSC_DEADLINE, board.clock.tsc() + board.clock.tsc_khz * 1000)
        assert board.warp() is movable
        assert abs(board.clock.now() - movable * 1000 * MS) < 1000

    def test_no_warp_without_a_timer(self) -> None:
        board = Board(policy="warp")
        board.cpus[0].leave()
        assert not board.warp()
        assert board.clock.now() == 0

    def test_no_warp_for_one_that_nothing_wakes(self) -> None:
        board = Board(policy="warp")
        board.clock.timer(ignore).arm(HOUR)
        board.cpus[0].leave(interrupts_on=False)
        assert not board.warp()
        assert board.clock.now() == 0
        board.nmi_source = True
        assert board.warp()


class TestStarting:
    def test_a_start_up_ipi(self) -> None:
        board = Board(cpus=2)
        cpu = board.cpus[1]
        assert not board.keeper.awake(cpu)  # type: ignore[arg-type]
        board.injectors[1].request_sipi(0x10)
        assert board.keeper.awake(cpu)  # type: ignore[arg-type]
        assert not board.keeper.start(cpu)  # type: ignore[arg-type]
        assert not cpu.parked

    def test_init_comes_first(self) -> None:
        board = Board(cpus=2)
        cpu = board.cpus[1]
        board.injectors[1].request_init()
        assert board.keeper.start(cpu)  # type: ignore[arg-type]
        assert board.keeper.reset_by_init(cpu)  # type: ignore[arg-type]
        assert not board.keeper.reset_by_init(cpu)  # type: ignore[arg-type]
        assert cpu.parked
