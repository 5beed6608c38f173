"""Where each class of a state is defined: a file names classes, and never what to import."""

from __future__ import annotations

from importlib import import_module

from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import defined

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["MODULES", "import_states"]

_CLASSES = {
    "clock.saved": "ClockState TimerState",
    "devices.acpi_pm": "AcpiPmState",
    "devices.fw_cfg": "FwCfgState TransferState",
    "devices.hpet": "HpetState HpetTimerState",
    "devices.i8042": "KeyboardControllerState",
    "devices.incoming": "IncomingState",
    "devices.pc_testdev": "KeptState LinePortsState",
    "devices.pci_config": "PciConfigState",
    "devices.pci_host": "PciHostState",
    "devices.pit": "Pit8254State",
    "devices.pit_channel": "ChannelState",
    "devices.port61": "Port61State",
    "devices.port92": "Port92State",
    "devices.post": "PostPortState",
    "devices.pvpanic": "PvPanicState",
    "devices.rtc": "Rtc146818State",
    "devices.stream": "OutputState",
    "devices.uart": "UartState",
    "devices.uart_registers": "RegistersState",
    "host.record": "HostRecord",
    "interrupts.ioapic": "IoApicState",
    "interrupts.lapic_core": "LocalApicState",
    "interrupts.lapic_timer": "ApicTimerState",
    "interrupts.pic": "Pic8259State",
    "irqchip.injector": "InjectorState",
    "irqchip.kernel": "KernelIrqChipState PitState",
    "irqchip.kernel_lapics": "StoppedTimer",
    "irqchip.split": "SplitIrqChipState",
    "irqchip.user": "UserIrqChipState",
    "irqchip.wiring": "PlatformState",
    "machine.linux_console": "KernelWatchState",
    "machine.listening": "ConsoleState HeardState",
    "machine.saved_guest": "EntryRecord GuestRecord",
    "machine.snapshot": "DeviceState MachineState PlaceState",
    "machine.snapshot_file": "RegionRecord SavedRecord",
    "vcpu.saved": "VcpuState",
}
#: By the name of a class, its module.
MODULES = {name: f"pykvm.{module}" for module, names in _CLASSES.items() for name in names.split()}

# What stands between the names in an annotation.
_BLANKS = str.maketrans(dict.fromkeys("[]|,.", " "))


def import_states(value: Any, also: Iterable[str]) -> None:
    """Import what defines the states that `value`, as JSON, is made of, and the classes `also`.

    One that pykvm does not have has been imported by the program, or is none; its annotations may
    name some of pykvm's.
    """
    pending, names = [value], set(also)
    while pending:
        one = pending.pop()
        if type(one) is list:
            pending += [part for part in one if type(part) in (list, dict)]
        elif type(one) is dict:
            pending += [part for part in one.values() if type(part) in (list, dict)]
            if len(one) == 1:
                names.add(next(iter(one)).partition("/")[0])
    done: set[str] = set()
    while names := {name for name in names if name in MODULES or defined(name)} - done:
        done |= names
        names = {word for name in names for word in _words(name)}


def _words(name: str) -> set[str]:
    """What the annotations of a class name."""
    if name in MODULES:
        import_module(MODULES[name])
    cls = defined(name)
    found: set[str] = set()
    for base in () if cls is None else cls.__mro__:
        for annotation in vars(base).get("__annotations__", {}).values():
            found.update(str(annotation).translate(_BLANKS).split())
    return found
