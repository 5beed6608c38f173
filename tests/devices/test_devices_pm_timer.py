"""The ACPI PM timer."""

from __future__ import annotations

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.devices.pm_timer import PM_TIMER_HZ, AcpiPmTimer
from pykvm.errors import ConfigError

SECOND = 1_000_000_000


def test_it_counts_guest_time() -> None:
    host = Host()
    timer = AcpiPmTimer(host.clock())
    assert timer.read(0, 4) == 0
    host.now += SECOND
    assert timer.read(0, 4) == PM_TIMER_HZ
    host.now += 279
    assert timer.read(0, 4) == PM_TIMER_HZ
    host.now += 1
    assert timer.read(0, 4) == PM_TIMER_HZ + 1


def test_it_is_hidden_what_the_policy_hides() -> None:
    host = Host()
    clock = host.clock("paused")
    timer = AcpiPmTimer(clock)
    host.now += SECOND
    assert timer.value == 0
    clock.start()
    host.now += SECOND
    clock.stop()
    host.now += SECOND
    assert timer.value == PM_TIMER_HZ


@pytest.mark.parametrize(("bits", "wraps"), [(24, 1), (32, 0)])
def test_it_wraps(bits: int, wraps: int) -> None:
    host = Host()
    timer = AcpiPmTimer(host.clock(), bits=bits)
    host.now += 5 * SECOND
    assert timer.read(0, 4) == 5 * PM_TIMER_HZ - wraps * (1 << 24)
    host.now += 1_200 * SECOND
    assert timer.read(0, 4) == 1_205 * PM_TIMER_HZ % (1 << bits)


def test_nothing_writes_or_resets_it() -> None:
    host = Host()
    timer = AcpiPmTimer(host.clock())
    host.now += SECOND
    timer.write(0, 4, 0)
    timer.reset()
    assert timer.read(0, 4) == PM_TIMER_HZ
    assert str(timer) == f"pm-timer: 32 bits at {PM_TIMER_HZ:#x}"


def test_other_widths_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="24 or 32 bits, not 16"):
        AcpiPmTimer(Host().clock(), bits=16)


@given(now=st.integers(0, 1 << 62), bits=st.sampled_from((24, 32)))
def test_every_access_sees_its_bytes(now: int, bits: int) -> None:
    host = Host()
    timer = AcpiPmTimer(host.clock(), bits=bits)
    bus = Bus()
    bus.add_pio(0x608, 4, timer)
    host.now += now
    image = (now * PM_TIMER_HZ // SECOND % (1 << bits)).to_bytes(4, "little")
    for offset, size in [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2), (1, 2), (0, 4)]:
        want = int.from_bytes(image[offset : offset + size], "little")
        assert bus.read(Space.PIO, 0x608 + offset, size) == want
    for offset in (0, 4, 7):
        for size in (1, 2, 4, 8):
            assert 0 <= timer.read(offset, size) < 1 << 8 * size
