"""Accesses that C answers, on a real machine: the guest sees the same, and Python less."""

from __future__ import annotations

import random
import struct
import threading
from typing import Any

import pytest

from pykvm import Machine, Outcome
from pykvm.bus import Placement, Space
from pykvm.bus.published import Published, Rule
from pykvm.devices import Uart16550, standard_devices
from pykvm.devices.pit import Pit8254
from pykvm.exits import IoIn, IoOut
from pykvm.result import Unclaimed
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm


class CountingUart(Uart16550):
    """COM1 that counts how often Python is called, and in how large pieces it prints."""

    def __init__(self) -> None:
        super().__init__("com1")
        self.calls = 0
        self.pieces: list[bytes] = []

    def read(self, offset: int, size: int) -> int:
        self.calls += 1
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls += 1
        super().write(offset, size, value)

    def emit(self, data: bytes) -> None:
        self.pieces.append(data)
        super().emit(data)


def with_com1(uart: Uart16550) -> list[Placement]:
    return [*standard_devices(without=["com1"]), Placement(uart, Space.PIO, 0x3F8, 8, irq=4)]


# Polls the line status and prints the string at 0x1000, again and again; HLT after each.
PRINT = """
    BE 00 10     mov si, 0x1000
    BA FD 03     mov dx, 0x3fd
    EC           in al, dx
    A8 20        test al, 0x20
    74 FB        jz $-3
    BA F8 03     mov dx, 0x3f8
    AC           lodsb
    84 C0        test al, al
    74 03        jz $+5
    EE           out dx, al
    EB ED        jmp $-17
    F4           hlt
    EB E7        jmp $-23
"""


def printing(guest: MakeGuest, text: bytes, **options: Any) -> tuple[Machine, CountingUart]:
    uart = CountingUart()
    machine = guest(PRINT, devices=with_com1(uart), **options)
    machine.memory.write(0x1000, text + b"\0")
    return machine, uart


def test_what_is_printed_comes_in_one_piece(guest: MakeGuest) -> None:
    machine, uart = printing(guest, b"hello, world\n")
    for number in range(1, 4):
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.HALTED
        assert uart.output == b"hello, world\n" * number
    assert uart.pieces == [b"hello, world\n"] * 3
    assert uart.calls == 0
    assert result.exits["IoOut"] == 13


def test_until_stops_at_the_last_byte(guest: MakeGuest) -> None:
    machine, uart = printing(guest, b"one two three")
    result = machine.run(timeout=10, until="two")
    assert result.outcome is Outcome.UNTIL
    assert uart.text == "one two"
    assert machine.run(timeout=10, until=b"ree").outcome is Outcome.UNTIL
    assert uart.text == "one two three"


def test_until_a_function_holds_is_noticed_at_the_byte(guest: MakeGuest) -> None:
    machine, uart = printing(guest, b"one two three")
    assert machine.run(timeout=10, until=lambda _: "t" in uart.text).outcome is Outcome.UNTIL
    assert uart.text == "one t"


def test_a_subscriber_sees_each_byte_as_it_is_printed(guest: MakeGuest) -> None:
    machine, uart = printing(guest, b"abc")
    heard: list[bytes] = []

    def hear(data: bytes) -> None:
        heard.append(data)
        if data == b"b":
            machine.stop()

    uart.on_output(hear)
    assert machine.run(timeout=10).outcome is Outcome.STOPPED
    assert heard == [b"a", b"b"]
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert heard == [b"a", b"b", b"c"]


def test_a_guest_that_waits_has_its_output_seen(guest: MakeGuest) -> None:
    """Printed, and then nothing but polls for input: no later exit of Python's, and no tick."""
    machine = guest("""
        BA F8 03     mov dx, 0x3f8
        B0 3E        mov al, '>'
        EE           out dx, al
        BA FD 03     mov dx, 0x3fd
        B9 50 00     mov cx, 80
        EC           in al, dx
        E2 FD        loop $-1
        A0 00 00     mov al, [0]  ; 16 bits more of which to run
        EB F4        jmp $-10
    """)
    seen = threading.Event()
    machine.serial.on_output(lambda _: seen.set(), at_once=b"")
    thread = threading.Thread(target=lambda: machine.run(timeout=20))
    thread.start()
    assert seen.wait(10), "the prompt"
    machine.stop()
    thread.join()
    assert machine.serial.text == ">"


def test_what_a_spinning_guest_printed_is_seen_while_it_spins(guest: MakeGuest) -> None:
    machine = guest("""
        BA F8 03     mov dx, 0x3f8
        B0 3E        mov al, '>'
        EE           out dx, al
        EB FE        jmp $
    """)
    machine.serial.on_output(lambda _: machine.stop(), at_once=b"")
    assert machine.run(timeout=20).outcome is Outcome.STOPPED


def test_on_exit_and_loops_by_hand_see_every_access(guest: MakeGuest) -> None:
    machine, uart = printing(guest, b"ab")
    seen: list[str] = []
    machine.run(timeout=10, on_exit=lambda _, exit: seen.append(type(exit).__name__))
    assert seen == ["IoIn", "IoOut"] * 2 + ["IoIn", "Hlt"]
    assert uart.calls == 5
    by_hand: list[object] = []
    for exit in machine.vcpus[0].raw_exits():
        by_hand.append(exit)
        if not machine.handle(exit):
            break
    assert [type(exit) for exit in by_hand[:2]] == [IoIn, IoOut]
    assert uart.output == b"abab"


def test_input_reaches_a_guest_that_polls(guest: MakeGuest) -> None:
    machine = guest("""
        BA FD 03     mov dx, 0x3fd
        EC           in al, dx
        A8 01        test al, 1
        74 FB        jz $-3
        BA F8 03     mov dx, 0x3f8
        EC           in al, dx
        EE           out dx, al
        EB F1        jmp $-13
    """)
    threading.Timer(0.2, lambda: machine.serial.send("x")).start()
    assert machine.run(timeout=20, until="x").outcome is Outcome.UNTIL
    machine.serial.send("yz")
    assert machine.run(timeout=20, until="yz").outcome is Outcome.UNTIL


def test_two_vcpus_print_in_the_order_in_which_they_did(guest: MakeGuest) -> None:
    uart = CountingUart()
    machine = guest(
        """
        B9 C8 00     mov cx, 200
        BA F8 03     mov dx, 0x3f8
        3A 1E 00 20  cmp bl, [0x2000]
        75 FA        jne $-4
        88 D8        mov al, bl
        EE           out dx, al
        80 36 00 20 01  xor byte [0x2000], 1
        E2 F0        loop $-14
        F4           hlt
        """,
        vcpus=2,
        irqchip="none",
        devices=with_com1(uart),
    )
    first, second = machine.vcpus
    second.state = first.state
    second.regs.rbx = 1
    first.regs.rbx = 0
    second.parked = False
    assert machine.run(timeout=60).outcome is Outcome.HALTED
    assert uart.output == bytes([0, 1] * 200)


class TestUnclaimed:
    def test_reads_give_all_ones_and_the_first_is_told(self, guest: MakeGuest) -> None:
        machine = guest(
            """
            BA 34 12     mov dx, 0x1234
            EC           in al, dx
            88 C3        mov bl, al
            ED           in ax, dx
            EE           out dx, al
            66 EF        out dx, eax
            F4           hlt
            """,
            unclaimed="open-bus",
        )
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.HALTED
        assert machine.vcpus[0].regs.rax & 0xFFFF == 0xFFFF
        assert machine.vcpus[0].regs.rbx & 0xFF == 0xFF
        assert result.unclaimed == Unclaimed(
            2, 2, ("write of 0xff (1 byte) at port 0x1234", "read of 1 byte at port 0x1234")
        )

    def test_stores_vanish_and_are_counted(self, guest: MakeGuest) -> None:
        machine = guest(
            """
            B8 00 F0     mov ax, 0xf000
            8E D8        mov ds, ax
            C6 06 00 10 7F  mov byte [0x1000], 0x7f
            A1 00 10     mov ax, [0x1000]
            F4           hlt
            """,
            memory=0x10000,
            unclaimed="open-bus",
        )
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.HALTED
        assert machine.vcpus[0].regs.rax & 0xFFFF == 0xFFFF
        assert result.unclaimed == Unclaimed(
            1,
            1,
            ("write of 0x7f (1 byte) at address 0xf1000", "read of 2 bytes at address 0xf1000"),
        )

    def test_unclaimed_string_instructions(self, guest: MakeGuest) -> None:
        machine = guest(
            """
            BF 00 20     mov di, 0x2000
            B9 05 00     mov cx, 5
            BA 34 12     mov dx, 0x1234
            F3 6C        rep insb
            F4           hlt
            """,
            unclaimed="open-bus",
        )
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.HALTED
        assert machine.memory.read(0x2000, 6) == b"\xff" * 5 + b"\0"
        assert result.unclaimed.reads == 5

    def test_an_access_that_a_device_has_a_part_of_reaches_it(self, guest: MakeGuest) -> None:
        class Seven:
            name = "seven"

            def read(self, offset: int, size: int) -> int:
                return 7

        machine = guest(
            """
            BA 34 12     mov dx, 0x1234
            66 ED        in eax, dx
            F4           hlt
            """,
            unclaimed="open-bus",
            devices=[Placement(Seven(), Space.PIO, 0x1236, 1)],
        )
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.HALTED
        assert machine.vcpus[0].regs.rax & 0xFFFFFFFF == 0xFF07FFFF
        assert result.unclaimed == Unclaimed()

    def test_where_python_looks_they_count_too(self, guest: MakeGuest) -> None:
        machine = guest("E5 70   in ax, 0x70\nE7 72   out 0x72, ax\nF4   hlt", unclaimed="open-bus",
                        irqchip="none")  # fmt: skip
        result = machine.run(timeout=10, on_exit=lambda *_: None)
        assert result.unclaimed == Unclaimed(
            1, 1, ("write of 0xffff (2 bytes) at port 0x72", "read of 2 bytes at port 0x70")
        )

    def test_without_floating_it_ends_the_run(self, guest: MakeGuest) -> None:
        machine = guest("E5 72   in ax, 0x72\nF4   hlt")
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.CRASHED
        assert result.unclaimed == Unclaimed()


def test_a_device_of_ones_own(guest: MakeGuest) -> None:
    class Mailbox:
        """Reads give the last value; writes are told in bulk."""

        name = "mailbox"

        def __init__(self) -> None:
            self.log: list[tuple[int, ...]] = []

        def publish(self, published: Published) -> None:
            published.lay_out([(0, 4)])
            published.set(0, Rule(reads=5, posts=True, stores=True))

        def read(self, offset: int, size: int) -> int:
            raise AssertionError("C knows")

        def write(self, offset: int, size: int, value: int) -> None:
            self.log.append((offset, size, value))

    mailbox = Mailbox()
    machine = guest("""
        E4 50        in al, 0x50
        88 C3        mov bl, al
        E7 50        out 0x50, ax
        B0 77        mov al, 0x77
        E6 51        out 0x51, al
        66 E5 50     in eax, 0x50
        F4           hlt
    """)
    machine.vcpus[0].regs.rax = 0x1200
    machine.add(mailbox, pio=0x50, length=4)
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert machine.vcpus[0].regs.rbx & 0xFF == 5
    assert machine.vcpus[0].regs.rax & 0xFFFFFFFF == 0x7705
    assert mailbox.log == [(0, 2, 0x1205), (1, 1, 0x77)]
    machine.remove(mailbox)
    assert not machine._board.dispatch._published.keys() & {id(mailbox)}


def random_accesses(seed: int) -> str:
    """A listing of port accesses without end or sense, to what is published and around it."""
    rng = random.Random(seed)
    lines = []
    ports = [*range(0x3F6, 0x402), 0x606, 0x608, 0x60B, 0x70, 0x71, 0x40, 0x43, 0x21, 0x20]
    for _ in range(250):
        port = rng.choice(ports)
        lines.append(f"BA {port & 0xFF:02x} {port >> 8:02x}  mov dx, {port:#x}")
        value = rng.getrandbits(32).to_bytes(4, "little")
        lines.append(f"66 B8 {value.hex(' ')}  mov eax, ...")
        lines.append(
            rng.choice(
                ["EC in al, dx", "ED in ax, dx", "66 ED in eax, dx"] * 2
                + ["EE out dx, al", "EF out dx, ax", "66 EF out dx, eax"]
            )
        )
        lines.append("AA stosb")
    return "\n".join(["FA cli", "BF 00 20 mov di, 0x2000", *lines, "F4 hlt"])


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses_end_as_they_do_where_python_sees_them_all(
    guest: MakeGuest, seed: int
) -> None:
    """Clocks stand still, so that both sides read the same."""
    said = []
    for on_exit in (None, lambda *_: None):
        machine = guest(random_accesses(seed), unclaimed="open-bus", irqchip="none")
        machine.memory.write(0x2000, bytes(250))
        result = machine.run(timeout=20, on_exit=on_exit)
        said.append((result.outcome, machine.memory.read(0x2000, 250), machine.serial.output))
    assert said[0] == said[1]


def test_random_accesses_with_every_clock_and_controller_end(guest: MakeGuest) -> None:
    machine = guest(random_accesses(99), unclaimed="open-bus", irqchip="user")
    assert machine.run(timeout=20).outcome in (Outcome.HALTED, Outcome.RESET, Outcome.TIMEOUT)


# Prints the string at 0x1000, a character at each interrupt of COM1 (IRQ 4 at vector 12), and ends
# after it.  {iir} reads the IIR, {out} prints.
INTERRUPTS = """
    FA              cli
    FC              cld
    C7 06 30 00 39 7C  mov word [0x30], 0x7c39
    C7 06 32 00 00 00  mov word [0x32], 0
    B0 11 E6 20     out 0x20, 0x11
    B0 08 E6 21     out 0x21, 8
    B0 04 E6 21     out 0x21, 4
    B0 01 E6 21     out 0x21, 1
    B0 EF E6 21     out 0x21, 0xef
    BE 00 10        mov si, 0x1000
    BA F9 03        mov dx, 0x3f9
    B0 02           mov al, 2
    EE              out dx, al
    FA              cli
    80 3E 00 20 00  cmp byte [0x2000], 0
    75 04           jne $+6
    FB              sti
    F4              hlt
    EB F4           jmp $-10
    E6 F4           out 0xf4, al
    BA FA 03        mov dx, 0x3fa
    {iir}           in al, dx
    BA F8 03        mov dx, 0x3f8
    AC              lodsb
    84 C0           test al, al
    74 04           jz $+6
    {out}           out dx, al
    EB 06           jmp $+8
    42              inc dx
    EE              out dx, al
    FE 06 00 20     inc byte [0x2000]
    B0 20 E6 20     out 0x20, 0x20
    CF              iret
"""


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
@pytest.mark.parametrize(
    ("iir", "out", "times"),
    [("EC", "EE 90", 1), ("EC", "EE EE", 2), ("90", "EE 90", 1), ("90", "EE EE", 2)],
    ids=["byte", "bytes", "byte-unasked", "bytes-unasked"],
)
def test_a_guest_that_prints_by_interrupts(
    guest: MakeGuest, irqchip: str, iir: str, out: str, times: int
) -> None:
    """Also one that leaves the IIR alone: each byte makes a request of its own."""
    uart = CountingUart()
    machine = guest(INTERRUPTS.format(iir=iir, out=out), devices=with_com1(uart), irqchip=irqchip)
    machine.memory.write(0x1000, b"by interrupts\0")
    assert machine.run(timeout=30).outcome is Outcome.EXITED
    assert uart.output == bytes(byte for byte in b"by interrupts" for _ in range(times))
    if irqchip == "kernel":
        assert uart.calls == 0


# Twenty counts of counter 0, which goes round in 256.
LATCHES = """
    B0 34        mov al, 0x34
    E6 43        out 0x43, al
    31 C0        xor ax, ax
    E6 40        out 0x40, al
    40           inc ax
    E6 40        out 0x40, al
    BF 00 20     mov di, 0x2000
    B9 14 00     mov cx, 20
    31 C0        xor ax, ax
    E6 43        out 0x43, al
    E4 40        in al, 0x40
    AA           stosb
    E4 40        in al, 0x40
    AA           stosb
    E2 F4        loop $-10
    F4           hlt
    E4 40        in al, 0x40
    F4           hlt
"""


@pytest.mark.parametrize("clock", ["realtime", "paused", "warp"])
def test_a_guest_that_looks_at_an_8254(
    guest: MakeGuest, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("read", "write"):
        method = getattr(Pit8254, name)

        def counted(*arguments: Any, name: str = name, method: Any = method) -> Any:
            calls.append(name)
            return method(*arguments)

        monkeypatch.setattr(Pit8254, name, counted)
    machine = guest(LATCHES, clock=clock)
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    # The last of these reads lends the counter to C.
    assert calls == ["write"] * 4 + ["read"] * 2
    counts = struct.unpack("<20H", machine.memory.read(0x2000, 40))
    pit: Any = machine.devices["pit"]
    # From 256 down to 1, and bytes that belong together.
    assert set(counts) <= set(range(1, 257))
    assert len(set(counts)) > 1
    # The device knows how far the guest has come: the low byte is next, and nothing is latched.
    assert pit.read(0, 1) | pit.read(0, 1) << 8 in range(1, 257)
    assert machine.run(timeout=10).outcome is Outcome.HALTED


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_mmio_reads_of_the_hpet_go_on(irqchip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter, read in C, never goes back, and Python's reading lies between."""
    from pykvm.devices.hpet import CONFIGURATION, COUNTER, ENABLE_CNF, Hpet

    read, calls = Hpet.read, 0

    def counted(hpet: Hpet, offset: int, size: int) -> int:
        nonlocal calls
        calls += 1
        return read(hpet, offset, size)

    monkeypatch.setattr(Hpet, "read", counted)
    machine = Machine(
        bytes.fromhex(
            "bf 00 00 d0 fe"  # mov edi, 0xfed00000
            "c7 47 10 01 00 00 00"  # mov dword [rdi + 0x10], 1
            "8b 87 f0 00 00 00"  # mov eax, [rdi + 0xf0]
            "e6 f4"  # out 0xf4, al
            "eb f6"  # jmp $-8
        ),
        mode="long",
        irqchip=irqchip,
    )
    with machine:
        assert machine.run(timeout=10).outcome is Outcome.EXITED
        hpet: Any = machine.devices["hpet"]
        assert hpet.read(CONFIGURATION, 8) & ENABLE_CNF
        last = calls = 0
        for _ in range(20):
            before = hpet.read(COUNTER, 4)
            assert machine.run(timeout=10).outcome is Outcome.EXITED
            assert calls == 1
            calls = -1
            value = machine.vcpus[0].regs.rax & 0xFFFFFFFF
            assert last <= before <= value <= hpet.read(COUNTER, 4)
            last = value
