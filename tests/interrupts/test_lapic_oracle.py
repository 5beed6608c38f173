"""The local APIC against KVM's own: the same guest program, the same register reads and vectors.

Programs keep to what both define: no vectors below 16, no read-only or reserved bits where KVM
keeps them, and no ESR, which KVM never sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupts import fakes
from interrupts.oracle import LAPIC, Kernel, Models, Step, load, runners, store, take

from pykvm.bus import Bus
from pykvm.devices import InterruptLine
from pykvm.devices.line import Unconnected
from pykvm.interrupts import lapic_registers as reg
from pykvm.kvm import System
from support.host import host_probe

pytestmark = pytest.mark.kvm

ICR_SELF = 1 << 18
ICR_ALL = 2 << 18


# Without a TSC-deadline timer in CPUID, or any CPUID at all, LVT timer has no mode.
CPUID = ({"function": 1, "ecx": 1 << 24, "edx": 1 << 9},)


@contextmanager
def prepared() -> Iterator[tuple[Kernel, Models]]:
    with runners() as (kernel, models):
        kernel.guest.vcpu.set_cpuid2(CPUID)
        yield kernel, models


@host_probe("lapic-holds-in-service")
def lapic_holds_in_service() -> str | None:
    with prepared() as (kernel, _):
        _, in_service = kernel.run([put(reg.ICR, ICR_SELF | 0x31), take(), get(reg.ISR + 1)])
    return None if in_service else "the in-kernel local APIC has nothing in service in real mode"


class Alone:
    """One local APIC in the state that the oracle starts in, and nothing else.

    Where the oracle has nothing in service, each interrupt ends as soon as it is taken, and only
    what is pending, and which vectors come in which order, is compared.
    """

    def __init__(self, *, holds: bool) -> None:
        self.holds = holds
        self.lapic = fakes.Board(x2apic=False).lapic
        for register, value in ((reg.SVR, 0x1FF), (reg.LDR, 1 << 24), (reg.LVT_LINT0, 0x10700)):
            self.lapic.write(register << 4, 4, value)

    def connect(self, bus: Bus) -> None:
        bus.add_mmio(LAPIC, 0x1000, self.lapic)

    def line(self, gsi: int) -> InterruptLine:
        return Unconnected()

    def take(self) -> int | None:
        if self.lapic.interrupt is None:
            return None
        vector = self.lapic.acknowledge()
        if not self.holds:
            self.lapic.eoi()
        return vector


@pytest.fixture(scope="module")
def pair(kvm: None) -> Iterator[Pair]:
    holds = lapic_holds_in_service() is None
    with prepared() as (kernel, models):
        yield Pair(kernel, models, holds)


class Pair(NamedTuple):
    """The oracle and a VM for the model."""

    kernel: Kernel
    models: Models
    holds: bool

    def agree(self, steps: list[Step]) -> list[int]:
        """What both have read."""
        expected = self.kernel.run(steps)
        assert self.models.run(steps, Alone(holds=self.holds)) == expected
        return expected


def put(register: int, value: int) -> Step:
    return store(LAPIC + (register << 4), value)


def get(register: int) -> Step:
    return load(LAPIC + (register << 4))


# What a guest reads alike whenever it looks.
STABLE = (
    *(reg.ID, reg.VERSION, reg.TPR, reg.APR, reg.PPR, reg.LDR, reg.DFR, reg.SVR),
    *range(reg.ISR, reg.ISR + 24),
    *(reg.ICR, reg.ICR_HIGH, *reg.lvt_registers(cmci=False)),
    *(reg.INITIAL_COUNT, reg.DIVIDE),
)
DUMP = [get(register) for register in STABLE]

VECTORS = st.one_of(st.sampled_from([0x31, 0x35, 0x3F, 0x40, 0x52, 0xF0]), st.integers(16, 255))
SENDS = st.builds(
    lambda vector, flags, shorthand: put(reg.ICR, vector | flags | shorthand),
    VECTORS,
    st.sampled_from([0x0000, 0x4000, 0x8000, 0xC000, 0x4100, 0x4800, 0x4900]),
    st.sampled_from([0, ICR_SELF, ICR_SELF, ICR_ALL, 3 << 18]),
)
LVT = st.builds(
    lambda register, value: put(register, value & ~(reg.LVT_PENDING | reg.LVT_REMOTE_IRR) | 0x10),
    st.sampled_from(reg.lvt_registers(cmci=False)),
    st.integers(0, 0xFFFFFFFF),
)
# kvm_amd has the task priority in V_TPR at each exit, which keeps the class alone (APM 2 15.21.2).
PRIORITIES = st.one_of(VECTORS, st.just(0), st.integers(0, 0xFFFFFFFF)).map(lambda tpr: tpr & ~0xF)
STEPS = st.one_of(
    SENDS,
    SENDS,
    st.just(take()),
    st.just(take()),
    st.just(put(reg.EOI, 0)),
    st.builds(put, st.just(reg.TPR), PRIORITIES),
    st.builds(put, st.just(reg.SVR), st.sampled_from([0x1FF, 0x1FF, 0xFF, 0x3EF, 0xFFFFFFFF])),
    st.builds(put, st.just(reg.ID), st.sampled_from([0, 0x01000000, 0xFFFFFFFF])),
    st.builds(put, st.just(reg.ICR_HIGH), st.sampled_from([0, 0x01000000, 0xFF000000, 0x12345678])),
    st.builds(put, st.just(reg.LDR), st.sampled_from([0x01000000, 0x11000000, 0xFFFFFFFF])),
    st.builds(put, st.just(reg.DFR), st.sampled_from([0xFFFFFFFF, 0, 0x0FFFFFFF, 0x40000000])),
    # Far enough away not to come while the program runs.
    st.builds(put, st.just(reg.INITIAL_COUNT), st.integers(0xF0000000, 0xFFFFFFFF) | st.just(0)),
    st.builds(put, st.just(reg.DIVIDE), st.integers(0, 0xFFFFFFFF)),
    LVT,
    st.builds(get, st.sampled_from(STABLE)),
    st.builds(load, st.integers(LAPIC + 0x30, LAPIC + 0x33), st.just(1)),
    st.builds(store, st.integers(LAPIC + 0x81, LAPIC + 0x8F), st.just(0x44)),
    st.builds(store, st.just(LAPIC + 0x80), st.just(0x40), st.sampled_from([1, 2])),
)


def test_power_on_page() -> None:
    """The same page as KVM_GET_LAPIC gives."""
    with System() as system, system.create_vm() as vm:
        vm.create_irqchip()
        with vm.create_vcpu(0) as vcpu:
            expected = vcpu.get_lapic()
    assert fakes.Board().lapic.page() == expected


def test_registers(pair: Pair) -> None:
    values = pair.agree(DUMP)
    assert dict(zip(STABLE, values, strict=True))[reg.VERSION] == 0x50014


@pytest.mark.needs_host("lapic-holds-in-service")
def test_nesting(pair: Pair) -> None:
    send = [put(reg.ICR, ICR_SELF | vector) for vector in (0x31, 0x52, 0x5F)]
    values = pair.agree(
        [*send, take(), take(), put(reg.ICR, ICR_SELF | 0x61), take(), *DUMP]
        + [put(reg.EOI, 0), take()] * 5,
    )
    # A 1 below the vector, or a 0 where none was taken.
    assert [value >> 8 for value in values[:3]] == [0x5F, 0, 0x61]
    assert [value >> 8 for value in values[-5:]] == [0, 0x52, 0x31, 0, 0]


def test_timer_counts_down(pair: Pair) -> None:
    """By how much is a matter of time; that it does, and stays below, is not."""
    first, last = pair.kernel.run(
        [
            put(reg.DIVIDE, 0b1011),
            put(reg.INITIAL_COUNT, 0xF0000000),
            get(reg.CURRENT_COUNT),
            get(reg.CURRENT_COUNT),
        ]
    )
    assert last < first < 0xF0000000


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
def test_any_program(pair: Pair, steps: list[Step]) -> None:
    pair.agree([*steps, *DUMP])
