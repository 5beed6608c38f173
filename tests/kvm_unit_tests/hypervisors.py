"""What runs an entry: the command lines of pykvm and QEMU, and the verdict on what comes out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from kvm_unit_tests.entries import Entry

MEMORY = "128M"  # QEMU's default
# What QEMU's isa-debug-exit makes of the codes that tests end with: 0, 1, and 38 for a skipped one.
PASSED, FAILED, SKIPPED = 1, 3, 77
# QEMU's names of features that Linux calls otherwise.
_FEATURES = {"tsc-deadline": "tsc_deadline_timer"}
# Beyond what any test says; a verdict needs no more.
LONGEST_OUTPUT = 1 << 20

# A line of the hypervisor's, not of the test's.
_OURS = re.compile(r"(qemu-system-x86_64|pykvm): ")
_LAST = re.compile(r"pykvm: the guest|(Unhandled|Unexpected) exception|qemu-system-x86_64: ")
_SUMMARY = re.compile(r"^SUMMARY: (.*?)\r?$", re.MULTILINE)


class Verdict(NamedTuple):
    """`word` is PASS, FAIL, SKIP, TIMEOUT or CRASH; `detail` is what the test or its end says."""

    word: str
    detail: str
    seconds: float
    output: str

    def __str__(self) -> str:
        return f"{self.word} ({self.detail})" if self.detail else self.word


Command = Callable[[Entry], list[str]]


def pykvm_command(entry: Entry, *, offers: Callable[[str], bool]) -> list[str]:
    """pykvm on an entry; `offers` says whether this host offers a feature.

    A feature that it does not offer is left out, as by QEMU, and so is `vendor=`.
    """
    cpu = "host" if entry.model in ("host", "max") else "baseline"
    for word in entry.features:
        name = _FEATURES.get(word[1:], word[1:].replace("-", "_"))
        if word[0] in "+-" and offers(name):
            cpu += f",{word[0]}{name}"
    command = [sys.executable, "-m", "pykvm", str(entry.file), "--exit-status", "qemu"]
    command += ["--cpu", cpu, "--smp", str(entry.vcpus), "-m", _memory(entry)]
    return [*command, "--append", entry.arguments] if entry.arguments else command


def qemu_command(entry: Entry, *, accel: str, cpu: str = "") -> list[str]:
    """QEMU on an entry; `cpu`, where it is given, stands for whatever model the entry names."""
    name = "max" if accel == "tcg" and entry.model == "host" else entry.model or "qemu64"
    dropped = _OF_KVM if accel == "tcg" else _OF_HOST if cpu else ()
    features = [word for word in entry.features if word not in dropped]
    model = ",".join([cpu or name, *features])
    bare = "-nodefaults -no-reboot -display none -serial stdio -device pci-testdev"
    devices = "-device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=0x4"
    command = ["qemu-system-x86_64", *bare.split(), *devices.split()]
    command += ["-machine", f"accel={accel}", "-cpu", model, *entry.options]
    command += ["-smp", str(entry.vcpus), "-m", _memory(entry), "-kernel", str(entry.file)]
    return [*command, "-append", entry.arguments] if entry.arguments else command


# Options of a processor that its models `host` and `max` have alone, and those that need KVM.
_OF_HOST = ("migratable=no",)
_OF_KVM = ("host-phys-bits", "hv_passthrough", *_OF_HOST)


def run(command: list[str], limit: float, folder: Path) -> Verdict:
    """Run one command for `limit` seconds at most, and judge."""
    start = time.monotonic()
    log = folder / "output"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONUNBUFFERED="1"),
            start_new_session=True,
        )
        try:
            status: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    with log.open("rb") as output:
        text = output.read(LONGEST_OUTPUT).decode("utf-8", "replace")
    return judge(status, text, time.monotonic() - start)


def judge(status: int | None, text: str, seconds: float) -> Verdict:
    """The verdict on a test that ended with `status`, None for one that did not, and said `text`.

    >>> judge(1, "SUMMARY: 4 tests", 0.5).word
    'PASS'
    >>> judge(1, "qemu-system-x86_64: no such option", 0.1).word
    'CRASH'
    >>> judge(125, "pykvm: the guest crashed: triple fault: no IDT", 0.5).word
    'CRASH'
    """
    summaries = _SUMMARY.findall(text)
    detail = summaries[-1] if summaries else ""
    words: Mapping[int | None, str] = {PASSED: "PASS", FAILED: "FAIL", SKIPPED: "SKIP"}
    word = "TIMEOUT" if status is None else words.get(status, "CRASH")
    if not any(line and not _OURS.match(line) for line in text.splitlines()):
        word = "CRASH"  # QEMU's own errors have the status of a test that passed
    if word == "CRASH":
        detail = _last_words(text) or f"status {status}"
    return Verdict(word, detail, seconds, text)


def _last_words(text: str) -> str:
    """The line that says how the run ended, or what the test said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if _LAST.match(line)]
    line = (said or lines or [""])[-1]
    return _OURS.sub("", line).removeprefix("the guest crashed: ")[:120]


def _memory(entry: Entry) -> str:
    return f"{entry.memory}M" if entry.memory.isdigit() else entry.memory or MEMORY
