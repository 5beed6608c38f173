"""What is asked of KVM for interrupt controllers of its own: no KVM needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pykvm._core import lib
from pykvm.errors import ConfigError, KVMError
from pykvm.interrupts import Message
from pykvm.irqchip.kernel import KernelIrqChip, KernelLine
from pykvm.irqchip.split import SplitIrqChip, msi_of
from pykvm.kvm import Record, uapi

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.line import InterruptLine


class FakeVm:
    """Writes down what it is asked for; its interrupt lines lead nowhere."""

    fd = -1

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.asked.append((name, *arguments))


def kernel(vm: Any) -> KernelIrqChip:
    return KernelIrqChip(vm, lambda: pytest.fail("no clock is needed"))


def split(vm: Any) -> SplitIrqChip:
    return SplitIrqChip(vm, lambda: pytest.fail("no clock is needed"))


def test_what_kernel_and_split_ask_of_kvm() -> None:
    whole, half = FakeVm(), FakeVm()
    kernel(whole)
    split(half)

    assert [name for name, *_ in whole.asked] == [
        "create_irqchip",
        "set_gsi_routing",
        "create_pit2",
    ]
    assert half.asked == [("enable_cap", 121, 24)]


def test_irq_0_is_on_pin_2_of_the_ioapic_and_2_nowhere() -> None:
    vm = FakeVm()
    kernel(vm)
    routes: Any = next(asked[1] for asked in vm.asked if asked[0] == "set_gsi_routing")
    to_ioapic = {
        route["gsi"]: route["u"]["irqchip"]["pin"]
        for route in routes
        if route["u"]["irqchip"]["irqchip"] == 2
    }
    assert to_ioapic == {0: 2, 1: 1} | {pin: pin for pin in range(3, 24)}


def test_wires_to_one_input_are_ored() -> None:
    made = kernel(FakeVm())
    first, second, other = map(kernel_line, (made.line(5), made.line(5), made.line(6)))
    changes = []
    for line, level in (
        (first, True),
        (first, True),
        (second, True),
        (first, False),
        (second, False),
        (second, False),
        (second, True),
    ):
        line.set(level)
        changes.append(lib.pykvm_line_changes(first.core))
    assert changes == [1, 1, 1, 1, 2, 2, 3]
    assert lib.pykvm_line_changes(other.core) == 0


def kernel_line(line: InterruptLine) -> KernelLine:
    assert isinstance(line, KernelLine)
    return line


def test_an_input_that_kvm_has_not() -> None:
    with pytest.raises(ConfigError, match="below 24, not 24"):
        kernel(FakeVm()).line(24)


def test_a_line_that_kvm_refuses(tmp_path: Path) -> None:
    file = (tmp_path / "no vm").open("w")

    class Refusing(FakeVm):
        fd = file.fileno()

    with pytest.raises(KVMError, match="KVM_IRQ_LINE: .*ENOTTY"):
        kernel(Refusing()).line(5).set(True)
    file.close()


def test_messages_as_kvm_takes_them() -> None:
    for address, data in ((0xFEE03004, 0x0131), (0xFEE00000, 0xC0FE), (0xFEEFF000, 0x0400)):
        assert msi_of(Message.from_msi(address, data)) == (address, data)


def test_an_irqfd_needs_the_kernels_ioapic() -> None:
    with pytest.raises(ConfigError, match="I/O APIC"):
        split(FakeVm()).irqfd(3, 5)


def test_channels_of_the_8254_have_counted_as_long() -> None:
    """KVM says when a channel was loaded, by the host's clock."""
    pit = uapi.kvm_pit_state2.new()
    for channel, ago in zip(pit.channels, (5, 6, 7), strict=True):
        channel.count_load_time = time.monotonic_ns() - ago * 1_000_000_000

    class Timed(FakeVm):
        def ioctl(self, number: int, data: bytearray) -> None:
            if number == uapi.KVM_GET_PIT2:
                data[:] = uapi.kvm_pit_state2.pack(pit)
            elif number == uapi.KVM_SET_PIT2:
                self.asked.append(("set_pit2", uapi.kvm_pit_state2.unpack(data)))

    vm = Timed()
    made = kernel(vm)
    state = made.state().pit
    time.sleep(0.05)
    before = time.monotonic_ns()
    made._set_pit(state)
    after = time.monotonic_ns()
    name, given = vm.asked[-1]
    assert name == "set_pit2"
    assert isinstance(given, Record)
    for channel, counted in zip(given.channels, state.counted, strict=True):
        assert before - counted <= channel.count_load_time <= after - counted
    assert [counted // 1_000_000_000 for counted in state.counted] == [5, 6, 7]


def test_lines_are_driven_once_all_of_them_are_restored() -> None:
    """None of it is seen by KVM before, whatever the lines were."""
    made = kernel(FakeVm())
    first, second, other = map(kernel_line, (made.line(5), made.line(5), made.line(6)))
    first.set(True)
    first.restore(False)
    second.restore(True)
    second.restore(True)
    other.restore(True)
    assert lib.pykvm_line_changes(first.core) == 1
    assert lib.pykvm_lines_differ(made._lines)
    assert lib.pykvm_lines_drive(made._lines) == 0
    assert [lib.pykvm_line_changes(line.core) for line in (first, other)] == [1, 1]
    assert not lib.pykvm_lines_differ(made._lines)
    second.set(False)
    assert lib.pykvm_line_changes(first.core) == 2
