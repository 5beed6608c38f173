"""Interrupt controllers in software are saved, put back, and put away untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import Machine
from pykvm.bus import Space
from pykvm.errors import ConfigError
from pykvm.irqchip.injector import Injector, InjectorState
from pykvm.irqchip.user import OnDemand, UserIrqChip, UserIrqChipState
from pykvm.machine.known_devices import first_serial
from pykvm.values.state import decode, encode
from support.interrupts import platform_of, poke
from support.saved import damaged

if TYPE_CHECKING:
    from pykvm.irqchip.base import IrqChip

pytestmark = pytest.mark.kvm


def machine(**options: Any) -> Machine:
    return Machine(b"\xf4", mode="real", memory="1M", **options)


def chip_of(made: Machine) -> UserIrqChip:
    chip: IrqChip | None = made._board.irqchip
    assert isinstance(chip, UserIrqChip)
    return chip


def devices(made: Machine) -> dict[str, Any]:
    return {
        name: device.state()
        for name, device in made._board.devices.items()
        if hasattr(device, "state")
    }


def rtc_register(made: Machine, index: int) -> int:
    bus = made._board.bus
    bus.write(Space.PIO, 0x70, 1, index)
    value = bus.read(Space.PIO, 0x71, 1)
    assert value is not None
    return value


def place_of(made: Machine, name: str) -> list[int]:
    return [range_.first for range_ in made._board.bus.ranges if range_.name == name]


def test_what_was_never_touched_has_no_state() -> None:
    with machine() as made:
        assert chip_of(made).state() is None
        chip_of(made).restore(None)
        assert chip_of(made).platform is None


def test_what_was_touched_since_is_put_away() -> None:
    with machine() as made:
        chip, board = chip_of(made), made._board
        line = first_serial(made.devices)._irq.line
        before = chip.state()
        platform = platform_of(made)
        assert "pit" not in [name for name, d in board.devices.items() if isinstance(d, OnDemand)]
        # A kernel's beginning: 8259, 8254, CMOS, local APIC.
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x43, 0x34)):
            board.bus.write(Space.PIO, port, 1, value)
        for value in (10, 0):
            board.bus.write(Space.PIO, 0x40, 1, value)
        board.bus.write(Space.PIO, 0x70, 1, 0x8B)
        board.bus.write(Space.PIO, 0x71, 1, 0x72)
        poke(made, 0xFEE000F0, 0x1FF)
        chip.injectors[0].request_nmi()
        chip._rebase(made.vcpus[0], 0xFEE0_0900)
        assert made.clock.next_deadline(0) is not None

        chip.restore(before)
        assert not chip.interrupts
        assert chip.state() is None
        assert made.clock.next_deadline(0) is None
        assert isinstance(board.devices["pit"], OnDemand)
        assert all(
            isinstance(range_.device, OnDemand)
            for range_ in board.bus.ranges
            if range_.name in platform.devices
        )
        assert place_of(made, "lapic") == [0xFEE0_0000]
        # Its line is the same as ever, and is seen when there is something to see it again.
        line.set(True)

        touched = made.clock.now()
        assert rtc_register(made, 13) == 0x80
        assert platform.rtc.state().seen >= touched, "flags are those of a clock made now"
        assert chip.platform is platform
        assert chip.interrupts
        assert not isinstance(made.devices["pit"], OnDemand)
        master = platform.pic.chips[0]
        assert (master.ready, master.irr, master.lines) == (False, 0x10, 0x10)
        assert platform.ioapic.lines == 0x10
        assert platform.lapics[0].page()[0xF0] == 0xFF
        assert chip.injectors[0].state() == InjectorState()
        line.set(False)
        assert platform.ioapic.lines == 0


def test_a_second_machine_goes_on_from_the_state_of_the_first() -> None:
    with machine() as one, machine() as other:
        platform = platform_of(one)
        bus = one._board.bus
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x43, 0x34)):
            bus.write(Space.PIO, port, 1, value)
        poke(one, 0xFEE000F0, 0x1FF)
        platform.lapics[0].accept(0x41)
        chip_of(one).injectors[0].request_nmi()
        platform.lapics[0].cr8 = 3
        one.vcpus[0].engine.page[0xE] = 0
        platform.line(4).set(True)
        states, state = devices(one), chip_of(one).state()
        assert state is not None

        chip_of(other).make()
        other.clock.restore(one.clock.state())
        for name, of_device in states.items():
            other._board.devices[name].restore(of_device)  # type: ignore[union-attr]
        for _ in range(2):
            chip_of(other).restore(decode(encode(state), UserIrqChipState))
            assert chip_of(other).state() == state
        assert devices(other) == states
        # It asks the vCPU to look at what waits.
        lapic = chip_of(other).injectors[0].lapic
        assert lapic is not None
        assert lapic.interrupt == 0x41
        assert chip_of(other).injectors[0].awake


def test_the_page_of_a_local_apic_stands_where_it_stood() -> None:
    with machine(vcpus=2) as made:
        chip, platform = chip_of(made), platform_of(made)
        before = chip.state()
        platform.lapics[1].base = 0xFED4_0800
        chip._place_pages(platform)
        moved = chip.state()
        assert place_of(made, "lapic") == [0xFED4_0000, 0xFEE0_0000]
        chip.restore(before)
        assert place_of(made, "lapic") == [0xFEE0_0000]
        chip.restore(moved)
        assert place_of(made, "lapic") == [0xFED4_0000, 0xFEE0_0000]
        with pytest.raises(ConfigError, match="several vCPUs always has"):
            chip.restore(None)


def test_a_device_that_stands_nowhere_is_saved_with_the_irqchip() -> None:
    class Own:
        name = "own"
        stateless = True

        def read(self, offset: int, size: int) -> int:
            return 0

    with machine() as made:
        made.remove("pit")
        made.add(Own(), pio=0x40, length=4)
        platform = platform_of(made)
        saved = chip_of(made).state()
        assert saved is not None
        assert [name for name, _ in saved.off_bus] == ["pit"]
        platform.pit.set_gate(2, True)
        chip_of(made).restore(saved)
        assert not platform.pit.channels[2].gate


def test_kvmclock_is_followed_where_it_was() -> None:
    with machine(clock="warp") as made:
        chip = chip_of(made)
        state = chip.state()
        assert state is not None
        assert not state.kvmclock
        chip.restore(state.__replace__(kvmclock=True))
        assert chip.state() == state.__replace__(kvmclock=True)
        chip.restore(state)
        assert chip.state() == state


@settings(max_examples=40)
@given(st.data())
def test_a_state_of_a_stranger_is_refused_or_harmless(data: st.DataObject) -> None:
    with machine() as made:
        platform_of(made)
        state = chip_of(made).state()
        try:
            chip_of(made).restore(data.draw(damaged(state)))
        except ConfigError:
            return
        made.run(timeout=0.05)


def test_more_nmis_than_can_wait_are_refused() -> None:
    injector = Injector(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NMIs that wait is an integer from 0 to 2, not 3"):
        injector.restore(InjectorState(nmis=3))
