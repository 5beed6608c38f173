"""`pykvm run`: a guest from its start to its end."""

from __future__ import annotations

from contextlib import ExitStack

from pykvm.cli.consoles import Consoles
from pykvm.cli.exit_port import hint, watch
from pykvm.cli.interrupts import Interrupts
from pykvm.cli.machine import goes_on, machine_of
from pykvm.cli.output import TimeLimit
from pykvm.cli.report import ending_line, exit_status, say, write_stderr
from pykvm.cli.status import Status
from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.cli.options import Options
    from pykvm.cli.trace import Trace
    from pykvm.machine import Machine
    from pykvm.result import Result

__all__ = ["main"]

# Ends that --quiet says nothing about.
_QUIET = frozenset({Outcome.EXITED, Outcome.UNTIL})
# Ends at which the last lines of a console that is elsewhere show what the guest was doing.
_WITH_CONSOLE = frozenset({Outcome.TIMEOUT, Outcome.CRASHED})


# Ends of a guest that can go on, at which --save without --until writes a snapshot.
_SAVED = frozenset({Outcome.TIMEOUT, Outcome.STOPPED})


def main(options: Options) -> int:
    """Run the guest that `options` describe and return the exit status."""
    with machine_of(options) as machine:
        if machine.is_linux and not options.quiet and not goes_on(options):
            _announce()
        return _Session(machine, options).run()


def _announce() -> None:
    """Before Linux is silent for a while, say why it will be."""
    from pykvm.quirks.kernel_options import ring_0_is_emulated

    if ring_0_is_emulated():
        say("this host runs ring 0 in an emulator: Linux takes about a minute", until=0.0)


class _Session:
    """One run of a machine, with the consoles, the signals and the reports around it."""

    def __init__(self, machine: Machine, options: Options) -> None:
        self._machine = machine
        self._options = options
        self._interrupts = Interrupts(machine.stop)
        self._limit = TimeLimit(options.timeout)
        self._consoles = Consoles(machine, options, self._interrupts, self._limit)
        self._trace: Trace | None = None
        self._missed = watch(machine) if options.debug_exit is None else None

    def run(self) -> int:
        """Run to the end, say how it ended, and return the exit status."""
        result = None
        try:
            with ExitStack() as stack:
                stack.enter_context(self._interrupts)
                if self._options.trace is not None:
                    from pykvm.cli.trace import Trace

                    trace = Trace(self._machine, self._options, self._interrupts, self._limit)
                    self._trace = stack.enter_context(trace)
                stack.enter_context(self._consoles)
                if self._machine.is_linux and not self._options.quiet:
                    from pykvm.cli.silence import Silence, is_watched

                    if is_watched():
                        stack.enter_context(Silence(self._machine))
                result = self._interrupts.run(self._run)
        except KeyboardInterrupt:
            # Out of the middle of something: there is no result.
            if self._interrupts.received is None:
                raise
        except BrokenPipeError:
            self._say("stopped: stdout has no reader any more")
            return Status.OUTPUT_CLOSED
        if self._consoles.amid_line:
            write_stderr("\n", until=self._patience)
        return self._report(result)

    @property
    def _patience(self) -> float | None:
        """Until when to wait for those who read stderr; after a signal not at all."""
        return self._limit.at if self._interrupts.received is None else 0.0

    def _say(self, message: str, hint: str = "") -> None:
        say(message, hint, until=self._patience)

    def _run(self) -> Result:
        trace = self._trace
        timeout, until = self._options.timeout, self._options.until or None
        self._limit.start()
        if trace is None:
            return self._machine.run(timeout=timeout, until=until)
        result = self._machine.run(
            timeout=timeout, until=until, on_exit=trace.exit, on_answer=trace.answered
        )
        trace.end(result)
        return result

    def _report(self, result: Result | None) -> int:
        options, machine = self._options, self._machine
        remarks = self._consoles.remarks + (self._trace.remarks if self._trace is not None else [])
        for remark in remarks:
            self._say(remark)
        if result is None:
            sentence, status = self._stop()
            self._say(sentence)
            if options.save is not None:
                self._say(f"{options.save} was not saved: the run was interrupted half-way")
            return status
        status, note = exit_status(result, options.exit_status)
        sentence = result.sentence
        if result.outcome is Outcome.STOPPED and self._interrupts.received is not None:
            sentence, status = self._stop()
        if not (options.quiet and result.outcome in _QUIET) or status == Status.UNSAID:
            line = ending_line(sentence + result.where, result, note)
            self._say(line, self._advice(result))
            for remark in filter(None, (*self._notes(result), hint(result, self._missed))):
                self._say(remark)
        if options.stats:
            from pykvm.cli.stats import stats_text

            places = self._trace.places if self._trace else None
            write_stderr(stats_text(result, places), until=self._patience)
        if options.dump_on_exit:
            from pykvm.cli.dump import dump_text

            write_stderr(dump_text(machine), until=self._patience)
        return status if options.save is None else self._save(options.save, result, status)

    def _save(self, path: str, result: Result, status: int) -> int:
        """Write the snapshot, if the run has come to where it is to be; the exit status."""
        options = self._options
        if result.outcome is not Outcome.UNTIL and (options.until or result.outcome not in _SAVED):
            self._say(f"{path} was not saved: the run was over before")
            return Status.UNSAID if status == Status.DONE else status
        from shlex import quote

        if self._missed is not None:
            # It is this command's, and the next one has its own.
            self._machine.remove(self._missed)
        self._machine.snapshot().save(path)
        if not options.quiet:
            self._say(f"saved: pykvm {quote(path)} goes on from here")
        return status

    def _notes(self, result: Result) -> list[str]:
        """What this host did not do as asked; how a Linux was made to start, only if it failed."""
        started_well = self._machine.is_linux and result.ok
        known = self._machine.notes if started_well else ()
        return [note for note in result.notes if note not in known]

    def _advice(self, result: Result) -> str:
        """What stands below the sentence."""
        lines = result.details
        if result.error is not None:
            lines.append(result.error.hint)
        # Where the console is this terminal, its last lines are just above.
        if result.outcome in _WITH_CONSOLE and self._options.serial.kind != "stdio":
            lines.append(result.console)
        return "\n".join(filter(None, lines))

    def _stop(self) -> tuple[str, int]:
        """Why the run was stopped from outside, and the exit status for that."""
        number = self._interrupts.received
        assert number is not None
        if self._consoles.left:
            status = Status.UNSAID if self._options.until else Status.DONE
            return "the console was left with Ctrl-A x", status
        status = 128 + number
        if status == Status.INTERRUPTED:
            return "stopped by Ctrl-C", status
        from signal import Signals

        return f"stopped by {Signals(number).name}", status
