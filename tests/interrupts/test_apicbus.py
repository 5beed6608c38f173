"""Messages: who gets them, by every way of addressing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupts.fakes import Board

from pykvm.interrupts import ApicBus, LocalApic, Message
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.ioapic import REMOTE_IRR, IoApic
from pykvm.interrupts.message import (
    FIXED,
    INIT,
    LOWEST_PRIORITY,
    NMI,
    SHORTHAND_ALL,
    SHORTHAND_OTHERS,
    SHORTHAND_SELF,
    STARTUP,
)

VECTOR = 0x41
FLAT, CLUSTER = 0xFFFFFFFF, 0x0FFFFFFF


def write(lapic: LocalApic, register: int, value: int) -> None:
    lapic.write(register << 4, 4, value)


def board_of(
    ids: tuple[int, ...] = (0, 1, 2, 3),
    *,
    ldr: tuple[int, ...] = (),
    dfr: int = FLAT,
    x2apic: bool = False,
) -> Board:
    """Software-enabled APICs with these logical IDs."""
    board = Board(ids)
    for lapic in board.lapics:
        write(lapic, reg.SVR, 0x1FF)
        write(lapic, reg.DFR, dfr)
    for lapic, logical_id in zip(board.lapics, ldr, strict=False):
        write(lapic, reg.LDR, logical_id << 24)
    if x2apic:
        for lapic in board.lapics:
            lapic.base |= reg.BASE_X2APIC
    return board


def reached(board: Board) -> list[int]:
    """Which processors have the vector pending, by their place; it is pending no more."""
    places = []
    for place, lapic in enumerate(board.lapics):
        if lapic.interrupt is not None:
            assert lapic.acknowledge() == VECTOR
            lapic.eoi()
            places.append(place)
    return places


def deliver(board: Board, destination: int, *, logical: bool = False) -> list[int]:
    """Where a message of an I/O APIC goes."""
    board.bus.deliver(Message(destination, logical, FIXED, VECTOR))
    return reached(board)


def ipi(board: Board, place: int, destination: int, command: int) -> list[int]:
    """Where the message goes that a processor sends by its ICR."""
    lapic = board.lapics[place]
    if lapic.x2apic:
        lapic.write_msr(0x830, destination << 32 | command | VECTOR)
    else:
        write(lapic, reg.ICR_HIGH, destination << 24)
        write(lapic, reg.ICR, command | VECTOR)
    return reached(board)


class TestPhysical:
    @pytest.mark.parametrize(
        ("destination", "places"), [(0, [0]), (2, [2]), (7, []), (0xFF, [0, 1, 2, 3])]
    )
    def test_xapic(self, destination: int, places: list[int]) -> None:
        board = board_of()
        assert deliver(board, destination) == places
        assert ipi(board, 1, destination, 0x4000) == places

    def test_changed_id(self) -> None:
        board = board_of()
        write(board.lapics[1], reg.ID, 0x02000000)
        assert deliver(board, 1) == []
        assert deliver(board, 2) == [1, 2]

    def test_x2apic(self) -> None:
        board = board_of((0, 0x1FF, 0xFF, 0x12345), x2apic=True)
        assert ipi(board, 0, 0x1FF, 0) == [1]
        assert ipi(board, 0, 0xFF, 0) == [2], "0xff is an ID like others"
        assert ipi(board, 0, 0x12345, 0) == [3]
        assert ipi(board, 0, 0xFFFFFFFF, 0) == [0, 1, 2, 3]

    def test_8_bit_broadcast_reaches_x2apics(self) -> None:
        """From an I/O APIC, which has no other; as in KVM."""
        assert deliver(board_of(x2apic=True), 0xFF) == [0, 1, 2, 3]

    def test_xapic_with_a_large_id(self) -> None:
        """It answers to its x2APIC ID, or it could not be started; as in KVM."""
        board = board_of((0, 0x101))
        assert deliver(board, 0x101) == [1]
        assert deliver(board, 0x01) == [1]

    def test_mixed_modes(self) -> None:
        board = board_of((0, 1, 2))
        board.lapics[0].base |= reg.BASE_X2APIC
        assert ipi(board, 0, 1, 0) == [1]
        assert ipi(board, 0, 0xFF, 0) == [1, 2], "a broadcast to those of 8 bits"
        assert ipi(board, 1, 0, 0) == [0]
        assert ipi(board, 1, 0xFF, 0) == [0, 1, 2]


class TestLogical:
    @pytest.mark.parametrize(
        ("destination", "places"),
        [(0x01, [0]), (0x05, [0, 2]), (0x30, []), (0, []), (0xFF, [0, 1, 2, 3])],
    )
    def test_flat(self, destination: int, places: list[int]) -> None:
        board = board_of(ldr=(1, 2, 4, 8))
        assert deliver(board, destination, logical=True) == places
        assert ipi(board, 3, destination, 0x800) == places

    @pytest.mark.parametrize(
        ("destination", "places"),
        [(0x11, [0]), (0x13, [0, 1]), (0x21, [2]), (0x2F, [2, 3]), (0x31, []), (0x10, [])],
    )
    def test_cluster(self, destination: int, places: list[int]) -> None:
        board = board_of(ldr=(0x11, 0x12, 0x21, 0x22), dfr=CLUSTER)
        assert deliver(board, destination, logical=True) == places

    def test_cluster_broadcast(self) -> None:
        board = board_of(ldr=(0x11, 0x12, 0x21, 0x22), dfr=CLUSTER)
        assert deliver(board, 0xFF, logical=True) == [0, 1, 2, 3]

    def test_undefined_model_hears_nothing(self) -> None:
        board = board_of(ldr=(1, 1, 1, 1), dfr=0x5FFFFFFF)
        assert deliver(board, 0x01, logical=True) == []

    def test_x2apic(self) -> None:
        board = board_of((0, 1, 0x10, 0x2F), x2apic=True)
        assert ipi(board, 0, 0x00000003, 0x800) == [0, 1]
        assert ipi(board, 0, 0x00010001, 0x800) == [2]
        assert ipi(board, 0, 0x00028000, 0x800) == [3]
        assert ipi(board, 0, 0x00030001, 0x800) == []
        assert ipi(board, 0, 0xFFFFFFFF, 0x800) == [0, 1, 2, 3]
        assert deliver(board, 0x02, logical=True) == [1]


class TestShorthands:
    @pytest.mark.parametrize(
        ("shorthand", "places"),
        [
            (SHORTHAND_SELF, [1]),
            (SHORTHAND_ALL, [0, 1, 2, 3]),
            (SHORTHAND_OTHERS, [0, 2, 3]),
        ],
    )
    @pytest.mark.parametrize("x2apic", [False, True])
    def test_fixed(self, shorthand: int, places: list[int], x2apic: bool) -> None:
        board = board_of(x2apic=x2apic)
        assert ipi(board, 1, 0x77, shorthand << 18) == places

    def test_a_shorthand_without_a_sender(self) -> None:
        board = board_of()
        board.bus.deliver(Message(0, False, FIXED, VECTOR, shorthand=SHORTHAND_SELF))
        assert reached(board) == []
        board.bus.deliver(Message(0, False, FIXED, VECTOR, shorthand=SHORTHAND_OTHERS))
        assert reached(board) == [0, 1, 2, 3]

    def test_disabled_ones_hear_nothing(self) -> None:
        board = board_of()
        board.lapics[2].base &= ~reg.BASE_ENABLE
        assert ipi(board, 0, 0, SHORTHAND_ALL << 18) == [0, 1, 3]
        assert deliver(board, 2) == []
        assert deliver(board, 0xFF) == [0, 1, 3]


class TestModes:
    def requests(self, board: Board) -> list[list[object]]:
        return [port.requests for port in board.ports]

    def test_nmi(self) -> None:
        board = board_of((0, 1, 2))
        ipi(board, 0, 1, NMI << 8)
        assert self.requests(board) == [[], ["nmi"], []]

    def test_start_up(self) -> None:
        """INIT, INIT level de-assert, SIPI, SIPI: as system software starts the others."""
        board = board_of((0, 1, 2))
        for command in (INIT << 8 | 0xC000, INIT << 8 | 0x8000, STARTUP << 8, STARTUP << 8):
            ipi(board, 0, 0, SHORTHAND_OTHERS << 18 | command)
        started = ["init", ("sipi", VECTOR), ("sipi", VECTOR)]
        assert self.requests(board) == [[], started, started]

    def test_init_of_itself(self) -> None:
        board = board_of((0, 1))
        ipi(board, 0, 0, INIT << 8 | 0x4000)
        assert self.requests(board) == [["init"], []]

    def test_level_triggered_ipi(self) -> None:
        """Asserted, it sets TMR; de-asserted, it is nothing."""
        board = board_of((0, 1))
        assert ipi(board, 0, 1, 0x8000) == []
        write(board.lapics[0], reg.ICR, 0xC000 | VECTOR)
        assert board.lapics[1].read((reg.TMR + 2) << 4, 4) == 1 << VECTOR % 32

    def test_software_disabled(self) -> None:
        board = board_of((0, 1))
        write(board.lapics[1], reg.SVR, 0xFF)
        assert deliver(board, 1) == []
        ipi(board, 0, 1, NMI << 8)
        assert self.requests(board) == [[], ["nmi"]]


class TestLowestPriority:
    def one(self, board: Board, vector: int, destination: int = 0xF) -> int:
        board.bus.deliver(Message(destination, True, LOWEST_PRIORITY, vector))
        (place,) = [n for n, lapic in enumerate(board.lapics) if lapic.interrupt is not None]
        assert board.lapics[place].acknowledge() == vector
        board.lapics[place].eoi()
        return place

    def test_spreads_by_vector(self) -> None:
        """As KVM's vector hashing does."""
        board = board_of(ldr=(1, 2, 4, 8))
        assert [self.one(board, 0x40 + i) for i in range(6)] == [0, 1, 2, 3, 0, 1]
        assert [self.one(board, 0x40 + i, 0b1010) for i in range(3)] == [1, 3, 1]

    def test_passes_over_disabled_ones(self) -> None:
        board = board_of(ldr=(1, 2, 4, 8))
        write(board.lapics[0], reg.SVR, 0xFF)
        assert [self.one(board, 0x40 + i) for i in range(4)] == [2, 3, 1, 2]

    def test_none_able(self) -> None:
        board = board_of(ldr=(1, 2, 4, 8))
        for lapic in board.lapics:
            write(lapic, reg.SVR, 0xFF)
        board.bus.deliver(Message(0xF, True, LOWEST_PRIORITY, VECTOR))
        assert reached(board) == []

    def test_one_of_a_logical_broadcast(self) -> None:
        board = board_of(ldr=(1, 2, 4, 8))
        assert self.one(board, 0x42, 0xFF) == 2

    def test_physical_broadcast_goes_to_all(self) -> None:
        board = board_of()
        board.bus.deliver(Message(0xFF, False, LOWEST_PRIORITY, VECTOR))
        assert reached(board) == [0, 1, 2, 3]


class TestMsi:
    @pytest.mark.parametrize(
        ("address", "data", "message"),
        [
            (0xFEE00000, 0x0041, Message(0, False, FIXED, 0x41)),
            (0xFEEFF000, 0x0441, Message(0xFF, False, NMI, 0x41)),
            (0xFEE0300C, 0x0041, Message(3, True, LOWEST_PRIORITY, 0x41)),
            (0xFEE03008, 0x0441, Message(3, False, NMI, 0x41)),
            (0xFEE01004, 0xC141, Message(1, True, LOWEST_PRIORITY, 0x41, level=True)),
            (0xFEE01000, 0x8041, Message(1, False, FIXED, 0x41, level=True, assert_=False)),
            (0xFEE01000, 0xFFFF0041, Message(1, False, FIXED, 0x41)),
        ],
    )
    def test_fields(self, address: int, data: int, message: Message) -> None:
        assert Message.from_msi(address, data) == message

    def test_delivery(self) -> None:
        board = board_of()
        board.bus.deliver(Message.from_msi(0xFEE02000, VECTOR))
        assert reached(board) == [2]


@given(
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.lists(st.integers(0, 0xFFFFFFFF), min_size=4, max_size=4),
    st.sampled_from([FLAT, CLUSTER, 0x7FFFFFFF]),
)
def test_any_message_goes_somewhere_or_nowhere(
    high: int, command: int, x2apic: bool, ldr: list[int], dfr: int
) -> None:
    """By MSI and by ICR: none twice, lowest priority at most one unless physically to all."""
    board = board_of((0, 1, 2, 300), ldr=tuple(n & 0xFF for n in ldr), dfr=dfr, x2apic=x2apic)
    message = Message.from_msi(high, command & 0xFFFFFFFF)
    targets = board.bus.targets(message)
    assert len(set(map(id, targets))) == len(targets)
    before = [lapic.page() for lapic in board.lapics]
    board.bus.deliver(message)
    changed = sum(lapic.page() != page for lapic, page in zip(board.lapics, before, strict=True))
    assert changed <= len(targets)
    if message.mode == LOWEST_PRIORITY and message.destination != 0xFF:
        assert changed <= 1
    if x2apic:
        command &= 0xFFFFFFFF << 32 | reg.ICR_WRITABLE
        board.lapics[1].write_msr(0x830, command)
    else:
        write(board.lapics[1], reg.ICR_HIGH, high)
        write(board.lapics[1], reg.ICR, command)


def test_a_level_that_no_apic_takes_is_sent_again_once_one_does() -> None:
    """A line that is up before its local APIC is enabled does not hang in the I/O APIC."""
    board = Board()
    bus = ApicBus([board.lapic])
    ioapic = IoApic(bus.deliver)
    board.lapic.write(reg.SVR << 4, 4, 0xFF)
    for register, value in ((0x18, 0x8031), (0x19, 0)):
        ioapic.write(0, 4, register)
        ioapic.write(0x10, 4, value)
    line = ioapic.line(4)
    line.set(True)
    assert ioapic.entries[4] & REMOTE_IRR == 0
    line.set(False)
    board.lapic.write(reg.SVR << 4, 4, 0x1FF)
    line.set(True)
    assert ioapic.entries[4] & REMOTE_IRR
    assert board.lapic.interrupt == 0x31
