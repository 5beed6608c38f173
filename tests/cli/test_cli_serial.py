"""Where the serial port goes: pipes, files, pseudo-terminals, sockets."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

import pytest

from pykvm.cli.pump import Pump
from pykvm.cli.waiting import BACKLOG, PtyPort, UnixPort
from support.slowness import longer

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]

DEADLINE = longer(20.0)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


@pytest.mark.kvm
def test_stdin_is_typed_at_the_guest(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "echo.elf", stdin="one\ntwo\nq\n")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["one", "two", "q", "Bye."]


@pytest.mark.kvm
def test_nothing_that_is_piped_in_is_lost(pykvm: Pykvm, guests: Path) -> None:
    """More than a pipe holds, and far more than the UART."""
    lines = [f"line {number}" for number in range(2000)]
    done = pykvm(guests / "echo.elf", "-q", stdin="\n".join([*lines, "q", ""]))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [*lines, "q", "Bye."]


@pytest.mark.kvm
def test_the_end_of_stdin_is_no_end_of_the_guest(pykvm: Pykvm, guests: Path) -> None:
    assert pykvm(guests / "echo.elf", "--timeout", "0.3", stdin="a\n").returncode == 124


@pytest.mark.kvm
def test_no_stdin_at_all(command: list[str], environment: dict[str, str], guests: Path) -> None:
    line = " ".join([*command, str(guests / "hello.elf"), "<&-"])
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Hello from long mode!\n")


@pytest.mark.kvm
def test_serial_to_a_file_replaces_its_content(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    path = tmp_path / "serial.txt"
    path.write_text("what stood there before, which is longer than the greeting")
    done = pykvm("--serial", f"file:{path}", guests / "hello.elf", stdin="unread")
    assert (done.returncode, done.stdout) == (0, "")
    assert path.read_text() == "Hello from long mode!\n"


@pytest.mark.kvm
def test_full_disk(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--serial", "file:/dev/full", guests / "hello.elf")
    assert done.returncode == 126
    assert done.stderr == "pykvm: cannot write to /dev/full: No space left on device\n"


@pytest.mark.kvm
def test_serial_none_discards_output(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--serial", "none", guests / "hello.elf")
    assert (done.returncode, done.stdout) == (0, "")


E9 = """
    B0 21    mov al, '!'
    E6 E9    out 0xe9, al
    BA F8 03 mov dx, 0x3f8
    B0 2E    mov al, '.'
    EE       out dx, al
    B0 00    mov al, 0
    E6 F4    out 0xf4, al
"""


@pytest.mark.kvm
def test_debug_console_goes_with_the_serial_port(pykvm: Pykvm, flat: Flat) -> None:
    assert pykvm(flat(E9)).stdout == "!."


@pytest.mark.kvm
def test_debug_console_goes_elsewhere(pykvm: Pykvm, flat: Flat, tmp_path: Path) -> None:
    path = tmp_path / "debug.txt"
    assert pykvm(flat(E9), "--debugcon", f"file:{path}").stdout == "."
    assert path.read_text() == "!"
    assert pykvm(flat(E9), "--debugcon", "none").stdout == "."
    assert pykvm(flat(E9), "--serial", "none", "--debugcon", "stdio").stdout == "!"


class Running:
    """A pykvm process whose serial port is elsewhere."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, stderr


Start = Callable[..., Running]


@pytest.fixture
def start(command: list[str], environment: dict[str, str]) -> Iterator[Start]:
    with ExitStack() as stack:

        def run(*arguments: str | Path) -> Running:
            running = Running([*command, *map(str, arguments)], environment)
            stack.enter_context(running.process)
            stack.callback(running.process.kill)
            return running

        yield run


def read_until(fd: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], DEADLINE)
        assert ready, f"{text!r} did not come after {len(seen)} bytes: {seen[-80:]!r}"
        piece = os.read(fd, 4096)
        assert piece, f"the end came after {seen[-80:]!r}"
        seen += piece
    return seen


@pytest.mark.kvm
def test_serial_on_a_pty(start: Start, guests: Path) -> None:
    running = start("--serial", "pty", guests / "echo.elf")
    told = re.fullmatch(r"pykvm: serial console on (/dev/pts/\d+)\n", running.line())
    assert told
    fd = os.open(told[1], os.O_RDWR | os.O_NOCTTY)
    try:
        read_until(fd, b"just q.\n")
        os.write(fd, b"hi\n")
        read_until(fd, b"hi\n")
        os.write(fd, b"q\n")
        read_until(fd, b"Bye.\n")
    finally:
        os.close(fd)
    assert running.end()[0] == 0


@pytest.mark.kvm
def test_serial_on_a_unix_socket(start: Start, guests: Path, tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    running = start("--serial", f"unix:{path}", guests / "echo.elf")
    assert running.line() == f"pykvm: serial console at {path}, which waits for a client\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        read_until(client.fileno(), b"just q.\n")
        client.sendall(b"hi\n")
        read_until(client.fileno(), b"hi\n")
    # The next one takes over.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"q\n")
        assert read_until(client.fileno(), b"Bye.\n") == b"q\nBye.\n"
    assert running.end()[0] == 0
    assert not path.exists()


@pytest.mark.kvm
def test_a_socket_file_is_removed_after_a_signal(
    start: Start, guests: Path, tmp_path: Path
) -> None:
    path = tmp_path / "serial.sock"
    running = start("--serial", f"unix:{path}", guests / "busy.elf")
    running.line()
    assert path.exists()
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 143
    assert not path.exists()


@pytest.mark.kvm
def test_no_listener(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    done = pykvm("--serial", f"unix:{tmp_path}/s", guests / "hello.elf")
    assert done.returncode == 0
    assert f"22 bytes of output or more were lost: {tmp_path}/s had no reader" in done.stderr
    done = pykvm("--serial", "pty", guests / "hello.elf")
    assert done.returncode == 0
    assert re.search(r"22 bytes .* were lost: /dev/pts/\d+ had no reader", done.stderr)


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="no socket"):
        UnixPort(str(tmp_path / "file"))
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(OSError, match="another program"):
            UnixPort(path)
    # Its owner has gone and not removed it.
    port = UnixPort(path)
    port.close()
    assert not os.path.exists(path)


def test_output_without_a_reader_is_bounded(tmp_path: Path) -> None:
    port = UnixPort(str(tmp_path / "socket"))
    for _ in range(100):
        port.write(bytes(1000))
    assert port.close() == (
        f"100000 bytes of output or more were lost: {tmp_path}/socket had no reader"
    )


def test_a_late_client_gets_the_beginning(tmp_path: Path) -> None:
    port = UnixPort(str(tmp_path / "socket"))
    pump = Pump(port)
    pump.start()
    port.write(b"early ")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        assert read_until(client.fileno(), b"early ") == b"early "
        port.write(b"late")
        assert read_until(client.fileno(), b"late") == b"late"
    pump.close()
    assert port.close() == ""


def test_a_slow_client_gets_all_of_what_is_kept(tmp_path: Path) -> None:
    port = UnixPort(str(tmp_path / "socket"))
    pump = Pump(port)
    pump.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        client.setblocking(True)
        eventually(lambda: port._client, "the client is accepted")
        size = 40 * BACKLOG
        began = time.monotonic()
        for _ in range(size // 1000):
            port.write(bytes(1000))
        assert time.monotonic() - began < DEADLINE
        lost = port._dropped
        assert 0 < lost < size
        received = 0
        while received < size // 1000 * 1000 - lost:
            received += len(client.recv(1 << 16))
    pump.close()
    port.close()


def test_pump_waits_while_the_guest_does_not_read() -> None:
    port = PtyPort()
    got = bytearray()
    full = [True]
    pump = Pump(port, receive=got.extend, unread=lambda: 10_000 if full[0] else 0)
    fd = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
    try:
        pump.start()
        os.write(fd, b"typed")
        time.sleep(0.05)
        assert not got
        full[0] = False
        pump.drained()
        eventually(lambda: got == b"typed", "what was typed arrives")
    finally:
        os.close(fd)
        pump.close()
        port.close()


def test_closing_a_pty_leaves_its_reader_the_last_words() -> None:
    """The kernel hands them on in its own time, and throws away what is left at the close."""
    words = b"goodbye\n"
    for _ in range(100):
        port = PtyPort()
        with open(os.open(port.path, os.O_RDONLY | os.O_NOCTTY), "rb", buffering=0) as reader:
            got = bytearray()

            def read(reader: FileIO = reader, got: bytearray = got) -> None:
                # EIO is how a terminal that has gone ends.
                with suppress(OSError):
                    while piece := reader.read(100):
                        got += piece

            thread = threading.Thread(target=read)
            thread.start()
            for byte in words:
                port.write(bytes([byte]))
            assert port.close() == ""
            thread.join(DEADLINE)
            assert got == words


def test_pty_keeps_what_its_reader_is_slow_to_take() -> None:
    port = PtyPort()
    pump = Pump(port)
    pump.start()
    fd = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
    try:
        port.write(b"x" * 50_000 + b"$")
        assert len(read_until(fd, b"$")) == 50_001
    finally:
        os.close(fd)
        pump.close()
    assert port.close() == ""
