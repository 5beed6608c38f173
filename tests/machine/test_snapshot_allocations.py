"""Memory runs out at each allocation of the C core: an error, and all is as it was.

Each test is a program of its own, in which chosen allocations fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]

Run = Callable[[str], None]

SOURCE = Path(__file__).parents[1] / "support" / "failing_allocations.c"

BEGIN = """
import ctypes, gc, os, sys
from pykvm import Machine, Placement, PykvmError, ResourceError, Snapshot, Space
from pykvm._core import lib

fail_after = ctypes.c_long.in_dll(ctypes.CDLL(None), "fail_after")
failed = ctypes.c_long.in_dll(ctypes.CDLL(None), "failed")
ctypes.c_int.in_dll(ctypes.CDLL(None), "fail_on").value = sys.argv[2] == "all"
errors = set()

def each_failure(call):
    '''Make `call` while its first allocation fails, its second, ..., until none has.'''
    for number in range(10_000):
        failed.value, fail_after.value = 0, number
        try:
            call()
        except ResourceError as error:
            errors.add(error.message)
        finally:
            fail_after.value = -1
        if not failed.value:
            return
        yield number
    raise AssertionError("it fails for ever")

def held():
    '''What would leak.'''
    gc.collect()
    return len(os.listdir("/proc/self/fd")), lib.pykvm_frames()

def memory_of(machine):
    return [machine.memory.read(region.start, region.size) for region in machine.memory.regions]

def disturb(machine, number):
    '''Change pages by the host, and by the guest.'''
    machine.memory.write_u32(0x300000 + 0x1000 * (number % 50), number + 1)
    machine.serial.send("x\\n")
    machine.run(timeout=60, until="x\\n").check()

def ends_well(machine):
    machine.serial.send("q\\n")
    assert machine.run(timeout=60).check().exit_code == 0

def booted(**options):
    machine = Machine(sys.argv[1], memory="8M", **options)
    machine.run(timeout=60, until="just q.\\n").check()
    return machine

def done(count):
    assert count > 2, count
    assert all("memory" in error for error in errors), errors
"""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failing") / "failing.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", path, SOURCE, "-ldl"], check=True
    )
    return path


@pytest.mark.parametrize("how", ["one", "all"])
class TestAnAllocationFails:
    @pytest.fixture
    def run(self, guests: Path, preloaded: Path, how: str, tmp_path: Path) -> Run:
        def run(program: str) -> None:
            ran = subprocess.run(
                [sys.executable, "-c", BEGIN + program, guests / "echo.elf", how],
                env={**os.environ, "LD_PRELOAD": str(preloaded)},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert not ran.returncode, ran.stderr
            assert not ran.stderr

        return run

    def test_in_the_first_snapshot(self, run: Run) -> None:
        run("""
for pages in (0, 600):  # a tree, and a memfd
    with booted() as machine:
        for page in range(pages):
            machine.memory.write_u32(0x200000 + 0x1000 * page, 1)
        before = held()
        memory, count = memory_of(machine), 0
        for count in each_failure(machine.snapshot):
            assert memory_of(machine) == memory
            assert held() == before or not count
        saved = machine.snapshot()
        assert memory_of(machine) == memory
        disturb(machine, 1)
        machine.reset(saved)
        assert memory_of(machine) == memory
        ends_well(machine)
        done(count)
""")

    def test_in_those_after_it(self, run: Run) -> None:
        run("""
with booted() as machine:
    first = machine.snapshot()
    at_first, count = memory_of(machine), 0
    disturb(machine, 0)
    for count in each_failure(machine.snapshot):
        disturb(machine, count)
        memory = memory_of(machine)
        second = machine.snapshot()
        assert memory_of(machine) == memory
        machine.reset(first)
        assert memory_of(machine) == at_first
        machine.reset(second)
        assert memory_of(machine) == memory
        disturb(machine, count + 1)
    ends_well(machine)
    done(count)
""")

    def test_in_a_reset(self, run: Run) -> None:
        """Regions and devices come and go with it."""
        run("""
class Other:
    name, stateless = "other", True

    def write(self, offset, size, value):
        pass

with booted() as machine:
    first = machine.snapshot()
    digest, count = first.digest(), 0

    def change(number):
        disturb(machine, number)
        region = machine.memory.add_ram(0x2000_0000, 0x4000, name="more")
        machine.memory.write_u32(0x2000_0000, number)
        machine.add(Other(), pio=0x300, length=1)
        machine.remove("com2")

    change(0)
    for count in each_failure(lambda: machine.reset(first)):
        machine.reset(first)
        assert machine.snapshot().digest() == digest
        change(count)
    machine.reset(first)
    ends_well(machine)
    done(count)
""")

    @pytest.mark.parametrize("options", ["", "irqchip='kernel'", "irqchip='split'", "vcpus=2"])
    def test_in_a_fork(self, run: Run, options: str) -> None:
        run(f"""
with booted({options}) as machine:
    first = machine.snapshot()
    for page in range(600):
        machine.memory.write_u32(0x200000 + 0x1000 * page % 0x100000, page)
    disturb(machine, 0)
    saved = machine.snapshot()
    digest, memory, count = saved.digest(), memory_of(machine), 0
    saved.fork().close()  # what is made once
    before = held()
    for count in each_failure(lambda: saved.fork().close()):
        assert held() == before
    with saved.fork() as twin:
        assert memory_of(twin) == memory
        ends_well(twin)
    assert saved.digest() == digest
    ends_well(machine)
    done(count)
""")

    def test_from_a_file(self, run: Run) -> None:
        run("""
with booted() as machine:
    first = machine.snapshot()
    first.save("first")
    disturb(machine, 0)
    machine.snapshot().save("second", parent=first)
    memory, digest = memory_of(machine), machine.snapshot().digest()
del first
before, count = held(), 0

def load():
    Machine.from_snapshot("second").close()

for count in each_failure(load):
    assert held() == before
with Machine.from_snapshot("second") as machine:
    assert memory_of(machine) == memory
    assert machine.snapshot().digest() == digest
    ends_well(machine)
done(count)
""")
