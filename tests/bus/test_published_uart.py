"""A serial port that C answers for and whose line C drives, beside one that Python answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import Uart16550
from pykvm.devices.uart_registers import (
    IER_THR_EMPTY,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_THR_EMPTY,
    MCR_LOOP,
)
from support.attach import attach
from support.front import Front
from support.lines import Line

if TYPE_CHECKING:
    from collections.abc import Callable
from support.lines import InC

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7


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
