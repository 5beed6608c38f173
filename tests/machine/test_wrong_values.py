"""What the public API takes, given wrong: a ConfigError that names it and what would do.

A table for each kind of object.  Each row: what is told, and the call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pykvm import (
    ConfigError,
    CpuState,
    GuestExit,
    GuestMemory,
    Machine,
    Outcome,
    Placement,
    Space,
    UnknownSymbol,
)
from pykvm.bus import Bus
from pykvm.clock import Clock
from pykvm.devices import (
    DebugConsole,
    PostPort,
    Uart16550,
    standard_devices,
)
from pykvm.x86.entry import real_mode
from pykvm.x86.state import SegmentRegister, TableRegister
from support.attach import attach
from support.odd import Sensor

pytestmark = pytest.mark.kvm

HALT = b"\xfa\xf4"
REAL: dict[str, Any] = {"image": HALT, "mode": "real"}


def rows(*table: tuple[str, Callable[..., object]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("told", "call"), table, ids=[told for told, _ in table])


def refuses(told: str, call: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        call(*arguments)
    assert told in raised.value.message
    assert len(raised.value.message) < 400


# Of each option: what its message begins with, and values that are none.
OPTIONS: dict[str, tuple[str, list[Any]]] = {
    "image": ("image is a path or the bytes of a file", [5, 1.5, ["a"], object()]),
    "memory": ("memory is ", [64.5, True, None, 0, -4096, 64, "100", "0x1001", b"64M", ["64M"]]),
    "vcpus": ("vcpus", ["2", 1.0, 0, -1, None, True, [1], 1 << 80]),
    "boot": ("boot is a str", [5, b"elf", ["elf"]]),
    "mode": ("mode is one of real, protected, long", [16, "Real", b"real", ["real"]]),
    "load_address": ("load_address is an integer from 0 to ", ["0x7c00", 1.0, -1, 1 << 64]),
    "entry": ("entry is a str", [0x7C00, (0, 0x7C00), b"0:0"]),
    "stack": ("stack is a str", [0x7C00, (0, 0x7C00)]),
    "append": ("append is a str", [None, 5, b"quiet", ["quiet"], "quiet\0loud"]),
    "append_only": ("append_only is True or False", ["no", 0, 1, None]),
    "args": ("args", ["one", b"one", 5, [1], [b"one"], ["a\0b"], {"a": 1}.values()]),
    "initrd": ("initrd is a path or the bytes of a file", [5, ["a"]]),
    "modules": ("modules", [5, "file", ["file"], [("file",)], [("file", 5)], [(5, "")]]),
    "kernel": ("kernel is a path or the bytes of a file", [5]),
    "fw_cfg": ("fw_cfg", [5, "name", ["name"], {"name": "text"}, {"name": None}]),
    "symbols": ("symbols is a path or the bytes of a file", [5, ["a"]]),
    "symbols_offset": ("symbols_offset is an integer from ", ["0", None, 1.0, 1 << 64]),
    "devices": ("the devices is", [5, "com1"]),
    "cpu": ("cpu is a str", [None, 5, b"host"]),
    "unclaimed": ("unclaimed is one of stop, open-bus", ["maybe", True, 0, b"stop"]),
    "irqchip": ("irqchip is one of ", ["", "kvm", True, 1]),
    "clock": ("clock is one of ", ["", None, 1]),
    "tsc_khz": ("tsc_khz is an integer from 1 to", ["1000", 0, -1, 1e6, 1 << 40]),
    "quirks": ("quirks is one of auto, on, off", [True, None, "yes"]),
    "emulate": ("emulate is one of auto, off", [True, None, "on"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, (_, values) in OPTIONS.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_wrong_values_for_options_of_a_machine(option: str, value: Any) -> None:
    options = {**REAL, option: value}
    with pytest.raises(ConfigError) as raised:
        Machine(**options)
    begins = OPTIONS[option][0] if option != "devices" else "devices is a list"
    assert raised.value.message.startswith(begins)


def test_every_option_is_in_the_table() -> None:
    import inspect

    assert OPTIONS.keys() == inspect.signature(Machine).parameters.keys()


@pytest.mark.parametrize("devices", [[Uart16550()], [None], [(Uart16550(), Space.PIO, 1, 1)]])
def test_devices_are_placements(devices: list[Any]) -> None:
    refuses(
        "each of the devices is a Placement", lambda: Machine(HALT, mode="real", devices=devices)
    )


def test_two_devices_of_one_name() -> None:
    first, second = PostPort("post"), PostPort("post")
    devices = [Placement(first, Space.PIO, 0x80, 1), Placement(second, Space.PIO, 0x81, 1)]
    refuses("a device named 'post' already", lambda: Machine(**REAL, devices=devices))
    # One device in two places is one.
    devices = [Placement(first, Space.PIO, 0x80, 1), Placement(first, Space.PIO, 0x81, 1)]
    with Machine(**REAL, memory="1M", devices=devices) as machine:
        refuses("a device named 'post' already", lambda: machine.add(second, pio=0x82, length=1))
        machine.add(first, pio=0x82, length=1)


def test_a_refused_machine_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    refuses("vcpus", lambda: Machine(HALT, vcpus="2"))  # type: ignore[arg-type]
    assert set(os.listdir("/proc/self/fd")) == before


class Nameless:
    def read(self, offset: int, size: int) -> int:
        return 0


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(HALT, mode="real", memory="1M") as machine:
        yield machine


SECONDS = "timeout is a number of seconds from 0 to 1000000000, not "


@rows(
    *((SECONDS, lambda m, t=time: m.run(timeout=t)) for time in (
        math.inf, -math.inf, math.nan, 1e300, 1 << 80, 10**400, 1e9 + 1, -1, -0.001, "5", b"5", [5],
        True, 1j, Decimal("nan"), object(),
    )),
    (SECONDS, lambda m: next(m.vcpus[0].raw_exits(timeout=math.inf))),
    (SECONDS, lambda m: next(m.vcpus[0].raw_exits(timeout="5"))),
    ("until is text, bytes, a compiled regular expression", lambda m: m.run(until=5)),
    ("until is text", lambda m: m.run(until=["a", 5])),
    ("fail is text", lambda m: m.run(fail=5)),
    ("on_exit is a function", lambda m: m.run(on_exit="print")),
    ("irq is an integer from 0 to 15", lambda m: m.line("1")),
    ("irq is an integer from 0 to 15", lambda m: m.line(16)),
    ("irq is an integer from 0 to 15", lambda m: m.line(-1)),
    ("irq is an integer from 0 to 15", lambda m: m.line(1.0)),
    ("irq=2: the second 8259 has it", lambda m: m.line(2)),
    ("address is an integer", lambda m: m.send_msi("0xfee00000", 0)),
    ("data is an integer from 0 to 0xffffffff", lambda m: m.send_msi(0xFEE00000, 1 << 32)),
    ("data is an integer", lambda m: m.send_msi(0xFEE00000, None)),
    ("fd is an integer", lambda m: m.irqfd(None, 1)),
    ("irq is an integer", lambda m: m.irqfd(0, "1")),
    ("address is an integer from 0 to ", lambda m: m.symbol_at("main")),
    ("address is an integer from 0 to ", lambda m: m.symbol_at(-1)),
    ("has no symbol 'mian'", lambda m: m.symbols["mian"]),
    ("has no symbol 5", lambda m: m.symbols[5]),
    ("no device 'sensor'", lambda m: m.remove("sensor")),
    ("is no device: it has no name", lambda m: m.remove(5)),
)  # fmt: skip
def test_wrong_values_for_methods_of_a_machine(
    machine: Machine, told: str, call: Callable[..., object]
) -> None:
    refuses(told, call, machine)


@rows(
    ("it has no name", lambda m: m.add(Nameless(), mmio=0xD0000000, length=4)),
    ("it has no name", lambda m: m.add(None, pio=0x700, length=4)),
    ("it has no name", lambda m: m.add(Sensor(name=5), pio=0x700, length=4)),
    ("Sensor is a class, and no device yet", lambda m: m.add(Sensor, pio=0x700, length=4)),
    ("sensor: give either pio= or mmio=", lambda m: m.add(Sensor(), length=4)),
    ("sensor: give either pio= or mmio=", lambda m: m.add(Sensor(), pio=1, mmio=1, length=4)),
    ("sensor: length= is missing", lambda m: m.add(Sensor(), pio=0x700)),
    ("sensor: length is an integer from 1 to", lambda m: m.add(Sensor(), pio=0x700, length=0)),
    ("sensor: length is an integer from 1 to", lambda m: m.add(Sensor(), pio=0x700, length="4")),
    ("sensor: length is an integer from 1 to", lambda m: m.add(Sensor(), pio=0xFFFF, length=2)),
    ("sensor: the first port is an integer", lambda m: m.add(Sensor(), pio="0x700", length=4)),
    ("sensor: the first port is an integer", lambda m: m.add(Sensor(), pio=0x10000, length=4)),
    ("sensor: the first address is an", lambda m: m.add(Sensor(), mmio=-1, length=4)),
    ("sensor: the first address is an", lambda m: m.add(Sensor(), mmio=1.5, length=4)),
    ("sensor: width is ", lambda m: m.add(Sensor(width=3), pio=0x700, length=4)),
    ("sensor: width is ", lambda m: m.add(Sensor(width="1"), pio=0x700, length=4)),
    ("overlaps com1", lambda m: m.add(Sensor(), pio=0x3F8, length=8)),
    ("overlaps ram", lambda m: m.add(Sensor(), mmio=0x2000, length=4)),
)
def test_wrong_values_for_adding_a_device(
    machine: Machine, told: str, call: Callable[..., object]
) -> None:
    before = machine.bus.ranges, dict(machine.devices)
    refuses(told, call, machine)
    assert (machine.bus.ranges, dict(machine.devices)) == before


@rows(
    ("rax is an integer", lambda c: setattr(c.regs, "rax", "1")),
    ("rax is an integer", lambda c: setattr(c.regs, "rax", 1.5)),
    ("rax is an integer", lambda c: setattr(c.regs, "rax", None)),
    ("rax is a number of 64 bits", lambda c: setattr(c.regs, "rax", 1 << 64)),
    ("rflags is a number of 64 bits", lambda c: setattr(c.regs, "rflags", -(1 << 63) - 1)),
    ("cr3 is an integer", lambda c: setattr(c.regs, "cr3", b"1")),
    ("cr3 is a number of 64 bits", lambda c: setattr(c.regs, "cr3", 1 << 64)),
    ("cs is a SegmentRegister", lambda c: setattr(c.regs, "cs", 8)),
    ("cs is a SegmentRegister", lambda c: setattr(c.regs, "cs", TableRegister())),
    ("cs.selector is an integer from 0 to 0xffff",
     lambda c: setattr(c.regs, "cs", SegmentRegister(selector=1 << 16))),
    ("cs.base is an integer", lambda c: setattr(c.regs, "cs", SegmentRegister(base="0"))),  # type: ignore[arg-type]
    ("cs.limit is an integer", lambda c: setattr(c.regs, "cs", SegmentRegister(limit=1 << 32))),
    ("cs.type is an integer", lambda c: setattr(c.regs, "cs", SegmentRegister(type=-1))),
    ("idt is a TableRegister", lambda c: setattr(c.regs, "idt", 0)),
    ("idt.limit is an integer from 0 to 0xffff",
     lambda c: setattr(c.regs, "idt", TableRegister(limit=1 << 16))),
    ("state is a CpuState", lambda c: setattr(c, "state", {})),
    ("state.rax is an integer", lambda c: setattr(c, "state", changed(c.state, rax="1"))),
    ("state.cr4 is an integer", lambda c: setattr(c, "state", changed(c.state, cr4=1 << 64))),
    ("state.cs is a SegmentRegister", lambda c: setattr(c, "state", changed(c.state, cs=8))),
    ("state.gdt.limit is an integer",
     lambda c: setattr(c, "state", changed(c.state, gdt=TableRegister(0, 1 << 16)))),
    ("address is an integer", lambda c: c.read("0", 4)),
    ("address is an integer from 0", lambda c: c.read(-1, 4)),
    ("length is an integer", lambda c: c.read(0, 1.5)),
    ("length is an integer from 0 on", lambda c: c.read(0, -1)),
    ("data is bytes", lambda c: c.write(0, "text")),
    ("data is bytes", lambda c: c.write(0, 5)),
    ("address is an integer", lambda c: c.write(None, b"x")),
    ("address is an integer", lambda c: c.translate("main")),
    ("address is an integer", lambda c: c.walk(1.5)),
    ("access is one of read, write, execute", lambda c: c.walk(0, access="rw")),
    ("address is an integer", lambda c: c.read_cstring("main")),
    ("limit is an integer", lambda c: c.read_cstring(0, limit="x")),
    ("addresses is a list of addresses", lambda c: c.debug.set_breakpoints("me", 5)),
    ("addresses[1] is an integer", lambda c: c.debug.set_breakpoints("me", [5, "main"])),
    ("addresses[0] is an integer from 0 to", lambda c: c.debug.set_breakpoints("me", [-1])),
    ("5 breakpoints: a processor has 4", lambda c: c.debug.set_breakpoints("me", range(5))),
    ("on is True or False", lambda c: c.debug.single_step("no")),
)  # fmt: skip
def test_wrong_values_for_a_vcpu(machine: Machine, told: str, call: Callable[..., object]) -> None:
    cpu = machine.vcpus[0]
    before = cpu.state
    refuses(told, call, cpu)
    assert cpu.state == before
    assert cpu.debug.addresses == ()


def changed(state: CpuState, **values: Any) -> CpuState:
    for name, value in values.items():
        setattr(state, name, value)
    return state


def test_negative_numbers_are_twos_complement(machine: Machine) -> None:
    cpu = machine.vcpus[0]
    cpu.regs.rbx = -1
    assert cpu.regs.rbx == (1 << 64) - 1


@rows(
    ("address is an integer", lambda m: m.read("0", 4)),
    ("length is an integer", lambda m: m.read(0, "4")),
    ("address is an integer", lambda m: m.read(1.5, 4)),
    ("address is an integer", lambda m: m.read(None, 4)),
    ("length", lambda m: m.read(0, -1)),
    ("data is bytes", lambda m: m.write(0, "abc")),
    ("data is bytes", lambda m: m.write(0, 5)),
    ("address is an integer", lambda m: m.write("0", b"abc")),
    ("buffer is bytes", lambda m: m.read_into(0, 5)),
    ("writable", lambda m: m.read_into(0, b"abc")),
    ("address is an integer", lambda m: m.view("0", 4)),
    ("byte is an integer from 0 to 255", lambda m: m.fill(0, 4, 256)),
    ("byte is an integer from 0 to 255", lambda m: m.fill(0, 4, "x")),
    ("length is an integer", lambda m: m.fill(0, "4")),
    ("data is bytes", lambda m: m.find("text")),
    ("start is an integer", lambda m: m.find(b"x", "0")),
    ("address is an integer", lambda m: m.read_cstring("0")),
    ("limit is an integer", lambda m: m.read_cstring(0, None)),
    ("text is bytes", lambda m: m.write_cstring(0, 5)),
    ("without NUL", lambda m: m.write_cstring(0, "a\0b")),
    ("address is an integer", lambda m: m.read_u32("0")),
    ("300 does not fit in 1 bytes", lambda m: m.write_u8(0, 300)),
    ("'x' does not fit in 2 bytes", lambda m: m.write_u16(0, "x")),
    ("1.5 does not fit in 8 bytes", lambda m: m.write_u64(0, 1.5)),
    ("address is an integer", lambda m: m.region_at("0")),
    ("length is an integer", lambda m: m.covers(0, "4")),
    ("ram: size is an integer", lambda m: m.add_ram(0x100000, "64M")),
    ("ram: start is an integer", lambda m: m.add_ram(None, 4096)),
    ("name is a str", lambda m: m.add_ram(0x100000, 4096, name=5)),
    ("ram: backing is", lambda m: m.add_ram(0x100000, 4096, backing=5)),
    ("ram: shared is True or False", lambda m: m.add_ram(0x100000, 4096, shared="no")),
    ("huge_pages is", lambda m: m.add_ram(0x100000, 4096, huge_pages="yes")),
    ("data is bytes", lambda m: m.add_rom(0x100000, "text")),
    ("rom: size is an integer", lambda m: m.add_rom(0x100000, b"x", size="4K")),
    ("not (or no longer) part", lambda m: m.remove("ram")),
    ("overcommit is True or False", lambda m: GuestMemory(overcommit="no")),  # type: ignore[arg-type]
)
def test_wrong_values_for_memory(told: str, call: Callable[..., object]) -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 0x10000)
        before = memory.regions, memory.read(0, 16)
        refuses(told, call, memory)
        assert (memory.regions, memory.read(0, 16)) == before


@rows(
    ("data is bytes", lambda: Uart16550().send(3)),  # type: ignore[arg-type]
    ("data is bytes", lambda: Uart16550().send(None)),  # type: ignore[arg-type]
    ("limit is an integer from 0 on", lambda: Uart16550(limit=-1)),
    ("limit is an integer from 0 on", lambda: Uart16550(limit="1M")),  # type: ignore[arg-type]
    ("line is an interrupt line", lambda: Uart16550(line=4)),  # type: ignore[arg-type]
    ("line is an interrupt line", lambda: attach(Uart16550(), 4)),  # type: ignore[arg-type]
    ("callback is a function", lambda: Uart16550().on_output("print")),  # type: ignore[arg-type]
    ("callback is a function", lambda: Uart16550().on_drained(None)),  # type: ignore[arg-type]
    ("cts is True or False", lambda: Uart16550().set_modem_lines(cts="on")),  # type: ignore[arg-type]
    ("limit is an integer from 0 on", lambda: DebugConsole(limit=1.5)),  # type: ignore[arg-type]
    ("limit is an integer from 0 on", lambda: PostPort(limit=None)),  # type: ignore[arg-type]
    ("without is a list of str", lambda: standard_devices(without="com1")),
    ("without[0] is a str", lambda: standard_devices(without=[1])),  # type: ignore[list-item]
    ("no standard device 'com3'", lambda: standard_devices(without=["com3"])),
    ("the code of a GuestExit is an integer", lambda: GuestExit("0")),  # type: ignore[arg-type]
    ("space is Space.PIO or Space.MMIO", lambda: Bus().add(Placement(PostPort(), "pio", 1, 1))),  # type: ignore[arg-type]
    ("post: offset is", lambda: Bus().add(Placement(PostPort(), Space.PIO, 1, 1, offset=-1))),
    ("it has none of read, write and posted", lambda: Bus().add_pio(1, 1, Named())),  # type: ignore[arg-type]
    ("the value of a write of 1 bytes", lambda: Bus().write(Space.PIO, 1, 1, 256)),
    ("the value of a write of 4 bytes", lambda: Bus().write(Space.PIO, 1, 4, "x")),  # type: ignore[arg-type]
    ("data is bytes", lambda: Bus().write_string(1, 1, "x")),  # type: ignore[arg-type]
    ("clock is one of realtime, paused, warp", lambda: Clock("real")),
    ("tsc_khz is an integer from 1 on", lambda: Clock(tsc_khz="1")),  # type: ignore[arg-type]
    ("callback is a function", lambda: Clock().timer(None)),  # type: ignore[arg-type]
    ("queue is an integer", lambda: Clock().timer(print, queue="0")),  # type: ignore[arg-type]
    ("when is an integer", lambda: Clock().timer(print).arm(1.5)),  # type: ignore[arg-type]
    ("when is an integer", lambda: Clock().timer(print).arm("soon")),  # type: ignore[arg-type]
    ("when is an integer", lambda: Clock("warp").warp_to(1e9)),  # type: ignore[arg-type]
    ("tsc_offset is an integer", lambda: setattr(Clock(), "tsc_offset", "0")),
    ("value is an integer", lambda: Clock().write_tsc(0, 1 << 64)),
    ("ip is an integer", lambda: real_mode(ip="0x7c00")),  # type: ignore[arg-type]
    ("cs is an integer from 0 to 0xffff", lambda: real_mode(ip=0, cs=1 << 16)),
)
def test_wrong_values_for_devices_clocks_and_states(told: str, call: Callable[..., object]) -> None:
    refuses(told, call)


class Named:
    name = "named"


def test_an_unknown_symbol_is_a_key_error_with_a_suggestion(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine:
        with pytest.raises(UnknownSymbol) as raised:
            machine.symbols["mian"]
        assert isinstance(raised.value, KeyError)
        assert str(raised.value) == "the guest has no symbol 'mian'\ndid you mean main?"
        assert "mian" not in machine.symbols
        assert machine.symbols.get("mian") is None
        assert machine.symbols["main"]
    with (
        Machine(HALT, mode="real", memory="1M") as machine,
        pytest.raises(UnknownSymbol, match="none at all"),
    ):
        machine.symbols["main"]


def test_times_of_other_types(machine: Machine) -> None:
    for time in (10, Decimal(10), 1_000_000_000):
        assert machine.run(timeout=time).outcome is Outcome.HALTED  # type: ignore[arg-type]
