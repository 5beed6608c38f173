"""Devices to be saved and restored, and what may be done to each of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.fw_cfg import PIECE, Contents, DmaControl, FwCfg, Key
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
from pykvm.devices.uart import Uart16550
from pykvm.errors import MemoryRangeError
from support.attach import attach, isa_lines
from support.saved import (
    Fronts,
    Subject,
    World,
    each,
    programs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.saved import Step
from support.lines import InC

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


class Ram:
    """512 KiB for DMA."""

    def __init__(self) -> None:
        self.data = bytearray(0x8_0000)

    def is_ram(self, address: int, length: int) -> bool:
        return address + length <= len(self.data)

    def read(self, address: int, length: int) -> bytes:
        if not self.is_ram(address, length):
            raise MemoryRangeError("no memory", address=address, length=length)
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: Any) -> None:
        self.read(address, len(data))
        self.data[address : address + len(data)] = data

    def fill(self, address: int, length: int) -> None:
        self.write(address, bytes(length))


ITEM = bytes(range(1, 252)) * (2 * PIECE // 251)


class FwCfgAndRam:
    """The device, and the memory that it copies to: a machine saves that, too."""

    def __init__(self, world: World) -> None:
        self.ram = Ram()
        contents = Contents({Key.KERNEL_DATA: ITEM, Key.NB_CPUS: b"\2\0"}, {"opt/a": b"text"})
        self.device = FwCfg(lambda: contents, self.ram)
        attach(self.device, clock=world.clock)

    def state(self) -> object:
        return bytes(self.ram.data).rstrip(b"\0"), self.device.state()

    def restore(self, state: Any) -> None:
        self.ram.data[:] = state[0].ljust(len(self.ram.data), b"\0")
        self.device.restore(state[1])

    def ask(self, control: int, length: int, address: int = 0x100) -> None:
        self.ram.write(address, struct.pack(">IIQ", control, length, 0x1000))
        self.device.write(8, 4, int.from_bytes(address.to_bytes(4, "big"), "little"))

    def look(self) -> object:
        ram = self.ram
        return ram.read(0x100, 4), ram.read(0x200, 4), hash(bytes(ram.data)), str(self.device)


def fw_cfg(world: World) -> Subject:
    both = FwCfgAndRam(world)
    actions: dict[str, Callable[..., object]] = {
        "dma": both.ask,
        "look": both.look,
        "reset": both.device.reset,
    }
    return Subject(world, both, actions, access=both.device)


_BEGIN = Key.KERNEL_DATA << 16 | DmaControl.SELECT
FW_CFG = programs(
    *each("write", (0,), (2,), (0, 5, 0x11, 0x19, 0x20)),
    *reads(1, 1, 1, sizes=(1, 4)),
    *reads(4, 8, sizes=(4,)),
    *each("write", (4,), (4,), (0, 0x100)),
    *each("dma", (_BEGIN, _BEGIN | DmaControl.READ, DmaControl.READ, 4), (7, 3 * PIECE)),
    *each("dma", (_BEGIN | DmaControl.READ,), (len(ITEM) + 99,), (0x100, 0x200)),
    ("reset",),
    size=6,
    look=[("look",), *reads(1), ("write", 8, 4, 0x10000), ("look",)],
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
        hpet_timer(number, config | (3 + number) << 9, *values)
        for number in range(3)
        for config, *values in (
            # Edge and level; one-shot, and periodic with and without a first match of its own.
            (0x4, 10_000),
            (0x6, 10_000),
            (0x4C, 20_000, 6_000),
            (0x4E, 20_000, 6_000),
            (0x4E, 200, 70),
            (0x4C, 200, 70),
            (0x4C, 20_000, 9_000),
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
    look=[*reads(*_HPET_REGISTERS, sizes=(8,)), ("missed",), ("write", 0x20, 4, 7)],
)


class EggTimer:
    """A device as a user writes one (docs/devices.md)."""

    rung = 0

    def __init__(self, world: World) -> None:
        self.clock = world.clock
        self.line = world.lines[5]
        self.timer = self.clock.timer(self.ring)

    def ring(self, when: int) -> None:
        self.rung += 1
        self.line.set(True)

    def write(self, offset: int, size: int, value: int) -> None:
        self.timer.arm(self.clock.now() + value * 1_000)

    def read(self, offset: int, size: int) -> int:
        self.line.set(False)
        return self.rung

    def state(self) -> object:
        return self.rung, self.line.level, self.timer.state()

    def restore(self, state: Any) -> None:
        self.rung, level, timer = state
        self.line.restore(level)
        self.timer.restore(timer)


def egg_timer(world: World) -> Subject:
    return Subject(world, EggTimer(world))


EGG_TIMER = programs(*writes(0, values=(1, 50)), *reads(0), look=reads(0))


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
    # A counter that has been looked at while it counts, and one that is held.
    *[
        [*pit_counter(number, control, 999), ("wait", 50_001), ("read", number, 1), *more]
        for number in (0, 1, 2)
        for control in (0x30, 0x34, 0x36, 0x38)
        for more in ([], [("read", number, 1)], [("gate", number, False)])
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


def uart(world: World) -> Subject:
    return serial(world, world.lines[4])


def uart_that_c_answers_for(world: World) -> Subject:
    return serial(world, world.lines[4], published=True)


def uart_whose_line_c_drives(world: World) -> Subject:
    return serial(world, InC(), published=True)


def serial(world: World, line: Any, *, published: bool = False) -> Subject:
    device = Uart16550(limit=64)
    attach(device, line, clock=world.clock)
    heard: list[bytes] = []
    device.on_output(heard.append, at_once=b"\n")
    device.on_drained(lambda: world.note("drained"))

    def look() -> object:
        return (
            device.output,
            device.printed,
            device.pending,
            device.discarded,
            device.heard,
            device.receives,
            device.baud,
            device._irq.level,
        )

    def end_all() -> None:
        if front is not None:
            front.dispatch.deliver()

    def modem(bits: int) -> None:
        device.set_modem_lines(
            cts=bool(bits & 1), dsr=bool(bits & 2), ri=bool(bits & 4), dcd=bool(bits & 8)
        )

    def reset() -> None:
        end_all()
        device.reset()

    front = Fronts(world, (device, 0, 8)) if published else None
    return Subject(
        world,
        device,
        {
            "send": device.send,
            "break": device.send_break,
            "modem": modem,
            "reset": reset,
            "deliver": end_all,
            "look": look,
        },
        access=front,
    )


UART = programs(
    *reads(0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7),
    *writes(0, values=(10, 65)),
    *writes(1, values=(0, 1, 2, 3, 5, 8, 15)),
    *writes(2, values=(0, 1, 0x41, 0xC1, 0x83)),
    *writes(3, values=(3, 0x83)),
    *writes(4, values=(0, 2, 8, 0x0B, 0x10, 0x1F)),
    *writes(7, values=(0, 0x5A)),
    # What a driver does: divisor, FIFOs, interrupts; and a character printed at each of them.
    [*writes(3, values=(0x83,)), *writes(0, 1, values=(1,)), *writes(3, values=(3,))],
    *[[("write", 2, 1, 0xC1), ("write", 4, 1, 0x0B), ("write", 1, 1, enable)] for enable in (1, 3)],
    *[[("read", 2, 1), ("write", 0, 1, 66)]] * 2,
    *each("send", (b"x", b"hello", bytes(range(40)))),
    # More than is kept; what is thrown away; the last character once more; a pause in what comes.
    [("write", 0, 1, 66)] * 70,
    [("send", b"gone"), ("read", 5, 1), ("write", 2, 1, 0x83), ("write", 2, 1, 0)],
    [("send", b"last"), *[("read", 0, 1)] * 5],
    [("write", 1, 1, 1), ("send", bytes(range(40))), *[("read", 0, 1)] * 16],
    # Flow control, and the modem's lines.
    [("write", 1, 1, 1), ("write", 4, 1, 0x0B), ("write", 4, 1, 0x09), ("send", b"held")],
    [("modem", 0), ("read", 6, 1)],
    *each("modem", (0, 4, 8, 15)),
    *[("deliver",)] * 4,
    ("break",),
    ("reset",),
    look=[
        ("look",),
        *reads(2, 5, 6, 0, 0, 5, 2, 1, 3, 4, 7),
        *[("write", 4, 1, 0), ("read", 6, 1), ("write", 4, 1, 2)],
        ("deliver",),
        ("look",),
    ],
)


DEVICES = {
    make.__name__: (make, program)
    for make, program in (
        (acpi_pm, ACPI_PM),
        (console, CONSOLE),
        (egg_timer, EGG_TIMER),
        (fw_cfg, FW_CFG),
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
        (uart, UART),
        (uart_that_c_answers_for, UART),
        (uart_whose_line_c_drives, UART),
    )
}
