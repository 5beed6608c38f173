"""Clients of the serial port's socket and pty that come, go and misbehave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pykvm.cli import pump as pumps
from pykvm.cli.pump import Pump
from pykvm.cli.waiting import PtyPort, UnixPort
from support.slowness import longer

Flat = Callable[[str], Path]
DEADLINE = longer(30.0)

# Copies 6,000 characters from COM1 to the debug console, then exits with 0.
COPIES = """
    B9 70 17    mov cx, 6000
    BA F8 03    mov dx, 0x3f8
    FA          cli
    BA FD 03    1: mov dx, 0x3fd
    EC          in al, dx
    A8 01       test al, 1
    74 FB       jz -5
    BA F8 03    mov dx, 0x3f8
    EC          in al, dx
    E6 E9       out 0xe9, al
    E2 F0       loop 1b
    B0 00       mov al, 0
    E6 F4       out 0xf4, al
"""
TEXT = bytes(range(250)) * 24


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(command: list[str], environment: dict[str, str]) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    out, said = process.communicate(timeout=DEADLINE)
    return process.returncode, out, said.decode()


def told(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode().split()[-1]


@pytest.mark.kvm
@pytest.mark.parametrize("how", ["close", "half-close", "unread"])
def test_a_client_that_closes_after_a_paste(
    start: Start, flat: Flat, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "socket"
    process = start(flat(COPIES), "--serial", f"unix:{path}", "--debugcon", "stdio")
    assert process.stderr is not None
    process.stderr.readline()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(TEXT)
        if how == "half-close":
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    status, out, _ = end(process)
    assert (status, out) == (0, TEXT)


@pytest.mark.kvm
def test_a_pty_that_is_closed_after_a_paste(start: Start, flat: Flat) -> None:
    process = start(flat(COPIES), "--serial", "pty", "--debugcon", "stdio")
    fd = os.open(told(process), os.O_RDWR | os.O_NOCTTY)
    rest = memoryview(TEXT)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.close(fd)
    status, out, _ = end(process)
    assert (status, out) == (0, TEXT)


@pytest.mark.kvm
def test_a_pipe_that_is_closed_after_a_paste(
    command: list[str], environment: dict[str, str], flat: Flat
) -> None:
    done = subprocess.run(
        [*command, str(flat(COPIES))],
        env=environment,
        input=TEXT,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, TEXT)


@pytest.mark.kvm
def test_a_client_that_leaves_and_comes_back(start: Start, flat: Flat, tmp_path: Path) -> None:
    """What was printed meanwhile waits for it; the next client gets what the last one did not."""
    path = tmp_path / "socket"
    echo = """
        BA FD 03    1: mov dx, 0x3fd
        EC          in al, dx
        A8 01       test al, 1
        74 FB       jz -5
        BA F8 03    mov dx, 0x3f8
        EC          in al, dx
        EE          out dx, al
        E6 E9       out 0xe9, al
        EB EF       jmp 1b
    """
    copy = tmp_path / "copy"
    process = start(flat(echo), "--serial", f"unix:{path}", "--debugcon", f"file:{copy}")
    assert process.stderr is not None
    process.stderr.readline()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"one")
        got = b""
        while len(got) < 3:
            got += client.recv(3)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b" two")
        client.shutdown(socket.SHUT_RDWR)
        eventually(lambda: copy.read_bytes() == b"one two", "the guest has read both")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(DEADLINE)
        client.sendall(b".")
        while not got.endswith(b"."):
            got += client.recv(10)
    assert got.startswith(b"one")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143


@pytest.fixture
def port(tmp_path: Path) -> UnixPort:
    return UnixPort(str(tmp_path / "socket"))


class Watched(socket.socket):
    """A socket that notes what there is in its directory before it listens."""

    seen: list[str]

    def listen(self, backlog: int = 0, /) -> None:
        path = Path(self.getsockname())
        type(self).seen = sorted(one.name for one in path.parent.iterdir())
        super().listen(backlog)


def test_who_sees_the_file_can_connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "socket", Watched)
    port = UnixPort(str(tmp_path / "socket"))
    monkeypatch.undo()
    assert Watched.seen == [f"socket.{os.getpid()}"]
    assert [one.name for one in tmp_path.iterdir()] == ["socket"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
    port.close()
    assert list(tmp_path.iterdir()) == []


def test_a_path_as_long_as_may_be(tmp_path: Path) -> None:
    path = f"{tmp_path}/{'x' * (106 - len(str(tmp_path)))}"
    port = UnixPort(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    port.close()
    assert not os.path.exists(path)


class Guest:
    """The guest's end: it reads nothing until it is told to."""

    def __init__(self, port: UnixPort | PtyPort) -> None:
        self.got = bytearray()
        self.unread = 0
        self.pump = Pump(port, receive=self._receive, unread=lambda: self.unread)
        self.pump.start()

    def _receive(self, data: bytes) -> None:
        self.got += data
        self.unread += len(data)

    def read(self) -> None:
        self.unread = 0
        self.pump.drained()


def paste(port: UnixPort, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        client.sendall(data)


def test_what_a_client_has_sent_waits_for_the_guest(port: UnixPort) -> None:
    guest = Guest(port)
    paste(port, TEXT * 10)
    # The next one is served at once: the guest need not read for that.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        port.write(b"hello")
        assert client.recv(5) == b"hello"
        assert guest.got == TEXT * 10
        client.sendall(b"!")
        guest.read()
        eventually(lambda: guest.got == TEXT * 10 + b"!", "the next input arrives")
    assert guest.pump.close() == ""
    assert port.close() == ""


def test_what_clients_have_sent_is_bounded(port: UnixPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "_MOST", 10_000)
    guest = Guest(port)
    for _ in range(4):
        paste(port, TEXT)
    eventually(lambda: guest.pump._dropped == 14_000, "what is too much is dropped")
    assert guest.got == (TEXT + TEXT)[:10_000]
    assert guest.pump.close() == (
        "14000 bytes of input were lost: the guest left 10000 before them unread"
    )
    port.close()


def test_a_client_that_listens_no_more_costs_nothing(port: UnixPort) -> None:
    """And its output waits for the next one."""
    guest = Guest(port)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        client.shutdown(socket.SHUT_RD)
        client.sendall(b"x")
        eventually(lambda: guest.got == b"x", "what it sends arrives all the same")
        port.write(b"unheard")
        # Nothing to wait for: the pump would spin on a socket that polls writable.
        assert port.interests(reading=False) == [(port.interests(reading=False)[0][0], 0)]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        assert client.recv(10) == b"unheard"
    guest.pump.close()
    assert port.close() == ""


def test_a_client_that_comes_at_the_last_moment(port: UnixPort) -> None:
    port.write(b"goodbye")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        assert port.close() == ""
        assert client.recv(10) == b"goodbye"
        assert client.recv(10) == b""


def test_the_end_is_no_error_for_a_client_that_still_sends(port: UnixPort) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        client.sendall(b"unread")
        port.write(b"bye")
        assert port.close() == ""
        assert client.recv(10) == b"bye"
        assert client.recv(10) == b""


class Signals:
    fd = -1
    signals = 0


def test_a_slow_client_is_waited_for_and_a_signal_ends_that(tmp_path: Path) -> None:
    stop = Signals()
    port = UnixPort(str(tmp_path / "socket"), stop)
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(port.path)
        port._accept()
        while not port._dropped:
            port.write(bytes(1000))
        moved: list[int] = []

        def taken() -> int:
            # As seen from `close`: the client reads on, until a signal comes.
            if len(moved) == 50:
                stop.signals += 1
            moved.append(len(client.recv(100)))
            return sum(moved)

        port._under_way = taken  # type: ignore[method-assign]
        assert "were lost" in port.close()
        assert len(moved) == 51
