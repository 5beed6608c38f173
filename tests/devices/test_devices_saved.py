"""What is saved of each device is all that a guest could notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from devices.saved_devices import DEVICES, pit_counter, reads, rtc_register, serial

from pykvm._core import lib
from pykvm.devices.debug_exit import DebugExit
from pykvm.devices.i8042 import KeyboardController
from pykvm.devices.pit import Pit8254
from pykvm.devices.pm_timer import AcpiPmTimer
from pykvm.devices.pvpanic import PvPanic
from pykvm.devices.rtc import Rtc146818
from pykvm.errors import ConfigError
from support.saved import (
    Fronts,
    Subject,
    World,
    restored_goes_on,
    strangers_state_is_harmless,
)

if TYPE_CHECKING:
    from collections.abc import Callable

from support.lines import InC

test_a_restored_device_goes_on_as_the_first = restored_goes_on(DEVICES)
test_a_state_of_a_stranger_is_refused_or_harmless = strangers_state_is_harmless(
    {name: case for name, case in DEVICES.items() if name not in ("egg_timer", "pm_timer")}
)


@pytest.mark.parametrize(
    "name", sorted(DEVICES.keys() - {"egg_timer", "fw_cfg", "pm_timer", "port61"})
)
def test_the_state_of_another_device_is_refused(name: str) -> None:
    make: Callable[[World], Subject] = DEVICES[name][0]
    device = make(World()).device
    other = PvPanic() if name != "pvpanic" else KeyboardController()
    with pytest.raises(ConfigError, match=f"is to be restored, not {type(other.state()).__name__}"):
        device.restore(other.state())


def test_what_c_has_read_of_a_counter_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """C has latched a count, and given one byte of it: the other is next, here and elsewhere."""
    # A pulse a second: real time passes between two looks at it.
    monkeypatch.setattr("pykvm.devices.pit.PIT_HZ", 1)

    def lent(world: World) -> Subject:
        world.host.now += 500_000_000
        device = Pit8254(world.clock, world.lines[0])
        return Subject(world, device, access=Fronts(world, (device, 0, 4)))

    first = [*pit_counter(0, 0x34, 0x1234), ("wait", 3_000_000_000), *reads(0, 0)]
    halfway = [("write", 3, 1, 0x00), *reads(0)]
    subject = lent(World())
    assert [answer for _, answer, *_ in subject.play(first)][-2:] == [0x32, 0x12]
    subject.play(halfway)
    front = subject._front
    assert front is not None
    assert front.answered == 2, "the latch and the byte"
    subject.play([("wait", 60_000_000_000)])
    fresh = lent(World())
    fresh.load(subject.save())
    for either in (subject, fresh):
        high, low, again = (answer for _, answer, *_ in either.play(reads(0, 0, 0)))
        assert (high, low, again) == (0x12, 0xF6, 0x11)


def test_c_forgets_the_cmos_that_was() -> None:
    """The register that is chosen is C's to know, and so is what others read."""
    world = World()
    device = Rtc146818(world.clock, world.lines[8], epoch=1_700_000_000)
    subject = Subject(world, device, access=Fronts(world, (device, 0, 2)))
    chosen = [("write", 0, 1, 0x40), ("read", 1, 1)]
    subject.play([*rtc_register(0x41, 2), *rtc_register(0x40, 1), *chosen])
    saved = subject.save()
    front = subject._front
    assert front is not None
    subject.play([*rtc_register(0x40, 7), *chosen, ("write", 0, 1, 0x41), ("read", 1, 1)])
    before = front.answered
    assert subject.step(("read", 1, 1))[1] == 2
    assert front.answered == before + 1, "C knows register 0x41"
    subject.load(saved)
    assert subject.step(("read", 1, 1))[1] == 1, "register 0x40 is chosen again, with 1 in it"


def test_a_line_that_c_drives_is_left_alone() -> None:
    """What is restored knows the level, and C goes on from there."""
    first, other = InC(), InC()
    subject = serial(World(), first, published=True)
    subject.play([("write", 1, 1, 2)])
    assert first.changes == 1, "the transmitter's interrupt is due"
    fresh = serial(World(), other, published=True)
    fresh.load(subject.save())
    assert other.changes == 0
    assert fresh._front is not None
    # The IIR takes the request away: C lowers the line, which it thinks is high.
    assert fresh.step(("read", 2, 1))[1] == 2
    assert fresh._front.answered == 1
    assert lib.pykvm_line_set(other.core, True) == 0
    assert other.changes == 1


def test_what_only_ends_the_run_has_no_state() -> None:
    assert DebugExit.stateless
    assert AcpiPmTimer.stateless
