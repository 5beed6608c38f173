"""The 16550A, register by register, and its two sides."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.devices import Uart16550
from pykvm.devices.uart_registers import (
    FCR_ENABLE,
    FCR_RESET_RECEIVER,
    IER_LINE_STATUS,
    IER_MODEM_STATUS,
    IER_RECEIVED,
    IER_THR_EMPTY,
    IIR_FIFO,
    IIR_LINE_STATUS,
    IIR_MODEM_STATUS,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_THR_EMPTY,
    IIR_TIMEOUT,
    LCR_DIVISOR_LATCH,
    LSR_BREAK,
    LSR_DATA_READY,
    LSR_FIFO_ERROR,
    LSR_FRAMING,
    LSR_OVERRUN,
    LSR_SENT,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR_CTS,
    MSR_DCD,
    MSR_DSR,
    MSR_RI,
)
from support.attach import attach
from support.lines import Line

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
ERRORS = 0x1E


class Rig:
    """A UART, its line, and the guest's instructions on it."""

    def __init__(self) -> None:
        self.line = Line()
        self.uart = Uart16550(line=self.line)

    def inb(self, register: int) -> int:
        return self.uart.read(register, 1)

    def out(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def irq(self) -> bool:
        return self.line.level

    def fifo(self, trigger: int = 1) -> None:
        self.out(FCR, FCR_ENABLE | {1: 0, 4: 0x40, 8: 0x80, 14: 0xC0}[trigger])

    def take(self) -> bytes:
        """Read as a driver polls: while data is ready."""
        taken = bytearray()
        while self.inb(LSR) & LSR_DATA_READY:
            taken.append(self.inb(DATA))
        return bytes(taken)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_state_at_power_on(rig: Rig) -> None:
    assert [rig.inb(register) for register in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [
        0,
        IIR_NONE,
        0,
        0,
        0x60,
        0xB0,
        0,
    ]
    assert rig.uart.baud == 9600
    assert not rig.line.changes


def test_a_guest_that_sets_nothing_up_can_print(rig: Rig) -> None:
    for byte in b"hi\n":
        assert rig.inb(LSR) & LSR_SENT == LSR_SENT
        rig.out(DATA, byte)
    assert rig.uart.text == "hi\n"


@pytest.mark.parametrize(
    ("register", "written", "read"),
    [(IER, 0xFF, 0x0F), (LCR, 0x7F, 0x7F), (MCR, 0xFF, 0x1F), (SCR, 0xA5, 0xA5)],
)
def test_registers_read_back(rig: Rig, register: int, written: int, read: int) -> None:
    rig.out(register, written)
    assert rig.inb(register) == read


def test_divisor_latch_shares_the_first_two_offsets(rig: Rig) -> None:
    rig.out(IER, IER_RECEIVED)
    rig.out(LCR, LCR_DIVISOR_LATCH | 3)
    rig.out(DATA, 0x01)
    rig.out(IER, 0x02)
    assert (rig.inb(DATA), rig.inb(IER), rig.inb(LCR)) == (0x01, 0x02, 0x83)
    assert rig.uart.baud == 115200 // 0x201
    rig.out(LCR, 3)
    assert rig.inb(IER) == IER_RECEIVED
    assert rig.uart.output == b""
    rig.out(DATA, ord("x"))
    assert rig.uart.output == b"x"


def test_a_divisor_of_zero(rig: Rig) -> None:
    rig.out(LCR, LCR_DIVISOR_LATCH)
    rig.out(DATA, 0)
    assert rig.uart.baud == 0


def test_lsr_and_msr_cannot_be_written(rig: Rig) -> None:
    rig.out(LSR, 0xFF)
    rig.out(MSR, 0xFF)
    assert rig.inb(LSR) == LSR_SENT
    assert rig.inb(MSR) == MSR_CTS | MSR_DSR | MSR_DCD


def test_input_without_fifo(rig: Rig) -> None:
    rig.uart.send("ab")
    assert rig.inb(LSR) == LSR_SENT | LSR_DATA_READY
    assert rig.take() == b"ab"
    assert rig.inb(DATA) == ord("b"), "an empty RBR keeps what it held"


def test_any_amount_of_input_arrives_whole(rig: Rig) -> None:
    data = bytes(range(256)) * 20
    rig.fifo()
    rig.uart.send(data)
    assert rig.uart.pending == len(data)
    assert rig.take() == data
    assert rig.uart.pending == 0


@pytest.mark.parametrize("enable_first", [False, True])
def test_input_sent_before_the_guest_sets_up_is_not_lost(rig: Rig, enable_first: bool) -> None:
    if enable_first:
        rig.fifo()
    rig.uart.send("hello")
    rig.out(IER, 0)
    rig.out(FCR, FCR_ENABLE | FCR_RESET_RECEIVER | 0x04)
    rig.out(MCR, MCR_DTR | MCR_RTS | MCR_OUT2)
    assert rig.take() == b"hello"
    assert rig.uart.discarded == 0


def test_fifo_reset_throws_away_what_the_fifo_holds(rig: Rig) -> None:
    rig.fifo()
    rig.uart.send(bytes(range(20)))
    assert rig.inb(LSR) & LSR_DATA_READY
    rig.out(FCR, FCR_ENABLE | FCR_RESET_RECEIVER)
    assert rig.take() == bytes(range(16, 20))
    assert rig.uart.discarded == 16


def test_switching_the_fifo_empties_it(rig: Rig) -> None:
    rig.fifo()
    rig.uart.send("x")
    rig.inb(LSR)
    rig.out(FCR, 0)
    assert not rig.inb(LSR) & LSR_DATA_READY
    assert not rig.inb(IIR) & IIR_FIFO
    rig.uart.send("y")
    rig.inb(LSR)
    rig.fifo()
    assert rig.inb(IIR) == IIR_FIFO | IIR_NONE
    assert not rig.inb(LSR) & LSR_DATA_READY


def test_fcr_bits_count_only_with_the_enable_bit(rig: Rig) -> None:
    rig.out(FCR, 0xC0 | FCR_RESET_RECEIVER)
    rig.out(IER, IER_RECEIVED)
    rig.uart.send("x")
    assert rig.inb(IIR) == IIR_RECEIVED


@pytest.mark.parametrize("trigger", [1, 4, 8, 14])
def test_trigger_levels(rig: Rig, trigger: int) -> None:
    rig.fifo(trigger)
    rig.out(IER, IER_RECEIVED)
    for count in range(1, 17):
        rig.uart.send("x")
        expected = IIR_RECEIVED if count >= trigger else IIR_TIMEOUT
        assert rig.inb(IIR) == IIR_FIFO | expected
    for left in range(15, -1, -1):
        rig.inb(DATA)
        expected = IIR_RECEIVED if left >= trigger else IIR_TIMEOUT if left else IIR_NONE
        assert rig.inb(IIR) == IIR_FIFO | expected
    assert rig.line.changes == [True, False]


def test_overrun_without_fifo_keeps_the_newer_character(rig: Rig) -> None:
    rig.out(MCR, MCR_LOOP)
    rig.out(DATA, ord("a"))
    rig.out(DATA, ord("b"))
    assert rig.inb(LSR) == LSR_SENT | LSR_DATA_READY | LSR_OVERRUN
    assert rig.inb(LSR) == LSR_SENT | LSR_DATA_READY, "reading clears the error"
    assert rig.take() == b"b"


def test_overrun_with_fifo_keeps_the_older_characters(rig: Rig) -> None:
    rig.fifo()
    rig.out(MCR, MCR_LOOP)
    for byte in range(20):
        rig.out(DATA, byte)
    assert rig.inb(LSR) & ERRORS == LSR_OVERRUN
    assert rig.take() == bytes(range(16))


def test_loopback_prints_nothing_and_hears_nothing(rig: Rig) -> None:
    rig.out(MCR, MCR_LOOP)
    rig.uart.send("host")
    assert not rig.inb(LSR) & LSR_DATA_READY
    rig.out(DATA, ord("g"))
    assert rig.take() == b"g"
    assert rig.uart.output == b""
    rig.out(MCR, 0)
    assert rig.take() == b"host"


@pytest.mark.parametrize(
    ("control", "status"),
    [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)],
)
def test_loopback_wires_modem_outputs_to_inputs(rig: Rig, control: int, status: int) -> None:
    rig.out(MCR, MCR_LOOP)
    rig.inb(MSR)
    rig.out(MCR, MCR_LOOP | control)
    delta = status >> 4 if status != MSR_RI else 0
    assert rig.inb(MSR) == status | delta
    rig.out(MCR, MCR_LOOP)
    assert rig.inb(MSR) == status >> 4, "the ring indicator's end counts"
    assert rig.inb(MSR) == 0


def test_modem_lines_from_the_host(rig: Rig) -> None:
    rig.out(IER, IER_MODEM_STATUS)
    rig.uart.set_modem_lines(cts=False)
    assert rig.irq()
    assert rig.inb(IIR) == IIR_MODEM_STATUS
    assert rig.inb(MSR) == MSR_DSR | MSR_DCD | 0x01
    assert not rig.irq()
    rig.uart.set_modem_lines(ri=True)
    rig.uart.set_modem_lines()
    assert rig.inb(MSR) == MSR_CTS | MSR_DSR | MSR_DCD | 0x05


def test_break_is_a_null_character_with_errors(rig: Rig) -> None:
    rig.fifo()
    rig.out(IER, IER_LINE_STATUS | IER_RECEIVED)
    rig.uart.send("a")
    rig.uart.send_break()
    rig.uart.send("b")
    assert rig.inb(IIR) == IIR_FIFO | IIR_RECEIVED
    assert rig.inb(LSR) == LSR_SENT | LSR_DATA_READY | LSR_FIFO_ERROR, "not yet at the top"
    assert rig.inb(DATA) == ord("a")
    assert rig.inb(IIR) == IIR_FIFO | IIR_LINE_STATUS
    assert rig.inb(LSR) == (LSR_SENT | LSR_DATA_READY | LSR_FIFO_ERROR | LSR_BREAK | LSR_FRAMING)
    assert rig.inb(LSR) == LSR_SENT | LSR_DATA_READY
    assert rig.inb(DATA) == 0
    assert rig.inb(DATA) == ord("b")


def test_thr_empty_interrupt(rig: Rig) -> None:
    rig.out(IER, IER_THR_EMPTY)
    assert rig.irq(), "enabling it with an empty THR makes it due"
    assert rig.inb(IIR) == IIR_THR_EMPTY
    assert not rig.irq(), "reading the IIR answers it"
    assert rig.inb(IIR) == IIR_NONE
    rig.out(DATA, ord("x"))
    assert rig.irq()
    rig.out(DATA, ord("y"))
    assert rig.line.changes == [True, False, True, False, True], "each byte sent is an edge"
    rig.out(IER, 0)
    assert not rig.irq()
    rig.inb(IIR)
    rig.out(IER, IER_THR_EMPTY)
    assert rig.irq()
    rig.inb(IIR)
    rig.out(IER, IER_THR_EMPTY)
    assert not rig.irq(), "it was enabled already"


@pytest.mark.parametrize(
    ("enable", "identity"), [(0x01, 0x04), (0x02, 0x02), (0x04, 0x06), (0x08, 0x00)]
)
def test_each_source_has_its_enable_bit_and_its_identity(
    rig: Rig, enable: int, identity: int
) -> None:
    rig.out(MCR, 0x10)
    rig.out(DATA, 1)
    rig.out(DATA, 2)
    assert rig.inb(IIR) == 0x01
    rig.out(IER, enable)
    assert rig.irq()
    assert rig.inb(IIR) == identity


def test_interrupt_priority(rig: Rig) -> None:
    rig.out(IER, 0x0F)
    rig.out(MCR, MCR_LOOP)  # modem status changes
    rig.out(DATA, 1)  # THR empty, data
    rig.out(DATA, 2)  # overrun
    assert rig.inb(IIR) == IIR_LINE_STATUS
    rig.inb(LSR)
    assert rig.inb(IIR) == IIR_RECEIVED
    rig.inb(DATA)
    assert rig.inb(IIR) == IIR_THR_EMPTY
    assert rig.inb(IIR) == IIR_MODEM_STATUS
    rig.inb(MSR)
    assert rig.inb(IIR) == IIR_NONE
    assert not rig.irq()


def test_input_raises_the_line_from_any_thread(rig: Rig) -> None:
    rig.fifo()
    rig.out(IER, IER_RECEIVED)
    threads = [threading.Thread(target=rig.uart.send, args=(bytes(100),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert rig.irq()
    assert len(rig.take()) == 400
    assert not rig.irq()


def test_connecting_a_line_late_drives_it_at_once(rig: Rig) -> None:
    rig.out(IER, IER_THR_EMPTY)
    late = Line()
    attach(rig.uart, late)
    assert late.level
    rig.inb(IIR)
    assert late.changes == [True, False]


def test_reset_keeps_what_the_host_sent(rig: Rig) -> None:
    rig.out(IER, IER_THR_EMPTY)
    rig.out(LCR, 0x83)
    rig.out(MCR, MCR_LOOP)
    rig.out(LCR, 0)
    rig.out(DATA, ord("L"))
    rig.uart.send("kept")
    rig.uart.reset()
    assert not rig.irq()
    assert rig.uart.pending == 4, "what the receiver held is gone"
    assert (rig.inb(IER), rig.inb(LCR), rig.inb(IIR)) == (0, 0, IIR_NONE)
    assert rig.take() == b"kept"


def test_subscribers_see_every_byte_and_may_answer(rig: Rig) -> None:
    heard: list[bytes] = []
    stop = rig.uart.on_output(heard.append)
    rig.uart.on_output(rig.uart.send)
    rig.out(DATA, ord("?"))
    stop()
    rig.out(DATA, ord("!"))
    assert heard == [b"?"]
    assert rig.take() == b"?!"


def test_a_subscriber_may_wait_for_another_thread_that_sends(rig: Rig) -> None:
    def answer_from_elsewhere(_: bytes) -> None:
        thread = threading.Thread(target=rig.uart.send, args=("ok",))
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "send must not wait for the guest's write to end"

    rig.uart.on_output(answer_from_elsewhere)
    rig.out(DATA, ord("?"))
    assert rig.take() == b"ok"


def test_what_a_subscriber_raises_comes_out(rig: Rig) -> None:
    def refuse(_: bytes) -> None:
        raise BrokenPipeError

    rig.uart.on_output(refuse)
    with pytest.raises(BrokenPipeError):
        rig.out(DATA, ord("x"))
    assert rig.uart.output == b"x"


def test_drained_is_told_once_per_message(rig: Rig) -> None:
    told: list[int] = []
    end = rig.uart.on_drained(lambda: told.append(rig.uart.pending))
    rig.take()
    assert told == []
    rig.uart.send("abc")
    assert rig.inb(DATA) == ord("a")
    assert told == []
    rig.take()
    assert told == [0]
    rig.take()
    rig.uart.send("d")
    rig.take()
    assert told == [0, 0]
    rig.out(MCR, MCR_LOOP)
    rig.out(DATA, 0)
    rig.take()
    assert told == [0, 0], "the guest's own bytes are not sent by the host"
    end()
    rig.out(MCR, 0)
    rig.uart.send("e")
    rig.take()
    assert told == [0, 0]


def test_what_a_subscriber_to_drained_input_raises_comes_out(rig: Rig) -> None:
    told: list[int] = []

    def refuse() -> None:
        raise LookupError("drained")

    end = rig.uart.on_drained(refuse)
    rig.uart.on_drained(lambda: told.append(1))
    rig.uart.send("a")
    with pytest.raises(LookupError, match="drained"):
        rig.take()
    end()
    rig.uart.send("b")
    rig.take()
    assert told == [1]


def test_wide_accesses_reach_neighbouring_registers(rig: Rig) -> None:
    bus = Bus()
    bus.add_pio(0x3F8, 8, rig.uart)
    bus.write(Space.PIO, 0x3FB, 2, 0x0B03)
    assert (rig.inb(LCR), rig.inb(MCR)) == (0x03, 0x0B)
    assert bus.read(Space.PIO, 0x3FB, 2) == 0x0B03


GUEST = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("out"), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("send"), st.integers(0, 40), st.integers(0, 255)),
    st.tuples(st.just("break"), st.just(0), st.just(0)),
    st.tuples(st.just("modem"), st.integers(0, 15), st.just(0)),
)


@given(st.lists(GUEST, max_size=60))
def test_whatever_a_guest_does(steps: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    registers = {LCR: 0, MCR: 0, SCR: 0, IER: 0, "dll": 12, "dlm": 0}
    printed = bytearray()
    for kind, number, value in steps:
        latch = registers[LCR] & LCR_DIVISOR_LATCH
        if kind == "send":
            rig.uart.send(bytes([value]) * number)
        elif kind == "break":
            rig.uart.send_break()
        elif kind == "modem":
            rig.uart.set_modem_lines(
                cts=bool(number & 1), dsr=bool(number & 2), ri=bool(number & 4), dcd=number > 7
            )
        elif kind == "in":
            level = rig.irq()
            got = rig.inb(number)
            assert 0 <= got <= 0xFF
            if number == IIR:
                assert level is not bool(got & IIR_NONE), "the line is what the IIR says"
            elif number == LSR:
                assert got & LSR_SENT == LSR_SENT
            elif latch and number < 2:
                assert got == registers[("dll", "dlm")[number]]
            elif number in registers:
                assert got == registers[number]
        else:
            rig.out(number, value)
            if latch and number < 2:
                registers[("dll", "dlm")[number]] = value
            elif number == DATA and not registers[MCR] & MCR_LOOP:
                printed.append(value)
            elif number in (IER, LCR, MCR, SCR):
                registers[number] = value & {IER: 0x0F, MCR: 0x1F}.get(number, 0xFF)
        assert len(rig.uart._registers.received) <= 16
    assert rig.uart.output == printed
    # Whatever state it left the chip in, setting it up again makes it work.
    rig.out(LCR, 3)
    rig.out(IER, 0)
    rig.out(MCR, 0)
    rig.fifo()
    rig.take()
    rig.uart.send("fine")
    assert rig.take() == b"fine"
    assert rig.inb(IIR) == IIR_FIFO | IIR_NONE
    assert not rig.irq()


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.integers(0, 30),
            st.sampled_from([1, 4, 8, 14]),
        ),
        max_size=20,
    )
)
def test_input_is_a_queue_whatever_the_timing(steps: list[bytes | int]) -> None:
    rig = Rig()
    rig.fifo(8)
    rig.out(IER, IER_RECEIVED)
    sent, taken = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            rig.uart.send(step)
            sent += step
        else:
            for _ in range(step):
                if rig.inb(IIR) & IIR_NONE:
                    break
                taken.append(rig.inb(DATA))
        assert rig.uart.pending == len(sent) - len(taken)
        assert rig.irq() is (len(sent) > len(taken))
    assert taken + rig.take() == sent
