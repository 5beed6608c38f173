"""Which tests run on which emulated host."""

from __future__ import annotations

__all__ = ["SELECTIONS", "SHORT"]

#: What needs KVM, room by room.
AMD = [
    *(
        "tests/machine",
        "tests/kvm",
        "tests/interrupts",
        "tests/run",
        "tests/guests",
        "tests/emulate",
    ),
    *("tests/quirks", "tests/cli", "tests/linux", "-m", "not soak"),
]
INTEL = ["tests/kvm/test_kvm_run.py"]

SELECTIONS = {"amd": AMD, "intel": INTEL}

#: Under three minutes on kvm_amd, for CI.
SHORT = ["tests/kvm", "tests/machine/test_run.py"]
