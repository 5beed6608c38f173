"""`--trace`: one line for every VM exit, as text or as JSON."""

from __future__ import annotations

import json
import time
from _thread import allocate_lock
from collections import Counter

from pykvm.cli.describe import (
    answer_of,
    device_name,
    exit_fields,
    linear_rip,
    location,
    target,
)
from pykvm.cli.output import Writer
from pykvm.cli.ports import FilePort, open_file
from pykvm.cli.trace_filter import Only
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from pykvm.bus import Space
    from pykvm.cli.interrupts import Interrupts
    from pykvm.cli.options import Options
    from pykvm.cli.output import TimeLimit
    from pykvm.cli.ports import FifoPort
    from pykvm.exits import Exit
    from pykvm.machine import Machine
    from pykvm.result import Result
    from pykvm.vcpu import CPU

__all__ = ["Trace"]

_STDERR = 2


class _Line(NamedTuple):
    """An exit, when and where it came, and what the guest got for an answer."""

    seq: int
    seconds: float
    vcpu: int
    rip: int
    exit: Exit
    device: str
    answer: str | None = None

    def text(self, place: str, *, many: bool) -> str:
        """The line for a person; `many` if there are several vCPUs."""
        who = f" vcpu{self.vcpu}" if many else ""
        what = f"{self.exit!r} {self.device}".rstrip()
        if self.answer is not None:
            what += f" -> {self.answer}"
        return f"{self.seq:6} {self.seconds:11.6f}{who}  {what:<56}  at {place}\n"

    def fields(self, symbol: str | None) -> dict[str, Any]:
        """The line for a program."""
        return {
            "seq": self.seq,
            "time": round(self.seconds, 6),
            "vcpu": self.vcpu,
            "rip": self.rip,
            "symbol": symbol,
            **exit_fields(self.exit),
            "device": self.device or None,
            "answer": self.answer,
        }


class Trace:
    """While entered, takes the exits of one run and writes them out.

    `places` counts the accesses to each port and address: (kind of exit, space, address, device).
    """

    def __init__(
        self, machine: Machine, options: Options, interrupts: Interrupts, limit: TimeLimit
    ) -> None:
        """`limit` is when the run ends at the latest."""
        self._machine = machine
        self._options = options
        self._interrupts = interrupts
        self._limit = limit
        self._json = options.trace == "json"
        self._many = len(machine.vcpus) > 1
        self._seq = 0
        text, devices = options.trace_only, machine.devices
        self._only = None if text is None else Only(text, devices=devices)
        # By vCPU: the line of an exit that has no answer yet, and whether the last was shown.
        self._pending: dict[int, _Line] = {}
        self._shown: dict[int, bool] = {}
        self._began = time.monotonic()
        self.places: Counter[tuple[str, Space, int, str]] = Counter()
        #: What is to be said at the end: lines that were lost.
        self.remarks: list[str] = []
        # With several vCPUs, each of their threads writes.
        self._lock = allocate_lock()

    def __enter__(self) -> Trace:
        self._port = self._open()
        self._forget = self._machine.on_emulated(self.completed)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        # Those whose answer has ended the run.
        for index in sorted(self._pending):
            self._write_pending(index)
        self.remarks += filter(None, [self._port.close()])

    def _open(self) -> FilePort | FifoPort:
        path, stop, limit = self._options.trace_file, self._interrupts, self._limit
        if path is None:
            return FilePort(Writer(_STDERR, limit=limit, stop=stop), "stderr")
        most = self._options.output_limit
        try:
            return open_file(path, stop=stop, limit=limit, most=most)
        except OSError as error:
            raise ConfigError(f"--trace-file {path}: {error.strerror}") from error

    def exit(self, cpu: CPU, exit: Exit) -> None:
        """Write one exit; one that waits for its answer is written with that."""
        with self._lock:
            self._write_pending(cpu.index)
            self._seq += 1
            line = self._line(cpu, exit)
            self._shown[cpu.index] = line is not None
            if line is not None:
                self._pending[cpu.index] = line
                if not exit.awaits_answer:
                    self._write_pending(cpu.index)

    def answered(self, cpu: CPU, exit: Exit) -> None:
        """Write the exit that has got its answer."""
        with self._lock:
            line = self._pending.get(cpu.index)
            if line is not None:
                self._pending[cpu.index] = line._replace(answer=answer_of(exit) or None)
                self._write_pending(cpu.index)

    def _line(self, cpu: CPU, exit: Exit) -> _Line | None:
        """What is to be written of an exit; None if it is filtered out."""
        device = device_name(self._machine, exit)
        where = target(exit)
        if where is not None:
            space, at = where
            self.places[type(exit).__name__, space, at, device] += 1
        if self._only is not None and not self._only.shows(exit, device):
            return None
        seconds = time.monotonic() - self._began
        return _Line(self._seq, seconds, cpu.index, linear_rip(cpu), exit, device)

    def _write_pending(self, index: int) -> None:
        line = self._pending.pop(index, None)
        if line is None:
            return
        if self._json:
            symbol = self._machine.symbol_at(line.rip) or None
            self._write_json(line.fields(symbol))
        else:
            place = location(self._machine, line.rip)
            self._write(line.text(place, many=self._many))

    def completed(self, cpu: CPU, name: str, result: str) -> None:
        """Write what became of an instruction that KVM refused: the exit is the line before."""
        with self._lock:
            if self._shown.get(cpu.index, True):
                self._completed(cpu, name, result)

    def _completed(self, cpu: CPU, name: str, result: str) -> None:
        address = linear_rip(cpu)
        if self._json:
            self._write_json(
                {"vcpu": cpu.index, "completed": name, "result": result, "rip": address}
            )
            return
        who = f" vcpu{cpu.index}" if self._many else ""
        what = f"{name} {result}"
        self._write(f"{'':18}{who}  {what:<48}  on at {location(self._machine, address)}\n")

    def end(self, result: Result) -> None:
        """Write how the run ended, for a program that reads the trace."""
        for index in sorted(self._pending):
            self._write_pending(index)
        if not self._json:
            return
        fields = {
            "outcome": result.outcome.value,
            "reason": result.sentence,
            "kind": None if result.error is None else result.error.kind,
            "exit_code": result.exit_code,
            "exits": dict(result.exits),
            "seconds": round(result.seconds, 6),
            "guest_seconds": round(result.guest_seconds, 6),
            "outside_seconds": round(result.outside_seconds, 6),
            "emulated": dict(result.emulated),
            "emulated_seconds": round(result.emulated_seconds, 6),
        }
        self._port.finish(f"{json.dumps(fields)}\n".encode())

    def _write_json(self, fields: dict[str, Any]) -> None:
        self._write(json.dumps(fields) + "\n")

    def _write(self, line: str) -> None:
        self._port.write(line.encode(errors="replace"))
