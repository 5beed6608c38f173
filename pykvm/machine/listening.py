"""What pykvm itself listens for on a guest's first serial port, from one run to the next."""

from __future__ import annotations

from contextlib import contextmanager

from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pykvm.bus import Device
    from pykvm.bus.published import Shared
    from pykvm.devices.uart import Uart16550
    from pykvm.machine.linux_console import KernelWatch, KernelWatchState
    from pykvm.machine.until import Conditions, Ear
    from pykvm.values.state import U64

__all__ = ["ConsoleState", "Listening"]


class ConsoleState(State):
    """How far runs have listened to the guest: `heard` bytes of its output hold no more matches."""

    heard: U64
    watch: KernelWatchState | None


class Listening:
    """Waits for text (`until`, `fail`) and for the last words of a Linux kernel."""

    def __init__(self, devices: Mapping[str, Device], *, is_linux: bool) -> None:
        self._devices = devices
        self._is_linux = is_linux
        self._kernel_watch: KernelWatch | None = None
        self._ear: Ear | None = None
        # Where it begins.
        self._heard = 0

    @contextmanager
    def for_death(self) -> Iterator[KernelWatch | None]:
        """Listen to what a Linux kernel says when it dies, if the guest is one."""
        if not self._is_linux or "com1" not in self._devices:
            yield None
            return
        if self._kernel_watch is None:
            from pykvm.machine.linux_console import KernelWatch

            self._kernel_watch = KernelWatch()
        # It may end the run where a line ends.
        forget = self._serial.on_output(self._kernel_watch.output, at_once=b"\n")
        try:
            yield self._kernel_watch
        finally:
            forget()

    @contextmanager
    def for_conditions(
        self, machine: object, collected: Shared, until: object, fail: object
    ) -> Iterator[Conditions[object] | None]:
        """Wait for what is to end the run before the guest does; functions get `machine`."""
        if until is None and fail is None:
            yield None
            return
        from pykvm.machine.until import Conditions

        with Conditions(machine, self._listen, until=until, fail=fail) as conditions:
            collected.prompt = conditions.prompt
            try:
                yield conditions
            finally:
                collected.prompt = False

    def state(self) -> ConsoleState:
        """How far that has come."""
        ear, watch = self._ear, self._kernel_watch
        return ConsoleState(
            self._heard if ear is None else ear.position, None if watch is None else watch.state()
        )

    def restore(self, state: ConsoleState) -> None:
        """Listen from there again; the port has been put back already."""
        self._kernel_watch = None
        if state.watch is not None:
            from pykvm.machine.linux_console import KernelWatch

            self._kernel_watch = KernelWatch()
            self._kernel_watch.restore(state.watch)
        self._ear, self._heard = None, state.heard

    def _listen(self) -> Ear:
        """How far the port has been listened to."""
        from pykvm.machine.until import Ear

        serial = self._serial
        if self._ear is None or self._ear.console is not serial:
            self._ear = Ear(serial)
            self._ear.position, self._heard = self._heard, 0
        return self._ear

    @property
    def _serial(self) -> Uart16550:
        from pykvm.machine.known_devices import first_serial

        return first_serial(self._devices)
