"""Devices answer the same whether C answers for them or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._core import ffi, lib
from pykvm.clock import Clock
from pykvm.devices import Uart16550, pit
from pykvm.devices.hpet import CAPABILITIES, CONFIGURATION, COUNTER, ENABLE_CNF, Hpet
from pykvm.devices.pit import SECOND, Pit8254
from pykvm.devices.pm_timer import PM_TIMER_HZ, AcpiPmTimer
from pykvm.devices.rtc import Rtc146818
from pykvm.devices.uart_registers import (
    IER_THR_EMPTY,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_THR_EMPTY,
    MCR_LOOP,
)
from pykvm.interrupts.pic import Pic8259Pair
from support.attach import attach
from support.front import Front
from support.lines import Line

if TYPE_CHECKING:
    from collections.abc import Callable

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7


class InC:
    """A line that C can drive, as those of KVM's own interrupt controllers, which leads nowhere."""

    def __init__(self) -> None:
        lines = ffi.gc(lib.pykvm_lines_new(-1), lib.pykvm_lines_free)
        self.core = ffi.gc(lib.pykvm_line_new(lines, 4), lib.pykvm_line_free)

    def set(self, level: bool) -> None:
        assert lib.pykvm_line_set(self.core, level) == 0

    @property
    def level(self) -> bool:
        return bool(lib.pykvm_line_changes(self.core) % 2)

    @property
    def rises(self) -> int:
        return int(lib.pykvm_line_changes(self.core) + 1) // 2


class Side:
    """A UART and what can be done to it, by the guest and by the host."""

    def __init__(self, published: bool, *, line: Line | InC | None = None) -> None:
        self.line = line or Line()
        self.uart = Uart16550(line=self.line)
        self.heard: list[bytes] = []
        self.forget: Callable[[], None] | None = None
        self.front = Front(self.uart, 8) if published else None

    def step(self, kind: str, number: int, value: int) -> object:
        uart = self.uart
        if kind == "in":
            return self.front.read(number) if self.front else uart.read(number, 1)
        if kind == "out":
            if self.front:
                self.front.write(number, value)
            else:
                uart.write(number, 1, value)
        elif kind == "send":
            uart.send(bytes([value]) * number)
        elif kind == "break":
            uart.send_break()
        elif kind == "modem":
            uart.set_modem_lines(
                cts=bool(number & 1), dsr=bool(number & 2), ri=bool(number & 4), dcd=number > 7
            )
        elif kind == "reset":
            if self.front:
                self.front.dispatch.deliver()
            uart.reset()
        elif kind == "listen":
            self.listen(number)
        elif kind == "tick" and self.front:
            self.front.dispatch.deliver()
        if self.front:
            self.front.settle()
        return None

    def listen(self, how: int) -> None:
        if self.front:
            # Where Python is, nothing waits.
            self.front.dispatch.deliver()
        if self.forget:
            self.forget()
            self.forget = None
        if how:
            self.forget = self.uart.on_output(
                self.heard.append, at_once=(None, b"", b"\n\x00")[how - 1]
            )

    def end(self) -> dict[str, Any]:
        if self.front:
            self.front.dispatch.deliver()
        registers = self.uart._registers
        state = vars(registers) | {"received": list(registers.received)}
        # Without its interrupt enabled no guest sees this, and enabling it makes it due.
        if not registers.ier & IER_THR_EMPTY:
            state.pop("thr_empty_due")
        return state | {
            "discarded": self.uart.discarded,
            "has read": self.uart.heard,
            "output": self.uart.output,
            "heard": b"".join(self.heard),
            "level": self.line.level,
            "incoming": list(self.uart._incoming._queue),
        }


# More of what a driver does than of what it does not.
REGISTER = st.sampled_from([DATA, DATA, DATA, IER, IIR, IIR, LCR, MCR, LSR, LSR, MSR, SCR])
VALUE = st.one_of(st.sampled_from([0, 1, 2, 3, 7, 10, 0x80]), st.integers(0, 255))
STEP = st.one_of(
    st.tuples(st.just("in"), REGISTER, st.just(0)),
    st.tuples(st.just("out"), REGISTER, VALUE),
    st.tuples(st.just("send"), st.integers(0, 20), st.integers(0, 255)),
    st.tuples(st.just("break"), st.just(0), st.just(0)),
    st.tuples(st.just("modem"), st.integers(0, 15), st.just(0)),
    st.tuples(st.just("listen"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("reset"), st.just(0), st.just(0)),
    st.tuples(st.just("tick"), st.just(0), st.just(0)),
)


@given(st.lists(STEP, max_size=80))
def test_a_uart(steps: list[tuple[str, int, int]]) -> None:
    plain, published = Side(False), Side(True)
    for number, step in enumerate(steps):
        assert published.step(*step) == plain.step(*step), (number, step)
    assert published.end() == plain.end()


@given(st.lists(STEP, max_size=80))
def test_a_uart_whose_line_c_drives(steps: list[tuple[str, int, int]]) -> None:
    plain, published = Side(False), Side(True, line=InC())
    for number, step in enumerate(steps):
        assert published.step(*step) == plain.step(*step), (number, step)
        # The line is right at once, and not only when what waits has been handed over.
        assert published.line.level == plain.line.level, (number, step)
    assert published.end() == plain.end()
    assert published.uart._irq.level == plain.line.level
    assert published.line.rises <= plain.line.rises


def printing(uart: Uart16550, *, ier: int = 0) -> Front:
    front = Front(uart, 8)
    front.write(IER, ier)
    front.answered = 0
    return front


def test_what_a_guest_prints_needs_no_python() -> None:
    uart = Uart16550()
    front = printing(uart)
    for byte in b"hello":
        assert front.read(LSR) == 0x60
        front.write(DATA, byte)
    assert front.answered == 10
    assert uart.output == b""
    front.dispatch.deliver()
    assert uart.text == "hello"


def test_status_with_the_transmitters_interrupt_in_use() -> None:
    line = Line()
    uart = Uart16550(line=line)
    front = printing(uart, ier=IER_THR_EMPTY)
    assert front.read(IIR) == IIR_THR_EMPTY
    for _ in range(5):
        assert front.read(IIR) == IIR_NONE
        front.write(DATA, 0x41)
        assert front.read(LSR) == 0x60
        assert front.read(IIR) == IIR_THR_EMPTY
    assert front.answered == 21
    front.dispatch.deliver()
    front.write(DATA, 0x42)
    front.dispatch.deliver()
    assert line.rises == 2
    # What C holds is what the device holds.
    front.answered = 0
    assert [front.read(IIR), front.read(IIR)] == [IIR_THR_EMPTY, IIR_NONE]
    assert front.answered == 2
    assert uart.text == "AAAAAB"


def wired() -> tuple[Uart16550, InC, Front]:
    line = InC()
    uart = Uart16550(line=line)
    front = printing(uart, ier=IER_THR_EMPTY)
    return uart, line, front


def high(line: InC) -> bool:
    return line.level


def is_wired(front: Front) -> bool:
    return front.published.wired


def test_c_drives_the_line_of_a_uart() -> None:
    uart, line, front = wired()
    for rises in range(1, 4):
        assert (high(line), line.rises) == (True, rises)
        assert front.read(IIR) == IIR_THR_EMPTY
        assert not high(line)
        front.write(DATA, 0x41)
    assert front.answered == 6
    front.dispatch.deliver()
    assert (uart.text, line.level, line.rises) == ("AAA", True, 4)


def test_enabling_and_disabling_it_needs_no_python() -> None:
    uart, line, front = wired()
    for rises in range(2, 5):
        front.write(IER, 0)
        assert (high(line), front.read(IER), front.read(IIR)) == (False, 0, IIR_NONE)
        front.write(DATA, 0x41)
        assert not high(line)
        front.write(IER, IER_THR_EMPTY)
        assert (high(line), line.rises, front.read(IER)) == (True, rises, IER_THR_EMPTY)
    assert front.read(IIR) == IIR_THR_EMPTY
    assert front.answered == 3 * 6 + 1
    front.write(IER, IER_THR_EMPTY | 1)
    assert front.answered == 3 * 6 + 1
    assert (uart.text, uart._registers.ier, high(line)) == ("AAA", IER_THR_EMPTY | 1, False)
    uart.send("x")
    front.settle()
    front.write(IER, 1)
    assert (high(line), front.read(DATA)) == (True, ord("x"))
    assert not high(line)


def test_a_byte_on_top_of_a_request_makes_one_of_its_own() -> None:
    _, line, front = wired()
    front.write(DATA, 0x41)
    assert (high(line), line.rises) == (True, 1)
    front.dispatch.deliver()
    assert (high(line), line.rises) == (True, 2)
    # One that the guest has asked for since is none.
    front.write(DATA, 0x41)
    front.read(IIR)
    front.write(DATA, 0x41)
    front.dispatch.deliver()
    assert (high(line), line.rises) == (True, 3)
    front.write(DATA, 0x41)
    front.read(IIR)
    front.dispatch.deliver()
    assert (high(line), line.rises) == (False, 3)


def test_the_line_of_a_uart_may_change_hands() -> None:
    uart, line, front = wired()
    assert is_wired(front)
    front.read(IIR)
    assert not high(line)
    # Nothing of C's any more, with a read that waits.
    other = Line()
    attach(uart, other)
    assert not is_wired(front)
    front.dispatch.deliver()
    front.write(DATA, 0x41)
    front.dispatch.deliver()
    assert (high(line), other.level) == (False, True)
    attach(uart, line)
    assert (is_wired(front), high(line)) == (True, True)
    front.bus.remove(uart)
    front.dispatch.rebuild()
    uart.write(IER, 1, 0)
    assert not high(line)


def test_input_from_elsewhere_raises_a_line_that_c_has_lowered() -> None:
    uart, line, front = wired()
    front.write(IER, IER_THR_EMPTY | 1)
    front.read(IIR)
    assert not high(line)
    uart.send("x")
    assert high(line)
    assert front.urgent
    front.settle()
    assert high(line)
    assert front.read(IIR) & 0x0F == 4


def test_what_is_due_stays_so_from_one_delivery_to_the_next() -> None:
    uart = Uart16550()
    front = printing(uart, ier=IER_THR_EMPTY)
    for _ in range(3):
        front.write(DATA, 0x41)
        front.dispatch.deliver()
    front.answered = 0
    assert [front.read(IIR), front.read(IIR)] == [IIR_THR_EMPTY, IIR_NONE]
    assert front.answered == 2


def test_a_subscriber_that_says_nothing_hears_each_byte_at_once() -> None:
    uart = Uart16550()
    heard: list[bytes] = []
    front = printing(uart)
    front.write(DATA, ord("a"))
    forget = uart.on_output(heard.append)
    front.settle()
    front.write(DATA, ord("b"))
    assert heard == [b"a", b"b"]
    forget()
    front.write(DATA, ord("c"))
    uart.on_output(heard.append, at_once=b"\n")
    front.write(DATA, ord("d"))
    assert heard == [b"a", b"b"]
    front.write(DATA, ord("\n"))
    assert b"".join(heard[2:]) == b"cd\n"
    assert uart.output == b"abcd\n"


def test_input_is_seen_at_once() -> None:
    uart = Uart16550()
    front = printing(uart)
    assert front.read(LSR) == 0x60
    uart.send("xy")
    assert [front.read(LSR), front.read(DATA), front.read(LSR), front.read(DATA)] == [
        *(0x61, ord("x"), 0x61, ord("y"))
    ]
    front.answered = 0
    assert front.read(LSR) == 0x60
    assert front.answered == 1


def test_a_loop_is_no_output() -> None:
    uart = Uart16550()
    front = printing(uart)
    front.write(MCR, MCR_LOOP)
    front.write(DATA, 7)
    assert front.read(LSR) & 1
    assert front.read(DATA) == 7
    front.dispatch.deliver()
    assert uart.output == b""


def test_a_device_in_two_machines_is_published_in_the_second() -> None:
    uart = Uart16550()
    first = Front(uart, 8)
    second = Front(uart, 8)
    first.write(DATA, ord("1"))
    second.write(SCR, 5)
    assert first.read(SCR) == second.read(SCR) == 5
    assert first.answered == 0
    assert uart.text == "1"


COMMANDS = st.sampled_from([0x20, 0x20, 0x60, 0x63, 0x67, 0xA0, 0x0A, 0x0B, 0x0C, 0x48, 0x68, 0x11])
PIC_STEP = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("out"), st.sampled_from([0, 2]), COMMANDS),
    st.tuples(st.just("out"), st.sampled_from([1, 3]), st.integers(0, 255)),
    st.tuples(st.just("line"), st.integers(0, 15), st.integers(0, 1)),
    st.tuples(st.just("ack"), st.just(0), st.just(0)),
    st.tuples(st.just("tick"), st.just(0), st.just(0)),
)


class PicSide:
    """A pair of 8259s, set up as kernels do, and what can happen to it."""

    def __init__(self, published: bool) -> None:
        self.int = Line()
        self.pair = Pic8259Pair(self.int)
        self.ports = [self.pair.master, self.pair.slave]
        self.lines = {irq: self.pair.line(irq) for irq in range(16)}
        self.levels = dict.fromkeys(range(16), False)
        self.fronts = [Front(port, 2) for port in self.ports] if published else []
        for port, value in (
            (0, 0x11),
            (1, 0x20),
            (1, 4),
            (1, 1),
            (2, 0x11),
            (3, 0x28),
            (3, 2),
            (3, 1),
        ):
            self.step("out", port, value)

    def step(self, kind: str, number: int, value: int) -> object:
        chip, a0 = divmod(number, 2)
        result: object = None
        if kind == "in":
            result = self.fronts[chip].read(a0) if self.fronts else self.ports[chip].read(a0, 1)
        elif kind == "out":
            if self.fronts:
                self.fronts[chip].write(a0, value)
            else:
                self.ports[chip].write(a0, 1, value)
        elif kind == "line":
            if self.levels[number] is not bool(value):
                self.levels[number] = bool(value)
                self.lines[number].set(bool(value))
        elif kind == "ack":
            self.settle()
            result = self.pair.acknowledge()
        else:
            self.settle()
        for front in self.fronts:
            front.settle()
        return result, self.pair.pending

    def settle(self) -> None:
        for front in self.fronts:
            front.dispatch.deliver()


@given(st.lists(PIC_STEP, max_size=60))
def test_a_pair_of_8259s(steps: list[tuple[str, int, int]]) -> None:
    plain, published = PicSide(False), PicSide(True)
    for number, step in enumerate(steps):
        assert published.step(*step) == plain.step(*step), (number, step)
    published.settle()
    assert str(published.pair) == str(plain.pair)
    assert published.int.rises == plain.int.rises


def test_an_8259_at_rest_needs_no_python() -> None:
    side = PicSide(True)
    front = side.fronts[0]
    front.answered = 0
    front.write(1, 0xFF)
    front.answered = 0
    front.write(1, 0xFB)
    assert front.read(1) == 0xFB
    front.write(0, 0x20)
    assert front.answered == 3
    side.lines[4].set(True)
    assert front.urgent, "a request that was not heard while the mask was on its way"
    front.settle()
    assert side.pair.chips[0].imr == 0xFB
    front.write(1, 0xEB)
    assert side.pair.pending


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize(("offset", "size"), [(0, 4), (0, 2), (1, 1), (2, 2), (3, 1)])
def test_a_pm_timer(bits: int, offset: int, size: int) -> None:
    clock = Clock("warp")
    clock.start()
    timer = AcpiPmTimer(clock, bits=bits)
    front = ticking(timer, 4, clock)
    for _ in range(20):
        clock.warp_to(clock.now() + 987_654_321)
        shift, ones = 8 * offset, (1 << 8 * size) - 1
        before = clock.now()
        value = front.read(offset, size)
        after = clock.now()
        ticks = range(before * PM_TIMER_HZ // 10**9, after * PM_TIMER_HZ // 10**9 + 1)
        assert value in {(tick & (1 << bits) - 1) >> shift & ones for tick in ticks}
    assert front.answered == 20


def ticking(device: Any, length: int, clock: Clock) -> Front:
    """`device` where C knows the time."""

    class Later:
        name = device.name
        read, write = device.read, device.write

    front = Front(Later(), length)
    front.dispatch.collected.follow(clock)
    front.bus.replace({device.name: device})
    front.dispatch.rebuild()
    front.device = device
    return front


class RtcSide:
    """A CMOS clock at a time that is moved by hand."""

    def __init__(self, published: bool) -> None:
        self.now = 0
        self.clock = Clock(host_now=lambda: self.now)
        self.line = Line()
        self.rtc = Rtc146818(self.clock, self.line, epoch=1_700_000_000)
        self.front = ticking(self.rtc, 2, self.clock) if published else None
        self.tell_time()

    def tell_time(self) -> None:
        if self.front:
            # As CLOCK_MONOTONIC would have it; a nanosecond there is a day here.
            self.front.dispatch.collected.set_time(time.monotonic_ns() - self.now)

    def step(self, kind: str, number: int, value: int) -> object:
        if kind == "in":
            self.tell_time()
            return self.front.read(number) if self.front else self.rtc.read(number, 1)
        if kind == "out":
            self.tell_time()
            if self.front:
                self.front.write(number, value)
            else:
                self.rtc.write(number, 1, value)
        elif kind == "host":
            self.rtc.nvram[number] = value
        else:
            self.now += number
            if self.front:
                self.front.dispatch.deliver()
            self.clock.run_due(0)
        if self.front:
            self.front.settle()
        return None


# Steps of time that are no multiple of anything, by a millisecond or more from what the chip does.
RTC_STEP = st.one_of(
    st.tuples(st.just("out"), st.just(0), st.sampled_from([*range(14), 0x32, 0x40, 0x8A])),
    st.tuples(st.just("in"), st.just(1), st.just(0)),
    st.tuples(st.just("in"), st.just(1), st.just(0)),
    st.tuples(st.just("in"), st.just(0), st.just(0)),
    st.tuples(st.just("out"), st.just(1), st.integers(0, 255)),
    st.tuples(st.just("host"), st.integers(14, 127), st.integers(0, 255)),
    st.tuples(st.just("time"), st.sampled_from([300_000_007, 1_300_000_007]), st.just(0)),
)


@given(st.lists(RTC_STEP, max_size=60))
def test_a_cmos_clock(steps: list[tuple[str, int, int]]) -> None:
    plain, published = RtcSide(False), RtcSide(True)
    # Without periodic flags: real time passes between two looks at it.
    for number, step in enumerate([("out", 0, 10), ("out", 1, 0x20), *steps]):
        if step[0] == "out" and step[1] == 1:
            step = (*step[:2], step[2] & 0x70 | 0x20 if plain.rtc._index == 10 else step[2])
        assert published.step(*step) == plain.step(*step), (number, step)
    assert published.front is not None
    published.front.dispatch.deliver()
    assert str(published.rtc) == str(plain.rtc)
    assert published.rtc.nvram == plain.rtc.nvram
    assert published.line.level == plain.line.level


def test_the_cmos_ram_needs_no_python_once_it_was_read() -> None:
    side = RtcSide(True)
    front = side.front
    assert front is not None
    side.rtc.nvram[0x40] = 7
    side.tell_time()
    for answered in (1, 3, 5):
        front.write(0, 0x40)
        assert front.read(1) == 7
        assert front.answered == answered
    side.rtc.nvram[0x40] = 8
    front.write(0, 0x40)
    assert front.read(1) == 8
    front.write(0, 0x41)
    front.write(1, 9)
    assert front.read(1) == 9
    assert side.rtc.nvram[0x41] == 9


class PitSide:
    """An 8254 of one pulse a second, at a time that is moved by hand."""

    def __init__(self, published: bool) -> None:
        # In the middle of a pulse: real time passes between two looks at it.
        self.now = SECOND // 2
        self.clock = Clock(host_now=lambda: self.now)
        self.now += SECOND // 2
        self.line = Line()
        self.pit = Pit8254(self.clock, self.line)
        self.front = ticking(self.pit, 4, self.clock) if published else None

    def step(self, kind: str, number: int, value: int) -> object:
        if self.front:
            since = self.clock.now()
            self.front.dispatch.collected.set_time(time.monotonic_ns() - since)
        if kind == "time":
            self.now += number * SECOND
            self.clock.run_due(0)
        elif kind == "gate":
            self.pit.set_gate(number, bool(value))
        elif kind == "reset":
            self.pit.reset()
        elif kind == "out":
            if self.front:
                self.front.write(number, value)
            else:
                self.pit.write(number, 1, value)
        elif self.front:
            return self.front.read(number)
        else:
            return self.pit.read(number, 1)
        return self.pit.out(2)


def program(control: int, low: int, high: int) -> list[tuple[str, int, int]]:
    """A control word and a count, and a pulse more that loads it."""
    counter = control >> 6
    return [("out", 3, control), ("out", counter, low), ("out", counter, high), ("time", 1, 0)]


# Counts that a second's worth of interrupts, here at least one, does not hold up; and reads as
# guests do them, whole or broken off.
_LATCH = st.sampled_from([0x00, 0x0F, 0x80])
PIT_STEPS = st.one_of(
    st.builds(
        program,
        st.sampled_from([0x30, 0x34, 0x36, 0x38, 0xB0, 0xB4, 0xB6, 0x35, 0x14, 0x74]),
        st.sampled_from([0, 3, 100, 255]),
        st.sampled_from([0, 1, 255]),
    ),
    _LATCH.map(lambda byte: [("out", 3, byte), *[("in", byte >> 6, 0)] * 2]),
    _LATCH.map(lambda byte: [("out", 3, byte), *[("in", byte >> 6, 0)] * 3]),
    _LATCH.map(lambda byte: [("out", 3, byte), ("in", byte >> 6, 0)]),
    _LATCH.map(lambda byte: [("out", 3, byte)]),
    st.sampled_from([0, 0, 2]).map(lambda number: [("in", number, 0)]),
    st.integers(0, 255).map(lambda byte: [("out", 3, byte)]),
    st.integers(0, 255).map(lambda byte: [("out", 0, byte)]),
    st.sampled_from([1, 7, 300, 70_000]).map(lambda pulses: [("time", pulses, 0)]),
    st.integers(0, 1).map(lambda level: [("gate", 2, level)]),
    st.just([("reset", 0, 0)]),
)


@given(st.lists(PIT_STEPS, max_size=40))
def test_an_8254(groups: list[list[tuple[str, int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        plain, published = PitSide(False), PitSide(True)
        for number, step in enumerate(step for group in groups for step in group):
            assert published.step(*step) == plain.step(*step), (number, step)
        # What C holds is what the device holds.
        for number in range(3):
            assert published.pit.read(number, 1) == plain.pit.read(number, 1)
        assert str(published.pit) == str(plain.pit)
        assert published.line.rises == plain.line.rises


def test_latch_and_reads_of_an_8254_need_no_python_once_it_was_read() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        side = PitSide(True)
        front = side.front
        assert front is not None
        cycle = [("out", 3, 0), ("in", 0, 0), ("in", 0, 0)]
        for step in [*program(0x34, 100, 1), *cycle]:
            side.step(*step)
        front.answered = 0
        said = []
        for _ in range(3):
            side.step("time", 100, 0)
            said += [side.step(*step) for step in cycle]
        assert front.answered == 9
        counts = [said[at] + 256 * said[at + 1] for at in (1, 4, 7)]  # type: ignore[operator]
        assert counts == [256, 156, 56]
        # Counter 2 was not read, and is asked for.
        front.answered = 0
        side.step("in", 2, 0)
        assert front.answered == 0


@pytest.mark.parametrize("reads", [0, 1])
def test_what_c_has_latched_of_an_8254_stays_when_the_device_is_asked(reads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        side = PitSide(True)
        assert side.front is not None
        for step in [*program(0x34, 0, 0), ("time", 6, 0), ("in", 0, 0), ("in", 0, 0)]:
            side.step(*step)
        side.front.answered = 0
        side.step("out", 3, 0)
        for _ in range(reads):
            side.step("in", 0, 0)
        assert side.front.answered == 1 + reads
        side.step("time", 1000, 0)
        side.step("out", 3, 0x80)
        assert [side.step("in", 0, 0) for _ in range(2 - reads)] == [0xFA, 0xFF][reads:]


def test_an_8254_whose_time_stands_still_is_asked() -> None:
    clock = Clock("paused")
    timer = Pit8254(clock)
    front = ticking(timer, 4, clock)
    clock.start()
    for offset, value in ((3, 0x34), (0, 0), (0, 0)):
        front.write(offset, value)
    clock.stop()
    time.sleep(1e-5)
    clock.start()
    front.read(0), front.read(0)
    front.answered = 0
    front.write(3, 0)
    clock.stop()
    assert front.answered == 1
    # What was latched needs no time; the next count does.
    front.read(0), front.read(0)
    assert front.answered == 3
    front.write(3, 0)
    assert front.read(0) | front.read(0) << 8 == timer.channels[0].value
    assert front.answered == 3


def test_a_timer_by_another_clock_is_asked() -> None:
    clock = Clock()
    front = ticking(AcpiPmTimer(clock), 4, Clock("warp"))
    front.read(0, 4)
    assert front.answered == 0


def test_the_hpets_counter() -> None:
    clock = Clock("warp")
    clock.start()
    hpet = Hpet(clock)
    front = ticking(hpet, 0x400, clock)
    front.write(COUNTER, 0x1_2345_6789, 8)
    assert front.read(COUNTER, 8) == 0x1_2345_6789
    assert front.read(COUNTER + 4, 4) == 1
    assert front.read(CAPABILITIES, 8) == hpet.read(CAPABILITIES, 8)
    front.write(CONFIGURATION, ENABLE_CNF, 8)
    front.answered = 0
    for _ in range(20):
        clock.warp_to(clock.now() + 12_345_678_901)
        before, value, after = hpet.counter, front.read(COUNTER, 8), hpet.counter
        assert before <= value <= after
    assert front.answered == 20
    front.write(CONFIGURATION, 0, 8)
    stopped = hpet.counter
    clock.warp_to(clock.now() + 1)
    assert front.read(COUNTER, 4) == stopped & 0xFFFFFFFF


def test_an_interrupt_finds_its_reason() -> None:
    """The host sends while the guest runs, which reads the IIR as soon as the line rises."""
    seen: list[object] = []

    class Handler(Line):
        def set(self, level: bool) -> None:
            super().set(level)
            if level:
                seen.append(side.front and side.front.read(IIR))

    side = Side(True, line=Handler())
    side.step("out", IER, 1)
    side.uart.send("a")
    assert seen == [IIR_RECEIVED]


def test_a_character_after_the_iir_was_read_makes_an_edge_of_its_own() -> None:
    """C has answered that read, which lowers the line, and Python has not heard of it yet."""
    line = Line()
    side = Side(True, line=line)
    assert side.front is not None
    side.step("out", IER, 1 | IER_THR_EMPTY)
    assert line.level
    rises = line.rises
    assert side.front.read(IIR) == IIR_THR_EMPTY
    side.uart.send("a")
    side.front.dispatch.deliver()
    assert line.level
    assert line.rises == rises + 1
