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

__all__ = ["ConsoleState", "HeardState", "Listening"]


class HeardState(State):
    """Up to its byte `position` the output of a console holds no more matches."""

    console: str
    position: U64


class ConsoleState(State):
    """How far the guest's consoles have been listened to, and how often they were typed at."""

    heard: tuple[HeardState, ...]
    typed: U64
    watch: KernelWatchState | None


class Listening:
    """Waits for text (`until`, `fail`) and for the last words of a Linux kernel."""

    def __init__(self, devices: Mapping[str, Device], *, is_linux: bool) -> None:
        self._devices = devices
        self._is_linux = is_linux
        self._kernel_watch: KernelWatch | None = None
        # By the name of the console.
        self._ears: dict[str, Ear] = {}
        # Where those begin that are not there yet.
        self._heard: dict[str, int] = {}
        #: How often consoles were typed at.
        self.typed = 0

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
        self,
        machine: object,
        collected: Shared,
        until: object,
        fail: object,
        ear: Ear | None = None,
    ) -> Iterator[Conditions[object] | None]:
        """Wait for what is to end the run before the guest does; functions get `machine`.

        It is heard by `ear`, else on the first serial port.
        """
        if until is None and fail is None:
            yield None
            return
        from pykvm.machine.until import Conditions

        def listen() -> Ear:
            return self.ear("com1") if ear is None else ear

        with Conditions(machine, listen, until=until, fail=fail) as conditions:
            collected.prompt = conditions.prompt
            try:
                yield conditions
            finally:
                collected.prompt = False

    def state(self) -> ConsoleState:
        """How far that has come."""
        watch = self._kernel_watch
        positions = self._heard | {name: ear.position for name, ear in self._ears.items()}
        heard = tuple(HeardState(name, at) for name, at in sorted(positions.items()) if at)
        return ConsoleState(heard, self.typed, None if watch is None else watch.state())

    def restore(self, state: ConsoleState) -> None:
        """Listen from there again; the ports have been put back already."""
        self._kernel_watch = None
        if state.watch is not None:
            from pykvm.machine.linux_console import KernelWatch

            self._kernel_watch = KernelWatch()
            self._kernel_watch.restore(state.watch)
        # A console that was not listened to until then is listened to from its beginning.
        self._ears = {}
        self._heard = {heard.console: heard.position for heard in state.heard}
        self.typed = state.typed

    def ear(self, name: str) -> Ear:
        """How far a console has been listened to.  Raises ConfigError if there is none."""
        from pykvm.machine.known_devices import console
        from pykvm.machine.until import Ear

        port = console(self._devices, name)
        ear = self._ears.get(name)
        if ear is None or ear.console is not port:
            ear = self._ears[name] = Ear(port)
            ear.position = self._heard.pop(name, 0)
        return ear

    @property
    def _serial(self) -> Uart16550:
        from pykvm.machine.known_devices import first_serial

        return first_serial(self._devices)
