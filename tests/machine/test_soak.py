"""The long versions of what the other tests show briefly: `make soak`, some minutes."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine.exceptions import (
    ctrl_c_in_a_run,
    ctrl_c_while_closing,
    ctrl_c_while_making,
    real_alarm,
    signals_at_the_ends,
)

from pykvm import Machine, Mode, Outcome
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest
from support.guest_code import CODE, ENDINGS, MIXED, live, no_posted
from support.irqchips import IRQCHIPS
from support.resources import descriptors, mappings, resident

pytestmark = [pytest.mark.kvm, pytest.mark.soak, pytest.mark.timeout(1800)]


def test_a_hundred_thousand_kicks(guest: MakeGuest) -> None:
    machine = guest(MIXED, devices=no_posted())
    chance = random.Random(2)
    over = False
    stops = 0

    def stopper() -> None:
        nonlocal stops
        while not over:
            for _ in range(chance.randrange(200)):
                pass
            stops += machine.stop()

    threads = [threading.Thread(target=stopper) for _ in range(2)]
    for thread in threads:
        thread.start()
    runs = 0
    try:
        while stops < 100_000:
            assert machine.run(timeout=60).outcome is Outcome.STOPPED
            runs += 1
    finally:
        over = True
        for thread in threads:
            thread.join()
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
    # Two stops may meet the same run; no run ends without one.
    assert 0 < runs <= stops


def test_ten_thousand_machines_leak_nothing() -> None:
    for _ in range(100):
        live()
    gc.collect()
    before = descriptors(), mappings(), resident()
    for number in range(10_000):
        live(vcpus=2 if number % 50 == 0 else 1)
    gc.collect()
    assert descriptors() == before[0]
    assert mappings() <= before[1] + 40
    assert resident() <= before[2] + 16384


@settings(max_examples=5000)
@given(CODE, st.sampled_from(list(Mode)), st.booleans())
def test_a_great_deal_of_random_code(pieces: list[bytes], mode: Mode, traced: bool) -> None:
    with Machine(
        b"\x90" + b"".join(pieces),  # a NOP first, as in test_hostile
        mode=mode,
        memory="2M",
        load_address=0x10000,
        unclaimed="open-bus",
    ) as machine:
        on_exit = (lambda cpu, exit: None) if traced else None
        assert machine.run(timeout=0.02, on_exit=on_exit).outcome in ENDINGS


def test_four_vcpus_stopped_and_resumed_for_a_minute(guest: MakeGuest) -> None:
    """Each adds to the same word without end; none is lost on the way, none hangs."""
    machine = guest(
        """
        F0 83 06 00 05 01      lock add word [0x500], 1
        E6 80                  out 0x80, al
        EB F6                  jmp $-8
        """,
        vcpus=4,
    )
    for cpu in machine.vcpus:
        cpu.state = real_mode(ip=0x7C00)
        cpu.parked = False

    def stop() -> None:
        while not machine.stop():
            pass

    until = time.monotonic() + 60
    chance = random.Random(3)
    while time.monotonic() < until:
        timer = threading.Timer(chance.random() / 20, stop)
        timer.start()
        assert machine.run(timeout=60).outcome is Outcome.STOPPED
        timer.join()


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """See `machine.exceptions`."""
    yield from real_alarm()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_fifty_thousand_signals_at_the_ends_of_a_run(
    vcpus: int, alarm: Callable[[float], None]
) -> None:
    assert signals_at_the_ends(vcpus, 50_000, alarm) > 5_000


@pytest.mark.parametrize("vcpus", [1, 2])
def test_ctrl_c_at_every_instant_of_a_run(vcpus: int) -> None:
    assert ctrl_c_in_a_run(vcpus, 1) > 200


@pytest.mark.parametrize(("irqchip", "step"), [("user", 1), ("split", 7), ("kernel", 7)])
def test_ctrl_c_while_a_machine_is_made(irqchip: str, step: int) -> None:
    assert ctrl_c_while_making(step, irqchip=irqchip, vcpus=2) > 500


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_ctrl_c_at_every_instant_of_closing_a_machine(irqchip: str) -> None:
    assert ctrl_c_while_closing(1, irqchip=irqchip, vcpus=2, quirks="on") > 50
