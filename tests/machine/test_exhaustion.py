"""Descriptors, memory, timers, signals that run out: a ResourceError says of what and what to do.

Each test is a program of its own: limits are the process's.
"""

from __future__ import annotations

import pytest

from support.child import lines_of
from support.listing import assemble

pytestmark = pytest.mark.kvm

EXIT_0 = assemble("""
    B0 00        mov al, 0
    E6 F4        out 0xf4, al
""")

BEGIN = f"""
import gc, os, pathlib, resource, signal, sys, warnings
from pykvm import Machine, Mode
from pykvm.errors import ResourceError
warnings.simplefilter("error")
CODE = {EXIT_0!r}

def live(**options):
    with Machine(CODE, mode=Mode.REAL, memory="1M", **options) as machine:
        assert machine.run(timeout=20).exit_code == 0

def attempt(**options):
    try:
        live(**options)
    except ResourceError as error:
        assert error.hint, error
        return error.message
    return "made"
"""


def run(program: str) -> list[str]:
    """In a process of its own, whose limits they are."""
    return lines_of(BEGIN + program)


@pytest.mark.parametrize("options", ["", "vcpus=2", "irqchip='kernel'", "irqchip='split'"])
def test_running_out_of_descriptors(options: str) -> None:
    """With 0, 1, 2, ... left: an error for each number until there are enough, and no leak."""
    lines = run(f"""
live({options})
highest = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = None
for left in range(40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + left, hard))
    print(attempt({options}))
    gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    now = len(os.listdir("/proc/self/fd"))
    assert before in (None, now)
    before = now
""")
    failures = [line for line in lines if line != "made"]
    assert 1 < len(failures) < len(lines)
    assert lines == failures + ["made"] * (len(lines) - len(failures))
    assert all("Too many open files" in line for line in failures), failures


def test_running_out_of_memory() -> None:
    """With ever more address space to have: errors, then machines."""
    lines = run("""
live()
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for left in range(0, 6 << 20, 64 << 10):
    resource.setrlimit(resource.RLIMIT_AS, (used + left, hard))
    print(attempt())
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    gc.collect()
""")
    assert lines[0] != "made"
    assert lines[-1] == "made"


def test_running_out_of_timers() -> None:
    """Each running vCPU has one, and each counts as a pending signal."""
    lines = run("""
live()
with Machine(CODE, mode=Mode.REAL, memory="1M") as machine:
    hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
    for loop in (machine.run, lambda: next(machine.vcpus[0].raw_exits())):
        try:
            loop()
        except ResourceError as error:
            print(error.message)
            print("ulimit -i" in error.hint, signal.pthread_sigmask(signal.SIG_BLOCK, []))
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (hard, hard))
    print(machine.run(timeout=20).exit_code)
""")
    refused = "vCPU 0: this host gives no more timers: timer_create: "
    assert [line.startswith(refused) for line in lines] == [True, False, True, False, False]
    assert lines[1::2] == ["True set()", "True set()"]
    assert lines[4] == "0"


def test_running_out_of_signals() -> None:
    lines = run("""
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, lambda *_: None)
print(attempt())
signal.signal(signal.SIGRTMAX - 3, signal.SIG_DFL)
print(attempt())
""")
    assert lines[0].startswith("no real-time signal is free")
    assert lines[1] == "made"
