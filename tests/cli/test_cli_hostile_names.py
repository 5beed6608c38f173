"""Names and words of a guest's making, on their way to a person's terminal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boot.elfs import PT_INTERP, Part, Sym, elf

from pykvm import Machine
from pykvm.errors import GuestError, LoadError, PykvmError, RunError
from support.listing import assemble
from support.quirks import without

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

# Clears the screen, forges a line, turns the reading direction round.
EVIL = "\x1b[2J\x07evil\npykvm: the guest exited with code 0 (0.000 s)\r\u202e\x9b31m"
MARKS = ("\x1b", "\x07", "\r", "\x9b", "\u202e")
SHOWN = r"\x1b[2J\x07evil\npykvm: the guest exited with code 0 (0.000 s)\r\u202e\x9b31m"

CRASHES = """
    B0 2E       mov al, '.'
    E6 E9       out 0xe9, al
    0F 0B       ud2
"""
SPINS = "EB FE    jmp $"


@pytest.fixture
def guest(tmp_path: Path) -> Callable[[str], Path]:
    """A guest whose only function has an evil name."""

    def make(listing: str) -> Path:
        path = tmp_path / "evil.elf"
        path.write_bytes(elf(Part(assemble(listing)), symbols=(Sym(EVIL, 0x10_0000, 64),)))
        return path

    return make


def assert_harmless(text: str) -> None:
    for mark in MARKS:
        assert mark not in text, text
    assert not any(line.startswith("pykvm: the guest exited") for line in text.splitlines())


@without("triple-fault")
def test_symbols_in_every_report(pykvm: Pykvm, guest: Callable[[str], Path]) -> None:
    done = pykvm(guest(CRASHES), "--trace", "--dump-on-exit", "--debugcon", "none")
    assert done.returncode == 125
    assert done.stderr.count(SHOWN) >= 3
    assert_harmless(done.stderr)
    done = pykvm(guest(SPINS), "--timeout", "0.2", "--trace=json")
    assert done.returncode == 124
    assert SHOWN in done.stderr
    assert_harmless(done.stderr)
    done = pykvm("step", guest(CRASHES), stdin="n\np\nr rip\nc\nq\n")
    assert SHOWN in done.stdout
    assert_harmless(done.stdout)


@without("triple-fault")
def test_symbols_in_the_api(guest: Callable[[str], Path]) -> None:
    with Machine(guest(CRASHES)) as machine:
        # For a program the name is what it is.
        assert machine.symbols[EVIL] == 0x10_0000
        assert machine.symbol_at(0x10_0001) == f"{SHOWN}+0x1"
        result = machine.run(timeout=10)
        assert result.error is not None
        for text in (result.sentence, str(result), str(result.error)):
            assert SHOWN in text
            assert_harmless(text)


@pytest.mark.kvm
def test_what_a_guest_prints_is_quoted_in_a_report_and_raw_on_stdout(
    pykvm: Pykvm, tmp_path: Path
) -> None:
    path = tmp_path / "guest.bin"
    words = b"\x1b[2Jevil\r\npykvm: the guest exited\n"
    code = assemble(
        """
        BE 14 7C    mov si, text
        B9 00 00    mov cx, its length
        BA F8 03    mov dx, 0x3f8
        F3 6E       rep outsb
        BA 99 99    mov dx, 0x9999
        EE          out dx, al
        F4          hlt
        90 90 90 90 nop
        """
    )
    image = bytearray(code + words)
    image[4] = len(words)
    path.write_bytes(image)
    done = pykvm(path)
    # Python's text mode has made one newline of CR LF.
    assert done.stdout == words.decode().replace("\r", "")
    assert_harmless(done.stderr)
    done = pykvm(path, "--serial", f"file:{tmp_path}/serial")
    assert (tmp_path / "serial").read_bytes() == words
    assert r"\x1b[2Jevil" in done.stderr
    assert_harmless(done.stderr)
    done = pykvm("step", path, stdin="c\nq\n")
    assert r"    | \x1b[2Jevil" in done.stdout
    assert_harmless(done.stdout)


def test_files_and_their_names(pykvm: Pykvm, tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace('/', '')}.elf"
    path.write_bytes(elf(Part(f"/lib/{EVIL}\0".encode(), type=PT_INTERP), Part()))
    done = pykvm(path)
    assert done.returncode == 2
    assert_harmless(done.stderr)
    done = pykvm(tmp_path / "no\x1b[2J\nsuch")
    assert done.returncode == 2
    assert_harmless(done.stderr)
    done = pykvm(f"--{EVIL}")
    assert done.returncode == 2
    assert_harmless(done.stderr)


def test_errors_are_fit_for_a_terminal() -> None:
    error = LoadError(f"a file: {EVIL}", hint=f"do this\n{EVIL}")
    assert error.message == f"a file: {SHOWN}"
    assert error.hint.splitlines()[0] == "do this"
    assert not any(mark in str(error) for mark in MARKS)
    guest = GuestError("panic", EVIL, console=f"one\n{EVIL}")
    assert guest.message == f"panic: {SHOWN}"
    assert not any(mark in str(guest) for mark in MARKS)
    # A report has lines.
    assert RunError("one\ntwo").message == "one\ntwo"
    assert PykvmError("caf\u00e9 \u6f22").message == "caf\u00e9 \u6f22"


def test_a_json_trace_stays_json() -> None:
    assert not any(mark in json.dumps(EVIL) for mark in MARKS)
