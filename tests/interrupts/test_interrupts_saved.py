"""What is saved of each interrupt controller is all that a guest could notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pykvm.errors import ConfigError
from pykvm.interrupts import ApicBus, LocalApic, Message
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.ioapic import IoApic
from pykvm.interrupts.message import EXTINT, FIXED, INIT, LOWEST_PRIORITY, NMI, STARTUP
from pykvm.interrupts.pic import Pic8259Pair
from support.saved import (
    Fronts,
    Subject,
    World,
    each,
    programs,
    restored_goes_on,
    strangers_state_is_harmless,
)

if TYPE_CHECKING:
    from support.saved import Step


class Parts:
    """Several that are saved one after the other."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def state(self) -> object:
        return tuple(part.state() for part in self.parts)

    def restore(self, state: Any) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.restore(saved)


def pic(world: World) -> Subject:
    pair = Pic8259Pair(world.lines[0])
    for irq in range(16):
        world.input(str(irq), pair.line(irq))
    # Two devices may drive one input.
    world.input("shared", pair.line(5))
    front = Fronts(world, (pair.master, 0x20, 2), (pair.slave, 0xA0, 2), (pair.elcr, 0x4D0, 2))
    actions = {
        "acknowledge": pair.acknowledge,
        "look": lambda: (pair.pending, str(pair)),
        "reset": pair.reset,
    }
    return Subject(world, Parts(pair.master, pair.slave), actions, access=front)


def out(port: int, *values: int) -> list[Step]:
    return [("write", port, 1, value) for value in values]


def initialized(port: int, *words: int) -> list[Step]:
    return [*out(port, words[0]), *out(port + 1, *words[1:])]


PC = [*initialized(0x20, 0x11, 0x20, 0x04, 0x01), *initialized(0xA0, 0x11, 0x28, 0x02, 0x01)]
PIC = programs(
    *[PC] * 8,
    initialized(0x20, 0x11, 0x20, 0x04, 0x13),
    initialized(0x20, 0x13, 0x40),
    initialized(0x20, 0x12, 0x40),
    *[initialized(0x20, 0x11, 0x20)] * 2,
    *each("read", (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1), (1,)),
    # Ends of interrupts, rotations, special masks, polls, reads of ISR and IRR.
    *each("write", (0x20, 0xA0), (1,), (0x20, 0x60, 0x65, 0xA0, 0xC3, 0x80, 0x68, 0x48)),
    *each("write", (0x20, 0xA0), (1,), (0x0C, 0x0B, 0x0A, 0x20, 0x20)),
    *each("write", (0x21, 0xA1), (1,), (0, 0xFF, 0x20, 0xFB, 0xDF)),
    *each("write", (0x4D0, 0x4D1), (1,), (0, 0x20, 0x0A)),
    *each("input", ("3", "5", "shared", "8", "13"), (False, True, True)),
    *[[("input", "5", False), ("input", "5", True)], [("input", "8", True)]] * 4,
    *[("acknowledge",)] * 8,
    # The second chip's interrupts, in service; automatic ends; special masks.
    *[[*PC, ("input", "8", True), ("acknowledge",)]] * 2,
    [*initialized(0x20, 0x11, 0x20, 0x04, 0x03), ("input", "3", True)],
    [*PC, ("input", "3", True), ("acknowledge",), *out(0x20, 0x68), *out(0x21, 0x08)],
    [*initialized(0xA0, 0x11, 0x28, 0x05, 0x01), ("input", "8", True)],
    ("reset",),
    look=[
        ("look",),
        *each("read", (0x20, 0x21, 0xA0, 0xA1, 0x4D0), (1,)),
        ("acknowledge",),
        ("write", 0x20, 1, 0x20),
        ("look",),
    ],
)


def ioapic(world: World) -> Subject:
    takes = [True]

    def deliver(message: Message) -> bool:
        world.note(str(message))
        return takes[0]

    chip = IoApic(deliver)
    for pin in range(24):
        world.input(str(pin), chip.line(pin))
    world.input("shared", chip.line(5))
    return Subject(world, chip, {"eoi": chip.eoi, "look": lambda: str(chip), "reset": chip.reset})


def entry(pin: int, low: int, high: int = 0x0100_0000) -> list[Step]:
    return [
        ("write", 0, 4, 0x11 + 2 * pin),
        ("write", 0x10, 4, high),
        ("write", 0, 4, 0x10 + 2 * pin),
        ("write", 0x10, 4, low),
    ]


IOAPIC = programs(
    *[
        entry(pin, low)
        for pin in (5, 9, 23)
        for low in (0x31, 0x8031, 0x8041, 0x1_8031, 0xA131, 0x0431)
    ],
    *each("input", ("5", "shared", "9", "23"), (False, True)),
    *each("eoi", (0x31, 0x41)),
    *each("write", (0,), (4,), (0, 1, 0x1A, 0x23)),
    ("write", 0x10, 4, 0x0B00_0000),
    *each("read", (0, 0x10), (4,)),
    ("reset",),
    look=[
        ("look",),
        *each("read", (0, 0x10), (4,)),
        *each("eoi", (0x31, 0x41)),
        ("input", "5", False),
        ("input", "5", True),
        ("look",),
    ],
)


class Port:
    """A processor that notes what it is asked for."""

    def __init__(self, world: World, number: int) -> None:
        self._note = world.note
        self._number = number

    def request_nmi(self) -> None:
        self._note("nmi", self._number)

    def request_init(self) -> None:
        self._note("init", self._number)

    def request_sipi(self, vector: int) -> None:
        self._note("sipi", self._number, vector)

    def wake(self) -> None:
        self._note("wake", self._number)


def lapics(world: World) -> Subject:
    """Two local APICs; accesses from 0x1000 on are the second one's."""
    bus = ApicBus()
    both = [LocalApic(number, world.clock, Port(world, number), bus.send) for number in (0, 1)]
    for lapic in both:
        bus.add(lapic)
        lapic.on_eoi = lambda vector, level: world.note("eoi", vector, level)

    class Pages:
        def read(self, offset: int, size: int) -> int:
            return both[offset >> 12].read(offset & 0xFFF, size)

        def write(self, offset: int, size: int, value: int) -> None:
            both[offset >> 12].write(offset & 0xFFF, size, value)

    def look() -> object:
        return [
            (lapic.interrupt, lapic.extint, lapic.cr8, lapic.base, lapic.timer.missed, str(lapic))
            for lapic in both
        ]

    def pin(which: int, number: int, level: bool) -> None:
        both[which].set_lint(number, level)

    return Subject(
        world,
        Parts(*both),
        {
            "acknowledge": lambda which: both[which].acknowledge(),
            "acknowledge_extint": lambda which: both[which].acknowledge_extint(),
            "cr8": lambda which, value: setattr(both[which], "cr8", value),
            "msr": lambda which, index: both[which].read_msr(index),
            "set_msr": lambda which, index, value: both[which].write_msr(index, value),
            "message": lambda *fields: bus.deliver(Message(*fields)),
            "pin": pin,
            "init": lambda which: both[which].init(),
            "trigger": lambda which, register: both[which].trigger(register),
            "write_tsc": lambda value: world.clock.write_tsc(0, value),
            "look": look,
        },
        access=Pages(),
    )


def put(register: int, *values: int) -> list[Step]:
    return each("write", (register << 4,), (4,), values)


ENABLED = [("write", page | reg.SVR << 4, 4, 0x1FF) for page in (0, 0x1000)]
_TSC_SOON = 5_000_000_000 * 2_596_120 // 1_000_000
LAPICS = programs(
    *[ENABLED] * 14,
    *put(reg.SVR, 0x1FF, 0xFF),
    # The timer in its modes, with and without an interrupt.
    *[
        [*put(reg.LVT_TIMER, lvt), *put(reg.DIVIDE, divide), *put(reg.INITIAL_COUNT, count)]
        for lvt in (0x30, 0x2_0030, 0x3_0030)
        for divide in (0x0B, 0x00)
        for count in (1, 30_000, 900_000)
    ],
    *[
        [*put(reg.LVT_TIMER, 0x4_0030), ("set_msr", 0, reg.MSR_TSC_DEADLINE, value)]
        for value in (_TSC_SOON // 1000, _TSC_SOON, 1 << 62)
    ],
    *put(reg.DIVIDE, 0x0B, 0x03),
    *put(reg.LVT_TIMER, 0x2_0040, 0x1_0030),
    *put(reg.LVT_LINT0, 0x31, 0x8031, 0x2031, 0x0700, 0x1_0000),
    *put(reg.LVT_LINT1, 0x8032, 0x0400),
    *put(reg.LVT_ERROR, 0x33, 0x05),
    *put(reg.TPR, 0, 0x20, 0x3F),
    *put(reg.EOI, 0, 0, 0, 0),
    *put(reg.ESR, 0, 0),
    *put(reg.LDR, 0x0100_0000, 0x1100_0000),
    *put(reg.DFR, 0x0FFF_FFFF),
    *put(reg.ID, 0x0300_0000),
    *put(reg.ICR_HIGH, 0, 0x0100_0000),
    *put(reg.ICR, 0x4_0035, 0xC_0036, 0x4_0007, 0x4500, 0x4608, 0x4400),
    *each("message", (0, 1, 0xFF), (False,), (FIXED,), (0x31, 0x45, 0xE0), (False, True)),
    *each("message", (1,), (False, True), (LOWEST_PRIORITY, NMI, EXTINT, INIT), (0x31,)),
    *each("message", (1,), (False,), (STARTUP,), (8,)),
    *each("pin", (0,), (0, 1), (False, True)),
    *each("acknowledge", (0, 0, 0, 1)),
    *each("acknowledge_extint", (0, 1)),
    *each("cr8", (0,), (0, 3, 15)),
    *each("msr", (0, 1), (reg.MSR_APIC_BASE, reg.MSR_TSC_DEADLINE, reg.MSR_X2APIC + reg.ICR)),
    *each("set_msr", (0,), (reg.MSR_APIC_BASE,), (0xFEE0_0900, 0xFEE0_0D00, 0xFEE0_0100)),
    *each("set_msr", (0,), (reg.MSR_X2APIC + reg.ICR,), (0x1_0000_0035,)),
    *each("trigger", (0,), (reg.LVT_PERFORMANCE, reg.LVT_ERROR)),
    ("init", 1),
    ("write_tsc", 77),
    look=[
        ("look",),
        *each("read", [register << 4 for register in (*range(2, 0x40),)], (4,)),
        *each("message", (0,), (False,), (FIXED,), (0x55,)),
        ("acknowledge", 0),
        ("acknowledge", 1),
        *put(reg.EOI, 0),
        *put(reg.ICR, 0x4_0035),
        ("look",),
    ],
)

DEVICES = {"pic": (pic, PIC), "ioapic": (ioapic, IOAPIC), "lapics": (lapics, LAPICS)}

test_a_restored_controller_goes_on_as_the_first = restored_goes_on(DEVICES)
test_a_state_of_a_stranger_is_refused_or_harmless = strangers_state_is_harmless(DEVICES)


def test_c_answers_for_a_restored_pair() -> None:
    """What a chip publishes is published anew: its masks are read, and written, without Python."""
    subject = pic(World())
    subject.play([*PC, *out(0x21, 0xFB)])
    saved = subject.save()
    fresh = pic(World())
    fresh.load(saved)
    front = fresh._front
    assert front is not None
    assert fresh.play([("read", 0x21, 1), *out(0x21, 0xFB), ("read", 0x21, 1)])[0][1] == 0xFB
    assert front.answered == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 0xFEE0_0500}, "no mode for IA32_APIC_BASE = 0xfee00500"),
        ({"base": 1 << 60}, "no mode for IA32_APIC_BASE"),
        ({"lvt": ()}, "entries of the local vector table is an integer from 6 to 6, not 0"),
    ],
)
def test_what_no_local_apic_can_be_is_refused(change: dict[str, Any], message: str) -> None:
    lapic, _ = lapics(World()).device.parts
    with pytest.raises(ConfigError, match=message):
        lapic.restore(lapic.state().__replace__(**change))
