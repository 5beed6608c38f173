"""The Linux of guests/linux is all right by itself: QEMU, without KVM, boots it too."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from support.linux import CHECK, DEADLINE, require_linux

QEMU = "qemu-system-x86_64"


@pytest.mark.timeout(DEADLINE + 20)
def test_every_check_passes_in_qemu() -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"there is no {QEMU} to compare with")
    linux = require_linux()
    command = [QEMU, "-accel", "tcg", "-cpu", "max", "-M", "pc", "-m", "64M", "-smp", "2"]
    command += ["-kernel", str(linux.bzimage), "-initrd", str(linux.initramfs)]
    command += ["-append", "console=ttyS0 checks", "-nographic", "-no-reboot"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False
    )
    said = done.stdout.decode(errors="replace")
    found = dict(CHECK.findall(said))
    assert "check: done, 0 failed" in said, said[-2000:]
    assert (found["processors"], done.returncode) == ("2", 0)
