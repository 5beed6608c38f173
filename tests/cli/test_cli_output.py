"""Writing to readers that are slow, stalled or gone: no KVM, and no process of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pykvm.cli import output
from pykvm.cli.consoles import LONGEST_LINE, Lines, open_port
from pykvm.cli.options import Destination
from pykvm.cli.output import LINGER, Linger, TimeLimit, Writer
from pykvm.cli.ports import FifoPort, PathPort, open_file
from pykvm.errors import HostError
from support.slowness import longer

DEADLINE = longer(20.0)
CAPACITY = 4096


class Signals:
    """What `Interrupts` is to a writer."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.signals = 0

    def send(self) -> None:
        self.signals += 1
        os.write(self._write_fd, b"!")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


@pytest.fixture
def stop() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.close()


def pair(kind: str) -> tuple[int, int]:
    """A reader's and a writer's descriptor that share little room."""
    if kind == "pipe":
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, CAPACITY)
    elif kind == "terminal":
        reader, writer = pty.openpty()
        tty.setraw(writer)
    else:
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CAPACITY)
        reader, writer = one.detach(), other.detach()
    return reader, writer


KINDS = ["pipe", "terminal", "socket"]
Pair = Callable[[str], tuple[int, int]]


@pytest.fixture
def ends() -> Iterator[Pair]:
    with ExitStack() as stack:

        def make(kind: str) -> tuple[int, int]:
            both = pair(kind)
            for fd in both:
                stack.callback(close, fd)
            return both

        yield make


def close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def read_all(fd: int, size: int, piece: int = 4096, pause: float = 0.0) -> bytes:
    data = bytearray()
    while len(data) < size and (more := os.read(fd, min(piece, size - len(data)))):
        data += more
        time.sleep(pause)
    return bytes(data)


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    with suppress(BlockingIOError):
        while piece := os.read(fd, 65536):
            data += piece
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_never_reads_is_given_up_at_the_deadline(ends: Pair, kind: str) -> None:
    reader, fd = ends(kind)
    data = bytes(range(256)) * 4096
    writer = Writer(fd, limit=TimeLimit(0.0))
    lost = writer.write(data)
    assert 0 < lost < len(data)
    # What was not lost is there.
    assert drain(reader) == data[: len(data) - lost]
    writer.close()


def test_given_up_is_given_up(ends: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces come afterwards, and however long they are, they wait no more."""
    _, fd = ends("pipe")
    os.write(fd, bytes(CAPACITY))
    writer = Writer(fd, limit=TimeLimit(0.0))
    assert writer.write(b"x") == 1
    patience = writer._patience
    waits: list[float | None] = []

    def noted() -> float | None:
        waits.append(patience())
        return waits[-1]

    monkeypatch.setattr(writer, "_patience", noted)
    assert [writer.write(bytes(size)) for size in range(3)] == [0, 1, 2]
    assert waits == [0.0, 0.0]
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False], ids=["anew", "in-pieces"])
def test_a_slow_reader_gets_all_of_it_after_the_deadline(
    ends: Pair, kind: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that cannot be opened anew: another user's terminal, say."""
    reader, fd = ends(kind)
    if not own:
        monkeypatch.setattr(output, "_PTMX", os.fstat(fd).st_rdev)
    data = bytes(range(256)) * 128
    got: list[bytes] = []
    thread = threading.Thread(
        target=lambda: got.append(read_all(reader, len(data), piece=1000, pause=0.005))
    )
    thread.start()
    writer = Writer(fd, limit=TimeLimit(0.0))
    assert writer.write(data) == 0
    thread.join(DEADLINE)
    assert got == [data]
    writer.close()


def test_a_pipe_whose_reader_takes_little_makes_progress_all_the_same(ends: Pair) -> None:
    """It does not poll writable before a whole page of it is read."""
    reader, fd = ends("pipe")
    os.write(fd, bytes(CAPACITY))
    taken = threading.Event()

    def read() -> None:
        for _ in range(8):
            os.read(reader, 16)
            time.sleep(LINGER / 4)
        taken.set()
        os.read(reader, CAPACITY)

    thread = threading.Thread(target=read)
    thread.start()
    writer = Writer(fd, limit=TimeLimit(0.0))
    assert writer.write(b"last words") == 0
    assert taken.is_set()
    thread.join(DEADLINE)
    writer.close()


def test_a_signal_ends_the_wait_and_the_next_one_the_patience(ends: Pair, stop: Signals) -> None:
    reader, fd = ends("pipe")
    os.write(fd, bytes(CAPACITY))
    writer = Writer(fd, stop=stop)
    lost: list[int] = []
    thread = threading.Thread(target=lambda: lost.append(writer.write(b"unread")))
    thread.start()
    stop.send()
    # A reader that reads on and on, too slowly ever to make room.
    while thread.is_alive() and len(drain_one(reader)) == 1:
        time.sleep(0.02)
        if stop.signals == 1:
            stop.send()
    thread.join(DEADLINE)
    assert lost == [6]
    writer.close()


def drain_one(fd: int) -> bytes:
    return os.read(fd, 1)


def test_patience_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    linger = Linger()
    waited = 0
    while linger.goes_on(waited):
        now[0], waited = now[0] + 0.4, waited + 1
    assert waited == output.LONGEST / 0.4
    linger = Linger()
    assert linger.goes_on(1)
    now[0] += LINGER
    assert not linger.goes_on(1)


def test_the_shared_descriptor_stays_blocking(ends: Pair) -> None:
    """Its mode is that of the shell, and of every other program on the terminal."""
    for kind in KINDS:
        _, fd = ends(kind)
        writer = Writer(fd)
        writer.write(b"x")
        assert os.get_blocking(fd)
        writer.close()
        os.fstat(fd)


def test_a_reader_that_has_gone_is_an_error(ends: Pair) -> None:
    for kind in ("pipe", "socket"):
        reader, fd = ends(kind)
        os.close(reader)
        writer = Writer(fd)
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")
        writer.close()


# A line without an end


def test_a_line_without_end_is_passed_on_in_parts() -> None:
    parts: list[bytes] = []
    lines = Lines(parts.append)
    for _ in range(3 * LONGEST_LINE + 5):
        lines.write(b"A")
        assert len(lines._begun) < LONGEST_LINE
    assert [len(part) for part in parts] == [LONGEST_LINE] * 3
    lines.write(b"\nnext")
    assert parts[3:] == [b"AAAAA\n"]
    lines.flush()
    assert parts[4:] == [b"next"]


# Files


Opened = Callable[..., "PathPort | FifoPort"]


@pytest.fixture
def opened(stop: Signals) -> Opened:
    def make(
        path: Path, *, seconds: float = DEADLINE, most: int | None = None
    ) -> PathPort | FifoPort:
        limit = TimeLimit(seconds)
        return open_file(str(path), stop=stop, limit=limit, most=most)

    return make


def test_a_file_takes_so_much_and_no_more(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "out"
    port = opened(path, most=10)
    for _ in range(7):
        port.write(b"abc")
    port.finish(b"END")
    assert path.read_bytes() == b"abcabcabcaEND"
    assert port.close() == (
        f"{path} is cut off after 10 bytes, 11 more are not in it: --output-limit sets how many a "
        "file takes"
    )


def test_the_limit_is_for_what_fills_a_disk(opened: Opened) -> None:
    port = opened(Path("/dev/null"), most=10)
    port.write(bytes(100))
    assert port.close() == ""


def test_a_file_that_is_full_is_an_error(opened: Opened) -> None:
    port = opened(Path("/dev/full"))
    with pytest.raises(HostError, match="cannot write to /dev/full: No space left on device"):
        port.write(b"x")
    port.close()


def test_a_fifo_waits_for_its_reader(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    port = opened(path)
    got: list[bytes] = []

    def read() -> None:
        with open(path, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=read)
    writer = threading.Thread(target=lambda: port.write(b"all of it"))
    writer.start()
    reader.start()
    writer.join(DEADLINE)
    assert port.close() == ""
    reader.join(DEADLINE)
    assert got == [b"all of it"]


def test_a_fifo_without_a_reader_is_given_up(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    port = opened(path, seconds=0.0)
    port.write(b"four")
    assert port.close() == f"4 bytes of output were lost: {path} had no reader"


def test_a_reader_of_a_guest_that_says_nothing_finds_the_end(
    opened: Opened, tmp_path: Path
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    port = opened(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert port.close() == ""
    assert os.read(fd, 1) == b""
    os.close(fd)


def test_a_socket_is_no_file(stop: Signals, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        with pytest.raises(Exception, match="No such device or address"):
            open_port("--serial", Destination("file", str(path)), stop=stop, limit=TimeLimit())
