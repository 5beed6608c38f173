"""Rules and collected accesses, in C, without a device."""

from __future__ import annotations

import threading
import time

import pytest

from pykvm._core import lib
from pykvm.bus import Bus
from pykvm.bus.dispatch import Dispatch
from pykvm.bus.published import (
    CAPTURED,
    WRITTEN,
    Access,
    Counter,
    Dropped,
    Published,
    Rule,
    Shared,
    as_accesses,
)
from pykvm.clock import Clock
from pykvm.errors import ConfigError, StateError

SECOND = 1_000_000_000


@pytest.fixture
def shared() -> Shared:
    return Shared()


def table(
    shared: Shared, *registers: tuple[int, int], length: int = 16, banks: int = 1
) -> Published:
    published = Published(shared, length)
    published.lay_out(registers, banks=banks)
    return published


def taken(shared: Shared) -> list[Access]:
    return [access for _, data in shared.take() for access in as_accesses(data)]


class TestReads:
    def test_a_register_asks_until_it_has_a_rule_and_after_it_had_one(self, shared: Shared) -> None:
        registers = table(shared, (0, 1))
        assert registers.read(0, 1) is None
        registers.set(0, Rule(reads=0x12))
        assert registers.read(0, 1) == 0x12
        registers.set(0, None)
        assert registers.read(0, 1) is None
        registers.set(0, Rule(reads=0x34))
        registers.withdraw()
        assert registers.read(0, 1) is None

    def test_parts_of_a_register_and_accesses_past_it(self, shared: Shared) -> None:
        registers = table(shared, (4, 4), (8, 1))
        registers.set(0, Rule(reads=0x44332211))
        registers.set(1, Rule(reads=0x55))
        assert registers.read(4, 4) == 0x44332211
        assert registers.read(6, 2) == 0x4433
        assert registers.read(7, 1) == 0x44
        # Two registers at once, none, and past the end of the device: the bus knows.
        assert registers.read(7, 2) is None
        assert registers.read(3, 2) is None
        assert registers.read(4, 8) is None
        assert registers.read(16, 1) is None
        assert registers.read(1 << 63, 1) is None

    @pytest.mark.parametrize("value", [0, 1, (1 << 64) - 1])
    def test_a_value_is_cut_to_the_access(self, shared: Shared, value: int) -> None:
        registers = table(shared, (0, 8))
        registers.set(0, Rule(reads=value))
        assert registers.read(0, 8) == value
        assert registers.read(0, 1) == value & 0xFF

    def test_a_counter_is_guest_time(self, shared: Shared) -> None:
        clock = Clock()
        registers = table(shared, (0, 8))
        registers.set(0, Rule(Counter(3, 7, start=-5), mask=0xFFFFFFFF))
        assert registers.read(0, 8) is None, "the time is not set"
        shared.follow(clock)
        before = clock.now()
        value = registers.read(0, 8)
        after = clock.now()
        assert value is not None
        assert before * 3 // 7 - 5 <= value <= after * 3 // 7 - 5

    def test_a_counter_of_late_guest_time_is_exact(self, shared: Shared) -> None:
        """Ticks times frequency need more than 64 bits after a few years."""
        years = 100 * 365 * 24 * 3600 * SECOND
        registers = table(shared, (0, 8))
        registers.set(0, Rule(Counter(3_579_545, SECOND)))
        shared.set_time(time.monotonic_ns() - years)
        value = registers.read(0, 8)
        assert value is not None
        assert years * 3_579_545 // SECOND <= value < (years + 60 * SECOND) * 3_579_545 // SECOND

    def test_a_value_holds_until_a_guest_time(self, shared: Shared) -> None:
        clock = Clock("warp")
        shared.follow(clock)
        clock.start()
        registers = table(shared, (0, 1))
        registers.set(0, Rule(reads=7, until=3600 * SECOND))
        assert registers.read(0, 1) == 7
        clock.warp_to(3600 * SECOND)
        assert registers.read(0, 1) is None

    def test_time_that_stands_still_is_not_known(self, shared: Shared) -> None:
        clock = Clock("paused")
        shared.follow(clock)
        registers = table(shared, (0, 8))
        registers.set(0, Rule(Counter(1, 1)))
        assert registers.read(0, 8) is None
        clock.start()
        assert registers.read(0, 8) is not None
        clock.stop()
        assert registers.read(0, 8) is None
        assert registers.knows(clock)
        assert not registers.knows(Clock())

    def test_a_clock_of_another_host_time_is_not_known(self, shared: Shared) -> None:
        shared.follow(Clock(host_now=lambda: 5))
        registers = table(shared, (0, 8))
        registers.set(0, Rule(Counter(1, 1)))
        assert registers.read(0, 8) is None

    @pytest.mark.parametrize(("step", "base"), [(1, 0), (-1, 1000), (-2, 0)])
    def test_a_counter_that_wraps_and_goes_down(self, shared: Shared, step: int, base: int) -> None:
        """A tick is an hour, so that none passes meanwhile."""
        registers = table(shared, (0, 8))
        shared.set_time(time.monotonic_ns() - 10 * 3600 * SECOND - 1800 * SECOND)
        registers.set(0, Rule(Counter(1, 3600 * SECOND, 5, modulo=8, base=base, step=step)))
        assert registers.read(0, 8) == (base + step * 7) % (1 << 64)

    def test_a_value_from_a_bit_on(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), (2, 2))
        registers.set(0, Rule(reads=0x1234, shift=8))
        registers.set(1, Rule(reads=0x123456, shift=8, mask=0xFFF0))
        assert registers.read(0, 1) == 0x12
        assert (registers.read(2, 2), registers.read(3, 1)) == (0x34, 0)
        with pytest.raises(ConfigError):
            registers.set(0, Rule(reads=1, shift=64))

    def test_a_read_that_is_told(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), banks=2)
        registers.set(0, Rule(reads=9, told=True, after_read=0), bank=1)
        registers.choose(1)
        assert registers.read(0, 1) == 9
        assert registers.bank == 0
        assert registers.read(0, 1) is None
        assert taken(shared) == [(0, 1, 1, 9, 0)]


class TestCaptures:
    """A write that captures a count, and reads of what was captured."""

    @pytest.fixture
    def registers(self, shared: Shared) -> Published:
        """0 gives a count of hours, or the one that a write of 1 to 1 has captured."""
        registers = table(shared, (0, 1), (1, 1), banks=2)
        registers.set(0, Rule(Counter(1, 3600 * SECOND), shift=4), bank=0)
        registers.set(0, Rule(CAPTURED), bank=1)
        ask = bytes({*range(256)} - {1})
        registers.set(1, Rule(takes=True, prompt=ask, captures=0, after_write=1), bank=0)
        registers.set(1, Rule(takes=True, prompt=ask), bank=1)
        return registers

    def at(self, shared: Shared, hours: int) -> None:
        shared.set_time(time.monotonic_ns() - hours * 3600 * SECOND - 1800 * SECOND)

    def test_what_it_was_at_the_write_stays(self, shared: Shared, registers: Published) -> None:
        self.at(shared, 0x32)
        assert registers.read(0, 1) == 3
        assert registers.write(1, 1, 1)
        self.at(shared, 0x54)
        assert registers.read(0, 1) == 0x32
        # Taken, and nothing of it captured in this bank.
        assert registers.write(1, 1, 1)
        assert registers.read(0, 1) == 0x32
        assert taken(shared) == []

    def test_exchange_says_how_far_the_guest_came(
        self, shared: Shared, registers: Published
    ) -> None:
        self.at(shared, 0x32)
        assert registers.exchange(0)[0] == 0
        registers.write(1, 1, 1)
        assert registers.exchange(0) == (1, 0x32)
        assert registers.bank == 0

    def test_recall_says_how_many_writes_were_taken(
        self, shared: Shared, registers: Published
    ) -> None:
        self.at(shared, 0x32)
        registers.choose(1)
        assert registers.recall(1) == 0
        for _ in range(3):
            assert registers.write(1, 1, 1)
        assert not registers.write(1, 1, 2)
        assert [registers.recall(0), registers.bank, registers.recall(1)] == [3, 0, 3]
        registers.write(1, 1, 1)
        assert registers.recall(0) == 4
        registers.choose(1)
        assert registers.recall(0) == 0
        with pytest.raises(ConfigError):
            registers.recall(2)

    def test_recall_is_urgent_while_posted_accesses_wait(self, shared: Shared) -> None:
        urgent: list[int] = []
        shared.on_urgent = lambda: urgent.append(1)
        registers = table(shared, (0, 1), (1, 1))
        registers.set(0, Rule(takes=True))
        registers.set(1, Rule(posts=True))
        registers.write(0, 1, 1)
        assert (registers.recall(0), urgent) == (1, [])
        registers.write(1, 1, 1)
        assert (registers.recall(0), urgent) == (1, [1])

    def test_a_write_without_a_rule_or_without_a_time_asks(
        self, shared: Shared, registers: Published
    ) -> None:
        self.at(shared, 1)
        assert not registers.write(1, 1, 2)
        shared.set_time(None)
        assert not registers.write(1, 1, 1)
        assert registers.bank == 0

    def test_writes_that_are_put_off_no_more_are_still_taken(
        self, shared: Shared, registers: Published
    ) -> None:
        """`Shared.prompt` is about writes that a device waits for."""
        self.at(shared, 1)
        shared.prompt = True
        assert registers.write(1, 1, 1)

    def test_a_register_that_is_none(self, shared: Shared, registers: Published) -> None:
        with pytest.raises(ConfigError):
            registers.set(1, Rule(takes=True, captures=2))


class TestWrites:
    def test_they_reach_the_device_unless_they_are_posted(self, shared: Shared) -> None:
        registers = table(shared, (0, 2))
        assert not registers.write(0, 2, 1)
        registers.set(0, Rule(posts=True))
        assert registers.write(0, 2, 0x1_2345)
        assert registers.write(1, 1, 0x67)
        assert taken(shared) == [(0, 2, 0, 0x2345, 0), (1, 1, 0, 0x67, 0)]
        assert taken(shared) == []

    @pytest.mark.parametrize("prompt", [b"\n", b"\x00\x07\x08\xff"])
    def test_bytes_that_cannot_wait(self, shared: Shared, prompt: bytes) -> None:
        registers = table(shared, (0, 1))
        registers.set(0, Rule(posts=True, prompt=prompt))
        refused = [byte for byte in range(256) if not registers.write(0, 1, byte)]
        assert bytes(refused) == prompt

    def test_none_can_wait_while_somebody_looks_at_each(self, shared: Shared) -> None:
        registers = table(shared, (0, 1))
        registers.set(0, Rule(posts=True))
        shared.prompt = True
        assert not registers.write(0, 1, 1)
        shared.prompt = False
        assert registers.write(0, 1, 1)

    def test_what_is_stored_is_read_back_in_its_bank(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), (4, 4), banks=3)
        registers.set(0, Rule(posts=True, after_write=WRITTEN))
        for bank in range(3):
            registers.set(1, Rule(reads=bank, posts=True, stores=True), bank=bank)
        registers.write(0, 1, 5)  # bank 2
        assert registers.read(4, 4) == 2
        registers.write(5, 1, 0xAB)
        assert registers.read(4, 4) == 0xAB02
        registers.write(0, 1, 1)
        assert registers.read(4, 4) == 1
        # The device says so again: that counts.
        registers.set(1, Rule(reads=2, posts=True, stores=True), bank=2)
        registers.write(0, 1, 2)
        assert registers.read(4, 4) == 2

    def test_guest_time_of_what_is_posted(self, shared: Shared) -> None:
        registers = table(shared, (0, 1))
        registers.set(0, Rule(posts=True, timed=True))
        assert not registers.write(0, 1, 1), "the time is not set"
        clock = Clock()
        shared.follow(clock)
        before = clock.now()
        assert registers.write(0, 1, 1)
        after = clock.now()
        assert before <= taken(shared)[0][4] <= after

    def test_so_many_writes_in_a_row_are_handed_over_at_once(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), (1, 1))
        registers.set(0, Rule(posts=True, most=3))
        registers.set(1, Rule(reads=0, told=True))

        def write() -> int:
            within = lib_pointer()
            return int(lib.pykvm_table_write(registers.core, 0, 1, 0, within))

        assert [write() for _ in range(3)] == [1, 1, lib.PYKVM_HAND_OVER]
        shared.take()
        assert [write() for _ in range(2)] == [1, 1]
        registers.read(1, 1)
        assert [write() for _ in range(3)] == [1, 1, lib.PYKVM_HAND_OVER]

    def test_what_does_not_fit_is_the_devices(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), (1, 1))
        registers.set(0, Rule(posts=True))
        registers.set(1, Rule(reads=1, told=True))
        count = 0
        while registers.write(0, 1, count & 0xFF):
            count += 1
        assert count == 16 * 1024
        assert registers.read(1, 1) is None
        assert not lib.pykvm_collect(shared.core, 0, 0, 1, b"x", 1)
        assert [access[3] for access in taken(shared)] == [n & 0xFF for n in range(count)]
        assert registers.write(0, 1, 1)


def lib_pointer() -> object:
    from pykvm._core import ffi

    return ffi.new("uint64_t *")


class TestLayout:
    @pytest.mark.parametrize(
        ("registers", "length", "banks"),
        [
            ([], 4, 1),
            ([(0, 0)], 4, 1),
            ([(0, 9)], 16, 1),
            ([(3, 2)], 4, 1),
            ([(4, 1)], 4, 1),
            ([(0, 1)], 4, 0),
            ([(0, 1)], 4, 257),
            ([(0, 1)], 0, 1),
            ([(0, 1)], 65537, 1),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, shared: Shared, registers: list[tuple[int, int]], length: int, banks: int
    ) -> None:
        with pytest.raises(ConfigError):
            Published(shared, length).lay_out(registers, banks=banks)

    def test_rules_that_make_no_sense_are_refused(self, shared: Shared) -> None:
        registers = table(shared, (0, 1), banks=2)
        for rule in (Rule(Counter(1, 0)), Rule(reads=0, after_read=2), Rule(after_write=2)):
            with pytest.raises(ConfigError):
                registers.set(0, rule)
        with pytest.raises(ConfigError):
            registers.set(1, Rule(reads=0))
        with pytest.raises(ConfigError):
            registers.set(0, Rule(reads=0), bank=2)
        with pytest.raises(ConfigError):
            registers.choose(2)

    def test_registers_are_laid_out_once(self, shared: Shared) -> None:
        registers = table(shared, (0, 1))
        with pytest.raises(StateError):
            registers.lay_out([(0, 1)])


def test_a_change_while_accesses_wait_is_urgent(shared: Shared) -> None:
    calls: list[int] = []
    shared.on_urgent = lambda: calls.append(1)
    registers, other = table(shared, (0, 1)), table(shared, (0, 1))
    registers.set(0, Rule(posts=True))
    registers.write(0, 1, 0)
    other.set(0, Rule(reads=1))
    assert not calls, "nothing waits for that device"
    registers.set(0, Rule(posts=True))
    assert not calls, "nothing has changed"
    registers.set(0, None)
    assert calls == [1]
    shared.take()
    registers.set(0, Rule(reads=1))
    registers.choose(0)
    assert calls == [1]


def test_accesses_of_devices_and_posted_writes_keep_their_order() -> None:
    log: list[tuple[str, int]] = []

    class Posting:
        def __init__(self, name: str) -> None:
            self.name = name

        def publish(self, published: Published) -> None:
            published.lay_out([(8, 1)])
            published.set(0, Rule(posts=True))
            self.registers = published

        def write(self, offset: int, size: int, value: int) -> None:
            assert (offset, size) == (8, 1)
            log.append((self.name, value))

    class PostedDevice:
        name = "posted"

        def posted(self, writes: object) -> None:
            log.extend(("posted", value) for _, _, value in writes)  # type: ignore[attr-defined]

    bus, first, second = Bus(), Posting("first"), Posting("second")
    bus.add_pio(0x10, 1, first, offset=8)
    bus.add_pio(0x20, 1, second, offset=8)
    slot = bus.add_pio(0x30, 1, PostedDevice()).slot
    dispatch = Dispatch(bus)
    first.registers.write(8, 1, 1)
    lib.pykvm_collect(dispatch.collected.core, slot, 0, 1, b"\2", 1)
    second.registers.write(8, 1, 3)
    first.registers.write(8, 1, 4)
    assert log == []
    assert dispatch.waiting
    dispatch.deliver()
    assert log == [("first", 1), ("posted", 2), ("second", 3), ("first", 4)]

    second.registers.write(8, 1, 5)
    bus.remove(second)
    dispatch.rebuild()
    dispatch.deliver()
    assert log[4:] == [], "a device that has gone is told nothing"
    assert not second.registers.write(8, 1, 6)


def test_what_one_access_raises_keeps_the_later_ones() -> None:
    log: list[int] = []

    class Picky:
        name = "picky"

        def publish(self, published: Published) -> None:
            published.lay_out([(0, 1)])
            published.set(0, Rule(posts=True))
            self.registers = published

        def write(self, offset: int, size: int, value: int) -> None:
            log.append(value)
            if value == 2:
                raise KeyError(value)

    bus, picky = Bus(), Picky()
    bus.add_pio(0x10, 1, picky)
    dispatch = Dispatch(bus)
    for value in (1, 2, 3):
        picky.registers.write(0, 1, value)
    with pytest.raises(KeyError):
        dispatch.deliver()
    assert dispatch.waiting
    dispatch.deliver()
    assert log == [1, 2, 3]


def test_dropped_accesses_are_counted_and_the_first_of_a_place_is_kept(shared: Shared) -> None:
    assert shared.drops(writes=False) == shared.drops(writes=True) == (0, [])
    shared.drop(pio=True, address=0x70, size=2, value=None, count=3)
    shared.drop(pio=False, address=0x1000, size=8, value=5)
    shared.drop(pio=False, address=0x1000, size=1, value=6)
    assert shared.drops(writes=False) == (3, [Dropped(True, 0x70, 2, None)])
    assert shared.drops(writes=True) == (2, [Dropped(False, 0x1000, 8, 5)])


def test_any_number_of_threads_post_and_publish(shared: Shared) -> None:
    registers = table(shared, (0, 1), banks=2)
    registers.set(0, Rule(reads=0, posts=True))
    stop = threading.Event()
    posted = [0, 0]

    def post(number: int) -> None:
        while not stop.is_set():
            posted[number] += registers.write(0, 1, number)

    def publish() -> None:
        bank = 0
        while not stop.is_set():
            bank ^= 1
            registers.set(0, Rule(reads=bank, posts=bool(bank)))
            registers.choose(bank)

    threads = [threading.Thread(target=post, args=(n,)) for n in range(2)]
    threads.append(threading.Thread(target=publish))
    for thread in threads:
        thread.start()
    seen = [0, 0]
    while min(seen) < 2000:
        for _, _, _, number, _ in taken(shared):
            seen[number] += 1
    stop.set()
    for thread in threads:
        thread.join()
    for _, _, _, number, _ in taken(shared):
        seen[number] += 1
    assert seen == posted
