"""The 8259A pair and the I/O APIC against those in the kernel: the same guest reads the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interrupts.kvm_chips import KvmPair
from interrupts.oracle import (
    IOAPIC,
    LAPIC,
    LAPIC_EOI,
    Kernel,
    Models,
    Step,
    in_,
    line,
    load,
    out,
    runners,
    store,
    take,
)

from pykvm.bus import Bus
from pykvm.devices import InterruptLine
from pykvm.devices.line import Unconnected
from pykvm.interrupts.ioapic import (
    ACTIVE_LOW,
    IOAPICARB,
    IOAPICID,
    IOAPICVER,
    IOREDTBL,
    IOWIN,
    LEVEL,
    LOGICAL,
    MASKED,
    MODE_SHIFT,
    REMOTE_IRR,
    SENDING,
    IoApic,
)
from pykvm.interrupts.message import FIXED, LOWEST_PRIORITY, NMI, Message
from pykvm.interrupts.pic import Pic8259Pair
from support.host import host_probe, require_host

pytestmark = pytest.mark.kvm

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
EOI = 0x20


@pytest.fixture(scope="module")
def kernel(vms: tuple[Kernel, Models]) -> Kernel:
    return vms[0]


@pytest.fixture(scope="module")
def models(vms: tuple[Kernel, Models]) -> Models:
    return vms[1]


@pytest.fixture(scope="module")
def vms(kvm: None) -> Iterator[tuple[Kernel, Models]]:
    with runners() as both:
        yield both


class PicBoard:
    """A pair as the only interrupt controller."""

    def __init__(self, pair: Pic8259Pair) -> None:
        self.pair = pair

    def connect(self, bus: Bus) -> None:
        bus.add_pio(MASTER, 2, self.pair.master)
        bus.add_pio(SLAVE, 2, self.pair.slave)
        bus.add_pio(ELCR, 2, self.pair.elcr)

    def line(self, gsi: int) -> InterruptLine:
        return self.pair.line(gsi) if gsi < 16 else Unconnected()

    def take(self) -> int | None:
        return self.pair.acknowledge() if self.pair.pending else None


# The 8259A pair


def program(port: int, vector: int, icw4: int = 1, *, icw3: int | None = None) -> list[Step]:
    if icw3 is None:
        icw3 = 0x04 if port == MASTER else 0x02
    return [out(port, 0x11), *(out(port + 1, word) for word in (vector, icw3, icw4))]


INITIALIZED = program(MASTER, 0x20) + program(SLAVE, 0x28)
MASK = in_(MASTER + 1)


def irr(port: int) -> list[Step]:
    return [out(port, READ_IRR), in_(port)]


def isr(port: int) -> list[Step]:
    return [out(port, READ_ISR), in_(port)]


def poll(port: int) -> list[Step]:
    return [out(port, POLL), in_(port)]


def pulse(irq: int) -> list[Step]:
    return [line(irq, True), line(irq, False)]


ALL_REGISTERS = [
    *irr(MASTER),
    *isr(MASTER),
    MASK,
    *irr(SLAVE),
    *isr(SLAVE),
    in_(SLAVE + 1),
    in_(ELCR),
    in_(ELCR + 1),
]

chips = st.sampled_from([MASTER, SLAVE])
ports = st.sampled_from([MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR, ELCR + 1])
octets = st.integers(0, 255)
# Mostly the same few, so that they meet.
irqs = st.sampled_from([1, 3, 9, 12]) | st.integers(0, 15).filter(lambda irq: irq != 2)
numbers = st.sampled_from([1, 3, 4]) | st.integers(0, 7)
few_bits = st.sampled_from([0, *(1 << bit for bit in range(8))])
icw4s = st.sampled_from([0x01, 0x03, 0x05, 0x0F])
usual = st.one_of(
    st.builds(lambda irq, level: [line(irq, level)], irqs, st.booleans()),
    st.builds(pulse, irqs),
    st.builds(pulse, irqs),
    st.builds(lambda port, mask: [out(port + 1, mask)], chips, few_bits | octets),
    st.builds(
        lambda port, command, irq: [out(port, command << 5 | irq)],
        chips,
        st.integers(0, 7),
        numbers,
    ),
    st.builds(lambda port: [out(port, EOI)], chips),
    st.builds(irr, chips),
    st.builds(isr, chips),
    st.builds(lambda port: [in_(port + 1)], chips),
    st.just([take()]),
    st.just([take()]),
)
anything = st.one_of(
    usual,
    usual,
    st.builds(lambda port, value: [out(port, value)], ports, octets),
    st.builds(lambda port: [in_(port)], ports),
    st.builds(poll, chips),
    st.builds(program, chips, octets, octets),
)


def flat(parts: list[list[Step]]) -> list[Step]:
    return [step for part in parts for step in part]


def compare(kernel: Kernel, models: Models, pair: Pic8259Pair, steps: list[Step]) -> None:
    steps = [*steps, *ALL_REGISTERS]
    ours = models.run(steps, PicBoard(pair))
    theirs = kernel.run(steps, extint=True)
    logged = [step for step in steps if step.logs]
    assert [*zip(logged, ours, strict=True)] == [*zip(logged, theirs, strict=True)]


def beginning(port: int, elcr: int, icw4: int, rotate: bool) -> list[Step]:
    """Initialize a chip, its levels chosen and its rotation in automatic EOI mode on or off."""
    master = port == MASTER
    return [
        out(ELCR + (not master), elcr),
        *program(port, 0x20 if master else 0x28, icw4),
        out(port, rotate << 7),
    ]


beginnings = st.tuples(
    st.builds(beginning, st.just(MASTER), octets, icw4s, st.booleans()),
    st.builds(beginning, st.just(SLAVE), octets, icw4s, st.booleans()),
)


@settings(max_examples=250)
@given(begin=beginnings, parts=st.lists(usual, min_size=10, max_size=60))
def test_the_pair_as_guests_use_it(
    kernel: Kernel, models: Models, begin: tuple[list[Step], ...], parts: list[list[Step]]
) -> None:
    """Any masks, EOIs, rotations, edges and levels: the model and KVM agree."""
    compare(kernel, models, Pic8259Pair(), flat([*begin, *parts]))


@host_probe("pic-poll-answers")
def pic_poll_answers() -> str | None:
    """Older kernels never set bit 7 of a poll's answer."""
    with runners() as (kernel, _):
        answer = kernel.run([*INITIALIZED, *pulse(3), *poll(MASTER)], extint=True)
    return None if answer == [0x83] else "polling the in-kernel PIC does not tell whether"


@pytest.mark.needs_host("pic-poll-answers")
@settings(max_examples=300)
@given(parts=st.lists(anything, min_size=1, max_size=40), initialized=st.booleans())
@example(
    # ICW3 says that there is a slave on input 3.
    parts=[[out(MASTER, 0x10)], [out(MASTER + 1, 0)], pulse(3), [out(MASTER + 1, 8)], [take()]],
    initialized=False,
)
def test_the_pair_differs_from_the_kernels_in_nothing_else(
    kernel: Kernel, models: Models, parts: list[list[Step]], initialized: bool
) -> None:
    """Any bytes to any port: the model with KVM's deviations and KVM agree."""
    compare(kernel, models, KvmPair(), INITIALIZED * initialized + flat(parts))


class Difference(NamedTuple):
    """A program, and what it logs on the model and on KVM."""

    steps: list[Step]
    ours: list[int]
    theirs: list[int]


def taken(vector: int) -> int:
    return vector << 8 | 1


NONE = 0

DIFFERENCES = {
    "uninitialized, KVM requests": Difference([line(3, True), take()], [NONE], [taken(0x03)]),
    "initializing, KVM requests": Difference(
        [*INITIALIZED, out(MASTER, 0x11), line(3, True), take()], [NONE], [taken(0x23)]
    ),
    "ICW1 does not lower KVM's INT": Difference(
        [*INITIALIZED, line(3, True), out(MASTER, 0x11), take()], [NONE], [taken(0x27)]
    ),
    "SNGL: KVM waits for ICW3": Difference(
        [*INITIALIZED, out(MASTER, 0x13), *(out(MASTER + 1, n) for n in (0x40, 1, 0x55)), MASK],
        [0x55],
        [0x00],
    ),
    "master's ICW3: KVM always has a slave": Difference(
        [*program(SLAVE, 0x28), *program(MASTER, 0x20, icw3=0), line(9, True), take()],
        [taken(0x22)],
        [taken(0x29)],
    ),
    "slave's ICW3: KVM's always answers": Difference(
        [*program(MASTER, 0x20), *program(SLAVE, 0x28, icw3=3), line(9, True), take()],
        [taken(0xFF)],
        [taken(0x29)],
    ),
    "ICW1 ends service of edges in KVM": Difference(
        [*INITIALIZED, *pulse(3), take(), *pulse(3), out(MASTER, 0x11), *isr(MASTER)],
        [taken(0x23), 0x08],
        [taken(0x23), 0x00],
    ),
    "KVM has no special mask mode": Difference(
        [*INITIALIZED, *pulse(3), take(), *pulse(4), out(MASTER, 0x68), out(MASTER + 1, 8), take()],
        [taken(0x23), taken(0x24)],
        [taken(0x23), NONE],
    ),
    "special nesting lets lower priorities into KVM": Difference(
        [
            *program(MASTER, 0x20, 0x11),
            *program(SLAVE, 0x28),
            *pulse(12),
            take(),
            *pulse(5),
            take(),
        ],
        [taken(0x2C), NONE],
        [taken(0x2C), taken(0x25)],
    ),
    "a poll starts no service in KVM": Difference(
        [*INITIALIZED, *pulse(3), *poll(MASTER), *isr(MASTER)], [0x83, 0x08], [0x83, 0x00]
    ),
    "a poll drops a level in KVM": Difference(
        [*INITIALIZED, out(ELCR, 0x20), line(5, True), *poll(MASTER), *irr(MASTER)],
        [0x85, 0x20],
        [0x85, 0x00],
    ),
    "polling the slave ends the master's service in KVM": Difference(
        [*INITIALIZED, *pulse(9), take(), *pulse(8), *poll(SLAVE), *isr(MASTER)],
        [taken(0x29), 0x80, 0x04],
        [taken(0x29), 0x80, 0x00],
    ),
    "KVM's slave requests again after the master's ICW1": Difference(
        [*INITIALIZED, *pulse(9), *program(MASTER, 0x20), out(MASTER + 1, 0), take()],
        [NONE],
        [taken(0x29)],
    ),
    "KVM's slave requests again after a poll of the master": Difference(
        [*INITIALIZED, *pulse(9), *poll(MASTER), out(MASTER + 1, 0), *irr(MASTER)],
        [0x82, 0x00],
        [0x82, 0x04],
    ),
    "KVM's ELCR does not look at the lines": Difference(
        [*INITIALIZED, line(3, True), take(), out(MASTER, EOI), out(ELCR, 0x08), *irr(MASTER)],
        [taken(0x23), 0x08],
        [taken(0x23), 0x00],
    ),
    "KVM's IRQ 2 is an input": Difference(
        [*INITIALIZED, line(2, True), take()], [NONE], [taken(0x2F)]
    ),
    "KVM ignores words": Difference(
        [*INITIALIZED, out(MASTER, 0x5A0B, 2), MASK, in_(MASTER, 2)],
        [0x5A, 0x5A00],
        [0x00, 0x0000],
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference(kernel: Kernel, models: Models, name: str) -> None:
    steps, ours, theirs = DIFFERENCES[name]
    if "poll" in name:
        require_host("pic-poll-answers")
    assert models.run(steps, PicBoard(Pic8259Pair())) == ours
    assert kernel.run(steps, extint=True) == theirs


# The I/O APIC


class Manners(NamedTuple):
    """What hosts do differently.

    `holds`: the local APIC has in service what a guest in real mode takes; a KVM that emulates real
    mode may end it at once.  `accepts`: a message that addresses no APIC counts as accepted, as it
    does in older kernels.
    """

    holds: bool
    accepts: bool


class Lapic:
    """As much of a local APIC as an I/O APIC needs: ID 0, logical ID 1, priorities and EOI."""

    name = "lapic"

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self.requested: set[int] = set()
        self.served: list[int] = []
        self.level: set[int] = set()
        self.chip = IoApic(self.deliver)

    def deliver(self, message: Message) -> bool:
        addressed = message.destination & 1 if message.logical else message.destination in (0, 0xFF)
        if not addressed:
            return self.manners.accepts
        if message.mode not in (FIXED, LOWEST_PRIORITY):
            return False
        self.requested.add(message.vector)
        (self.level.add if message.level else self.level.discard)(message.vector)
        return True

    def connect(self, bus: Bus) -> None:
        bus.add_mmio(IOAPIC, 0x100, self.chip)
        bus.add_mmio(LAPIC, 0x1000, self)

    def line(self, gsi: int) -> InterruptLine:
        return self.chip.line(gsi)

    def take(self) -> int | None:
        highest = max(self.requested, default=0)
        if highest >> 4 <= max(self.served, default=0) >> 4:
            return None
        self.requested.remove(highest)
        self.served.append(highest)
        if not self.manners.holds:
            self.end()
        return highest

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == LAPIC_EOI - LAPIC and self.served:
            self.end()

    def end(self) -> None:
        ended = max(self.served)
        self.served.remove(ended)
        if ended in self.level:
            self.chip.eoi(ended)


def get(register: int, size: int = 4) -> list[Step]:
    return [store(IOAPIC, register), load(IOAPIC + IOWIN, size)]


def put(register: int, value: int, size: int = 4) -> list[Step]:
    return [store(IOAPIC, register), store(IOAPIC + IOWIN, value, size)]


def entry(pin: int, low: int, destination: int = 0) -> list[Step]:
    at = IOREDTBL + 2 * pin
    return [*put(at + 1, destination << 24), *put(at, low)]


def low_half(pin: int) -> list[Step]:
    return get(IOREDTBL + 2 * pin)


END_OF_INTERRUPT = store(LAPIC_EOI, 0)
ALL_ENTRIES = [step for pin in range(24) for step in low_half(pin)] + get(IOAPICID)

pins = st.sampled_from([1, 9, 23])
# Level-triggered entries have even vectors and edge-triggered ones odd: see DIFFERENCES_OF_ENTRIES.
low_halves = st.builds(
    lambda vector, trigger, mode, flags, other: (
        vector | trigger | mode << MODE_SHIFT | flags | other
    ),
    st.sampled_from([0x20, 0x22, 0x24, 0x36, 0x80, 0xFE]),
    st.sampled_from([LEVEL, 1]),
    st.sampled_from([FIXED, LOWEST_PRIORITY]),
    st.sampled_from([0, 0, 0, MASKED]),
    st.sampled_from([0, 0, ACTIVE_LOW, SENDING, REMOTE_IRR]),
)
# No access leaves the 256 bytes that the in-kernel chip has.
offsets = st.integers(0, 0xFC)
words = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 4])
ioapic_steps = st.one_of(
    st.builds(entry, pins, low_halves),
    st.builds(lambda pin, low: entry(pin, low | LOGICAL, 1), pins, low_halves),
    st.builds(entry, pins, low_halves, st.sampled_from([0x00, 0x01, 0x41])),
    st.builds(lambda pin, low: put(IOREDTBL + 2 * pin, low), pins, low_halves),
    st.builds(lambda pin, vector: put(IOREDTBL + 2 * pin, vector, 1), pins, st.just(0x31)),
    st.builds(lambda pin, low: put(IOREDTBL + 2 * pin, low, 2), pins, low_halves),
    st.builds(lambda pin, level: [line(pin, level)], pins, st.booleans()),
    st.builds(lambda pin, level: [line(pin, level)], pins, st.booleans()),
    st.builds(pulse, pins),
    st.just([take()]),
    st.just([take()]),
    st.just([END_OF_INTERRUPT]),
    st.builds(low_half, pins),
    st.builds(get, st.sampled_from([IOAPICID, IOAPICVER, IOAPICARB]) | octets, sizes),
    st.builds(put, st.just(IOAPICID), words),
    st.builds(put, st.sampled_from([0x01, 0x02, 0x03, 0x0F, 0x40, 0xFF]), words),
    st.builds(lambda offset, size: [load(IOAPIC + offset, size)], offsets, sizes),
    st.builds(
        lambda offset, value, size: [store(IOAPIC + offset, value, size)],
        offsets.filter(lambda offset: offset != IOWIN),
        words,
        sizes,
    ),
)


@pytest.fixture(scope="module")
def manners(kernel: Kernel) -> Manners:
    vector, in_service = kernel.run(
        [*entry(1, 0x31), line(1, True), take(), load(LAPIC + 0x110)],
    )
    assert vector == taken(0x31)
    (unaddressed,) = kernel.run([*entry(1, LEVEL | 0x32, 0x41), line(1, True), *low_half(1)])
    return Manners(holds=bool(in_service), accepts=bool(unaddressed & REMOTE_IRR))


@settings(max_examples=300)
@given(parts=st.lists(ioapic_steps, min_size=5, max_size=40))
def test_the_ioapic(
    kernel: Kernel, models: Models, manners: Manners, parts: list[list[Step]]
) -> None:
    """Any entry, edge or level, any lines, any access: the model and KVM agree."""
    steps = [*flat(parts), *ALL_ENTRIES]
    ours = models.run(steps, Lapic(manners))
    theirs = kernel.run(steps)
    logged = [step for step in steps if step.logs]
    assert [*zip(logged, ours, strict=True)] == [*zip(logged, theirs, strict=True)]


LEVEL_NMI = LEVEL | NMI << MODE_SHIFT
LEVEL_RESERVED = LEVEL | 3 << MODE_SHIFT

DIFFERENCES_OF_ENTRIES = {
    "KVM keeps reserved bits": Difference(
        [
            *put(IOREDTBL, 0xFFFF_0020),
            *low_half(0),
            *put(IOREDTBL + 1, 0xFFFF_FFFF),
            *get(IOREDTBL + 1),
        ],
        [0x0001_0020, 0xFF00_0000],
        [0xFFFF_0020, 0xFFFF_FFFF],
    ),
    "an NMI may be level-triggered in KVM": Difference(
        [*entry(1, LEVEL_NMI), line(1, True), *low_half(1)],
        [LEVEL_NMI],
        [LEVEL_NMI | REMOTE_IRR],
    ),
    "KVM sends a reserved mode": Difference(
        [*entry(1, LEVEL_RESERVED), line(1, True), *low_half(1)],
        [LEVEL_RESERVED],
        [LEVEL_RESERVED | REMOTE_IRR],
    ),
    "KVM's EOI of a level sends an edge again": Difference(
        [
            *entry(1, 0x31),
            *entry(3, LEVEL | 0x31),
            *(line(1, True), take(), END_OF_INTERRUPT),
            *(line(3, True), line(3, False), take(), END_OF_INTERRUPT),
            take(),
        ],
        [taken(0x31), taken(0x31), NONE],
        [taken(0x31), taken(0x31), taken(0x31)],
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES_OF_ENTRIES)
def test_a_difference_of_entries(
    kernel: Kernel, models: Models, manners: Manners, name: str
) -> None:
    steps, ours, theirs = DIFFERENCES_OF_ENTRIES[name]
    assert models.run(steps, Lapic(manners)) == ours
    assert kernel.run(steps) == theirs
