"""What devices get by `attach`, before there is an irqchip and after."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import BusConflict, ConfigError, Machine, Outcome, Placement, Space
from pykvm.clock import Clock
from pykvm.devices import Uart16550
from pykvm.devices.line import Unconnected
from pykvm.irqchip.user import OnDemand
from pykvm.machine.attachments import Attachments, DeviceLines, LateClock, LateLine
from pykvm.memory import GuestMemory
from support.irqchips import IRQCHIPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.bus.published import Published
    from pykvm.clock import TimeSource
    from pykvm.devices.line import InterruptLine, Lines
    from support.guest import MakeGuest


class Wire:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)


class Chip:
    """An irqchip with a wire for each interrupt, which is there once it was made."""

    def __init__(self, *, made: bool) -> None:
        self.wires: dict[int, Wire] = {}
        self.interrupts: object = self if made else None

    def line(self, irq: int) -> Wire:
        assert self.interrupts is not None, "not made yet"
        return self.wires.setdefault(irq, Wire())

    def make(self) -> None:
        self.interrupts = self


class Bell:
    """Keeps what it is given, and what it is asked in which order."""

    length = 1

    def __init__(self, name: str = "bell") -> None:
        self.name = name
        self.calls: list[str] = []
        self.line: InterruptLine = Unconnected()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        self.calls.append("attach")
        self.lines, self.memory, self.clock = lines, memory, clock
        self.line = lines.own

    def publish(self, published: Published) -> None:
        self.calls.append("publish")
        published.lay_out([(0, 1)])

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.line.set(bool(value))


def attachments(chip: Chip | None, clock: Callable[[], Clock] = Clock) -> Attachments:
    made = Attachments(GuestMemory(), clock)
    if chip is not None:
        made.use(chip)  # type: ignore[arg-type]
    return made


def placed(device: Any, irq: int | None = None, *, port: int = 0x500) -> Placement:
    return Placement(device, Space.PIO, port, 1, irq=irq)


class TestLateLine:
    @pytest.mark.parametrize(("before", "told"), [((), []), ((True,), [True]), ((1, 0), [])])
    def test_the_level_is_kept_until_it_leads_somewhere(
        self, before: tuple[bool, ...], told: list[bool]
    ) -> None:
        line, wire = LateLine(5), Wire()
        for level in before:
            line.set(level)
        line.connect(wire)
        assert wire.levels == told
        line.set(False)
        assert wire.levels == [*told, False]

    def test_no_level_is_lost_on_the_way(self) -> None:
        """Another thread drives it while it is connected."""
        for _ in range(50):
            line, wire, ready = LateLine(5), Wire(), threading.Event()

            def drive(line: LateLine = line, ready: threading.Event = ready) -> None:
                ready.set()
                for number in range(200):
                    line.set(number % 2 == 0)
                line.set(True)

            thread = threading.Thread(target=drive)
            thread.start()
            ready.wait()
            line.connect(wire)
            thread.join()
            assert wire.levels[-1] is True


class TestLateClock:
    def test_the_clock_is_made_when_it_is_asked(self) -> None:
        made: list[str] = []
        clock = Clock()

        def make_clock() -> Clock:
            made.append("clock")
            late.source = clock
            return clock

        late = LateClock(make_clock, lambda: made.append("irqchip"))
        assert (late.made, made) == (False, [])
        assert late.now() <= clock.now()
        assert (late.made, made) == (True, ["clock"])
        late.now()
        assert made == ["clock"]
        timer = late.timer(lambda when: None)
        assert "irqchip" in made, "a run looks at no timer without"
        timer.arm(late.now() + 10**12)
        assert clock.next_deadline(0) == timer.when


class TestAttachments:
    @pytest.mark.parametrize("made", [False, True])
    def test_a_line_leads_to_the_interrupt_it_was_placed_with(self, made: bool) -> None:
        chip, bell = Chip(made=made), Bell()
        devices = attachments(chip)
        devices.add([placed(bell, 5)])
        bell.line.set(True)
        if not made:
            assert chip.wires == {}
            chip.make()
            devices.irqchip_made(chip)  # type: ignore[arg-type]
        assert chip.wires[5].levels == [True]

    def test_lines_of_the_devices_choice(self) -> None:
        chip = Chip(made=True)
        lines = DeviceLines(None, chip.line)
        lines.own.set(True)
        lines.isa(7).set(True)
        assert {irq: wire.levels for irq, wire in chip.wires.items()} == {7: [True]}

    def test_without_an_irqchip_lines_lead_nowhere_and_no_timer_runs(self) -> None:
        bell = Bell()
        devices = attachments(None)
        devices.add([placed(bell, 5)])
        bell.line.set(True)
        assert bell.clock is None

    def test_once_however_many_places(self) -> None:
        bell = Bell()
        devices = attachments(Chip(made=True))
        devices.add([placed(bell), placed(bell, 5), placed(bell)])
        devices.add([placed(bell), placed(bell, 5)])
        assert (bell.calls, bell.lines.irq) == (["attach"], 5)
        with pytest.raises(ConfigError, match="^device bell has irq=5 already, not 6"):
            devices.add([placed(bell, 6)])
        with pytest.raises(ConfigError, match="^device two has irq=3 already, not 4"):
            devices.add([placed(two := Bell("two"), 3), placed(two, 4)])
        assert devices.names == {"bell"}

    def test_what_is_removed_lowers_its_lines_and_may_come_back(self) -> None:
        chip, bell = Chip(made=True), Bell()
        devices = attachments(chip)
        devices.add([placed(bell, 5)])
        bell.line.set(True)
        devices.remove("bell")
        assert chip.wires[5].levels == [True, False]
        devices.add([placed(bell, 6)])
        assert (bell.lines.irq, bell.calls) == (6, ["attach", "attach"])

    def test_who_may_interrupt_from_outside(self) -> None:
        devices = attachments(Chip(made=True))
        devices.add([placed(bell := Bell("without a line"))])
        assert not devices.waits_for_host()
        devices.add([placed(uart := Uart16550(), 4)])
        assert not devices.waits_for_host()
        uart.write(1, 1, 1)
        assert devices.waits_for_host(), "a byte would"
        uart.write(1, 1, 0)
        assert not devices.waits_for_host()
        devices.add([placed(Bell("says nothing"), 5)])
        assert devices.waits_for_host()
        devices.keep([bell.name, uart.name])
        assert not devices.waits_for_host()
        bell.lines.isa(3)
        assert devices.waits_for_host(), "it has a line now"


@pytest.mark.kvm
class TestMachine:
    @pytest.mark.parametrize("irqchip", IRQCHIPS)
    def test_attached_before_it_publishes(self, irqchip: str) -> None:
        bell = Bell()
        with Machine(irqchip=irqchip) as machine:
            machine.add(bell, pio=0x500, irq=5)
            assert bell.calls == ["attach", "publish"]
            assert bell.memory is machine.memory

    def test_an_irqchip_in_software_is_not_made_for_it(self) -> None:
        with Machine() as machine:
            machine.add(bell := Bell(), pio=0x500, irq=5)
            bell.line.set(True)
            device: object = machine.devices["pit"]
            assert isinstance(device, OnDemand)
            assert bell.clock is not None
            assert not bell.clock.made

    @pytest.mark.parametrize("irqchip", IRQCHIPS)
    def test_a_timer_at_once(self, irqchip: str) -> None:
        """It takes the irqchip, whose devices stand on the bus by then."""

        class Early(Bell):
            def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
                super().attach(lines, memory, clock)
                assert clock is not None
                clock.timer(lambda when: None).arm(clock.now())

        with Machine(irqchip=irqchip, devices=[placed(Early(), 5)]) as machine:
            assert not [d for d in machine.devices.values() if isinstance(d, OnDemand)]
            assert machine.bus.read(Space.PIO, 0x71, 1) is not None

    def test_what_finds_no_place_is_not_attached(self) -> None:
        with Machine() as machine:
            with pytest.raises(BusConflict):
                machine.add(bell := Bell(), pio=0x3F8, irq=5)
            assert "bell" not in machine.devices
            machine.line(5)
            machine.add(bell, pio=0x500, irq=6)
            assert bell.calls == ["attach", "attach", "publish"]

    def test_wrong_interrupts(self) -> None:
        class Mute:
            name = "mute"

            def read(self, offset: int, size: int) -> int:
                return 0

        with Machine() as machine:
            for irq in (-1, 2, 16, "5", True):
                with pytest.raises(ConfigError, match="^bell: irq"):
                    machine.add(Bell(), pio=0x500, irq=irq)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="^device mute drives no interrupt: irq=5"):
                machine.add(Mute(), pio=0x500, length=1, irq=5)
        with Machine(irqchip="none") as machine:
            with pytest.raises(ConfigError, match="no interrupt controller"):
                machine.add(Bell(), pio=0x500, irq=5)
            machine.add(bell := Bell(), pio=0x500)
            assert bell.clock is None

    @pytest.mark.parametrize(
        ("receives", "outcome"),
        [(None, Outcome.TIMEOUT), (True, Outcome.TIMEOUT), (False, Outcome.HALTED)],
    )
    def test_a_guest_that_sleeps_is_waited_for(
        self, guest: MakeGuest, receives: bool | None, outcome: Outcome
    ) -> None:
        machine = guest("""
            E4 40        in al, 0x40
            FB           sti
            F4           hlt
        """)
        bell = Bell()
        if receives is not None:
            bell.receives = receives  # type: ignore[attr-defined]
        machine.add(bell, pio=0x500, irq=5)
        assert machine.run(timeout=0.2).outcome is outcome

    def test_a_removed_device_is_not_waited_for(self, guest: MakeGuest) -> None:
        machine = guest("E4 40  in al, 0x40\nFB  sti\nF4  hlt")
        machine.add(Bell(), pio=0x500, irq=5)
        machine.remove("bell")
        assert machine.run(timeout=5).outcome is Outcome.HALTED

    def test_c_knows_the_time_once_there_is_a_clock(self) -> None:
        class Timer(Bell):
            def publish(self, published: Published) -> None:
                super().publish(published)
                self.registers = published

        with Machine() as machine:
            machine.add(timer := Timer(), pio=0x500)
            assert timer.clock is not None
            assert not timer.registers.knows(timer.clock)
            timer.clock.now()
            assert timer.registers.knows(timer.clock)
            assert timer.registers.knows(machine.clock)
