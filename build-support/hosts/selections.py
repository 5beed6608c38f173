"""Which tests run on which emulated host."""

from __future__ import annotations

__all__ = ["SELECTIONS", "SHORT"]

# pyproject.toml leaves out both marks; these boot Debian's kernel, which is quick there.
WITH_STOCK = ("-m", "not soak")

#: What needs KVM, room by room.
AMD = [
    *("tests/kvm", "tests/run", "tests/machine", "tests/interrupts", "tests/guests"),
    *("tests/emulate", "tests/quirks", "tests/cli", "tests/linux"),
    *WITH_STOCK,
]

#: Some of each room: Bochs is so slow that a test takes seconds, and pytest's start a minute.
INTEL = [
    "tests/kvm/test_kvm_run.py",
    "tests/run/test_host.py",
    "tests/machine/test_run.py",
    "tests/machine/test_vcpu.py",
    "tests/machine/test_kernel_irqchip.py",
    "tests/machine/test_hostile.py",
    "tests/interrupts/test_oracle_pic_ioapic.py::test_a_difference",
    "tests/guests/test_guests_interrupts.py::test_it_shows_what_it_is_for",
    "tests/guests/test_guests_power.py::test_each_end_has_a_reason_of_its_own",
    "tests/emulate/test_emulate_machine.py",
    "tests/quirks/test_remedies.py",
    "tests/cli/test_cli_status.py::test_crashes",
    "tests/cli/test_cli_step.py::test_script",
]

SELECTIONS = {"amd": AMD, "intel": INTEL}

#: Under three minutes on kvm_amd, for CI.
SHORT = [
    "tests/kvm",
    "tests/machine/test_run.py",
    "tests/machine/test_vcpu.py",
    "tests/quirks/test_remedies.py::test_a_guest_with_a_ring_3",
    "tests/linux/test_linux_stock.py::test_in_each_shape[1-kernel-host]",
    *WITH_STOCK,
]
