"""stdout, stderr and files without a reader, that are full or closed: a run ends all the same."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import product
from pathlib import Path

import pytest

from pykvm.cli import output, report
from support.slowness import longer
from support.terminal import Terminal

pytestmark = pytest.mark.kvm

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]
DEADLINE = longer(30.0)

# Marks the debug console, then prints without end.
PRINTS = """
    B0 21       mov al, '!'
    E6 E9       out 0xe9, al
    BA F8 03    mov dx, 0x3f8
    EE          out dx, al
    EB FD       jmp $-1
"""
# Prints 2,000 bytes of memory on the serial port and on the debug console ...
BOTH = """
    B9 D0 07    mov cx, 2000
    BA F8 03    mov dx, 0x3f8
    31 F6       xor si, si
    F3 6E       rep outsb
    B9 D0 07    mov cx, 2000
    BA E9 00    mov dx, 0xe9
    31 F6       xor si, si
    F3 6E       rep outsb
"""
SIZE = 2000
# ... and dies, halts, exits or spins.
ENDS = {
    125: "BA 99 99 EE   mov dx, 0x9999; out dx, al",
    0: "FA F4    cli; hlt",
    7: "B0 07 E6 F4    mov al, 7; out 0xf4, al",
    124: "EB FE    jmp $",
    130: "EB FE    jmp $",
}


def stalled(kind: str) -> tuple[int, int]:
    """A reader that does not read, and a writer that has no room."""
    if kind == "terminal":
        reader, writer = pty.openpty()
        tty.setraw(writer)
    elif kind == "pipe":
        reader, writer = os.pipe()
    else:
        one, other = socket.socketpair()
        reader, writer = one.detach(), other.detach()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    return reader, writer


class Stalled:
    """A pykvm process whose stdout has no reader."""

    def __init__(
        self, command: list[str], environment: dict[str, str], kind: str, *, stderr: bool
    ) -> None:
        self.reader, self.writer = stalled(kind)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.writer,
            stderr=self.writer if stderr else subprocess.PIPE,
        )

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, (said or b"").decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def start(
    command: list[str], environment: dict[str, str], flat: Flat, tmp_path: Path
) -> Iterator[Callable[..., Stalled]]:
    """Run PRINTS, and return when it waits for its reader."""
    with ExitStack() as stack:

        def run(kind: str, *options: str, stderr: bool = False) -> Stalled:
            mark = tmp_path / "mark"
            os.mkfifo(mark)
            reader = os.open(mark, os.O_RDONLY | os.O_NONBLOCK)
            guest = [str(flat(PRINTS)), "--debugcon", f"file:{mark}", *options]
            running = Stalled([*command, *guest], environment, kind, stderr=stderr)
            stack.callback(running.close)
            assert select.select([reader], [], [], DEADLINE)[0], "the guest does not start"
            os.close(reader)
            return running

        yield run


@pytest.mark.parametrize("kind", ["terminal", "pipe", "socket"])
def test_the_time_limit_ends_a_run_whose_output_has_no_reader(
    start: Callable[..., Stalled], kind: str
) -> None:
    status, said = start(kind, "--timeout", "0.3").end()
    assert status == 124
    assert "the guest was still running after 0.3 s" in said
    assert "bytes of output were lost: stdout had no reader" in said


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("terminal", signal.SIGTERM),
        ("terminal", signal.SIGINT),
        ("pipe", signal.SIGTERM),
        ("socket", signal.SIGINT),
    ],
)
def test_one_signal_ends_a_run_whose_output_has_no_reader(
    start: Callable[..., Stalled], kind: str, number: signal.Signals
) -> None:
    running = start(kind)
    running.process.send_signal(number)
    status, said = running.end()
    assert status == 128 + number
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}" in said


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_signal_ends_a_run_whose_stderr_has_no_reader(
    start: Callable[..., Stalled], kind: str
) -> None:
    running = start(kind, "--stats", "--dump-on-exit", stderr=True)
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 143


def test_stderr_has_no_reader_when_the_time_is_up(
    start: Callable[..., Stalled], command: list[str], environment: dict[str, str], flat: Flat
) -> None:
    assert start("terminal", "--timeout", "0.3", "--stats", stderr=True).end()[0] == 124
    run = [*command, str(flat(PRINTS)), "--trace", "--timeout", "0.3"]
    with closing(Stalled(run, environment, "pipe", stderr=True)) as running:
        assert running.end()[0] == 124


def test_ctrl_c_on_a_terminal_that_is_stopped(
    command: list[str], environment: dict[str, str], flat: Flat, tmp_path: Path
) -> None:
    """As Ctrl-S does: typed keys still arrive, output does not move."""
    run = [*command, str(flat(PRINTS)), "--debugcon", f"file:{tmp_path}/mark"]
    with closing(Terminal(run, environment)) as console:
        console.wait_until(lambda: console.is_raw, "the terminal is raw")
        # The other side has no reader.
        console.type("\x03")
        assert console.status() == 130
        assert console.attributes == console.before


# Everything that the guest wrote before its end


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *(("stdout", status) for status in ENDS),
        *(("unix", status) for status in ENDS),
        *[("pty", 125), ("pty", 124), ("fifo", 7), ("fifo", 130)],
    ],
)
def test_everything_is_there_however_it_ends(
    command: list[str],
    environment: dict[str, str],
    flat: Flat,
    tmp_path: Path,
    status: int,
    kind: str,
) -> None:
    guest = str(flat(BOTH + ENDS[status]))
    copy = tmp_path / "debug"
    path = tmp_path / "serial"
    options = ["--debugcon", f"file:{copy}"]
    if status == 124:
        options += ["--timeout", f"{longer(2)}"]
    if kind == "fifo":
        os.mkfifo(path)
        options += ["--serial", f"file:{path}"]
    elif kind != "stdout":
        options += ["--serial", kind if kind == "pty" else f"unix:{path}"]
    with subprocess.Popen(
        [*command, guest, *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        reader = reader_of(kind, process, path)
        data = bytearray()
        while len(data) < SIZE:
            assert select.select([reader], [], [], DEADLINE)[0], f"{len(data)} of {SIZE} bytes"
            piece = os.read(reader, 500)
            assert piece, f"{len(data)} of {SIZE} bytes"
            data += piece
        if status == 130:
            while copy.stat().st_size < SIZE:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
        os.close(reader)
    assert process.returncode == status
    assert b"lost" not in said
    assert copy.read_bytes() == data


def reader_of(kind: str, process: subprocess.Popen[bytes], path: Path) -> int:
    assert process.stdout is not None
    assert process.stderr is not None
    if kind == "stdout":
        return os.dup(process.stdout.fileno())
    if kind == "fifo":
        return os.open(path, os.O_RDONLY)
    told = process.stderr.readline().decode()
    if kind == "pty":
        return os.open(told.split()[-1], os.O_RDONLY | os.O_NOCTTY)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client.detach()


def test_a_reader_of_stderr_that_has_stopped_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, bytes(size))
    monkeypatch.setattr(report, "_STDERR", writer)
    lingered = []

    class Waits(output.Linger):
        def __init__(self, stop: output.Stop | None = None) -> None:
            super().__init__(stop)
            lingered.append(stop)

    monkeypatch.setattr(output, "Linger", Waits)
    for _ in range(3):
        report.write_stderr("this is not read\n", until=0.0)
    assert len(lingered) == 1
    assert os.read(reader, size) == bytes(size)
    report.write_stderr("this is read\n", until=0.0)
    assert os.read(reader, size) == b"this is read\n"
    # It reads again, and so is waited for again.
    os.write(writer, bytes(size))
    report.write_stderr("this is not read\n", until=0.0)
    assert len(lingered) == 2
    os.close(reader)
    os.close(writer)
    report.write_stderr("gone\n", until=0.0)


# Closed from the start


def shell(command: list[str], environment: dict[str, str], words: str) -> tuple[int, str]:
    """Run pykvm with `words` after it in a shell; nothing is left to hang."""
    line = " ".join([*command, words])
    done = subprocess.run(
        ["sh", "-c", line],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


CLOSED = ["".join(one) for one in product(["", "<&- "], ["", ">&- "], ["", "2>&-"])]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_descriptors(
    command: list[str], environment: dict[str, str], guests: Path, closed: str, tmp_path: Path
) -> None:
    path = tmp_path / "serial"
    for words, status in (
        (f"{guests}/hello.elf --stats --trace", 0),
        (f"{guests}/hello.elf --serial file:{path}", 0),
        ("--nonsense", 2),
        (f"step {guests}/hello.elf", 0),
    ):
        got, said = shell(command, environment, f"{words} {closed}")
        assert got == status, said
        assert "Traceback" not in said
    # What was opened did not take their places.
    assert path.read_text() == "Hello from long mode!\n"


# Full, or gone


def test_a_full_file_is_status_126_wherever_it_is_written(
    command: list[str], environment: dict[str, str], guests: Path
) -> None:
    hello = f"{guests}/hello.elf"
    for words in (
        f"{hello} >/dev/full",
        f"{hello} --serial file:/dev/full",
        f"{hello} --serial none --trace-file /dev/full",
        f"{hello} --serial none --trace=json --trace-file /dev/full",
        "--help >/dev/full",
        "--version >/dev/full",
        "info >/dev/full",
        f"step {hello} >/dev/full </dev/null",
    ):
        status, said = shell(command, environment, words)
        assert status == 126, (words, said)
        (line,) = said.splitlines()
        assert line.startswith("pykvm: cannot write to "), words
        assert line.endswith(": No space left on device"), words
    # Without stderr nothing can be printed: only the status says it.
    assert shell(command, environment, f"{hello} --serial none --trace 2>/dev/full")[0] == 126
    assert shell(command, environment, f"{hello} --stats --dump-on-exit 2>/dev/full")[0] == 0


def test_readers_that_have_gone(
    command: list[str], environment: dict[str, str], guests: Path
) -> None:
    for words, status in (
        (f"{guests}/hello.elf", 141),
        ("--help", 141),
        (f"step {guests}/hello.elf </dev/null", 141),
    ):
        line = f"({' '.join([*command, words])}; echo $? >&2) | true"
        # `true` may be slower than pykvm, which then finds room in the pipe.
        wait = line.replace("(", "(sleep 0.2; ", 1)
        got = subprocess.run(
            ["sh", "-c", wait], env=environment, capture_output=True, text=True, check=False
        )
        assert got.stderr.splitlines()[-1] == str(status), got.stderr


def test_a_fifo_without_a_reader_does_not_stop_the_clock(
    pykvm: Pykvm, flat: Flat, guests: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    done = pykvm(flat(PRINTS), "--serial", f"file:{path}", "--timeout", "0.3")
    assert done.returncode == 124
    assert f"output were lost: {path} had no reader" in done.stderr
    done = pykvm(guests / "hello.elf", "--serial", f"file:{path}", "--timeout", "0.3")
    # Its output may be waited for before it ends or afterwards.
    assert done.returncode in {0, 124}
    assert f"output were lost: {path} had no reader" in done.stderr
    done = pykvm(flat(ENDS[7]), "--serial", f"file:{path}")
    assert done.returncode == 7
    done = pykvm(flat(PRINTS), "--trace-file", path, "--timeout", "0.3", "--serial", "none")
    assert done.returncode == 124


def test_files_have_a_limit(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    path, trace = tmp_path / "serial", tmp_path / "trace"
    arguments = ["--serial", f"file:{path}", "--trace=json", "--trace-file", trace]
    done = pykvm(guests / "hello.elf", *arguments, "--output-limit", "10")
    assert done.returncode == 0
    assert path.read_text() == "Hello from"
    assert f"{path} is cut off after 10 bytes, 12 more are not in it" in done.stderr
    assert f"{trace} is cut off after 10 bytes" in done.stderr
    # How it ended is there all the same.
    assert '"outcome": "exited"' in trace.read_text()
    done = pykvm(guests / "hello.elf", *arguments, "--output-limit", "none")
    assert path.read_text() == "Hello from long mode!\n"
    assert "cut off" not in done.stderr
