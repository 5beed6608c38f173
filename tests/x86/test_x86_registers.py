"""Bits by name (SDM 3A 2.5, SDM 1 3.4.3, SDM 3A 4.7)."""

from __future__ import annotations

import pytest

from pykvm.x86.registers import (
    APIC_BASE,
    CR0,
    CR4,
    DR6,
    EFER,
    RFLAGS,
    PageFaultError,
    decode,
    names,
)


def test_a_long_mode_kernels_registers_read_as_linux_sets_them() -> None:
    # arch/x86/kernel/head_64.S: CR0_STATE; the other two as /proc/kcore of a running kernel has.
    assert decode(0x8005_0033, CR0) == "80050033 [PE MP ET NE WP AM PG]"
    assert decode(0xD01, EFER) == "00000d01 [SCE LME LMA NXE]"
    assert decode(0x0030_06F0, CR4) == ("003006f0 [PSE PAE MCE PGE OSFXSR OSXMMEXCPT SMEP SMAP]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0x2, []),
        (0x246, ["PF", "ZF", "IF"]),
        (0x3002, ["IOPL=3"]),
        (0x1002, ["IOPL=1"]),
        (1 << 21 | 1 << 63, ["ID", "bit63"]),
        (0x8, ["bit3"]),
    ],
)
def test_rflags_by_name(value: int, expected: list[str]) -> None:
    assert names(value, RFLAGS) == expected


def test_the_reset_value_of_dr6_has_only_the_inverted_flags() -> None:
    # SDM 3A table 10-1: DR6 is FFFF0FF0 after reset; BLD and RTM are set when nothing happened.
    assert names(0xFFFF_0FF0, DR6) == ["BLD", "RTM"]


def test_apic_base_of_a_bootstrap_processor() -> None:
    assert names(0xFEE0_0900 & 0xFFF, APIC_BASE) == ["BSP", "EN"]


def test_page_fault_error_code_of_a_user_write_to_a_read_only_page() -> None:
    assert names(0x7, PageFaultError) == ["P", "W", "U"]
    assert names(0x15, PageFaultError) == ["P", "U", "I"]
