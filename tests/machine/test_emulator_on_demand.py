"""The emulator is loaded for an instruction that KVM has refused, and for nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pykvm import Machine

# What was read of IA32_APIC_BASE is written there; cli; hlt.
code = bytes.fromhex("66B91B000000 0F32 0F30 FAF4")
# The clock has the local APIC made at once, and with it the exits of its MSRs.
with Machine(code, mode="real", memory="1M", irqchip="user", clock="paused") as machine:
    result = machine.run(timeout=10)
    print(result.exits.get("WrMsr", 0), "pykvm.emulate" in sys.modules)
"""


@pytest.mark.kvm
def test_an_msr_of_the_local_apic_does_not_load_it() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout.split() == ["1", "False"]
