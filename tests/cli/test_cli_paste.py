"""Much at once through the consoles of the command line: every byte arrives, and comes back."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from support.slowness import longer
from support.terminal import Terminal

pytestmark = pytest.mark.kvm

DEADLINE = longer(50.0)
END = b"\x04"
TEXT = bytes(b" "[0] + number % 91 for number in range(6000))


def test_into_a_terminal(command: list[str], environment: dict[str, str], guests: Path) -> None:
    run = [*command, "-q", str(guests / "paste.elf")]
    with closing(Terminal(run, environment)) as console:
        console.wait_until(lambda: console.is_raw, "the terminal is raw")
        assert console.paste(TEXT.decode()) == TEXT.decode()
        console.type(END.decode())
        assert console.status() == 0
        assert console.rest() == "\r\n"


def test_from_a_file_to_a_reader_that_is_slow(
    command: list[str], environment: dict[str, str], guests: Path, tmp_path: Path
) -> None:
    """The guest waits for it, and nothing is lost: neither after it nor before."""
    (tmp_path / "text").write_bytes(TEXT + END)
    reader, writer = os.pipe()
    assert fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096) < len(TEXT)
    full = select.poll()
    full.register(writer, select.POLLOUT)
    with (
        open(tmp_path / "text", "rb") as stdin,
        open(reader, "rb") as output,
        subprocess.Popen(
            [*command, "-q", str(guests / "paste.elf")],
            env=environment,
            stdin=stdin,
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        while full.poll(0):
            assert process.poll() is None, "it did not wait until somebody reads"
        os.close(writer)
        assert output.read() == TEXT
        _, stderr = process.communicate(timeout=DEADLINE)
        assert (process.returncode, stderr) == (0, b"")
