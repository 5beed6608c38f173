"""Looking inside: --trace, --stats, --dump-on-exit."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import exits
from pykvm.bus import Space
from pykvm.cli.describe import exit_fields, target
from pykvm.cli.dump import hex_dump
from pykvm.cli.stats import stats_text
from pykvm.result import Ending, Outcome, Result
from support.quirks import without

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]

HI = """
    BA F8 03    mov dx, 0x3f8
    B0 48       mov al, 'H'
    EE          out dx, al
    B0 0A       mov al, '\\n'
    EE          out dx, al
    B0 05       mov al, 5
    E6 F4       out 0xf4, al
"""


@pytest.mark.kvm
def test_trace_is_one_line_an_exit(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    done = pykvm(flat(HI), "--trace-file", path)
    assert (done.returncode, done.stdout) == (5, "H\n")
    lines = [re.split(r"\s{2,}", line.strip()) for line in path.read_text().splitlines()]
    assert [line[-2] for line in lines] == [
        "IoOut(port=0x3f8, size=1, data=b'H') com1",
        "IoOut(port=0x3f8, size=1, data=b'\\n') com1",
        "IoOut(port=0xf4, size=1, data=b'\\x05') debug-exit",
    ]
    assert [line[0].split()[0] for line in lines] == ["1", "2", "3"]
    assert all(line[-1].startswith("at 0x7c") for line in lines)


@pytest.mark.kvm
def test_trace_names_symbols(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "hello.elf", "--trace", "-q")
    assert done.stdout == "Hello from long mode!\n"
    lines = done.stderr.splitlines()
    assert len([line for line in lines if "port=0x3f8" in line]) == len("Hello from long mode!\n")
    assert all(re.search(r"at 0x[0-9a-f]+ \w+(\+0x[0-9a-f]+)?$", line) for line in lines)


@pytest.mark.kvm
def test_trace_and_output_on_one_terminal_do_not_mix(
    command: list[str], environment: dict[str, str], flat: Flat
) -> None:
    done = subprocess.run(
        [*command, str(flat(HI)), "--trace", "-q"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[2] == "H"
    assert [line.split()[0] for line in lines] == ["1", "2", "H", "3"]


@pytest.mark.kvm
def test_trace_as_json(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    pykvm(flat(HI), "--trace=json", "--trace-file", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("exit") for line in lines] == ["IoOut", "IoOut", "IoOut", None]
    first = lines[0]
    assert isinstance(first.pop("time"), float)
    # At an OUT the instruction pointer stands on the instruction or after it.
    assert first.pop("rip") in (0x7C05, 0x7C06)
    assert first == {
        "seq": 1, "vcpu": 0, "symbol": None,
        "exit": "IoOut", "port": 0x3F8, "size": 1, "data": "48",
        "device": "com1", "answer": None,
    }  # fmt: skip
    last = lines[-1]
    assert (last["outcome"], last["exit_code"], last["exits"]) == ("exited", 5, {"IoOut": 3})


# Reads the status of COM1 and of the keyboard controller, prints 'A', reads where no device is.
ASKS = """
    BA FD 03    mov dx, 0x3fd
    EC          in al, dx
    E4 64       in al, 0x64
    BA F8 03    mov dx, 0x3f8
    B0 41       mov al, 'A'
    EE          out dx, al
    E5 50       in ax, 0x50
"""


@pytest.mark.kvm
def test_trace_shows_what_reads_got(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(flat(ASKS), "--trace", "--unclaimed", "stop", "--debugcon", "none")
    lines = [re.split(r"\s{2,}", line.strip())[-2] for line in done.stderr.splitlines()[:4]]
    assert lines == [
        "IoIn(port=0x3fd, size=1, count=1) com1 -> 0x60",
        "IoIn(port=0x64, size=1, count=1) i8042 -> 0x10",
        "IoOut(port=0x3f8, size=1, data=b'A') com1",
        "IoIn(port=0x50, size=2, count=1) unclaimed",
    ]


@pytest.mark.kvm
def test_trace_as_json_has_answers_and_the_reason_of_a_crash(
    pykvm: Pykvm, flat: Flat, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    pykvm(flat(ASKS), "--trace=json", "--trace-file", path)
    *lines, last = map(json.loads, path.read_text().splitlines())
    assert [(line["device"], line["answer"]) for line in lines] == [
        ("com1", "0x60"), ("i8042", "0x10"), ("com1", None), ("unclaimed", None),
    ]  # fmt: skip
    assert (last["outcome"], last["kind"]) == ("crashed", "wild access")
    assert last["reason"].startswith(
        "the guest crashed: wild access: the guest read 2 byte(s) from port 0x50"
    )


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("only", "seqs"),
    [
        ("com1", [1, 3]),
        ("-com1", [2, 4]),
        ("IoIn", [1, 2, 4]),
        ("ioin,-0x60-0x6f", [1, 4]),
        ("0x64", [2]),
        ("0x3f8-0x3ff", [1, 3]),
        ("unclaimed,i8042", [2, 4]),
        ("MmioRead", []),
    ],
)
def test_trace_only(pykvm: Pykvm, flat: Flat, tmp_path: Path, only: str, seqs: list[int]) -> None:
    path = tmp_path / "trace"
    done = pykvm(flat(ASKS), "--trace-only", only, "--trace-file", path, "--stats")
    assert [int(line.split()[0]) for line in path.read_text().splitlines()] == seqs
    # What is not shown is counted all the same.
    assert re.search(r"IoIn port 0x64 +1  i8042", done.stderr)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("com3", "'com3' is no device, kind of exit, port or address"),
        ("IoInn", "did you mean IoIn"),
        ("0x60-", "'0x60-' is no device"),
    ],
)
def test_trace_only_of_what_there_is_not(pykvm: Pykvm, flat: Flat, only: str, said: str) -> None:
    done = pykvm(flat(ASKS), "--trace-only", only)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.kvm
def test_symbols_of_a_file_beside_the_guest(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    (tmp_path / "System.map").write_text("7b00 T before\n7bf8 T asks\n7d00 T after\n")
    beside = ["--symbols", tmp_path / "System.map"]
    assert "at 0x7c0c (asks+0x14)" in pykvm(flat(ASKS), *beside, "--unclaimed", "stop").stderr
    moved = pykvm(flat(ASKS), *beside, "--symbols-offset", "8", "--unclaimed", "stop")
    assert "at 0x7c0c (asks+0xc)" in moved.stderr
    wrong = pykvm(flat(ASKS), "--symbols", flat(ASKS))
    assert wrong.returncode == 2
    assert "neither an ELF file nor a System.map" in wrong.stderr


@pytest.mark.kvm
def test_trace_file_that_cannot_be_written(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(flat(HI), "--trace-file", "/nowhere/trace")
    assert done.returncode == 2
    assert done.stderr == "pykvm: --trace-file /nowhere/trace: No such file or directory\n"


@pytest.mark.parametrize("exit", exits.EXITS, ids=lambda exit: exit.__name__)
def test_every_exit_is_json(exit: type[exits.Exit]) -> None:
    names: tuple[str, ...] = exit.__match_args__
    values = {"data": b"\1", "args": (1,), "payload": b"", "is_write": True}
    made = exit(**{name: values.get(name, 7) for name in names})
    fields = json.loads(json.dumps(exit_fields(made)))
    assert fields["exit"] == exit.__name__
    assert fields.keys() == {"exit", *names}


def test_target() -> None:
    assert target(exits.IoIn(0x3FD, 1)) == (Space.PIO, 0x3FD)
    assert target(exits.MmioWrite(0xD0000000, b"\0")) == (Space.MMIO, 0xD0000000)
    assert target(exits.Hlt()) is None


def result(counts: dict[str, int]) -> Result:
    ending = Ending(Outcome.HALTED, "")
    return Result(ending, exits=counts, seconds=0.01, guest_seconds=0.008, outside_seconds=0.002)


def test_stats_table() -> None:
    places = Counter({("IoOut", Space.PIO, 0x3F8, "com1"): 3})
    assert stats_text(result({"Hlt": 1, "IoOut": 3}), places).splitlines() == [
        "VM exits                       4",
        "  IoOut                        3  75.0 %",
        "  Hlt                          1  25.0 %",
        "in the guest            8.000 ms  2000.0 µs per exit",
        "outside                 2.000 ms  500.0 µs per exit",
        "  IoOut port 0x3f8             3  com1",
    ]


def test_stats_of_nothing() -> None:
    assert stats_text(result({})).splitlines()[0].split() == ["VM", "exits", "0"]


@pytest.mark.kvm
def test_stats(pykvm: Pykvm, flat: Flat) -> None:
    plain = pykvm(flat(HI), "--stats").stderr.splitlines()
    assert plain[1].split() == ["VM", "exits", "3"]
    assert plain[2].split() == ["IoOut", "3", "100.0", "%"]
    traced = pykvm(flat(HI), "--stats", "--trace-file", "/dev/null").stderr.splitlines()
    assert traced[-2].split() == ["IoOut", "port", "0x3f8", "2", "com1"]


@pytest.mark.kvm
def test_stats_of_a_stray_store(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "wild.elf", "--unclaimed", "open-bus", "--stats", "--", "store")
    lines = [line.split() for line in done.stderr.splitlines()]
    at = lines.index(["went", "nowhere", "1"])
    assert lines[at + 1 : at + 3] == [["reads", "0"], ["writes", "1"]]
    told = "write of 0xdeadbeef (4 bytes) at address 0xe0000000"
    assert lines[at + 3] == told.split()


@without("triple-fault")
def test_dump(pykvm: Pykvm, guests: Path) -> None:
    text = pykvm(guests / "triple.elf", "--dump-on-exit").stderr
    assert "vCPU 0: long mode" in text
    assert re.search(r"^code at 0x[0-9a-f]+ main\+0x[0-9a-f]+: .*<0f> 0b", text, re.MULTILINE)
    # The development environment has capstone.
    assert re.search(r"^next: ud2$", text, re.MULTILINE)
    assert re.search(r"^stack at 0x[0-9a-f]+:\n  0x[0-9a-f]+: [0-9a-f]{16}", text, re.MULTILINE)


@pytest.mark.kvm
def test_dump_where_nothing_can_be_read(pykvm: Pykvm, guests: Path) -> None:
    jumped = pykvm(guests / "wild.elf", "--dump-on-exit", "--timeout", "5", "--", "jump").stderr
    assert "code at 0xe0000000: not readable" in jumped
    assert "not readable" in pykvm(guests / "badstack.elf", "--dump-on-exit").stderr


def test_hex_dump() -> None:
    assert hex_dump(bytes(range(0x30, 0x42)), 0xFFF8) == [
        "0xfff8: 30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789:;<=>?",
        "0x10008: 40 41                                            @A",
    ]
