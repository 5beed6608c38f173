"""--debug-exit: the port that ends the run, and what is said of a guest that tries another."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]

# Writes to QEMU's port that it is done; if that is of no use it halts.
QEMUS = """
    B8 10 00    mov ax, 0x10
    BA 01 05    mov dx, 0x501
    EF          out dx, ax
    FA F4       cli; hlt
"""
BOTH_ENDS = """
    B0 07       mov al, 7
    BA FF FF    mov dx, 0xffff
    EE          out dx, al
"""


def test_the_port_can_be_chosen(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(flat(QEMUS), "--debug-exit", "0x501")
    assert done.returncode == 0x10
    assert "--debug-exit" not in done.stderr
    done = pykvm(flat(QEMUS), "--debug-exit", "0x501", "--exit-status", "qemu")
    assert done.returncode == 0x21
    assert pykvm(flat(BOTH_ENDS), "--debug-exit", "0xffff").returncode == 7
    done = pykvm("step", flat(QEMUS), "--debug-exit", "1281", stdin="c\nq\n")
    assert "the guest exited with code 16" in done.stdout


def test_the_usual_port_is_free_when_another_is_chosen(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(flat("B0 03 E6 F4 F4    mov al, 3; out 0xf4, al"), "--debug-exit", "0x501")
    assert done.returncode == 125


@pytest.mark.parametrize("unclaimed", ["open-bus", "stop"])
def test_a_guest_that_looks_for_it_where_qemu_has_it(
    pykvm: Pykvm, flat: Flat, unclaimed: str
) -> None:
    done = pykvm(flat(QEMUS), "--unclaimed", unclaimed)
    assert done.returncode == (0 if unclaimed == "open-bus" else 125)
    assert done.stderr.splitlines()[-1] == (
        "pykvm: the guest wrote 0x10 to port 0x501, where QEMU has its isa-debug-exit: with "
        "--debug-exit 0x501 it ends the run with that code"
    )


def test_no_hint_for_a_guest_that_writes_elsewhere(pykvm: Pykvm, guests: Path, flat: Flat) -> None:
    assert "0x501" not in pykvm(guests / "hello.elf", "--unclaimed", "open-bus").stderr
    assert "0x501" not in pykvm(flat("BA 02 05 EE    out 0x502, al")).stderr


def test_ports_that_make_no_sense(pykvm: Pykvm, guests: Path) -> None:
    for port in ("0x10000", "-1", "com1"):
        done = pykvm(guests / "hello.elf", "--debug-exit", port)
        assert done.returncode == 2
        assert f"--debug-exit takes a port such as 0x501, not {port!r}" in done.stderr
    done = pykvm(guests / "hello.elf", "--debug-exit", "0x3fa")
    assert done.returncode == 2
    assert "debug-exit (ports 0x3fa-0x3fd) overlaps com1 (ports 0x3f8-0x3ff)" in done.stderr
