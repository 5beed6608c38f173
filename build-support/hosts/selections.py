"""Which tests run on which emulated host."""

from __future__ import annotations

__all__ = ["SELECTIONS", "SHORT"]

# pyproject.toml leaves out the marks `soak` and `stock`; the latter boot Debian's kernel, which is
# quick there.  What needs no KVM is tested everywhere else, and what it executes can end QEMU.
OF_KVM = ("-m", "kvm and not soak")

#: What needs KVM, room by room.
AMD = [
    *(
        "tests/kvm",
        "tests/vcpu",
        "tests/machine",
        "tests/irqchip",
        "tests/interrupts",
        "tests/devices",
        "tests/bus",
        "tests/guests",
    ),
    *("tests/boot", "tests/memory", "tests/quirks", "tests/emulate", "tests/cli", "tests/linux"),
    *OF_KVM,
]

#: Some of each room, one by one: in Bochs pytest's start takes minutes, and a test seconds.
#: None has a guest that spins: no signal takes it out there.
INTEL = [
    *(
        f"tests/kvm/test_kvm_run.py::test_{name}"
        for name in ("a_byte_goes_out", "single_steps", "registers_are_synchronised")
    ),
    *(
        f"tests/kvm/test_kvm_vm.py::test_{name}"
        for name in (
            "memory_slots",
            "the_dirty_log_shows_the_pages_written",
            "a_filtered_msr_exits",
        )
    ),
    *(
        f"tests/boot/test_boot_kvm.py::test_{name}"
        for name in (
            "long_mode",
            "protected_mode",
            "real_mode",
            "a_pie_finds_its_pointers_relocated",
            "pvh_by_a_note_that_is_in_no_segment",
            "firmware_that_turns_interrupts_off_before_it_jumps",
            "a_kernel_that_wants_video_starts_without",
        )
    ),
    "tests/boot/test_boot_linux_kvm.py::test_pvh",
    *(
        f"tests/bus/test_posted_writes.py::test_{name}"
        for name in ("the_kernel_coalesces_once_there_are_many", "mmio")
    ),
    *(
        f"tests/bus/test_published_exits.py::test_{name}"
        for name in ("what_is_printed_comes_in_one_piece", "mmio_reads_of_the_hpet_go_on")
    ),
    "tests/memory/test_memory_kvm.py::test_a_slot_over_another_is_refused_while_the_machine_lives_on",
    "tests/memory/test_freeze_kvm.py::test_forks_of_one_image_and_their_parent",
    *(
        f"tests/machine/test_snapshots.py::test_{name}"
        for name in (
            "a_reset_brings_back_memory_registers_and_devices",
            "two_snapshots_of_the_same_are_equal",
            "a_fork_goes_on_by_itself",
            "no_translation_outlives_a_reset",
        )
    ),
    "tests/machine/test_snapshot_files.py::test_a_machine_goes_on_from_a_file[user]",
    "tests/vcpu/test_saving.py::test_what_is_loaded_is_saved_again[kernel-long]",
    "tests/vcpu/test_saving_registers.py::test_msrs_are_kept",
    "tests/irqchip/test_saving_in_kernel.py::test_what_is_restored_is_saved_again",
    "tests/machine/test_run.py::test_a_triple_fault_gets_its_own_cause_or_none",
    "tests/machine/test_run.py::test_triple_fault_is_explained",
    "tests/vcpu/test_raw_exits.py::test_a_triple_fault_by_hand",
    *(
        f"tests/guests/test_guests_interrupts.py::test_each_guest_prints_its_line_and_exits_with_0[{name}]"
        for name in ("pit-kernel-realtime", "nmi-user-paused", "tasks-user-warp")
    ),
    "tests/quirks/test_workarounds.py::test_a_guest_with_a_ring_3[int80-kernel]",
    "tests/quirks/test_workarounds.py::test_a_guest_with_a_ring_3[syscall-user]",
    "tests/emulate/test_emulate_machine.py::test_hints_do_nothing",
    "tests/emulate/test_emulate_events.py::test_iret_to_ring_3_and_a_fault_back",
    "tests/emulate/test_emulate_memory.py::test_a_guest_with_its_page_tables_in_rom",
    "tests/irqchip/test_interrupts_time.py::test_a_tsc_deadline_does_not_make_time_run_away",
    "tests/interrupts/test_oracle_pic_ioapic.py::test_a_difference_of_entries",
    "tests/machine/test_crash.py",
    "tests/cli/test_cli_step.py::test_a_script_on_stdin_is_echoed",
]

SELECTIONS = {"amd": AMD, "intel": INTEL}

#: Under three minutes on kvm_amd, for CI.
SHORT = [
    "tests/kvm",
    "tests/machine/test_run.py",
    "tests/machine/test_vcpu.py",
    "tests/vcpu/test_raw_exits.py",
    "tests/vcpu/test_registers.py",
    *(
        f"tests/machine/test_snapshots.py::test_{name}"
        for name in (
            "a_reset_brings_back_memory_registers_and_devices",
            "two_snapshots_of_the_same_are_equal",
            "a_fork_goes_on_by_itself",
            "no_translation_outlives_a_reset",
        )
    ),
    "tests/machine/test_snapshot_files.py::test_a_machine_goes_on_from_a_file",
    "tests/vcpu/test_saving.py::test_what_is_loaded_is_saved_again",
    "tests/vcpu/test_saving_registers.py::test_a_tsc_whose_offset_kvm_moves_goes_on_from_where_it_was",
    "tests/irqchip/test_saving_in_kernel.py::test_what_is_restored_is_saved_again",
    "tests/memory/test_freeze_kvm.py::test_forks_of_one_image_and_their_parent",
    "tests/quirks/test_workarounds.py::test_a_guest_with_a_ring_3",
    "tests/linux/test_linux_stock.py::test_in_each_shape[1-kernel-host]",
    *OF_KVM,
]
