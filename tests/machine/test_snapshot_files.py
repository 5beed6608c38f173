"""`Snapshot.save` and `load`: files of machines, and machines of files."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pkgutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from savefile.calls import Calls

import pykvm
from pykvm import (
    ConfigError,
    HostError,
    LoadError,
    Machine,
    Placement,
    PykvmError,
    ResourceError,
    Space,
)
from pykvm.boot.symbols import Symbol, Symbols
from pykvm.devices.fw_cfg import Contents, FwCfg
from pykvm.host.record import HostRecord
from pykvm.machine.known_states import MODULES
from pykvm.machine.saved_guest import symbols_from_text, symbols_to_text
from pykvm.machine.snapshot import Snapshot
from pykvm.savefile import Bytes, Pages, SavedFile, new_file, write
from pykvm.values import state as states
from support.irqchips import IRQCHIPS
from support.quirks import without

GREETING = "just q.\n"
ALL_IRQCHIPS = (*IRQCHIPS, "none")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pykvm"


@pytest.fixture
def echo(guests: Path) -> Callable[..., Machine]:
    """A machine whose guest has said its greeting and waits for input."""

    def make(**options: Any) -> Machine:
        machine = Machine(guests / "echo.elf", memory="16M", **options)
        machine.run(timeout=20, until=GREETING).check()
        return machine

    return make


Echo = Callable[..., Machine]


@pytest.mark.kvm
@pytest.mark.parametrize("irqchip", ALL_IRQCHIPS)
def test_a_machine_goes_on_from_a_file(echo: Echo, path: Path, irqchip: str) -> None:
    with echo(irqchip=irqchip) as machine:
        saved = machine.snapshot()
        saved.save(path)
        printed, main = machine.serial.text, machine.symbols["main"]
    loaded = Snapshot.load(path)
    assert loaded.digest() == saved.digest()
    assert loaded.taken == pytest.approx(saved.taken)
    for start in (loaded, path, str(path)):
        with Machine.from_snapshot(start) as machine:
            assert machine.serial.text == printed
            assert (machine.symbols["main"], machine.config.name) == (main, "echo.elf")
            machine.serial.send("hello\nq\n")
            result = machine.run(timeout=20).check()
            assert machine.serial.text == f"{printed}hello\nq\nBye.\n"
            assert result.exits
    with loaded.fork() as twin:
        again = twin.snapshot()
        # KVM's 8254 begins its periods anew when it is set.
        assert irqchip == "kernel" or again.digest() == saved.digest()
        assert again.memory.digest() == saved.memory.digest()


OTHER_PROCESS = """
import sys
from pykvm import Machine
with Machine.from_snapshot(sys.argv[1]) as machine:
    machine.serial.send("there\\nq\\n")
    print(machine.run(timeout=20).check().exit_code, machine.serial.text)
"""


@pytest.mark.kvm
def test_in_another_process(echo: Echo, path: Path) -> None:
    """Which knows nothing of the guest's file, nor of where it is."""
    with echo() as machine:
        machine.snapshot().save(path)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("just q.\nthere\nq\nBye.\n\n")


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pit", {}),
        ("pit", {"irqchip": "kernel"}),
        ("lapic_timer", {}),
        ("hpet", {}),
        ("rtc", {}),
        ("sse", {}),
        ("smp", {"vcpus": 2}),
        ("pvh", {}),
        ("paging", {}),
        ("ring3", {}),
    ],
)
def test_in_the_middle_of_guests(
    guests: Path, path: Path, name: str, options: dict[str, Any]
) -> None:
    """After some of its exits: the rest is as it is without a file."""
    with Machine(guests / f"{name}.elf", memory="16M", **options) as machine:
        if machine.config.vcpus > 1:
            machine.run(timeout=20, until="\n").check()
        else:
            for number, _ in enumerate(machine.exits(timeout=20)):
                if number == 60:
                    break
        saved = machine.snapshot()
        saved.save(path)
        whole = machine.run(timeout=20)
        text = machine.serial.text
    assert Snapshot.load(path).digest() == saved.digest()
    with Machine.from_snapshot(path) as machine:
        rest = machine.run(timeout=20)
        assert (rest.outcome, rest.exit_code) == (whole.outcome, whole.exit_code)
        assert machine.serial.text == text


@pytest.mark.kvm
@without("triple-fault")
def test_a_crash_names_symbols(guests: Path, path: Path) -> None:
    with Machine(guests / "triple.elf", memory="16M") as machine:
        machine.run(timeout=20, until="IDT").check()
        machine.snapshot().save(path)
        before = machine.run(timeout=20)
    with Machine.from_snapshot(path) as machine:
        after = machine.run(timeout=20)
    assert before.error is not None
    assert after.error is not None
    assert after.error.message == before.error.message
    assert "main+" in after.error.message


def held(machine: Machine) -> Contents:
    device = machine.devices["fw-cfg"]
    assert isinstance(device, FwCfg)
    assert device.contents is not None
    return device.contents()


@pytest.mark.kvm
def test_what_fw_cfg_holds(guests: Path, path: Path) -> None:
    key = {"opt/org.example/key": b"secret" * 1000}
    with Machine(guests / "pvh.elf", fw_cfg=key) as machine:
        contents = held(machine)
        machine.snapshot().save(path)
    with Machine.from_snapshot(path) as machine:
        again = held(machine)
    assert {name: bytes(data) for name, data in again.files.items()} == {
        name: bytes(data) for name, data in contents.files.items()
    }
    assert {number: bytes(data) for number, data in again.items.items()} == {
        number: bytes(data) for number, data in contents.items.items()
    }
    assert bytes(again.files["opt/org.example/key"]) == key["opt/org.example/key"]


@pytest.mark.kvm
def test_equal_snapshots_make_equal_files(echo: Echo, tmp_path: Path) -> None:
    with echo() as machine:
        saved = machine.snapshot()
    saved.save(tmp_path / "a")
    saved.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    Snapshot.load(tmp_path / "a").save(tmp_path / "c")
    with SavedFile(tmp_path / "a") as first, SavedFile(tmp_path / "c") as again:
        assert again.read("machine") == first.read("machine")
        assert again.id == first.id


@pytest.mark.kvm
def test_a_chain_of_differences(echo: Echo, tmp_path: Path) -> None:
    chain = []
    with echo() as machine:
        parent = machine.snapshot()
        parent.save(tmp_path / "0")
        for number in range(1, 4):
            machine.serial.send(f"{number}\n")
            machine.run(timeout=20, until=f"{number}\n").check()
            machine.memory.write(0x200000 + 0x1000 * number, b"there")
            machine.memory.fill(0x200000 + 0x1000 * (number - 1), 0x1000)
            child = machine.snapshot()
            child.save(tmp_path / str(number), parent=parent)
            chain.append(child)
            parent = child
    sizes = [(tmp_path / str(number)).stat().st_blocks for number in range(4)]
    assert max(sizes[1:]) < sizes[0]
    for number, child in enumerate(chain, 1):
        loaded = Snapshot.load(tmp_path / str(number))
        assert loaded.digest() == child.digest()
        assert loaded.parent is not None
    with Machine.from_snapshot(tmp_path / "3") as machine:
        assert machine.memory.read(0x202000, 5) == bytes(5)
        assert machine.memory.read(0x203000, 5) == b"there"
        machine.serial.send("q\n")
        assert machine.run(timeout=20).ok
        assert "1\n2\n3\nq\nBye.\n" in machine.serial.text
    # All of it without a parent is the same.
    loaded.save(tmp_path / "whole")
    assert Snapshot.load(tmp_path / "whole").digest() == chain[-1].digest()


@pytest.mark.kvm
def test_regions_that_come_and_go(echo: Echo, tmp_path: Path) -> None:
    with echo() as machine:
        gone = machine.memory.add_ram(0x2000_0000, 0x4000, name="gone")
        machine.memory.write(0x2000_0000, b"gone")
        parent = machine.snapshot()
        parent.save(tmp_path / "a")
        machine.memory.remove(gone)
        machine.memory.add_rom(0x3000_0000, b"rom", name="new rom")
        machine.memory.add_ram(0x2000_0000, 0x8000, name="new")
        machine.memory.write(0x2000_7000, b"new")
        child = machine.snapshot()
        child.save(tmp_path / "b", parent=parent)
    loaded = Snapshot.load(tmp_path / "b")
    assert loaded.digest() == child.digest()
    with Machine.from_snapshot(loaded) as machine:
        assert machine.memory.read(0x2000_7000, 3) == b"new"
        assert machine.memory.read(0x3000_0000, 3) == b"rom"


@pytest.mark.kvm
def test_parents_that_do_not_do(echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with echo() as machine:
        parent = machine.snapshot()
        with pytest.raises(ConfigError, match="a difference to a snapshot that is in no file"):
            parent.save(tmp_path / "b", parent=parent)
        parent.save(tmp_path / "a")
        for path in (tmp_path / "other" / "b", tmp_path / "a"):
            with pytest.raises(ConfigError, match="is to stand beside its parent"):
                parent.save(path, parent=parent)
        machine.memory.write(0x200000, b"x")
        machine.snapshot().save(tmp_path / "a")
        with pytest.raises(ConfigError, match="is another file by now"):
            parent.save(tmp_path / "b", parent=parent)
    assert not (tmp_path / "b").exists()


def elsewhere(path: Path, **changes: Any) -> None:
    """Save again as if it had been on another host."""
    loaded = Snapshot.load(path)
    assert loaded.origin is not None
    host: HostRecord = loaded.origin.host.__replace__(**changes)
    loaded.origin = loaded.origin._replace(host=host)
    loaded.save(path)


@pytest.mark.kvm
def test_another_host(echo: Echo, path: Path) -> None:
    with echo() as machine:
        machine.snapshot().save(path)
    elsewhere(path, msrs=(0x10, 0xDEAD), tsc_khz=12_345, page_size=16384, backend="kvm_other")
    loaded = Snapshot.load(path)
    with pytest.raises(HostError, match=r"not as the one .* with kvm_other") as refused:
        Machine.from_snapshot(loaded)
    assert "the MSRs 0xdead" in refused.value.hint
    assert "pages have 4096 bytes" in refused.value.hint
    assert refused.value.hint.endswith("force=True goes on all the same")
    with Machine.from_snapshot(Snapshot.load(path, force=True)) as machine:
        assert any("0xdead" in note for note in machine.notes)
        machine.serial.send("q\n")
        assert machine.run(timeout=20).ok


def stepping(table: bytes) -> int:
    """The low four bits of CPUID.1:EAX."""
    return next(
        int(entry[3]) & 0xF for entry in struct.iter_unpack("<7I12x", table[8:]) if entry[0] == 1
    )


@pytest.mark.kvm
def test_the_guest_keeps_its_cpuid(echo: Echo, path: Path) -> None:
    """Though this host would show it another."""
    with echo() as machine:
        saved = machine.snapshot()
    before = saved.cpuid[0]
    entries = [list(entry) for entry in struct.iter_unpack("<7I12x", before[8:])]
    for entry in entries:
        if entry[0] == 1:
            entry[3] ^= 0xF
    other = before[:8] + b"".join(struct.pack("<7I12x", *entry) for entry in entries)
    saved.cpuid = (other,)
    saved.save(path)
    with Machine.from_snapshot(path) as machine:
        shown = bytes(machine.vcpus[0].kvm.get_cpuid2_packed())
    assert stepping(shown) == stepping(before) ^ 0xF


class Lamp:
    name = "lamp"

    def __init__(self) -> None:
        self.level = 0

    def read(self, offset: int, size: int) -> int:
        return self.level

    def write(self, offset: int, size: int, value: int) -> None:
        self.level = value

    def state(self) -> int:
        return self.level

    def restore(self, state: int) -> None:
        self.level = state


@pytest.mark.kvm
def test_a_device_of_ones_own(echo: Echo, path: Path) -> None:
    with echo() as machine:
        lamp = Lamp()
        machine.add(lamp, pio=0x90, length=1)
        lamp.level = 7
        machine.snapshot().save(path)
    with pytest.raises(ConfigError, match="no second lamp"):
        Machine.from_snapshot(path)
    again = Lamp()
    devices = [Placement(again, Space.PIO, 0x90, 1)]
    with Machine.from_snapshot(path, devices=devices):
        assert again.level == 7


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, HostError),
        (errno.EIO, HostError),
        (errno.ENOMEM, ResourceError),
        (errno.EMFILE, ResourceError),
    ],
)
def test_any_step_of_saving_may_fail(
    echo: Echo, path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HostError]
) -> None:
    """The machine and the snapshot are as they were, and nothing is left over."""
    with echo() as machine:
        saved = machine.snapshot()
        counting = Calls()
        monkeypatch.setattr(new_file, "os", counting)
        saved.save(path)
        path.unlink()
        for step in range(len(counting.names) - 1):
            monkeypatch.setattr(new_file, "os", Calls(step, number))
            with pytest.raises(kind):
                saved.save(path)
            assert os.listdir(path.parent) == []
        monkeypatch.setattr(new_file, "os", os)
        saved.save(path)
        assert Snapshot.load(path).digest() == saved.digest()
        machine.serial.send("q\n")
        assert machine.run(timeout=20).ok


@pytest.mark.kvm
def test_descriptors_run_out(echo: Echo, path: Path) -> None:
    import resource

    with echo() as machine:
        saved = machine.snapshot()
        saved.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    open_now = max(map(int, os.listdir("/proc/self/fd")))
    before = len(os.listdir("/proc/self/fd"))
    made = 0
    for spare in range(40):
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + spare, hard))
        try:
            with Machine.from_snapshot(path):
                made += 1
        except ResourceError:
            assert not made
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
    assert made


@pytest.fixture(scope="module")
def sections(guests: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is in a good file."""
    path = tmp_path_factory.mktemp("good") / "a.pykvm"
    with Machine(guests / "pit.elf", memory="2M") as machine:
        for number, _ in enumerate(machine.exits(timeout=20)):
            if number == 60:
                break
        machine.snapshot().save(path)
    with SavedFile(path) as file:
        return {name: file.read(name) for name in file.names if not name.startswith("memory")}


def forged(path: Path, sections: dict[str, bytes], **changes: bytes) -> None:
    made: list[Bytes | Pages] = [Bytes(*one) for one in {**sections, **changes}.items()]
    write(path, [*made, Pages("memory.0", 2 << 20, [])], about="")


def walk(value: Any, steps: st.DataObject) -> tuple[Any, Any]:
    """A place in JSON: what holds it, and its key there."""
    node: Any = value
    place: tuple[Any, Any] = (None, None)
    while isinstance(node, (dict, list)) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = steps.draw(st.sampled_from(keys))
        place, node = (node, key), node[key]
        if steps.draw(st.integers(0, 5)) == 0:
            break
    return place


VALUES = (
    st.integers()
    | st.sampled_from([0, 1, 2, 255, 1 << 31, (1 << 64) - 1, -1])
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
    | st.binary(max_size=9).map(lambda data: {"bytes": data.hex()})
    | st.lists(st.integers(), max_size=3)
)


@pytest.mark.kvm
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_state(sections: dict[str, bytes], path: Path, data: st.DataObject) -> None:
    """Whatever is in the file: it is loaded or refused, made a machine of or refused."""
    name = data.draw(st.sampled_from(["machine", "machine", "machine", "regions", "symbols"]))
    if name == "symbols":
        forged(path, sections, symbols=data.draw(st.binary()))
    else:
        value = json.loads(sections[name])
        for _ in range(data.draw(st.integers(1, 3))):
            holder, key = walk(value, data)
            if holder is not None:
                holder[key] = data.draw(VALUES)
        forged(path, sections, **{name: json.dumps(value).encode()})
    try:
        loaded = Snapshot.load(path, force=True)
    except LoadError:
        return
    try:
        with Machine.from_snapshot(loaded) as machine:
            machine.run(timeout=0.05)
    except PykvmError:
        return


@pytest.mark.kvm
@pytest.mark.parametrize("name", ["machine", "symbols", "regions"])
def test_a_section_is_not_there(sections: dict[str, bytes], path: Path, name: str) -> None:
    forged(path, {one: data for one, data in sections.items() if one != name})
    with pytest.raises(LoadError, match=f"has no section '{name}'"):
        Snapshot.load(path)


@pytest.mark.kvm
def test_a_chain_without_end(sections: dict[str, bytes], tmp_path: Path) -> None:
    """Each names the one before: more of them than anyone needs."""
    from pykvm.savefile import Parent

    id = "0" * 64
    for number in range(70):
        made: list[Bytes | Pages] = [Bytes(*one) for one in sections.items()]
        made.append(Pages("memory.0", 2 << 20, [], "parent"))
        parent = Parent(id, f"{number - 1}")
        id = write(tmp_path / str(number), made, about="", parent=parent)
    with pytest.raises(LoadError, match="more than 64 parents"):
        Snapshot.load(tmp_path / "69")


def test_nothing_that_a_file_names_is_imported(
    sections: dict[str, bytes], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    real = importlib.import_module

    def note(name: str, package: str | None = None) -> Any:
        imported.append(name)
        return real(name, package)

    monkeypatch.setattr("pykvm.machine.known_states.import_module", note)
    value = json.loads(sections["machine"])
    value["SavedRecord/1"]["machine"]["MachineState/1"]["irqchip"] = {"antigravity/1": {}}
    forged(path, sections, machine=json.dumps(value).encode())
    with pytest.raises(LoadError, match="antigravity"):
        Snapshot.load(path)
    assert set(imported) <= set(MODULES.values())
    assert "antigravity" not in sys.modules


OWN_STATE = """
from __future__ import annotations
import sys
from typing import TYPE_CHECKING
from pykvm import Machine, Placement, Space
from pykvm.values.state import State
if TYPE_CHECKING:
    from pykvm.devices.pit import Pit8254State

class RackState(State):
    level: int
    pits: tuple[Pit8254State, ...] = ()

class Rack:
    name = "rack"
    level = len(sys.argv)
    def read(self, offset, size): return 0
    def state(self): return RackState(self.level)
    def restore(self, state): print("restored", state.level)

def rack():
    return Placement(Rack(), Space.PIO, 0x90, 1)

"""
SAVE = """
with Machine(irqchip="none", memory="1M", devices=[rack()]) as machine:
    machine.snapshot().save(sys.argv[1])
"""
LOAD = """
assert "pykvm.devices.pit" not in sys.modules
Machine.from_snapshot(sys.argv[1], devices=[rack()]).close()
"""


@pytest.mark.kvm
def test_a_state_of_ones_own_names_one_that_was_not_imported(path: Path) -> None:
    for program, said in ((SAVE, ""), (LOAD, "restored 3\n")):
        done = subprocess.run(
            [sys.executable, "-c", OWN_STATE + program, path, *["more"] * (program == SAVE)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stderr, done.stdout) == ("", said)


def test_every_state_has_its_module() -> None:
    for module in pkgutil.walk_packages(pykvm.__path__, "pykvm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = {
        name: cls.__module__
        for name, cls in states._classes.items()
        # That of a doctest is none of its module's.
        if getattr(sys.modules[cls.__module__], name, None) is cls
        and cls.__module__.startswith("pykvm.")
    }
    assert known == MODULES


def test_symbols_as_lines() -> None:
    table = [
        Symbol("old", 0x1000, 4, (0,)),
        Symbol("main", 0x1000, 0x20, (2,)),
        Symbol("number", 3, 0, (1,), absolute=True),
        Symbol("a b", 0x2000),
        Symbol("two\nlines", 0x3000),
        Symbol("\udcff", 0x4000),
    ]
    symbols = Symbols(lambda: table)
    again = Symbols(lambda: symbols_from_text(symbols_to_text(symbols)))
    assert again.describe(0x1010) == "main+0x10"
    assert dict(again) == {name: value for name, value in symbols.items() if "\n" not in name}
    assert again.find(3) is None


@given(st.binary())
def test_lines_of_strangers(data: bytes) -> None:
    for symbol in symbols_from_text(data):
        assert 0 <= symbol.address < 1 << 64
        assert symbol.name
