"""A pair of 8259s that C answers for, beside one that Python answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pykvm.interrupts.pic import Pic8259Pair
from support.front import Front
from support.lines import Line

if TYPE_CHECKING:
    pass

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
