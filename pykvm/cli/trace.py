"""`--trace`: one line for every VM exit, as text or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TextIO

from pykvm.cli.describe import device_name, exit_fields, linear_rip, location, target
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.bus import Space
    from pykvm.cli.options import Options
    from pykvm.exits import Exit
    from pykvm.machine import Machine
    from pykvm.result import Result
    from pykvm.vcpu import CPU

__all__ = ["Trace"]


class Trace:
    """While entered, takes the exits of one run and writes them out.

    `places` counts the accesses to each port and address: (kind of exit, space, address, device).
    """

    def __init__(self, machine: Machine, options: Options) -> None:
        self._machine = machine
        self._json = options.trace == "json"
        self._path = options.trace_file
        self._many = len(machine.vcpus) > 1
        self._seq = 0
        self._began = time.monotonic()
        self.places: Counter[tuple[str, Space, int, str]] = Counter()

    def __enter__(self) -> Trace:
        self._file = _open(self._path)
        self._machine.on_emulated = self.completed
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.on_emulated = None
        self._file.flush()
        if self._path is not None:
            self._file.close()

    def exit(self, cpu: CPU, exit: Exit) -> None:
        """Write one exit.  `Machine.run` calls this before a device answers."""
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
            self._file.write(
                f"{self._seq:6} {seconds:11.6f}{who}  {what:<48}  "
                f"at {location(self._machine, address)}\n"
            )

    def completed(self, cpu: CPU, name: str, result: str) -> None:
        """Write what became of an instruction that KVM refused: the exit is the line before."""
        address = linear_rip(cpu)
        if self._json:
            self._write_json(
                {"vcpu": cpu.index, "completed": name, "result": result, "rip": address}
            )
            return
        who = f" vcpu{cpu.index}" if self._many else ""
        what = f"{name} {result}"
        self._file.write(f"{'':18}{who}  {what:<48}  on at {location(self._machine, address)}\n")

    def end(self, result: Result) -> None:
        """Write how the run ended, for a program that reads the trace."""
        if self._json:
            self._write_json(
                {
                    "outcome": result.outcome.value,
                    "exit_code": result.exit_code,
                    "exits": dict(result.exits),
                    "seconds": round(result.seconds, 6),
                    "guest_seconds": round(result.guest_seconds, 6),
                    "outside_seconds": round(result.outside_seconds, 6),
                    "emulated": dict(result.emulated),
                    "emulated_seconds": round(result.emulated_seconds, 6),
                }
            )

    def _write_json(self, fields: dict[str, Any]) -> None:
        self._file.write(json.dumps(fields) + "\n")


def _open(path: str | None) -> TextIO:
    if path is None:
        return sys.stderr
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--trace-file {path}: {error.strerror}") from error
