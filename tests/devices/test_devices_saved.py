"""What is saved of each device is all that a guest could notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.debug_exit import DebugExit
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.hpet import Hpet
from pykvm.devices.i8042 import KeyboardController
from pykvm.devices.pc_testdev import KeptMemory, KeptPorts, LinePorts
from pykvm.devices.pci_config import PciConfig
from pykvm.devices.pci_host import PciHost
from pykvm.devices.pit import Pit8254
from pykvm.devices.pm_timer import AcpiPmTimer
from pykvm.devices.port61 import Port61
from pykvm.devices.port92 import Port92
from pykvm.devices.post import PostPort
from pykvm.devices.pvpanic import PvPanic
from pykvm.devices.rtc import Rtc146818
from pykvm.errors import ConfigError
from support.attach import attach, isa_lines
from support.saved import (
    Subject,
    World,
    check_hostile,
    check_saved,
    cut_programs,
    each,
    hostile_cases,
    programs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.saved import Step

BYTES = (0, 1, 2, 3, 7, 0x10, 0x55, 0x80, 0xA0, 0xFE, 0xFF)


def reads(*offsets: int, sizes: tuple[int, ...] = (1,)) -> list[Step]:
    return each("read", offsets, sizes)


def writes(*offsets: int, values: tuple[int, ...] = BYTES, size: int = 1) -> list[Step]:
    return each("write", offsets, (size,), values)


def acpi_pm(world: World) -> Subject:
    device = AcpiPm()
    attach(device, world.lines[9], clock=world.clock)
    return Subject(world, device, {"press": device.press_power_button, "reset": device.reset})


ACPI_PM = programs(
    *reads(0, 2, 4, sizes=(2,)),
    *writes(0, 2, size=2, values=(0, 1, 0x100, 0x101)),
    *writes(4, size=2, values=(0, 2, 0x2000, 0x3C00, 0x1400)),
    # TMR_STS comes every ten minutes.
    *each("wait", (600_000_000_000, 300_000_000_000)),
    *each("stall", (600_000_000_000, 300_000_000_000)),
    *[("press",)] * 4,
    ("reset",),
    look=reads(0, 2, 4, sizes=(2,)),
)


def console(world: World) -> Subject:
    device = DebugConsole(limit=16)
    return Subject(
        world,
        device,
        {
            "print": lambda data: device.posted([(0, 1, byte) for byte in data]),
            "seen": lambda: (device.output, device.dropped, device.since(3)),
        },
    )


CONSOLE = programs(
    *each("print", (b"a", b"hello\n", bytes(range(40)))), ("seen",), ("seen",), look=[("seen",)]
)


def hpet(world: World) -> Subject:
    lines = {irq: line for irq, line in enumerate(world.lines[:24]) if irq != 2}
    device = Hpet(world.clock, lines)
    for irq in (0, 8):
        world.input(str(irq), device.legacy_input(irq))
    return Subject(world, device, {"reset": device.reset, "missed": lambda: device.missed})


def hpet_timer(number: int, config: int, *values: int) -> list[Step]:
    """A timer that is set up and may run."""
    base = 0x100 + 0x20 * number
    return [
        ("write", base, 4, config),
        *(("write", base + 8, 8, value) for value in values),
        ("write", 0x10, 4, 1),
    ]


_HPET_REGISTERS = (0x10, 0x20, 0xF0, 0x100, 0x108, 0x120, 0x128, 0x140, 0x148)
HPET = programs(
    *reads(0x10, 0x20, 0xF0, 0x100, 0x108, 0x128, 0x148, sizes=(8,)),
    *reads(0x20, 0x108, 0xF0, sizes=(4,)),
    *[
        hpet_timer(number, config | (2 + number) << 9, *values)
        for number in range(3)
        for config, *values in (
            # Edge and level; one-shot, and periodic with and without a first match of its own.
            (0x4, 10_000),
            (0x6, 10_000),
            (0x4C, 20_000, 6_000),
            (0x4E, 20_000, 6_000),
            (0x4E, 200, 70),
            (0x14E, (1 << 32) - 5, 90_000),
        )
    ],
    *writes(0x10, size=4, values=(0, 1, 1, 3)),
    *writes(0x100, 0x120, size=4, values=(0x4, 0x6, 0x48, 0x2E04, 0xC)),
    *writes(0xF0, size=8, values=(0, 9_000, (1 << 32) - 5, (1 << 64) - 5)),
    *writes(0x108, 0x128, size=8, values=(0, 9_000, (1 << 64) - 1)),
    *writes(0x20, size=4, values=(1, 2, 4, 7)),
    *each("input", ("0", "8"), (False, True)),
    ("reset",),
    ("missed",),
    ("missed",),
    look=[*reads(*_HPET_REGISTERS, sizes=(8,)), ("missed",)],
)


def i8042(world: World) -> Subject:
    device = KeyboardController()
    attach(device, world.lines[1])
    return Subject(world, device, {"reset": device.reset})


I8042 = programs(
    *reads(0, 4),
    *writes(0),
    *writes(4, values=(0x20, 0x60, 0xD1, 0xD2, 0xD3, 0xD4, 0xA7, 0xAA, 0xAD, 0xDD, 0xD0, 0xFE)),
    [("write", 4, 1, 0x60), ("write", 0, 1, 1)],
    ("reset",),
    look=[*reads(0, 4), ("write", 4, 1, 0xD0), *reads(0)],
)


def kept_ports(world: World) -> Subject:
    return Subject(world, KeptPorts())


KEPT_PORTS = programs(
    *reads(0, 1, 4, 8), *writes(0, 1, 2, 3, 4, 9, values=(0, 1, 0xFF)), look=reads(0, 1, 2, 3)
)


def kept_memory(world: World) -> Subject:
    return Subject(world, KeptMemory())


KEPT_MEMORY = programs(
    *reads(0, 1, 0xFFFE, sizes=(1, 8)),
    *writes(0, 0xFFFE, values=(0, 255)),
    *writes(0, 0xFFFE, size=8, values=(0, (1 << 64) - 1)),
    look=reads(0, 0xFFF8, sizes=(8,)),
)


def line_ports(world: World) -> Subject:
    device = LinePorts()
    isa_lines(device, world.isa)
    return Subject(world, device)


LINE_PORTS = programs(
    *writes(*range(24), values=(0, 1)), *reads(0), look=writes(*range(16), values=(0, 1))
)


def pit(world: World) -> Subject:
    device = Pit8254(world.clock, world.lines[0])
    return Subject(
        world,
        device,
        {
            "gate": lambda number, level: device.set_gate(number, level),
            "outs": lambda: [device.out(number) for number in range(3)],
            "reset": device.reset,
            "missed": lambda: device.missed,
        },
    )


def pit_counter(number: int, control: int, count: int) -> list[Step]:
    return [
        ("write", 3, 1, number << 6 | control),
        ("write", number, 1, count & 0xFF),
        ("write", number, 1, count >> 8),
    ]


PIT = programs(
    *reads(0, 0, 0, 1, 2, 2, 2),
    *writes(0, 1, 2, values=(0, 1, 0x37, 0xFF)),
    *[
        pit_counter(number, control, count)
        for number in (0, 1, 2)
        for control in (0x30, 0x32, 0x34, 0x36, 0x38, 0x3A, 0x37, 0x35)
        for count in (1, 60, 999, 0)
    ],
    # Control words alone; latches of count, of status, of both.
    *writes(3, values=(0x10, 0x14, 0x20, 0x34, 0x36, 0x94, 0xB0, 0xB6)),
    *writes(3, values=(0x00, 0x40, 0x80, 0xC2, 0xD2, 0xE2, 0xCE, 0xDE, 0xEE)),
    *writes(3, values=(0x00, 0x40, 0x80, 0xC2, 0xD2, 0xE2, 0xCE, 0xDE, 0xEE)),
    *each("gate", (0, 1, 2), (False, True)),
    ("outs",),
    ("outs",),
    ("missed",),
    ("missed",),
    ("reset",),
    look=[
        *reads(0, 0, 0, 1, 1, 1, 2, 2, 2),
        ("write", 3, 1, 0xEE),
        *reads(0, 1, 2),
        ("outs",),
        ("missed",),
        *each("gate", (0, 1, 2), (False, True)),
    ],
)


def pm_timer(world: World) -> Subject:
    return Subject(world, Stateless(AcpiPmTimer(world.clock)))


class Stateless:
    """A device that says so."""

    def __init__(self, device: Any) -> None:
        assert device.stateless
        self.read = device.read
        self.write = device.write

    def state(self) -> None:
        return None

    def restore(self, state: object) -> None:
        pass


PM_TIMER = programs(*reads(0, 1, sizes=(1, 2, 4)), look=reads(0, sizes=(4,)))


def port61(world: World) -> Subject:
    timer = Pit8254(world.clock)
    device = Port61(world.clock, timer)

    class Both:
        """The port, and the timer that has its gate."""

        def state(self) -> object:
            return timer.state(), device.state()

        def restore(self, state: Any) -> None:
            timer.restore(state[0])
            device.restore(state[1])

    actions: dict[str, Callable[..., object]] = {
        "timer": lambda offset, byte: timer.write(offset, 1, byte),
        "speaker": lambda: device.speaker,
        "reset": device.reset,
    }
    return Subject(world, Both(), actions, access=device)


PORT61 = programs(
    *reads(0, 0, 0),
    *writes(0),
    [("timer", 3, 0xB6), ("timer", 2, 0x34), ("timer", 2, 0x12)],
    ("speaker",),
    ("reset",),
    look=reads(0),
)


def port92(world: World) -> Subject:
    return Subject(world, Port92())


PORT92 = programs(*reads(0), *writes(0), look=reads(0))


def post(world: World) -> Subject:
    device = PostPort(limit=3)
    return Subject(
        world,
        device,
        {
            "post": lambda *codes: device.posted([(0, 1, code) for code in codes]),
            "seen": lambda: (device.code, device.history),
        },
    )


POST = programs(("post", 1, 2), ("post", 3), ("post", 4, 5, 6, 7), ("seen",), look=[("seen",)])


def pvpanic(world: World) -> Subject:
    device = PvPanic()
    return Subject(world, device, {"handled": lambda: device.crashes_handled})


PVPANIC = programs(*reads(0), *writes(0), ("handled",), look=[("handled",)])


def pci_config(world: World) -> Subject:
    return Subject(world, PciConfig())


def pci_host(world: World) -> Subject:
    return Subject(world, PciHost())


PCI = programs(
    *reads(0, 1, 4, 5, sizes=(1, 2, 4)),
    *writes(1),
    *writes(0, size=4, values=(0x8000_0000, 0x8000_0058, 0x8000_005C, 0x8000_0800, 0xFFFF_FFFF)),
    *writes(4, 5, 6, 7, values=(0, 0x11, 0x33)),
    *[[("write", 0, 4, 0x8000_0058), ("read", 4, 4)]] * 4,
    look=[*reads(0, sizes=(4,)), *reads(1), ("write", 0, 4, 0x8000_0058), *reads(4, sizes=(4,))],
)


def rtc(world: World) -> Subject:
    device = Rtc146818(world.clock, world.lines[8], epoch=1_700_000_000)
    return Subject(
        world,
        device,
        {
            "reset": device.reset,
            "look": lambda: (device.time, device.missed, device.nmi_masked),
            "poke": device.nvram.__setitem__,
        },
    )


def rtc_register(index: int, value: int) -> list[Step]:
    return [("write", 0, 1, index), ("write", 1, 1, value)]


RTC = programs(
    *writes(0, values=(*range(14), 0x32, 0x40, 0x8A)),
    *reads(0, 1, 1, 1, 1),
    *writes(1),
    *[rtc_register(10, value) for value in (0x20, 0x26, 0x21, 0x2F, 0x60)],
    *[rtc_register(11, value) for value in (0x02, 0x06, 0x42, 0x32, 0x72, 0xF2, 0x00)],
    *[rtc_register(index, value) for index in (1, 3, 5) for value in (0xFF, 0x14, 0x22)],
    *[[("write", 0, 1, index), ("read", 1, 1)] for index in (0, 2, 4, 10, 12, 12, 12, 13)],
    *each("poke", (14, 127), BYTES),
    ("reset",),
    ("look",),
    ("look",),
    look=[
        *reads(1),
        ("look",),
        *[("write", 0, 1, 12), ("read", 1, 1)],
        *[("write", 0, 1, 10), ("read", 1, 1)],
    ],
)


DEVICES = {
    make.__name__: (make, program)
    for make, program in (
        (acpi_pm, ACPI_PM),
        (console, CONSOLE),
        (hpet, HPET),
        (i8042, I8042),
        (kept_memory, KEPT_MEMORY),
        (kept_ports, KEPT_PORTS),
        (line_ports, LINE_PORTS),
        (pci_host, PCI),
        (pit, PIT),
        (pm_timer, PM_TIMER),
        (port61, PORT61),
        (port92, PORT92),
        (post, POST),
        (pvpanic, PVPANIC),
        (pci_config, PCI),
        (rtc, RTC),
    )
}
each_device = pytest.mark.parametrize("name", DEVICES)
each_stateful_device = pytest.mark.parametrize("name", sorted(DEVICES.keys() - {"pm_timer"}))


@each_device
@given(data=st.data())
def test_a_restored_device_goes_on_as_the_first(name: str, data: st.DataObject) -> None:
    make, program = DEVICES[name]
    check_saved(make, *data.draw(cut_programs(program)))


@each_stateful_device
@settings(max_examples=50)
@given(data=st.data())
def test_a_state_of_a_stranger_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    make, program = DEVICES[name]
    check_hostile(make, *data.draw(hostile_cases(make, program)))


@pytest.mark.parametrize("name", sorted(DEVICES.keys() - {"pm_timer", "port61"}))
def test_the_state_of_another_device_is_refused(name: str) -> None:
    make: Callable[[World], Subject] = DEVICES[name][0]
    device = make(World()).device
    other = PvPanic() if name != "pvpanic" else KeyboardController()
    with pytest.raises(ConfigError, match=f"is to be restored, not {type(other.state()).__name__}"):
        device.restore(other.state())


def test_what_only_ends_the_run_has_no_state() -> None:
    assert DebugExit.stateless
    assert AcpiPmTimer.stateless
