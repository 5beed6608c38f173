"""Firmware on the command line, with a kernel and files for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.kvm


def test_firmware_runs_and_reads_a_file_of_fw_cfg(
    pykvm: Pykvm, guests: Path, tmp_path: Path
) -> None:
    (tmp_path / "greeting").write_text("good evening")
    done = pykvm(
        guests / "firmware.bin", "--fw-cfg", f"opt/org.pykvm/greeting={tmp_path / 'greeting'}"
    )
    assert done.stdout.endswith("fw_cfg: good evening\n")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("options", "line", "hint"),
    [
        (
            ["--boot", "firmware"],
            "image: is no firmware image: 1000 (0x3e8) bytes are not a multiple of 4 KiB",
            "pad it in front to 65536 bytes",
        ),
        (
            ["--mode", "real", "--kernel", "FILE"],
            "--kernel is for firmware to boot, and the guest file is none",
            "a kernel without firmware is the guest file itself",
        ),
        (
            ["--mode", "real", "--fw-cfg", "opt/a=FILE"],
            "this machine has no fw_cfg (a device named fw-cfg) for files or a kernel",
            "",
        ),
        (["--mode", "real", "--fw-cfg", "opt/a=/nowhere"], "/nowhere: cannot be read", ""),
    ],
)
def test_wrong_firmware_options_are_named(
    pykvm: Pykvm, tmp_path: Path, options: list[str], line: str, hint: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xf4" * 1000)
    done = pykvm(path, *(option.replace("FILE", str(path)) for option in options))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pykvm: {line}")
    assert hint in done.stderr


def test_a_kernel_for_firmware_that_is_no_bzimage(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "firmware.bin", "--kernel", guests / "hello.elf")
    assert done.returncode == 2
    assert done.stderr.startswith("pykvm: hello.elf: is no bzImage")
