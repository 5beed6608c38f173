"""When what was sent to a serial port arrives: at once, in bursts, or not while RTS is away."""

from __future__ import annotations

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import Uart16550
from pykvm.devices.incoming import BURST, LONGEST_PAUSE
from pykvm.devices.uart_registers import (
    FCR_ENABLE,
    FCR_RESET_RECEIVER,
    IER_RECEIVED,
    LSR_DATA_READY,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT2,
    MCR_RTS,
)
from support.attach import attach
from support.lines import Lines

DATA, IER, FCR, MCR, LSR = 0, 1, 2, 4, 5
READY = MCR_DTR | MCR_RTS | MCR_OUT2
STOP = MCR_DTR | MCR_OUT2
MICROSECOND = 1000


class Guest:
    """A UART on a host whose time stands still, and a driver that takes `cost` ns a character."""

    def __init__(self, *, cost: int = MICROSECOND, fifo: bool = True) -> None:
        self.host = Host()
        self.clock = self.host.clock()
        self.cost = cost
        self.lines = Lines(self.clock)
        self.uart = Uart16550()
        attach(self.uart, self.lines[0], clock=self.clock)
        self.uart.write(FCR, 1, FCR_ENABLE if fifo else 0)

    def enable(self, *, rts: bool = False) -> None:
        """As drivers do: interrupts first, then the modem lines."""
        self.uart.write(IER, 1, IER_RECEIVED)
        self.uart.write(MCR, 1, READY if rts else STOP)

    def interrupted(self) -> bool:
        return self.lines[0].level

    def handle(self) -> bytes:
        """What an interrupt handler reads: while data is ready."""
        taken = bytearray()
        while self.uart.read(LSR, 1) & LSR_DATA_READY:
            taken.append(self.uart.read(DATA, 1))
            self.host.now += self.cost
        return bytes(taken)

    def wait(self) -> int:
        """Let time pass to the next deadline, and return how much that was."""
        due = self.clock.next_deadline(0)
        assert due is not None, "nothing will ever come"
        step = max(due - self.clock.now(), 0)
        self.host.now += step
        self.clock.run_due(0)
        return step


def test_a_guest_that_polls_gets_all_at_its_own_speed() -> None:
    guest = Guest()
    guest.uart.send(bytes(1000))
    assert len(guest.handle()) == 1000
    assert guest.clock.next_deadline(0) is None


def test_a_handler_ends_after_a_burst_and_the_guest_gets_as_much_time_for_itself() -> None:
    guest = Guest(cost=3 * MICROSECOND)
    guest.enable()
    guest.uart.send(bytes(range(40)))
    assert guest.interrupted()
    assert guest.handle() == bytes(range(16))
    assert not guest.interrupted()
    # The last of the burst was read 15 characters after the first.
    assert guest.wait() == 14 * 3 * MICROSECOND
    assert guest.interrupted()
    assert guest.handle() == bytes(range(16, 32))
    guest.wait()
    assert guest.handle() == bytes(range(32, 40))
    assert guest.clock.next_deadline(0) is None, "nothing waits: no pause"
    guest.uart.send(b"typed")
    assert guest.handle() == b"typed"


def test_a_host_that_stops_the_guest_does_not_keep_it_in_its_handler() -> None:
    """The pause is over before the guest, which has read the last character, looks for more."""
    guest = Guest()
    guest.enable()
    guest.uart.send(bytes(range(40)))
    assert bytes(guest.uart.read(DATA, 1) for _ in range(16)) == bytes(range(16))
    guest.wait()
    assert not guest.interrupted()
    assert guest.handle() == b"", "it leaves"
    assert guest.interrupted()
    assert guest.handle() == bytes(range(16, 32))


def test_a_guest_that_does_not_look_is_interrupted_again() -> None:
    guest = Guest()
    guest.enable()
    guest.uart.send(bytes(40))
    for _ in range(16):
        guest.uart.read(DATA, 1)
    guest.wait()
    assert guest.wait() == LONGEST_PAUSE
    assert guest.interrupted()


def test_a_burst_ends_after_16_characters_however_long_they_take() -> None:
    guest = Guest()
    guest.enable()
    guest.uart.send(b"ab")
    count = 0
    while guest.uart.read(LSR, 1) & LSR_DATA_READY and count < 100:
        guest.uart.read(DATA, 1)
        count += 1
        # One more comes while there is still one to read.
        guest.host.now += 2 * LONGEST_PAUSE
        guest.uart.send(b"c")
    assert count == BURST


def test_a_burst_in_pieces_counts_the_time_that_they_were_read_in() -> None:
    guest = Guest()
    guest.enable()
    guest.uart.send(b"typed")
    assert guest.handle() == b"typed"
    guest.host.now += LONGEST_PAUSE // 2
    guest.uart.send(bytes(40))
    assert guest.handle() == bytes(BURST - 5)
    # Four steps to the last character of the first piece and ten to that of the second, less what
    # the handler took after it.
    assert guest.wait() == (4 + 10 - 1) * MICROSECOND


def test_without_a_fifo_a_burst_is_one_character() -> None:
    guest = Guest(fifo=False)
    guest.enable()
    guest.uart.send(b"ab")
    assert guest.handle() == b"a"
    guest.wait()
    assert guest.handle() == b"b"


def test_feeding_the_fifo_while_it_is_read_does_not_keep_the_handler() -> None:
    guest = Guest()
    guest.enable()
    guest.uart.on_drained(lambda: guest.uart.send(b"more"))
    guest.uart.send(b"begin")
    assert len(guest.handle()) <= BURST + 4
    assert guest.clock.next_deadline(0) is not None


def test_no_pause_is_long() -> None:
    guest = Guest(cost=0)
    guest.enable()
    guest.uart.send(bytes(BURST + 1))
    guest.host.now += 3600 * 10**9
    guest.handle()
    assert guest.wait() == LONGEST_PAUSE


def test_typing_is_no_burst() -> None:
    guest = Guest()
    guest.enable()
    for _ in range(3 * BURST):
        guest.uart.send(b"k")
        assert guest.handle() == b"k"
        assert guest.clock.next_deadline(0) is None
        guest.host.now += LONGEST_PAUSE + 1


@pytest.mark.parametrize("when", ["in a burst", "in a pause"])
@pytest.mark.parametrize("how", ["reset of the FIFO", "FIFO off and on", "master reset"])
def test_emptying_the_fifo_does_not_stop_the_line(how: str, when: str) -> None:
    guest = Guest()
    guest.enable()
    guest.uart.send(bytes(range(48)))
    if when == "in a pause":
        assert guest.handle() == bytes(range(16))
    if how == "reset of the FIFO":
        guest.uart.write(FCR, 1, FCR_ENABLE | FCR_RESET_RECEIVER)
    else:
        if how == "master reset":
            guest.uart.reset()
            guest.enable()
        guest.uart.write(FCR, 1, 0)
        guest.uart.write(FCR, 1, FCR_ENABLE)
    seen = b""
    while guest.uart.pending:
        if not guest.interrupted():
            guest.wait()
        seen += guest.handle()
    assert seen == bytes(range(48))[-len(seen) :]
    assert len(seen) == 32


def test_a_guest_that_takes_rts_away_stops_the_line() -> None:
    guest = Guest()
    guest.enable(rts=True)
    guest.uart.send(bytes(range(40)))
    guest.uart.write(MCR, 1, STOP)
    # What the FIFO holds has arrived already.
    assert guest.handle() == bytes(range(16))
    assert guest.uart.receives is False
    while guest.clock.next_deadline(0) is not None:
        guest.wait()
    assert not guest.interrupted()
    assert guest.handle() == b""
    guest.uart.write(MCR, 1, READY)
    assert guest.interrupted()
    assert guest.handle() == bytes(range(16, 32))


@pytest.mark.parametrize("raised_before", [False, True])
def test_rts_means_nothing_from_a_guest_that_never_raised_it(raised_before: bool) -> None:
    """Firmware may have; what counts is the driver that receives by interrupts."""
    guest = Guest()
    if raised_before:
        guest.uart.write(MCR, 1, READY)
    guest.enable(rts=False)
    guest.uart.send(b"hello")
    assert guest.interrupted()
    assert guest.handle() == b"hello"


def test_rts_means_nothing_to_a_guest_that_polls() -> None:
    """A debugger's console in a kernel whose driver has closed the port."""
    guest = Guest()
    guest.enable(rts=True)
    guest.uart.write(IER, 1, 0)
    guest.uart.write(MCR, 1, STOP)
    guest.uart.send(b"hello")
    assert guest.handle() == b"hello"


def test_in_loopback_nothing_arrives_and_nothing_is_waited_for() -> None:
    guest = Guest()
    guest.enable()
    assert guest.uart.receives is True
    guest.uart.write(MCR, 1, MCR_LOOP | STOP)
    guest.uart.send(b"hello")
    assert bool(guest.uart.receives) is False
    assert guest.handle() == b""
    guest.uart.write(MCR, 1, STOP)
    assert guest.handle() == b"hello"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 60)),
        st.tuples(st.just("ier"), st.sampled_from((0, 1, 3, 5, 15))),
        st.tuples(st.just("mcr"), st.integers(0, 31)),
        st.tuples(st.just("handle"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 20_000)),
    ),
    max_size=40,
)


@given(STEPS, st.booleans())
def test_whatever_the_driver_does_everything_arrives_in_order(
    steps: list[tuple[str, int]], fifo: bool
) -> None:
    guest = Guest(fifo=fifo)
    sent, seen = bytearray(), bytearray()
    for kind, number in steps:
        if kind == "send":
            data = bytes((len(sent) + i) & 0xFF for i in range(number))
            sent += data
            guest.uart.send(data)
        elif kind == "ier":
            guest.uart.write(IER, 1, number)
        elif kind == "mcr":
            guest.uart.write(MCR, 1, number)
        elif kind == "handle":
            seen += guest.handle()
        else:
            guest.host.now += number
            guest.clock.run_due(0)
    guest.uart.write(MCR, 1, READY)
    guest.uart.write(IER, 1, IER_RECEIVED)
    while guest.uart.pending:
        if not guest.interrupted():
            guest.wait()
        seen += guest.handle()
    assert seen == sent
