"""A pair of 8259s that C answers for, beside one that Python answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.line import edge_of
from pykvm.interrupts.pic import Pic8259Pair
from support.front import Front
from support.lines import Line

COMMANDS = st.sampled_from([0x20, 0x20, 0x60, 0x63, 0x67, 0xA0, 0x0A, 0x0B, 0x0C, 0x48, 0x68, 0x11])
PIC_STEP = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("out"), st.sampled_from([0, 2]), COMMANDS),
    st.tuples(st.just("out"), st.sampled_from([1, 3]), st.integers(0, 255)),
    st.tuples(st.just("line"), st.integers(0, 15), st.integers(0, 1)),
    st.tuples(st.just("edge"), st.integers(0, 15), st.just(0)),
    st.tuples(st.just("ack"), st.just(0), st.just(0)),
    st.tuples(st.just("save"), st.just(0), st.just(0)),
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
        elif kind == "edge":
            if self.levels[number] and self.fronts:
                edge_of(self.lines[number])()
            elif self.levels[number]:
                self.lines[number].set(False)
                self.lines[number].set(True)
        elif kind == "ack":
            self.settle()
            result = self.pair.acknowledge()
        elif kind == "save":
            self.settle()
            result = [port.state() for port in self.ports]
            if self.fronts:
                for port, state in zip(self.ports, result, strict=True):
                    port.restore(state)
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


@pytest.mark.parametrize("irq", [0, 8])
@pytest.mark.parametrize("specific", [False, True])
def test_an_8259s_end_of_interrupt_waits_for_nothing(irq: int, specific: bool) -> None:
    """C keeps it until the chip is looked at: no access is handed over."""
    side = PicSide(True)
    chips = [1, 0] if irq > 7 else [0]
    side.lines[irq].set(True)
    for _ in range(3):
        assert side.pair.acknowledge() == 0x20 + irq
        for chip in chips:
            front = side.fronts[chip]
            front.answered = 0
            number = (irq & 7) if chip == chips[0] else 2
            front.write(0, 0x60 | number if specific else 0x20)
            assert front.answered == 1
            assert not front.dispatch.waiting
        assert not side.pair.pending
        edge_of(side.lines[irq])()
        assert side.pair.pending
    assert [port.state().isr for port in side.ports] == [0, 0]


def test_an_8259_is_asked_for_an_end_of_what_is_not_in_service() -> None:
    side = PicSide(True)
    side.lines[0].set(True)
    side.pair.acknowledge()
    front = side.fronts[0]
    front.answered = 0
    front.write(0, 0x61)
    assert front.answered == 0
    assert side.ports[0].state().isr == 1
