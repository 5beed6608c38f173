"""Which tests run on which emulated host."""

from __future__ import annotations

__all__ = ["SELECTIONS", "SHORT"]

# pyproject.toml leaves out both marks; these boot Debian's kernel, which is quick there.
WITH_STOCK = ("-m", "not soak")

#: What needs KVM, room by room; last what may take the emulator down (docs/hosts.md).
AMD = [
    *("tests/kvm", "tests/vcpu", "tests/irqchip", "tests/machine", "tests/guests"),
    *("tests/quirks", "tests/cli", "tests/linux", "tests/emulate"),
    *WITH_STOCK,
]

#: Some of each room, one by one: in Bochs pytest's start takes minutes, and a test seconds.
INTEL = [
    *(
        f"tests/kvm/test_kvm_run.py::test_{name}"
        for name in ("a_byte_goes_out", "single_steps", "registers_are_synchronised")
    ),
    "tests/machine/test_run.py::test_a_triple_fault_gets_its_own_cause_or_none",
    "tests/machine/test_run.py::test_triple_fault_is_explained",
    "tests/machine/test_vcpu.py::test_a_triple_fault_by_hand",
    *(
        f"tests/guests/test_guests_interrupts.py::test_it_shows_what_it_is_for[{name}]"
        for name in ("pit-kernel-realtime", "nmi-user-paused", "tasks-user-warp")
    ),
    "tests/quirks/test_remedies.py::test_a_guest_with_a_ring_3[int80-kernel]",
    "tests/quirks/test_remedies.py::test_a_guest_with_a_ring_3[syscall-user]",
    "tests/emulate/test_emulate_machine.py::test_hints_do_nothing",
    "tests/interrupts/test_oracle_pic_ioapic.py::test_a_difference_of_entries",
    "tests/machine/test_crash.py",
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
