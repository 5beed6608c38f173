"""The HPET beside a model that counts tick by tick, and with a guest that does anything."""

from __future__ import annotations

from devices.hpet_rig import IRQS, ONES32, ONES64, Rig, comparator, config, route
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.hpet import (
    CONFIGURATION,
    COUNTER,
    ENABLE_CNF,
    INT_ENB_CNF,
    INT_TYPE_CNF,
    MODE32_CNF,
    PER_INT_CAP,
    ROUTE_SHIFT,
    SIZE_CAP,
    STATUS,
    TIMERS,
    TYPE_CNF,
    VAL_SET_CNF,
)


class Ticking:
    """Timer 0 of an HPET that looks at every tick: counter, comparator, matches."""

    def __init__(self) -> None:
        self.counter = 0
        self.comparator = ONES64
        self.period = 0
        self.periodic = self.running = self.mode32 = False
        self.set_value = False
        self.matches = 0
        # Whether the counter has stood at its value long enough to match.
        self.looked = False

    def look(self) -> None:
        ones = ONES32 if self.mode32 else ONES64
        if self.running and not self.looked:
            self.looked = True
            if self.counter & ones == self.comparator:
                self.matches += 1
                if self.periodic:
                    self.comparator = self.comparator + self.period & ones

    def tick(self) -> None:
        self.look()
        if self.running:
            self.counter = self.counter + 1 & ONES64
            self.looked = False
        self.look()


NEAR = st.integers(0, 60)
FAR = st.sampled_from((ONES32, ONES32 - 20, 1 << 32, ONES64 - 20, ONES64))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 120)),
        st.tuples(st.just("enable"), st.booleans()),
        st.tuples(st.just("counter"), NEAR | FAR),
        st.tuples(st.just("config"), st.integers(0, 7)),
        st.tuples(st.just("comparator"), NEAR | FAR),
        st.tuples(st.just("ahead"), NEAR),
    ),
    max_size=16,
)


@settings(max_examples=150)
@given(actions=ACTIONS, prompt=st.booleans())
def test_against_counting_tick_by_tick(actions: list[tuple[str, int]], prompt: bool) -> None:
    """Interrupts and missed ones make up every match, however late the deadlines are served."""
    rig = Rig()
    model = Ticking()
    rig.set(0, INT_ENB_CNF | route(20))
    for action, value in actions:
        if action == "ahead":
            action, value = "comparator", rig.hpet.counter + value & ONES64
        if action == "pass":
            (rig.run if prompt else rig.idle)(value)
            for _ in range(value):
                model.tick()
        elif action == "enable":
            rig.write(CONFIGURATION, ENABLE_CNF * value)
            model.running = bool(value)
        elif action == "counter":
            rig.write(COUNTER, value)
            model.counter = value
            model.looked = False
        elif action == "config":
            model.periodic, model.mode32 = bool(value & 1), bool(value & 2)
            model.set_value = value & 5 == 5
            bits = TYPE_CNF * model.periodic | MODE32_CNF * model.mode32
            bits |= VAL_SET_CNF * model.set_value
            rig.write(config(0), INT_ENB_CNF | route(20) | bits)
            model.comparator &= ONES32 if model.mode32 else ONES64
        else:
            rig.write(comparator(0), value)
            ones = ONES32 if model.mode32 else ONES64
            model.period = value
            if model.set_value or not model.periodic:
                model.comparator = value & ones
            model.set_value = False
            model.looked = False
        model.look()
        assert rig.read(COUNTER) == model.counter
        assert rig.read(comparator(0)) == model.comparator
        assert len(rig.rises(20)) + rig.hpet.missed == model.matches


OFFSETS = st.one_of(
    st.integers(0, 0x3FF),
    st.sampled_from([0x00, 0x10, 0x20, 0xF0, *range(0x100, 0x160, 8)]),
)


VALUES = st.one_of(st.integers(0, ONES64), st.integers(0, 0xFFFF), st.just(ONES64))


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), OFFSETS, st.sampled_from((4, 8)), VALUES),
            st.tuples(
                st.sampled_from(("read", "write")), OFFSETS, st.sampled_from((1, 2, 4, 8)), VALUES
            ),
            st.tuples(st.just("pass"), st.just(0), st.just(0), st.integers(0, 1 << 50)),
            st.tuples(st.just("legacy"), st.sampled_from((0, 8)), st.just(0), st.booleans()),
        ),
        max_size=40,
    )
)
def test_whatever_a_guest_does(actions: list[tuple[str, int, int, int]]) -> None:
    """No exception, no storm, registers within their bits, lines that agree with them."""
    rig = Rig()
    legacy = {irq: rig.hpet.legacy_input(irq) for irq in (0, 8)}
    last = 0
    for action, where, size, value in actions:
        if action == "read":
            assert 0 <= rig.read(where, size) < 1 << 8 * size
        elif action == "write":
            rig.write(where, value & (1 << 8 * size) - 1, size)
        elif action == "legacy":
            legacy[where].set(bool(value))
        else:
            rig.idle(value)
            before = len(rig.lines.log)
            assert rig.clock.run_due(0) <= TIMERS
            assert len(rig.lines.log) - before <= 2 * TIMERS
        status = rig.read(STATUS)
        assert status < 1 << TIMERS
        running = rig.read(CONFIGURATION) & ENABLE_CNF
        for number in range(TIMERS):
            bits = rig.read(config(number))
            assert rig.read(comparator(number)) <= (ONES32 if bits & MODE32_CNF else ONES64)
            assert bits & (PER_INT_CAP | SIZE_CAP) == PER_INT_CAP | SIZE_CAP
            assert not bits & 0xFFFF_C081
            if status >> number & 1:
                assert bits & INT_TYPE_CNF
                irq = bits >> ROUTE_SHIFT & 0x1F
                if running and bits & INT_ENB_CNF and number == 2 and irq in IRQS:
                    assert rig.level(irq)
        assert rig.hpet.missed >= last
        last = rig.hpet.missed
        str(rig.hpet)
    rig.hpet.reset()
    for irq in (0, 8):
        legacy[irq].set(False)
    assert not any(rig.level(irq) for irq in IRQS)
