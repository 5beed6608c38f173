"""`--trace`: one line for every VM exit, as text or as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

from pykvm.cli.describe import device_name, exit_fields, linear_rip, location, target
from pykvm.cli.output import Writer
from pykvm.cli.ports import FilePort, open_file
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

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
        self._began = time.monotonic()
        self.places: Counter[tuple[str, Space, int, str]] = Counter()
        #: What is to be said at the end: lines that were lost.
        self.remarks: list[str] = []
        # With several vCPUs, each of their threads writes.
        self._lock = threading.Lock()

    def __enter__(self) -> Trace:
        self._port = self._open()
        self._machine.on_emulated = self.completed
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.on_emulated = None
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
        """Write one exit.  `Machine.run` calls this before a device answers."""
        with self._lock:
            self._exit(cpu, exit)

    def _exit(self, cpu: CPU, exit: Exit) -> None:
        self._seq += 1
        seconds = time.monotonic() - self._began
        address = linear_rip(cpu)
        device = device_name(self._machine, exit)
        where = target(exit)
        if where is not None:
            space, at = where
            self.places[type(exit).__name__, space, at, device] += 1
        if self._json:
            self._write_json(
                {
                    "seq": self._seq,
                    "time": round(seconds, 6),
                    "vcpu": cpu.index,
                    "rip": address,
                    "symbol": self._machine.symbol_at(address) or None,
                    **exit_fields(exit),
                }
            )
        else:
            who = f" vcpu{cpu.index}" if self._many else ""
            what = f"{exit!r} {device}" if device else repr(exit)
            self._write(
                f"{self._seq:6} {seconds:11.6f}{who}  {what:<48}  "
                f"at {location(self._machine, address)}\n"
            )

    def completed(self, cpu: CPU, name: str, result: str) -> None:
        """Write what became of an instruction that KVM refused: the exit is the line before."""
        with self._lock:
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
        if not self._json:
            return
        fields = {
            "outcome": result.outcome.value,
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
