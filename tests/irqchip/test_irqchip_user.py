"""What stands where before anything is made, and who is asked when it is."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm import Machine
from pykvm.bus import Bus, Placement, Range, Space
from pykvm.errors import ConfigError
from pykvm.irqchip import check_irqchip
from pykvm.irqchip.places import PLACES
from pykvm.irqchip.user import OnDemand, UserIrqChip, apic_traits
from pykvm.irqchip.wiring import ApicTraits
from pykvm.x86.cpuid import CpuidEntry
from support.interrupts import platform_of, poke


class Register:
    """A device that keeps what is written."""

    name = "pit"
    value = 7

    def read(self, offset: int, size: int) -> int:
        return self.value + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


class Vm:
    """A VM that takes every capability."""

    def __init__(self) -> None:
        self.capabilities: list[tuple[int, ...]] = []

    def enable_cap(self, *arguments: int) -> None:
        self.capabilities.append(arguments)


# A vCPU that is asked nothing.
ONE: Any = None


def irqchip(bus: Bus) -> UserIrqChip:
    def never(*arguments: Any) -> Any:
        raise AssertionError("nothing was touched")

    vm: Any = Vm()
    made = UserIrqChip(vm, bus, never, on_made=never, on_put_away=never, waits_for_host=never)
    assert vm.capabilities == [(188, 5)], "MSRs that KVM does not know are exits"
    return made


class TestOnDemand:
    @pytest.mark.parametrize("write_first", [False, True])
    def test_it_is_replaced_at_the_first_touch(self, write_first: bool) -> None:
        bus, device = Bus(), Register()
        made: list[str] = []

        def make(name: str) -> Range:
            made.append(name)
            bus.replace({name: device})
            return bus.ranges[0]

        bus.add_pio(0x40, 4, OnDemand("pit", make))
        if write_first:
            assert bus.write(Space.PIO, 0x40, 1, 9)
            assert device.value == 9
        else:
            assert bus.read(Space.PIO, 0x42, 1) == 9
        assert bus.read(Space.PIO, 0x40, 1) == device.value
        assert made == ["pit"]
        assert bus.ranges[0].device is device


class TestPlaces:
    def test_everything_and_nothing_of_it_made(self) -> None:
        bus = Bus()
        made = irqchip(bus)
        bus.add_all(made.attach([ONE], []))
        assert sorted(range_.name for range_ in bus.ranges) == sorted(PLACES)
        assert made.platform is None

    def test_who_puts_a_device_of_his_own_there_keeps_it(self) -> None:
        others = [Placement(Register(), Space.PIO, 0x43, 2)]
        names = [placement.name for placement in irqchip(Bus()).attach([ONE], others)]
        assert "pit" not in names
        assert len(names) == len(PLACES) - 1

    def test_the_same_number_in_the_other_space_is_no_conflict(self) -> None:
        others = [Placement(Register(), Space.MMIO, 0x40, 4)]
        assert len(irqchip(Bus()).attach([ONE], others)) == len(PLACES)


@pytest.mark.parametrize(
    ("irqchip", "clock", "message"),
    [
        ("apic", "realtime", "irqchip is one of user"),
        ("user", "fast", "clock is one of realtime"),
        ("kernel", "warp", "does not go with"),
        ("split", "warp", "does not go with"),
    ],
)
def test_what_there_is_not(irqchip: str, clock: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_irqchip(irqchip, clock)


def test_a_local_apic_is_as_cpuid_and_the_machine_check_say() -> None:
    def cpu(*leaves: CpuidEntry, mcg_cap: int | None = None) -> Any:
        msrs = {} if mcg_cap is None else {0x179: mcg_cap}
        kvm = SimpleNamespace(
            get_cpuid2=lambda: leaves, get_msrs=lambda indices, partial: dict(msrs)
        )
        return SimpleNamespace(kvm=kvm)

    def leaf(function: int, eax: int = 0, ecx: int = 0) -> CpuidEntry:
        return CpuidEntry(function, 0, 0, eax, 0, ecx, 0)

    assert apic_traits(cpu(leaf(1, ecx=1 << 21), leaf(0x8000_0008, 0x3930))) == (
        ApicTraits(x2apic=True, tsc_deadline=False, cmci=False, physical_bits=48)
    )
    assert apic_traits(cpu(leaf(1, ecx=1 << 24), mcg_cap=0x10000020)) == (
        ApicTraits(x2apic=False, tsc_deadline=True, cmci=False, physical_bits=36)
    )
    assert apic_traits(cpu(leaf(1), mcg_cap=1 << 10 | 32)).cmci


@pytest.mark.kvm
class TestMachine:
    def test_a_guest_that_needs_none_of_it_does_not_pay(self) -> None:
        with Machine() as machine:
            device: object = machine.devices["lapic"]
            assert isinstance(device, OnDemand)

    def test_the_first_touch_makes_all_of_it(self) -> None:
        with Machine() as machine:
            poke(machine, 0x43, 0x34, 1)
            assert not [d for d in machine.devices.values() if isinstance(d, OnDemand)]
            assert machine.devices["pit"] is platform_of(machine).pit

    def test_the_host_may_touch_registers_of_the_local_apic(self) -> None:
        """There are as many as vCPUs; to a thread that runs none it is the first's."""
        with Machine(vcpus=2) as machine:
            assert machine.bus.read(Space.MMIO, 0xFEE00020, 4) == 0
            seen: list[int | None] = []
            thread = threading.Thread(
                target=lambda: seen.append(machine.bus.read(Space.MMIO, 0xFEE00020, 4))
            )
            thread.start()
            thread.join()
            assert seen == [0]

    @pytest.mark.parametrize("policy", ["paused", "warp"])
    def test_time_does_not_pass_before_the_first_run(self, policy: str) -> None:
        with Machine(clock=policy) as machine:
            poke(machine, 0x43, 0x34, 1)
            time.sleep(0.01)
            assert machine.clock.now() == 0
