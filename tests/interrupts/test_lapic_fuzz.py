"""The local APIC under a guest that does anything, and others that do at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts.fakes import Board

from pykvm.interrupts import GpFault, LocalApic, Message
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.lapic_registers import lvt_registers, lvt_writable

Step = Callable[[Board, int], object]

# Values that mean something, beside any.
VALUES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0x7FF),
    st.integers(0, 20).map(lambda bit: 1 << bit),
    st.sampled_from([0x1FF, 0xFF, 0x20040, 0x40040, 0x8040, 0x18040, 0x440, 0x700, 2**64 - 1]),
)
REGISTERS = st.one_of(st.integers(0, 0x3F), st.sampled_from(sorted(range(0x2F, 0x40))))
CPUS = st.integers(0, 1)


def page_write(offset: int, size: int, value: int) -> Step:
    return lambda board, cpu: board.lapics[cpu].write(offset, size, value)


def page_read(offset: int, size: int) -> Step:
    def step(board: Board, cpu: int) -> None:
        assert 0 <= board.lapics[cpu].read(offset, size) < 1 << 8 * size

    return step


def msr_write(index: int, value: int) -> Step:
    def step(board: Board, cpu: int) -> None:
        before = state(board)
        try:
            board.lapics[cpu].write_msr(index, value)
        except GpFault:
            assert state(board) == before, "a fault changes nothing"

    return step


def msr_read(index: int) -> Step:
    def step(board: Board, cpu: int) -> None:
        with suppress(GpFault):
            assert 0 <= board.lapics[cpu].read_msr(index) < 1 << 64

    return step


def base(flags: int) -> Step:
    return msr_write(0x1B, 0xFEE00000 | flags)


def accept(vector: int, level: bool) -> Step:
    def step(board: Board, cpu: int) -> None:
        board.lapics[cpu].accept(vector, level)

    return step


def lint(pin: int, level: bool) -> Step:
    return lambda board, cpu: board.lapics[cpu].set_lint(pin, level)


def trigger(register: int) -> Step:
    def step(board: Board, cpu: int) -> None:
        board.lapics[cpu].trigger(register)

    return step


def message(address: int, data: int) -> Step:
    return lambda board, cpu: board.bus.deliver(Message.from_msi(address, data))


def cr8(value: int) -> Step:
    return lambda board, cpu: setattr(board.lapics[cpu], "cr8", value)


def elapse(nanoseconds: int, late: bool) -> Step:
    def step(board: Board, cpu: int) -> None:
        if late:
            board.clock.stall(nanoseconds)
        else:
            board.clock.advance(nanoseconds)

    return step


def acknowledge(board: Board, cpu: int) -> None:
    """Taking an interrupt nests: what is in service stays below it."""
    lapic = board.lapics[cpu]
    expected = lapic.interrupt
    in_service = bits(lapic, reg.ISR)
    vector = lapic.acknowledge()
    if expected is None:
        assert vector == int.from_bytes(lapic.page()[0xF0:0xF1], "little")
        assert bits(lapic, reg.ISR) == in_service
    else:
        assert vector == expected
        assert all(vector >> 4 > other >> 4 for other in members(in_service))
        assert bits(lapic, reg.ISR) == in_service | 1 << vector


def init(board: Board, cpu: int) -> None:
    board.lapics[cpu].init()


STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(page_write, REGISTERS.map(lambda register: register << 4), st.just(4), VALUES),
    st.builds(page_write, st.integers(0, 0x1008), st.sampled_from([1, 2, 4, 8]), VALUES),
    st.builds(page_read, st.integers(0, 0x1008), st.sampled_from([1, 2, 4, 8])),
    st.builds(msr_write, REGISTERS.map(lambda register: 0x800 + register), VALUES),
    st.builds(msr_write, st.sampled_from([0x6E0, 0x1B, 0x10, 0x8FF]), VALUES),
    st.builds(msr_read, st.integers(0x7FF, 0x840) | st.sampled_from([0x1B, 0x6E0, 0])),
    st.builds(base, st.sampled_from([0, 0x400, 0x800, 0x900, 0xC00, 0xD00])),
    st.builds(accept, st.integers(0, 255), st.booleans()),
    st.builds(lint, st.integers(0, 1), st.booleans()),
    st.builds(trigger, st.integers(0, 0x40)),
    st.builds(message, st.integers(0xFEE00000, 0xFEEFFFFF), st.integers(0, 0xFFFF)),
    st.builds(cr8, st.integers(0, 15)),
    st.builds(elapse, st.integers(0, 10**7), st.booleans()),
    st.just(acknowledge),
    st.just(init),
)


def bits(lapic: LocalApic, first: int) -> int:
    page = lapic.page()
    words = (
        int.from_bytes(page[(first + i) << 4 : ((first + i) << 4) + 4], "little") for i in range(8)
    )
    return sum(word << 32 * i for i, word in enumerate(words))


def members(vectors: int) -> list[int]:
    return [n for n in range(256) if vectors >> n & 1]


def state(board: Board) -> list[tuple[bytes, int, str]]:
    return [(lapic.page(), lapic.base, str(lapic)) for lapic in board.lapics]


def check(board: Board) -> None:
    """What holds whatever was done."""
    for lapic in board.lapics:
        page = lapic.page()
        word = {n: int.from_bytes(page[n << 4 : (n << 4) + 4], "little") for n in range(0x40)}
        in_service = members(bits(lapic, reg.ISR))
        assert len({vector >> 4 for vector in in_service}) == len(in_service)
        assert not bits(lapic, reg.IRR) & 0xFFFF
        assert not bits(lapic, reg.ISR) & 0xFFFF
        assert not bits(lapic, reg.TMR) & 0xFFFF

        tpr, top = word[reg.TPR], max(in_service, default=0) & 0xF0
        assert tpr <= 0xFF
        assert word[reg.PPR] == (tpr if tpr & 0xF0 >= top else top)
        assert lapic.cr8 == tpr >> 4
        if lapic.interrupt is not None:
            assert lapic.enabled
            assert lapic.interrupt == max(members(bits(lapic, reg.IRR)))
            assert lapic.interrupt >> 4 > word[reg.PPR] >> 4

        writable = lvt_writable(cmci=True, tsc_deadline=True)
        for register in lvt_registers(cmci=True):
            remote = reg.LVT_REMOTE_IRR if register in (reg.LVT_LINT0, reg.LVT_LINT1) else 0
            assert not word[register] & ~(writable[register] | remote)
            if not word[reg.SVR] & reg.SVR_ENABLE and register != reg.LVT_LINT0:
                assert word[register] & reg.LVT_MASKED
        assert not word[reg.SVR] & ~0x13FF
        assert not word[reg.ESR] & ~0xE0
        assert not word[reg.ICR] & ~reg.ICR_WRITABLE
        assert word[reg.CURRENT_COUNT] <= word[reg.INITIAL_COUNT]
        if not lapic.x2apic:
            assert not (word[reg.ID] | word[reg.LDR] | lapic.base & 0xFF) & 0xFF
        if word[reg.LVT_TIMER] & reg.LVT_MASKED:
            cpu = board.lapics.index(lapic)
            assert board.clock.timers[cpu].when is None, "a masked timer asks nothing of the clock"


@settings(max_examples=150)
@given(st.booleans(), st.lists(st.tuples(CPUS, STEPS), max_size=60))
def test_anything(x2apic: bool, steps: list[tuple[int, Step]]) -> None:
    board = Board((0, 1), directed_eoi=True, cmci=True)
    for lapic in board.lapics:
        lapic.write(reg.SVR << 4, 4, 0x1FF)
        if x2apic:
            lapic.base |= reg.BASE_X2APIC
    for cpu, step in steps:
        step(board, cpu)
        check(board)
    for lapic in board.lapics:
        assert len(str(lapic)) < 2000
        lapic.reset()
    fresh = Board((0, 1), directed_eoi=True, cmci=True)
    assert [lapic.page() for lapic in board.lapics] == [lapic.page() for lapic in fresh.lapics]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("accept"), st.integers(16, 255)),
            st.tuples(st.just("tpr"), st.integers(0, 255)),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("eoi"), st.just(0)),
        ),
        max_size=80,
    )
)
def test_against_a_model(steps: list[tuple[str, int]]) -> None:
    """The same by sets and a stack, as the manual has it."""
    board = Board()
    lapic = board.lapic
    lapic.write(reg.SVR << 4, 4, 0x1FF)
    pending: set[int] = set()
    stack: list[int] = []
    tpr = 0
    for what, value in steps:
        if what == "accept":
            assert lapic.accept(value) == (value not in pending)
            pending.add(value)
        elif what == "tpr":
            lapic.write(reg.TPR << 4, 4, value)
            tpr = value
        elif what == "eoi":
            lapic.write(reg.EOI << 4, 4, 0)
            if stack:
                stack.pop()
        elif lapic.interrupt is not None:
            stack.append(lapic.acknowledge())
            pending.remove(stack[-1])
        limit = max(tpr >> 4, *(vector >> 4 for vector in stack), 0)
        best = max(pending, default=0)
        assert lapic.interrupt == (best if best >> 4 > limit else None)
        assert members(bits(lapic, reg.IRR)) == sorted(pending)
        assert members(bits(lapic, reg.ISR)) == sorted(stack) == stack


@given(st.booleans(), st.lists(st.sampled_from(["up", "down", "take", "eoi"]), max_size=60))
def test_level_pin_is_never_lost_or_doubled(lint1: bool, steps: list[str]) -> None:
    """Pending or in service while remote IRR is set, and asked for whenever the pin is high."""
    board = Board()
    lapic = board.lapic
    lapic.write(reg.SVR << 4, 4, 0x1FF)
    entry = reg.LVT_LINT0 + lint1
    lapic.write(entry << 4, 4, 0x8050)
    high = False
    for step in steps:
        if step in ("up", "down"):
            high = step == "up"
            lapic.set_lint(int(lint1), high)
        elif step == "eoi":
            lapic.write(reg.EOI << 4, 4, 0)
        elif lapic.interrupt is not None:
            lapic.acknowledge()
        remote = bool(lapic.read(entry << 4, 4) & reg.LVT_REMOTE_IRR)
        held = bool((bits(lapic, reg.IRR) | bits(lapic, reg.ISR)) >> 0x50 & 1)
        assert remote == held
        assert remote or not high


def test_threads_lose_nothing() -> None:
    """Two send distinct vectors, again and again, while the processor takes them."""
    board = Board()
    lapic = board.lapic
    lapic.write(reg.SVR << 4, 4, 0x1FF)
    rounds, taken = 1000, dict.fromkeys(range(32, 48), 0)
    room = {vector: threading.Semaphore(1) for vector in taken}

    def sender(mine: list[int]) -> None:
        for _ in range(rounds):
            for vector in mine:
                assert room[vector].acquire(timeout=30)
                assert lapic.accept(vector, level=bool(vector & 1))

    threads = [
        threading.Thread(target=sender, args=(list(range(first, 48, 2)),)) for first in (32, 33)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads change places as often as they can
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or lapic.interrupt is not None:
            if lapic.interrupt is not None:
                vector = lapic.acknowledge()
                taken[vector] += 1
                lapic.eoi()
                room[vector].release()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert set(taken.values()) == {rounds}
