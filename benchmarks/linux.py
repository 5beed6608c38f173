"""Linux of guests/linux, from the command to user space: pykvm beside QEMU's microvm.

Both get the same kernel, initramfs, memory and command line.  Where QEMU does not come to user
space, a row is about the furthest line that both reach.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import qemu
from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.console import Told, furthest, watch
from benchmarks.measure import Pair, alone, in_turns
from benchmarks.process import environment_of
from benchmarks.row import Row
from pykvm import Machine, Outcome
from pykvm.quirks.kernel_options import add_workarounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.rig import Rig
    from pykvm import Result

BUILD = Path(__file__).parent.parent / "guests" / "linux" / "build.py"
DEADLINE = 300.0
FIRST = "Linux version"
# What guests/linux/init says.
UP = "init: Linux "
# With all that it can have of a PC, and without the words that it would add to the command line.
MICROVM = "microvm,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off"


class Files(NamedTuple):
    kernel: str
    initramfs: str


@cache
def files() -> Files:
    """What guests/linux/build.py has built.  Raises CannotMeasureError, with how to build it."""
    find = [sys.executable, "-B", str(BUILD), "--find"]
    done = subprocess.run(find, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasureError(done.stderr.strip())
    paths = json.loads(done.stdout)
    return Files(paths["vmlinux"], paths["initramfs.cpio"])


@cache
def words() -> str:
    """The command line: what pykvm would put there by itself, and what helps QEMU to come further.

    A KVM in software shows guests XSAVE and then refuses it in ring 0; pykvm's machine has none.
    And QEMU does not live to see the driver of the serial port, so the early console has to tell.
    """
    return add_workarounds("noxsave earlyprintk=ttyS0 console=ttyS0", vcpus=1)[0]


def pykvm_command() -> list[str]:
    kernel, initramfs = files()
    options = ("--memory", qemu.MEMORY, "--initrd", initramfs, "--append-only", "--append", words())
    return [sys.executable, "-m", "pykvm", *options, kernel]


def qemu_command() -> list[str]:
    kernel, initramfs = files()
    options = ("-kernel", kernel, "-initrd", initramfs, "-append", words())
    return qemu.command(MICROVM, qemu.processor().model, *options)


@cache
def _boots(rig: Rig, pairs: int) -> list[tuple[Told, Told]]:
    """Both sides to user space, or as far as they come: one measurement for all rows."""
    environment = environment_of(rig)
    sides = (pykvm_command(), qemu_command())
    for command in sides:  # files are in memory from here on, and modules are compiled
        watch(command, FIRST, DEADLINE, environment)
    ours, theirs = (
        lambda command=command: watch(command, UP, DEADLINE, environment) for command in sides
    )
    return in_turns(ours, theirs, pairs)


def _notes(boots: list[tuple[Told, Told]]) -> tuple[str, ...]:
    """How QEMU was run, and where it ended."""
    theirs = boots[0][1]
    notes = qemu.processor().notes
    if not theirs.trouble:
        return notes
    last = theirs.lines[-1].message if theirs.lines else "nothing"
    return (*notes, f"QEMU does not come to user space: after {last!r}, {theirs.trouble}")


def _times(boots: list[tuple[Told, Told]], text: str) -> tuple[Pair, ...]:
    """When both said `text`; not a number where QEMU did not."""
    return tuple(
        Pair(_time(ours, text), _time(theirs, text))
        if theirs.first(text)
        else alone(_time(ours, text))
        for ours, theirs in boots
    )


def _time(told: Told, text: str) -> float:
    line = told.first(text)
    if line is None:
        raise CannotMeasureError(f"the guest did not say {text!r}: {told.trouble}")
    return line.seconds


def _row(name: str, title: str) -> Row:
    return Row(f"linux-{name}", f"Linux, {title}", "QEMU", "ratio", None, "s")


FIRST_ROW = _row("first-line", "command to the kernel's first line")
COMMON_ROW = _row("common-line", "command to the furthest line of QEMU's")
UP_ROW = _row("user-space", "command to user space")
SHARE_ROW = Row(
    "linux-outside", "Linux to user space, time outside the guest", "nothing", "own", 3.0, "%"
)


def _measure_first(rig: Rig, pairs: int) -> Measured:
    boots = _boots(rig, pairs)
    return Measured(_times(boots, FIRST), _notes(boots))


def _measure_common(rig: Rig, pairs: int) -> Measured:
    boots = _boots(rig, pairs)
    found = [both for told in boots if (both := furthest(*told))]
    if len(found) < len(boots) or len({ours.gist for ours, _ in found}) > 1:
        raise CannotMeasureError("; ".join(("it is not the same line each time", *_notes(boots))))
    title = f"Linux, command to {found[0][0].message!r}, the furthest line that both reach"
    taken = tuple(Pair(ours.seconds, theirs.seconds) for ours, theirs in found)
    return Measured(taken, row=replace(COMMON_ROW, title=title))


def _measure_up(rig: Rig, pairs: int) -> Measured:
    boots = _boots(rig, pairs)
    taken = _times(boots, UP)
    if any(theirs.trouble for _, theirs in boots):
        row = replace(UP_ROW, against="nothing: QEMU ends before", method="own")
        return Measured(tuple(alone(pair.ours) for pair in taken), row=row)
    return Measured(taken)


def _counts(what: str, counts: Mapping[str, int]) -> str:
    """One note on what was counted, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return f"{what}: {', '.join(f'{count} x {name}' for name, count in ordered) or 'none'}"


def _boot_here() -> Result:
    kernel, initramfs = files()
    with Machine(
        kernel, memory=qemu.MEMORY, initrd=initramfs, append=words(), append_only=True
    ) as machine:
        result = machine.run(timeout=DEADLINE, until=UP)
    if result.outcome is not Outcome.UNTIL:
        raise CannotMeasureError(str(result))
    return result


def _measure_share(rig: Rig, pairs: int) -> Measured:
    del rig
    results = [_boot_here() for _ in range(pairs)]
    last = results[-1]
    notes = (
        f"{last.seconds:.1f} s, of which {last.guest_seconds:.1f} s in the guest and "
        f"{last.outside_seconds:.1f} s outside, {last.emulated_seconds:.1f} s of these for KVM",
        _counts("exits", last.exits),
        _counts("emulated", last.emulated),
        _counts("workarounds", last.workarounds),
    )
    return Measured(tuple(alone(_share(result)) for result in results), notes)


def _share(result: Result) -> float:
    """Of the vCPU's time, what was spent in Python, in %."""
    outside = result.outside_seconds
    return 100 * outside / (outside + result.guest_seconds)


BENCHES = tuple(
    Bench(row, measure, pairs=1, pinned=False)
    for row, measure in (
        (FIRST_ROW, _measure_first),
        (COMMON_ROW, _measure_common),
        (UP_ROW, _measure_up),
        (SHARE_ROW, _measure_share),
    )
)
