"""`--serial tcp:` and `--serial2`: a console on a TCP port, and the second serial port."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pykvm.cli.pump import Pump
from pykvm.cli.waiting import BACKLOG, TcpPort
from support.slowness import longer

Flat = Callable[[str], Path]
Start = Callable[..., "subprocess.Popen[str]"]
DEADLINE = longer(30.0)

# Reads COM1, and prints the same character on COM1 and, one higher, on COM2, until it is 'q'.
TWO = """
    FA          cli
    BA FD 03    1: mov dx, 0x3fd
    EC          in al, dx
    A8 01       test al, 1
    74 F8       jz 1b
    BA F8 03    mov dx, 0x3f8
    EC          in al, dx
    EE          out dx, al
    3C 71       cmp al, 'q'
    74 08       je 2f
    FE C0       inc al
    BA F8 02    mov dx, 0x2f8
    EE          out dx, al
    EB E7       jmp 1b
    B0 05       2: mov al, 5
    E6 F4       out 0xf4, al
"""

# Copies COM2 to COM1 until 'q'.
SECOND = """
    FA          cli
    BA FD 02    1: mov dx, 0x2fd
    EC          in al, dx
    A8 01       test al, 1
    74 F8       jz 1b
    BA F8 02    mov dx, 0x2f8
    EC          in al, dx
    BA F8 03    mov dx, 0x3f8
    EE          out dx, al
    3C 71       cmp al, 'q'
    75 EC       jne 1b
    B0 06       mov al, 6
    E6 F4       out 0xf4, al
"""


PRINTS_ON_BOTH = """
    B0 41       mov al, 'A'
    BA F8 03    mov dx, 0x3f8
    EE          out dx, al
    B0 42       mov al, 'B'
    BA F8 02    mov dx, 0x2f8
    EE          out dx, al
    B0 00       mov al, 0
    E6 F4       out 0xf4, al
"""


@pytest.fixture
def start(command: list[str], environment: dict[str, str]) -> Iterator[Start]:
    started = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def connected(process: subprocess.Popen[str]) -> socket.socket:
    """A client of the port that pykvm names on stderr."""
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"console at tcp:127\.0\.0\.1:(\d+), which waits for a client", said)
    assert found, said
    return socket.create_connection(("127.0.0.1", int(found[1])), DEADLINE)


def receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = client.recv(size - len(data))
        assert piece, data
        data += piece
    return data


@pytest.mark.kvm
def test_a_client_talks_to_com1_and_another_hears_com2(start: Start, flat: Flat) -> None:
    process = start(flat(TWO), "--serial", "tcp:0", "--serial2", "stdio")
    with connected(process) as client:
        client.sendall(b"ab")
        assert receive(client, 2) == b"ab"
        client.sendall(b"q")
        assert receive(client, 1) == b"q"
        assert client.recv(1) == b""
    out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (5, "bc")


@pytest.mark.kvm
def test_typing_goes_to_com2_where_com1_is_elsewhere(
    start: Start, flat: Flat, tmp_path: Path
) -> None:
    log = tmp_path / "com1"
    process = start(flat(SECOND), "--serial", f"file:{log}", "--serial2", "stdio")
    out, _ = process.communicate("hiq", timeout=DEADLINE)
    assert (process.returncode, out, log.read_text()) == (6, "", "hiq")


@pytest.mark.kvm
@pytest.mark.parametrize("place", ["stdio", "file"])
def test_both_may_go_to_one_place(start: Start, flat: Flat, tmp_path: Path, place: str) -> None:
    both = f"file:{tmp_path / 'both'}" if place == "file" else place
    process = start(flat(PRINTS_ON_BOTH), "--serial", both, "--serial2", both)
    out, _ = process.communicate("", timeout=DEADLINE)
    assert process.returncode == 0
    assert ((tmp_path / "both").read_text() if place == "file" else out) == "AB"


@pytest.mark.kvm
def test_a_port_that_is_taken(
    pykvm: Callable[..., subprocess.CompletedProcess[str]], guests: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = pykvm(guests / "hello.elf", "--serial", f"tcp:{port}")
    assert done.returncode == 2
    assert done.stderr == f"pykvm: --serial tcp:{port}: Address already in use\n"


@pytest.fixture
def port() -> Iterator[TcpPort]:
    port = TcpPort("0")
    yield port
    port.close()


def client_of(port: TcpPort) -> socket.socket:
    _, host, number = port.path.split(":")
    return socket.create_connection((host, int(number)), DEADLINE)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def test_without_a_host_it_is_on_loopback_alone(port: TcpPort) -> None:
    assert port.path.startswith("tcp:127.0.0.1:")


@pytest.mark.parametrize("leaves", ["close", "half-close", "reset"])
def test_the_next_client_is_taken_though_the_guest_is_silent(port: TcpPort, leaves: str) -> None:
    heard = bytearray()
    with closing(Pump(port, receive=heard.extend)) as pump:
        pump.start()
        first = client_of(port)
        first.sendall(b"one")
        eventually(lambda: heard == b"one", "the first client was heard")
        if leaves == "half-close":
            first.shutdown(socket.SHUT_WR)
        else:
            if leaves == "reset":
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
        with client_of(port) as second:
            second.sendall(b"two")
            eventually(lambda: heard == b"onetwo", "the second client was heard")
            port.write(b"answer")
            assert receive(second, 6) == b"answer"
        first.close()


def test_one_client_at_a_time(port: TcpPort) -> None:
    heard = bytearray()
    with closing(Pump(port, receive=heard.extend)) as pump:
        pump.start()
        with client_of(port) as first, client_of(port) as second:
            second.sendall(b"2")
            first.sendall(b"1")
            eventually(lambda: heard == b"1", "the first client was heard")
            first.close()
            eventually(lambda: heard == b"12", "the second client was heard")


def test_a_client_that_sends_without_end_is_held_up(port: TcpPort) -> None:
    """What the guest does not read stays with the client: here there are a few KiB of it."""
    heard = bytearray()
    with closing(Pump(port, receive=heard.extend, unread=lambda: len(heard))) as pump:
        pump.start()
        with client_of(port) as client:
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                while True:
                    client.sendall(bytes(1 << 20))
            assert len(heard) <= 2 * 4096


def test_output_that_a_client_does_not_read_is_bounded(port: TcpPort) -> None:
    for _ in range(64):
        port.write(bytes(BACKLOG))
    assert len(port._backlog) == BACKLOG
    assert f"{63 * BACKLOG + BACKLOG} bytes of output or more were lost" in port._lost(BACKLOG, "")
