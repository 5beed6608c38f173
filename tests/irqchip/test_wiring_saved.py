"""All interrupt controllers and clocks of a PC are saved together, and go on together elsewhere."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pykvm.irqchip.wiring import Platform
from support.saved import Subject, World, check_saved, cut_programs, each, programs

IOAPIC, HPET, LAPIC = 0x10000, 0x20000, 0x30000
PLACES = {
    0x20: "pic-master",
    0xA0: "pic-slave",
    0x4D0: "pic-elcr",
    0x40: "pit",
    0x61: "port61",
    0x70: "rtc",
    0x608: "pm-timer",
    IOAPIC: "ioapic",
    HPET: "hpet",
    LAPIC: "lapic",
}


class Port:
    """The only processor: it notes what it is asked for."""

    def __init__(self, world: World) -> None:
        self._note = world.note
        self.lapic: Any = None

    def request_nmi(self) -> None:
        self._note("nmi")

    def request_init(self) -> None:
        self._note("init")

    def request_sipi(self, vector: int) -> None:
        self._note("sipi", vector)

    def wake(self) -> None:
        self._note("wake")

    def before_access(self) -> None:
        pass

    def after_access(self) -> None:
        pass


class Pc:
    """A platform, with its devices at addresses of their own."""

    def __init__(self, world: World) -> None:
        port = Port(world)
        self.platform = Platform(world.clock, [port], lambda: port)
        port.lapic = self.platform.lapics[0]

    def _at(self, address: int) -> tuple[Any, int]:
        first = max(place for place in PLACES if place <= address)
        return self.platform.devices[PLACES[first]], address - first

    def read(self, address: int, size: int) -> int:
        device, offset = self._at(address)
        return int(device.read(offset, size))

    def write(self, address: int, size: int, value: int) -> None:
        device, offset = self._at(address)
        device.write(offset, size, value)

    def state(self) -> object:
        return self.platform.state()

    def restore(self, state: Any) -> None:
        for lapic, of_lapic in zip(self.platform.lapics, state.lapics, strict=True):
            lapic.restore(of_lapic)
        devices = dict(self.platform.stateful())
        for name, of_device in state.devices:
            devices[name].restore(of_device)

    def take(self) -> object:
        """What the processor takes now, if it takes interrupts."""
        lapic, pic = self.platform.lapics[0], self.platform.pic
        if lapic.extint and pic.pending:
            lapic.acknowledge_extint()
            return "8259", pic.acknowledge()
        return lapic.acknowledge()

    def look(self) -> object:
        platform = self.platform
        return str(platform.pic), str(platform.ioapic), str(platform.lapics[0]), str(platform.hpet)


def pc(world: World) -> Subject:
    made = Pc(world)
    for irq in (4, 5):
        world.input(str(irq), made.platform.line(irq))
    return Subject(world, made, {"take": made.take, "look": made.look})


def out(port: int, *values: int) -> list[Any]:
    return [("write", port, 1, value) for value in values]


def entry(pin: int, low: int) -> list[Any]:
    values = (0x11 + 2 * pin, 0, 0x10 + 2 * pin, low)
    return [("write", IOAPIC + 0x10 * (n % 2), 4, value) for n, value in enumerate(values)]


PIC = [*out(0x20, 0x11), *out(0x21, 0x20, 4, 1, 0), *out(0xA0, 0x11), *out(0xA1, 0x28, 2, 1, 0)]
PC = programs(
    *[PIC] * 4,
    # The 8254 at 1 kHz, and once; the RTC's periodic and update-ended interrupts.
    [*out(0x43, 0x34), *out(0x40, 0xA9, 0x04)],
    [*out(0x43, 0x30), *out(0x40, 0xA9, 0x04)],
    [*out(0x70, 0x0B), *out(0x71, 0x42)],
    [*out(0x70, 0x0B), *out(0x71, 0x12)],
    [*out(0x70, 0x0C), ("read", 0x71, 1)],
    # The HPET, with and without legacy replacement, on a level-triggered pin, too.
    *[
        [("write", HPET + 0x100, 4, 0x4C), *[("write", HPET + 0x108, 8, 90_000)] * 2],
        [("write", HPET + 0x140, 4, 0x06 | 20 << 9), ("write", HPET + 0x148, 8, 30_000)],
    ],
    *each("write", (HPET + 0x10,), (4,), (0, 1, 3)),
    *each("write", (HPET + 0x20,), (4,), (7,)),
    # The local APIC and its timer; pins of the I/O APIC.
    *[[("write", LAPIC + 0xF0, 4, 0x1FF)]] * 3,
    [("write", LAPIC + 0x320, 4, 0x2_0050), ("write", LAPIC + 0x380, 4, 900_000)],
    *each("write", (LAPIC + 0x350,), (4,), (0x700, 0x1_0000)),
    *[entry(pin, low) for pin in (2, 4, 8, 20) for low in (0x60 + pin, 0x8060 + pin)],
    *each("input", ("4", "5"), (False, True)),
    *[("take",)] * 6,
    *[("write", LAPIC + 0xB0, 4, 0)] * 3,
    *out(0x20, 0x20, 0x20, 0x0B),
    *out(0xA0, 0x20),
    *out(0x61, 0, 1, 3),
    *out(0x4D0, 0x20, 0),
    look=[
        ("look",),
        ("take",),
        *each("read", (0x20, 0x21, 0x40, 0x61, HPET + 0x20, HPET + 0xF0, LAPIC + 0x390), (1,)),
        *each("write", (LAPIC + 0xB0,), (4,), (0,)),
        *each("input", ("4", "5"), (False, True)),
        ("look",),
    ],
)


@given(cut_programs(PC))
def test_a_restored_pc_goes_on_as_the_first(case: tuple[list[Any], int]) -> None:
    check_saved(pc, *case)


@given(cut_programs(PC), st.integers(0, 10**10))
def test_what_is_put_away_is_as_if_made_when_it_is_taken_out(
    case: tuple[list[Any], int], later: int
) -> None:
    program, cut = case
    used, fresh = pc(World()), World()
    pristine = used.device.platform.state()
    # Only what keeps its own level drives a line meanwhile.
    used.play(program[:cut])
    for world in (used.world, fresh):
        world.clock.restore(world.clock.state().__replace__(now=later, order=0, tsc=0))
    used.world.live = False
    used.device.platform.power_on(pristine)
    used.world.live = True
    made = pc(fresh)
    # A clock by the host's time shows it as of when it was made first.
    made.device.platform.rtc._origin = used.device.platform.rtc._origin
    made.device.platform.rtc.power_on()
    for name, output in used.world.inputs.items():
        made.world.inputs[name].set(output.level)
    assert made.play(program) == used.play(program)
