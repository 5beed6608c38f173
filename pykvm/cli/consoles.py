"""A machine's consoles, connected to where the command line says they go."""

from __future__ import annotations

import os
import time
from _thread import get_ident
from contextlib import ExitStack

from pykvm.cli.ports import NoPort, StdioPort, StdoutPort, open_file
from pykvm.cli.report import say, stderr_has_stalled, write_stderr
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.uart import Uart16550
from pykvm.errors import ConfigError
from pykvm.machine.known_devices import first_serial
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.cli.interrupts import Interrupts
    from pykvm.cli.options import Destination, Options
    from pykvm.cli.output import Stop, TimeLimit
    from pykvm.cli.ports import Port
    from pykvm.cli.pump import Pump
    from pykvm.cli.terminal import RawTerminal
    from pykvm.machine import Machine

__all__ = ["Consoles", "Lines", "open_port"]

_STDIN, _STDOUT, _STDERR = 0, 1, 2

#: How much of a line waits for its end.
LONGEST_LINE = 4096

# Two Ctrl-C within so many seconds end the run of a guest that owns the terminal.
_TWICE = 1.0
# What Ctrl-C does is said again after so many seconds without one.
_REMINDED = 60.0
_CTRL_C = b"\x03"
_PASSED = "Ctrl-C went to the guest; another one within a second, or Ctrl-A x, ends the run"


class Consoles:
    """While entered, serial ports and debug console are connected to their destinations."""

    def __init__(
        self, machine: Machine, options: Options, interrupts: Interrupts, limit: TimeLimit
    ) -> None:
        """`limit` is when the run ends at the latest."""
        self._machine = machine
        self._options = options
        self._interrupts = interrupts
        self._limit = limit
        self._stack = ExitStack()
        self._ports: list[Port] = []
        self._pumps: list[Pump] = []
        self._terminal: RawTerminal | None = None
        #: True once Ctrl-A x was typed.
        self.left = False
        #: What is to be said at the end: output that was lost.
        self.remarks: list[str] = []

    def __enter__(self) -> Consoles:
        with self._stack:
            self._connect()
            # Nothing went wrong, so all of it stays open.
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupts.passes = None
        self._stack.close()
        lost = any(isinstance(port, StdoutPort) and port.lost for port in self._ports)
        if lost and same_file(_STDOUT, _STDERR):
            stderr_has_stalled()

    @property
    def amid_line(self) -> bool:
        """Whether what goes to stderr next would be glued to the guest's last words."""
        return same_file(_STDOUT, _STDERR) and any(
            isinstance(port, StdoutPort) and port.unfinished for port in self._ports
        )

    def _connect(self) -> None:
        options, devices = self._options, self._machine.devices
        first = self._connect_serial("--serial", options.serial, first_serial(devices))
        second = devices["com2"]
        assert isinstance(second, Uart16550)
        if options.serial2 == options.serial and options.serial.kind in ("stdio", "file"):
            second.on_output(self._writer(first), at_once=b"")
        elif options.serial2.kind != "none":
            typing = options.serial.kind != "stdio"
            self._connect_serial("--serial2", options.serial2, second, typing=typing)

        write = self._writer(first)
        if options.debugcon.kind != "serial" and options.debugcon != options.serial:
            console = self._open("--debugcon", options.debugcon, typing=False)
            write = self._writer(console)
            if console.pumped:
                from pykvm.cli.pump import Pump

                self._pumps.append(Pump(console))
        debugcon = devices["debugcon"]
        assert isinstance(debugcon, DebugConsole)
        debugcon.on_output(write)

        # From here on a signal must not come between the terminal and what puts it back.
        self._interrupts.hold()
        if self._terminal is not None:
            self._stack.enter_context(self._terminal)
        for pump in self._pumps:
            self._close_at_the_end(pump.close)
            pump.start()

    def _connect_serial(
        self, option: str, destination: Destination, uart: Uart16550, *, typing: bool = True
    ) -> Port:
        receive: Callable[[bytes], object] = uart.send
        terminal: RawTerminal | None = None
        if destination.kind == "stdio" and typing and os.isatty(_STDIN):
            from pykvm.cli.terminal import RawTerminal

            def resumed() -> None:
                pump.wake()

            terminal = self._terminal = RawTerminal(_STDIN, resumed)
            receive = self._typing(uart.send)
        port = self._open(option, destination, typing=typing, terminal=terminal)
        uart.on_output(self._writer(port), at_once=b"")
        if port.pumped:
            from pykvm.cli.pump import Pump

            pump = Pump(port, receive=receive, unread=lambda: uart.pending)
            self._pumps.append(pump)
            uart.on_drained(pump.drained)
            if terminal is not None:
                self._pass_on_ctrl_c(uart, pump)
        return port

    def _open(
        self,
        option: str,
        destination: Destination,
        *,
        typing: bool = True,
        terminal: RawTerminal | None = None,
    ) -> Port:
        port = open_port(
            option,
            destination,
            stop=self._interrupts,
            limit=self._limit,
            most=self._options.output_limit,
            typing=typing,
            terminal=terminal,
        )
        self._ports.append(port)
        self._close_at_the_end(port.close)
        if port.notice:
            say(f"{option.removeprefix('--')} {port.notice}", until=self._limit.at)
        return port

    def _close_at_the_end(self, close: Callable[[], str]) -> None:
        """Call `close` at the end, and remark what it has to say."""

        def closing() -> None:
            text = close()
            if text:
                self.remarks.append(text)

        self._stack.callback(closing)

    def _writer(self, port: Port) -> Callable[[bytes], object]:
        """How to print on `port`: by lines where a trace is printed in between."""
        if (
            self._options.trace is None
            or self._options.trace_file is not None
            or not isinstance(port, StdoutPort)
            or not same_file(_STDOUT, _STDERR)
        ):
            return port.write
        lines = Lines(port.write)
        self._stack.callback(lines.flush)
        return lines.write

    def _pass_on_ctrl_c(self, uart: Uart16550, pump: Pump) -> None:
        """From now on, Ctrl-C is for the guest once it owns the terminal."""

        def passed() -> None:
            uart.send(_CTRL_C)
            if ctrl_c.to_be_told:
                write_stderr("\n" * self.amid_line, until=0.0)
                say(_PASSED, until=0.0)

        def passes() -> bool:
            owns = uart.heard or uart.receives
            if self.left or not owns or not ctrl_c.passes(time.monotonic()):
                return False
            pump.soon(passed)
            return True

        ctrl_c = CtrlC()
        self._interrupts.passes = passes

    def _typing(self, send: Callable[[bytes], object]) -> Callable[[bytes], None]:
        """What becomes of keys: the commands of Ctrl-A are ours, the rest is the guest's."""
        from pykvm.cli.terminal import ESCAPE_HELP, Escape

        escape = Escape()
        main = get_ident()

        def receive(typed: bytes) -> None:
            passed, commands = escape.feed(typed)
            if passed:
                send(passed)
            if "help" in commands:
                write_stderr(ESCAPE_HELP, until=0.0)
            if "leave" in commands:
                self.left = True
                from signal import SIGINT, pthread_kill

                # As Ctrl-C does it: that works whether the run has begun or not.
                pthread_kill(main, SIGINT)

        return receive


class CtrlC:
    """Which Ctrl-C is for a guest that owns the terminal: all but the second of two in a row.

    >>> ctrl_c = CtrlC()
    >>> ctrl_c.passes(10.0), ctrl_c.to_be_told, ctrl_c.passes(12.0), ctrl_c.to_be_told
    (True, True, True, False)
    >>> ctrl_c.passes(12.9)
    False
    """

    def __init__(self) -> None:
        self._last: float | None = None
        #: Whether the last one is one to explain.
        self.to_be_told = False

    def passes(self, now: float) -> bool:
        """Whether the one that comes `now`, in seconds, is for the guest."""
        since = _REMINDED if self._last is None else now - self._last
        self._last = now
        self.to_be_told = since >= _REMINDED
        return since >= _TWICE


class Lines:
    r"""Output by whole lines; one that comes to no end is passed on in parts.

    >>> parts = []
    >>> lines = Lines(parts.append)
    >>> lines.write(b"one\ntw"), lines.write(b"o\n"), lines.write(b"three"), lines.flush()
    (None, None, None, None)
    >>> parts
    [b'one\n', b'two\n', b'three']
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._begun = bytearray()

    def write(self, data: bytes) -> None:
        """Pass on what are whole lines by now."""
        end = data.rfind(b"\n") + 1
        if end:
            whole = bytes(self._begun) + data[:end]
            self._begun.clear()
            self._write(whole)
        self._begun += data[end:]
        if len(self._begun) >= LONGEST_LINE:
            self.flush()

    def flush(self) -> None:
        """Pass on the beginning of a line."""
        if self._begun:
            begun = bytes(self._begun)
            self._begun.clear()
            self._write(begun)


def same_file(first: int, second: int) -> bool:
    """Whether two descriptors lead to one file, terminal or pipe."""
    try:
        one, two = os.fstat(first), os.fstat(second)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


def open_port(
    option: str,
    destination: Destination,
    *,
    stop: Stop,
    limit: TimeLimit,
    most: int | None = None,
    typing: bool = True,
    terminal: RawTerminal | None = None,
) -> Port:
    """The port for a destination; stdin belongs to it only if `typing`; `most` is for a file.

    Raises ConfigError, naming `option`, where it cannot be opened.
    """
    try:
        if destination.kind == "stdio":
            if typing:
                return StdioPort(stop, limit, terminal)
            return StdoutPort(stop, limit)
        if destination.kind == "file":
            return open_file(destination.path, stop=stop, limit=limit, most=most)
        if destination.kind == "pty":
            from pykvm.cli.waiting import PtyPort

            return PtyPort(stop)
        if destination.kind == "unix":
            from pykvm.cli.waiting import UnixPort

            return UnixPort(destination.path, stop)
        if destination.kind == "tcp":
            from pykvm.cli.waiting import TcpPort

            return TcpPort(destination.path, stop)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{option} {destination}: {reason}") from error
    return NoPort()
