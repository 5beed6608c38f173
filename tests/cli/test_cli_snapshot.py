"""`--save`, going on from a file of it, and `pykvm snapshot`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import Snapshot
from pykvm.cli.options import parse
from pykvm.cli.status import UsageError
from support.slowness import longer
from support.terminal import Terminal

KEEP, HOST = ("--wall", "keep"), ("--wall=host",)

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]
Open = Callable[..., Terminal]

pytestmark = pytest.mark.kvm


@pytest.fixture
def booted(pykvm: Pykvm, guests: Path, tmp_path: Path) -> Path:
    """A guest that has said its greeting, in a file."""
    path = tmp_path / "booted.pykvm"
    done = pykvm(guests / "echo.elf", "-m", "16", "--until", "just q.\n", "--save", path)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("pykvm: the guest said 'just q.\\n' (")
    assert second == f"pykvm: saved: pykvm {path} goes on from here"
    return path


def test_a_run_goes_on(pykvm: Pykvm, booted: Path) -> None:
    for _ in range(2):
        done = pykvm(booted, stdin="more\nq\n")
        assert (done.returncode, done.stdout) == (0, "more\nq\nBye.\n")
        line, *notes = done.stderr.splitlines()
        assert line.startswith("pykvm: the guest exited with code 0 (")
        # On a host whose TSC cannot go back.
        assert all("RDTSC did not go back to the snapshot" in note for note in notes)


def test_a_kernel_goes_on(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    """With a PC's devices, and what the command line itself puts on the bus."""
    path = tmp_path / "a.pykvm"
    whole = pykvm(guests / "pvh.elf")
    first = pykvm(guests / "pvh.elf", "--until", "\n", "--save", path)
    assert first.returncode == 0, first.stderr
    rest = pykvm(path)
    assert (rest.returncode, first.stdout + rest.stdout) == (whole.returncode, whole.stdout)


def test_step_goes_on(pykvm: Pykvm, booted: Path) -> None:
    done = pykvm("step", booted, stdin="n\nq\n")
    assert done.returncode == 0
    assert "is about to start at 0x" in done.stdout
    assert "serial_read" in done.stdout


def test_on_a_terminal(terminal: Open, booted: Path, tmp_path: Path) -> None:
    """Saved by Ctrl-A x, and gone on with."""
    later = tmp_path / "later.pykvm"
    console = terminal(booted, "--save", later)
    console.wait_until(lambda: console.is_raw, "the terminal is raw")
    console.type("one")
    console.wait_for("one")
    console.type("\x01x")
    console.wait_for(f"pykvm: saved: pykvm {later} goes on from here")
    assert console.status() == 0
    assert console.attributes == console.before
    again = terminal(later)
    again.wait_until(lambda: again.is_raw, "the terminal is raw")
    again.type("\rq\r")
    again.wait_for("q\r\nBye.\r\n")
    assert again.status() == 0


def test_at_the_time_limit_and_at_a_signal(
    pykvm: Pykvm, command: list[str], environment: dict[str, str], guests: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.pykvm"
    done = pykvm(guests / "busy.elf", "--timeout", "0.3", "--save", path)
    assert (done.returncode, path.exists()) == (124, True)
    path.unlink()
    with subprocess.Popen(
        [*command, str(guests / "echo.elf"), "--save", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=longer(20))
    assert process.returncode == 128 + signal.SIGTERM
    assert "goes on from here" in stderr
    assert pykvm(path, stdin="q\n").returncode == 0


@pytest.mark.parametrize("until", [[], ["--until", "never"]])
def test_a_guest_that_ends_before(
    pykvm: Pykvm, guests: Path, tmp_path: Path, until: list[str]
) -> None:
    path = tmp_path / "a.pykvm"
    done = pykvm(guests / "hello.elf", *until, "--save", path)
    assert (done.returncode, os.listdir(tmp_path)) == (123, [])
    assert f"pykvm: {path} was not saved: the run was over before" in done.stderr


def test_what_was_awaited_does_not_come(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pykvm"
    done = pykvm(guests / "echo.elf", "--until", "never", "--timeout", "0.3", "--save", path)
    assert (done.returncode, os.listdir(tmp_path)) == (124, [])


def test_a_file_that_cannot_be_written(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "no" / "a", "cannot be saved: No such file or directory"),
        (tmp_path, "is no regular file"),
        ("/dev/null", "is no regular file"),
    ):
        done = pykvm(guests / "echo.elf", "--until", "q.", "--save", path)
        assert done.returncode in (2, 126)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "32"], "--memory"),
        (["--smp", "2", "--cpu", "host"], "--smp, --cpu"),
        (["--append", "x", "--debug-exit", "0x501"], "--append, --debug-exit"),
        (["--", "x"], "what follows --"),
    ],
)
def test_options_that_it_settles(
    pykvm: Pykvm, booted: Path, arguments: list[str], words: str
) -> None:
    done = pykvm(booted, *arguments)
    assert done.returncode == 2
    assert f"pykvm: {booted} is a snapshot, which settles {words} (" in done.stderr


def test_force_is_for_snapshots(pykvm: Pykvm, guests: Path, booted: Path) -> None:
    assert pykvm("--force", booted, stdin="q\n").returncode == 0
    done = pykvm("--force", guests / "hello.elf")
    assert done.returncode == 2
    assert "--force is for a file that --save has made" in done.stderr


# Touches its real-time clock, says A, then the month that the clock shows.
MONTH = """
    E4 71             in al, 0x71
    B0 41             mov al, 'A'
    BA F8 03          mov dx, 0x3f8
    EE                out dx, al
    B0 08             mov al, 8
    E6 70             out 0x70, al
    E4 71             in al, 0x71
    EE                out dx, al
    B0 00             mov al, 0
    E6 F4             out 0xf4, al
"""


def test_wall_sets_the_clocks(pykvm: Pykvm, flat: Flat, guests: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert pykvm(flat(MONTH), "--until", "A", "--save", path).returncode == 0
    saved = Snapshot.load(path)
    # As if it had been made then.
    saved.taken -= 40 * 24 * 3600
    saved.save(path)
    here, kept, now = (pykvm(path, *options).stdout for options in ((), KEEP, HOST))
    assert len(here) == 1
    assert kept == here
    assert now != here
    done = pykvm(*HOST, guests / "hello.elf")
    assert done.returncode == 2
    assert "--wall is for a file that --save has made" in done.stderr


def test_a_damaged_file(pykvm: Pykvm, booted: Path) -> None:
    data = bytearray(booted.read_bytes())
    data[5000] ^= 1
    booted.write_bytes(data)
    for arguments in ([booted], ["snapshot", "info", booted], ["snapshot", "diff", booted, booted]):
        done = pykvm(*arguments)
        assert done.returncode == 2
        assert f"pykvm: {booted}: its manifest is damaged (hash)\n" in done.stderr


def test_info(pykvm: Pykvm, booted: Path) -> None:
    done = pykvm("snapshot", "info", "--verify", booted, booted)
    assert (done.returncode, done.stderr) == (0, "")
    one, two = done.stdout.split(f"{booted}:\n")[1:]
    assert one == two
    rows = dict(line.strip().split("  ", 1) for line in one.splitlines())
    assert rows["guest"].strip() == "echo.elf (elf64)"
    assert re.fullmatch(r" *at 0x[0-9a-f]+, long mode", rows["vCPU 0"])
    assert "16 MiB: " in rows["memory"]
    assert "com1" in rows["devices"]
    assert rows["checked"].strip() == "every hash is right"


def test_info_as_json(pykvm: Pykvm, booted: Path) -> None:
    done = pykvm("snapshot", "info", "--json", booted)
    (facts,) = json.loads(done.stdout)
    assert facts["about"]["guest"] == "echo.elf"
    assert facts["verified"] is False


def test_what_differs(pykvm: Pykvm, booted: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.pykvm"
    assert pykvm(booted, "--until", "more", "--save", later, stdin="more").returncode == 0
    done = pykvm("snapshot", "diff", booted, later)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert "vCPU 0" in lines
    assert "com1" in lines
    assert any("'more' added" in line for line in lines)
    assert any(re.match(r"memory: ram 0x0-0x1000000: \d+ of 4096 pages differ", x) for x in lines)
    same = pykvm("snapshot", "diff", booted, booted)
    assert (same.returncode, same.stdout) == (0, "")


STORE = """
    C6 06 00 06 2A    mov byte [0x600], 42
    B0 41             mov al, 'A'
    BA F8 03          mov dx, 0x3f8
    EE                out dx, al
    C6 06 01 06 2B    mov byte [0x601], 43
    B0 42             mov al, 'B'
    EE                out dx, al
    EB FE             jmp $
"""


def test_a_byte_of_memory(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert pykvm(flat(STORE), "--until", "A", "--save", first).returncode == 0
    assert pykvm(first, "--until", "B", "--save", second).returncode == 0
    lines = pykvm("snapshot", "diff", first, second).stdout.splitlines()
    at = lines.index("memory: ram 0x0-0x4000000: 1 of 16384 pages differ")
    assert lines[at + 1] == (
        "  0x0: 1 byte from 0x601: 00 00 00 00 00 00 00 00 -> 2b 00 00 00 00 00 00 00"
    )
    assert "  rax: 0x41 -> 0x42" in lines


WRITE_MSR = """
    B0 41                mov al, 'A'
    BA F8 03             mov dx, 0x3f8
    EE                   out dx, al
    66 B9 74 01 00 00    mov ecx, 0x174
    66 31 D2             xor edx, edx
    66 B8 08 00 00 00    mov eax, 8
    0F 30                wrmsr
    BA F8 03             mov dx, 0x3f8
    EE                   out dx, al
    EB FE                jmp $
"""


def test_an_msr_by_its_name(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert pykvm(flat(WRITE_MSR), "--until", "A", "--save", first).returncode == 0
    assert pykvm(first, "--until", "\b", "--save", second).returncode == 0
    lines = pykvm("snapshot", "diff", first, second).stdout.splitlines()
    assert "  MSR.IA32_SYSENTER_CS (0x174): 0 -> 8" in lines


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot"],
        ["snapshot", "info"],
        ["snapshot", "diff", "a"],
        ["snapshot", "diff", "a", "b", "c"],
        ["snapshot", "show", "a"],
        ["snapshot", "info", "a", "--", "b"],
    ],
)
def test_how_snapshot_is_used(words: list[str]) -> None:
    with pytest.raises(UsageError, match=re.escape("it is `snapshot info FILE...` or")):
        parse(words)


def test_options_and_commands() -> None:
    assert parse(["snapshot", "info", "a", "--verify"]).words == ("info", "a")
    assert parse(["a", "--save", "b"]).save == "b"
    with pytest.raises(UsageError, match="--save takes the path of a file"):
        parse(["a", "--save="])
    with pytest.raises(UsageError, match="--verify belongs to snapshot, not to run"):
        parse(["a", "--verify"])
