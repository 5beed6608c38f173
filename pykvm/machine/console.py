"""Talking to a guest: wait for what it says, type at it, have a shell run a command.

What is waited for either comes true or raises: a wait that is over is never taken for an answer.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from pykvm.errors import ConfigError, GuestFailed, RunStopped, RunTimeout, StateError
from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import callback as check_callback
from pykvm.values.checks import seconds, show, text
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from pykvm.clock import Clock
    from pykvm.devices.stream import OutputLog
    from pykvm.machine.runs import Runs
    from pykvm.machine.until import Ear
    from pykvm.result import Ending, Result

    T = TypeVar("T")
    Text = str | bytes | re.Pattern[str] | re.Pattern[bytes]

__all__ = ["Console", "Said", "ShellResult", "Spoken"]

#: How long `expect` waits unless it is given a time: a guest that hangs does not hang a test.
TIMEOUT = 30.0
#: A shell waits for input if it says nothing more for so long, in seconds.
QUIET = 0.1
#: How often one who waits looks whether the run in another thread is still under way.
_LOOK = 0.1
#: So many pieces of what was said and typed are kept with their times.
_TIMES = 1 << 16
# After a run that ended so, one that waits runs the machine itself.
_GOES_ON = frozenset({Outcome.UNTIL, Outcome.TIMEOUT, Outcome.FAILED})
#: A terminal takes lines of less than 4,096 characters (N_TTY_BUF_SIZE in Linux).
_LONGEST_LINE = 4095


class Said(NamedTuple):
    """What a guest said that was waited for.

    `text` is what matched, `before` what came between it and the last match.  `alternative` is the
    number of the one in the list that was given, and `match` the match of a regular expression.
    `dropped` bytes of what came before are no longer kept (`OutputLog`).
    """

    text: str
    before: str
    alternative: int = 0
    match: Any = None
    dropped: int = 0


class ShellResult(NamedTuple):
    r"""What a shell's command ended with: `status`, and the `output` with newlines as ``\n``."""

    status: int
    output: str


class Spoken(NamedTuple):
    r"""A line of a transcript: `time` is the guest's, in nanoseconds.

    `typed` is true for what was sent to the guest.

    >>> print(Spoken(1_500_000_000, False, "login: "))
    [    1.500000] login:
    >>> print(Spoken(2_000_000_000, True, "root\n"))
    [    2.000000] > root
    """

    time: int
    typed: bool
    text: str

    def __str__(self) -> str:
        mark = "> " if self.typed else ""
        return f"[{self.time / 1e9:12.6f}] {mark}{self.text}".rstrip()


class Console:
    """A port of a machine on which one talks to its guest; see `Machine.console`.

    ::

        console = machine.serial
        console.expect("login: ", timeout=20)
        console.sendline("root")
        status, output = console.run_command("uname -r")

    The guest runs while one of these waits for it, and stops at the last byte of what was awaited.
    If it runs already, in another thread, it goes on running.  `timeout` is in seconds of the
    host's time, or of the guest's for a machine with ``clock="warp"``; None is for ever.

    What is awaited is text, bytes, a compiled regular expression of either, or a list of these.
    It is looked for in all that the guest has said since the last match (`Machine.run` has the
    limits), whether that was waited for by `expect` or by ``run(until=...)``.

    A wait that does not come true raises: RunTimeout, GuestError if the guest crashed, GuestFailed
    if it ended or said what `fail` lists, RunStopped if the host stopped it.
    """

    def __init__(self, name: str, port: OutputLog, runs: Runs, clock: Clock) -> None:
        self.name = name
        #: The device.
        self.port = port
        #: What the shell says when it waits for a command.
        self.prompt: Text | Sequence[Text] = ("# ", "$ ")
        self._runs = runs
        self._clock = clock
        self._waiting = threading.Lock()
        # Set when a wait beside a run in another thread is over.
        self._stirred = threading.Event()
        # Whether the run is the wait's own.
        self._runs_here = False
        self._commands = 0
        # Up to which byte what was said when; and as which of all, when, after which byte what was
        # typed.
        self._heard: deque[tuple[int, int]] = deque(maxlen=_TIMES)
        self._typed: deque[tuple[int, int, int, str]] = deque(maxlen=_TIMES)
        port.on_output(self._note, at_once=b"")

    def __repr__(self) -> str:
        # <Uart16550 com1: 5 bytes printed>
        return f"<Console {repr(self.port).partition(' ')[2]}"

    # What the port has.

    @property
    def output(self) -> bytes:
        """What the guest printed so far, or the end of it (`OutputLog`)."""
        return self.port.output

    @property
    def text(self) -> str:
        """`output` as text: UTF-8, with U+FFFD for what is not."""
        return self.port.text

    @property
    def printed(self) -> int:
        """How many bytes were printed so far, kept or not."""
        return self.port.printed

    @property
    def dropped(self) -> int:
        """How many bytes were printed and are no longer in `output`."""
        return self.port.dropped

    def since(self, position: int) -> tuple[int, bytes]:
        """What is kept of the output from its byte `position` on, and where that begins."""
        return self.port.since(position)

    def last_lines(self, count: int = 24) -> str:
        """The last lines printed, without blank ones at the end."""
        return self.port.last_lines(count)

    def on_output(
        self, callback: Callable[[bytes], object], *, at_once: bytes | None = None
    ) -> Callable[[], None]:
        """Call ``callback(data)`` with what is printed from now on (`OutputLog.on_output`)."""
        return self.port.on_output(callback, at_once=at_once)

    # Typing.

    def send(self, data: bytes | str) -> None:
        """Type `data` (a str as UTF-8) at the guest.  From any thread; never blocks.

        Raises StateError for a port that only prints.
        """
        typed = getattr(self.port, "send", None)
        if typed is None:
            raise StateError(f"{self.name} only prints: it cannot be typed at")
        typed(data)
        shown = data if isinstance(data, str) else bytes(data).decode(errors="replace")
        self._forget_undone(self.port.printed)
        listening = self._runs.listening
        self._typed.append((listening.typed, self._clock.now(), self.port.printed, shown))
        listening.typed += 1

    def sendline(self, line: bytes | str = "") -> None:
        """Type a line, and a newline after it."""
        self.send(line + "\n" if isinstance(line, str) else bytes(line) + b"\n")

    @property
    def pending(self) -> int:
        """How many bytes were sent that the guest has not read yet."""
        return int(getattr(self.port, "pending", 0))

    def on_drained(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback()`` whenever the guest has read the last byte that was sent."""
        subscribe = getattr(self.port, "on_drained", None)
        if subscribe is None:
            raise StateError(f"{self.name} only prints: it cannot be typed at")
        end: Callable[[], None] = subscribe(check_callback("callback", callback))
        return end

    # Waiting.

    def expect(
        self,
        pattern: Text | Sequence[Text],
        timeout: float | None = TIMEOUT,
        *,
        fail: Text | Sequence[Text] | None = None,
    ) -> Said:
        """Wait until the guest has said `pattern`, and return what it said.

        Raises what the class says, and ConfigError for what cannot be waited for.
        """
        alternatives = _texts("pattern", pattern)
        failures = None if fail is None else _texts("fail", fail)
        limit = None if timeout is None else seconds("timeout", timeout)
        if not self._waiting.acquire(blocking=False):
            raise StateError(f"another thread waits for what {self.name} says")
        try:
            ear = self._runs.listening.ear(self.name)
            start = ear.position
            ending = self._wait(ear, alternatives, failures, limit)
        finally:
            self._waiting.release()
        return self._said(ear, start, ending, alternatives)

    def expect_prompt(
        self, prompt: Text | Sequence[Text] | None = None, timeout: float | None = TIMEOUT
    ) -> Said:
        """Wait for a shell's prompt (`prompt`): what it says before it waits for a command.

        A text that only looks like one, in the middle of the output, is passed over: after a prompt
        comes nothing more.
        """
        wanted = _texts("prompt", self.prompt if prompt is None else prompt)
        left = _countdown(timeout)
        before = ""
        while True:
            said = self.expect(wanted, left())
            before += said.before
            if not self._says_more():
                return said._replace(before=before)
            before += said.text

    def run_command(self, command: str, timeout: float | None = TIMEOUT) -> ShellResult:
        """Have a POSIX shell at its prompt run a command; return its status and output.

        What the terminal echoes is no part of the output, nor is the prompt.  Raises ConfigError
        for a command that cannot be typed: with a control character, or too long for a terminal.
        """
        self._commands += 1
        mark = f"{self._commands:x}.{self.port.printed:x}"
        line = shell_line(text("command", command), mark)
        left = _countdown(timeout)
        self.sendline(line)
        self.expect(f"<{mark}>", left())
        self.expect("\n", left())
        end = self.expect(f"<{mark}:", left())
        status = self.expect(">", left())
        if end.dropped:
            raise StateError(
                f"the command printed {end.dropped} bytes more than {self.name} keeps",
                hint="make it print less, or give the port a larger `limit`",
            )
        return ShellResult(int(status.before), end.before.replace("\r\n", "\n"))

    def transcript(self) -> list[Spoken]:
        """What was said and typed, line by line, with the guest's time at which it began.

        The guest's lines are timed to about 50 ms.  It goes back to when this console was first
        used, as far as `output` does.
        """
        self._forget_undone(self.port.printed)
        lines: list[Spoken] = []
        at = self.port.dropped
        typed = deque(self._typed)
        for position, when in tuple(self._heard):
            while typed and typed[0][2] < position:
                _, moment, _, line = typed.popleft()
                lines.append(Spoken(moment, True, line))
            first, data = self.port.since(at)
            piece = data[: max(position - first, 0)].decode(errors="replace")
            at = max(position, at)
            for part in piece.splitlines(keepends=True):
                if lines and not lines[-1].typed and not lines[-1].text.endswith("\n"):
                    lines[-1] = lines[-1]._replace(text=lines[-1].text + part)
                else:
                    lines.append(Spoken(when, False, part))
        lines += (Spoken(moment, True, line) for _, moment, _, line in typed)
        return lines

    # In asyncio programs.

    async def aexpect(
        self,
        pattern: Text | Sequence[Text],
        timeout: float | None = TIMEOUT,
        *,
        fail: Text | Sequence[Text] | None = None,
    ) -> Said:
        """`expect` for coroutines.  To cancel it ends the wait, and the run if that is its own."""
        return await self._in_thread(lambda: self.expect(pattern, timeout, fail=fail))

    async def aexpect_prompt(
        self, prompt: Text | Sequence[Text] | None = None, timeout: float | None = TIMEOUT
    ) -> Said:
        """`expect_prompt` for coroutines."""
        return await self._in_thread(lambda: self.expect_prompt(prompt, timeout))

    async def arun_command(self, command: str, timeout: float | None = TIMEOUT) -> ShellResult:
        """`run_command` for coroutines."""
        return await self._in_thread(lambda: self.run_command(command, timeout))

    async def _in_thread(self, action: Callable[[], T]) -> T:
        from pykvm.machine.in_thread import in_thread

        return await in_thread(action, self._give_up)

    # How it waits.

    def _wait(
        self, ear: Ear, wanted: list[Text], failures: list[Text] | None, limit: float | None
    ) -> Ending | Result:
        left = _countdown(limit)
        while True:
            if not self._runs.busy and self._runs.waiting.acquire(blocking=False):
                return self._run(ear, wanted, failures, limit)
            ending = self._wait_beside(ear, wanted, failures, left)
            if ending is not None:
                return ending
            limit = left()

    def _run(
        self, ear: Ear, wanted: list[Text], failures: list[Text] | None, limit: float | None
    ) -> Result:
        """Run the machine until it comes true."""
        in_guest_time = self._clock.policy == "warp"
        try:
            self._runs_here = True
            result = self._runs.run(
                None, limit, wanted, failures, ear=ear, in_guest_time=in_guest_time
            )
        finally:
            self._runs_here = False
            self._runs.waiting.release()
        return result.check()

    def _wait_beside(
        self,
        ear: Ear,
        wanted: list[Text],
        failures: list[Text] | None,
        left: Callable[[], float | None],
    ) -> Ending | None:
        """Wait for what the guest says in the run of another thread, which goes on.

        Returns None if that was a run of another console, whose own wait is over.
        """
        if self._runs.is_mine:
            raise StateError(
                "expect was called from inside the run: a device, on_exit or until",
                hint="there, look at `output`, or subscribe by `on_output`",
            )
        from pykvm.machine.until import Conditions

        self._stirred.clear()
        conditions = Conditions(None, lambda: ear, until=wanted, fail=failures)
        conditions.on_ending = self._stirred.set
        with conditions:
            while conditions.ending is None:
                busy, others = self._runs.busy, self._runs.waiting.locked()
                remaining = left()
                if self._stirred.wait(_LOOK if remaining is None else min(remaining, _LOOK)):
                    self._stirred.clear()
                    if conditions.ending is None:
                        raise RunStopped(f"the wait for {conditions.awaited} was given up")
                elif remaining == 0:
                    raise RunTimeout(
                        f"the guest runs on, and has not said {conditions.awaited} in time",
                        console=self.port.last_lines(),
                    )
                elif not (busy or others):
                    self._after(conditions.awaited)
                    return None
            ending = conditions.ending
        if ending.outcome is Outcome.FAILED:
            raise GuestFailed(ending.sentence, console=self.port.last_lines())
        return ending

    def _after(self, awaited: str) -> None:
        """The run of another thread is over: raise if the guest is, or was stopped.

        Another one may have begun since.
        """
        if self._runs.busy or self._runs.waiting.locked():
            return
        result = self._runs.last_result
        if result is None:
            raise StateError(f"an exception ended the run in the other thread; awaited: {awaited}")
        if result.outcome not in _GOES_ON:
            raise result.failure(awaited)

    def _give_up(self) -> None:
        """From any thread: end the wait."""
        if self._runs_here:
            self._runs.stop()
        self._stirred.set()

    def _said(
        self, ear: Ear, start: int, ending: Ending | Result, alternatives: list[Text]
    ) -> Said:
        matched: Any = ending.matched
        match: Any = ending.match
        what = matched if match is None else match[0]
        length = len(what.encode("utf-8", "surrogateescape") if isinstance(what, str) else what)
        first, said = self.port.since(start)
        said = said[: ear.position - first]
        begin = len(said) - length
        return Said(
            said[begin:].decode(errors="replace"),
            said[:begin].decode(errors="replace"),
            next(number for number, one in enumerate(alternatives) if one is matched),
            match,
            first - start,
        )

    def _says_more(self) -> bool:
        """Whether the guest goes on to print; what it says stays to be waited for.

        What a shell's line editor asks a terminal (ESC [6n, where its cursor is) is nothing said.
        """
        ear = self._runs.listening.ear(self.name)
        position = ear.position
        while True:
            printed = self.port.printed
            self._listen_on(ear)
            _, said = self.port.since(position)
            if _visible(said):
                ear.position = position
                return True
            if self.port.printed == printed:
                ear.position = printed
                return False

    def _listen_on(self, ear: Ear) -> None:
        """Let the guest print a byte more, if it does soon."""
        import re

        if self._runs.busy:
            self._stirred.clear()
            self._stirred.wait(QUIET)
            return
        result = self._runs.run(None, QUIET, re.compile(b"(?s)."), None, ear=ear)
        if result.error is not None:
            raise result.error

    def _note(self, data: bytes) -> None:
        self._forget_undone(self.port.printed - len(data))
        self._heard.append((self.port.printed, self._clock.now()))

    def _forget_undone(self, printed: int) -> None:
        """Forget what was said and typed that a reset of the machine has undone."""
        while self._heard and self._heard[-1][0] > printed:
            self._heard.pop()
        while self._typed and self._typed[-1][0] >= self._runs.listening.typed:
            self._typed.pop()


def _texts(name: str, given: Any) -> list[Text]:
    """What can be waited for, as a list.  Raises ConfigError."""
    alternatives = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in alternatives:
        if callable(one) and not hasattr(one, "search"):
            raise ConfigError(
                f"{name} is text, bytes, a compiled regular expression or a list of these, "
                f"not {show(one)}",
                hint="machine.run(until=...) takes functions",
            )
    return alternatives


def _visible(said: bytes) -> bytes:
    r"""What is no control sequence of a terminal (ECMA-48 5.4), whole or as far as it came.

    >>> _visible(b"\x1b[6n\x1b[1;3"), _visible(b"\x1b[Jls")
    (b'', b'ls')
    """
    import re

    return re.sub(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]?|$)", b"", said)


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """A function that says how much of a time is left, in seconds."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + seconds("timeout", timeout)
    return lambda: max(end - time.monotonic(), 0.0)


def shell_line(command: str, mark: str) -> str:
    """A line that has a shell print <mark>, run the command, and print <mark:STATUS>.

    Neither stands in the line itself, which the terminal echoes.
    """
    import shlex

    for character in command:
        if (character < " " and character != "\n") or character == "\x7f":
            raise ConfigError(
                f"command: {character!r} cannot be typed: a terminal or a shell acts upon it",
                hint="put it into a file of the guest's, or write it as printf does",
            )
    line = f"echo '<''{mark}>'; eval {shlex.quote(command)}; echo '<''{mark}:'$?'>'"
    if max(map(len, line.encode().split(b"\n"))) > _LONGEST_LINE:
        raise ConfigError(
            f"command: a line of it is longer than the {_LONGEST_LINE} bytes that a terminal takes",
            hint="split it, or put it into a file of the guest's",
        )
    return line
