"""Bits by name (SDM 3A 2.5, SDM 1 3.4.3, SDM 3A 4.7)."""

from __future__ import annotations

import pytest

from pykvm.x86.registers import (
    APIC_BASE,
    CR0,
    CR3,
    CR4,
    DR6,
    EFER,
    RFLAGS,
    PageFaultError,
    decode,
    names,
)

# Bits by number: SDM 3A figures 2-7 (control registers), 2-4 (EFER; from 12 on APM 2 3.1.7), 2-5
# (RFLAGS), 4-12 (#PF), 11-5 (APIC base), SDM 3B figure 18-1 (DR6).
BITS: dict[type, str] = {
    CR0: "0 PE 1 MP 2 EM 3 TS 4 ET 5 NE 16 WP 18 AM 29 NW 30 CD 31 PG",
    CR3: "3 PWT 4 PCD 61 LAM_U57 62 LAM_U48",
    CR4: "0 VME 1 PVI 2 TSD 3 DE 4 PSE 5 PAE 6 MCE 7 PGE 8 PCE 9 OSFXSR 10 OSXMMEXCPT 11 UMIP "
    "12 LA57 13 VMXE 14 SMXE 16 FSGSBASE 17 PCIDE 18 OSXSAVE 19 KL 20 SMEP 21 SMAP 22 PKE 23 CET "
    "24 PKS 25 UINTR 27 LASS 28 LAM_SUP 32 FRED",
    EFER: "0 SCE 8 LME 10 LMA 11 NXE 12 SVME 13 LMSLE 14 FFXSR 15 TCE "
    "17 MCOMMIT 18 INTWB 20 UAIE 21 AIBRSE",
    RFLAGS: "0 CF 2 PF 4 AF 6 ZF 7 SF 8 TF 9 IF 10 DF 11 OF 12 IOPL=1 13 IOPL=2 14 NT 16 RF 17 VM "
    "18 AC 19 VIF 20 VIP 21 ID",
    DR6: "0 B0 1 B1 2 B2 3 B3 11 BLD 13 BD 14 BS 15 BT 16 RTM",
    APIC_BASE: "8 BSP 10 EXTD 11 EN",
    PageFaultError: "0 P 1 W 2 U 3 RSVD 4 I 5 PK 6 SS 7 HLAT 15 SGX",
}


@pytest.mark.parametrize(("register", "bits"), BITS.items())
def test_every_name_stands_for_its_bit(register: type, bits: str) -> None:
    words = bits.split()
    found = {bit: names(1 << bit, register) for bit in range(64)}
    known = {bit: one[0] for bit, one in found.items() if one and one != [f"bit{bit}"]}

    assert known == dict(zip(map(int, words[::2]), words[1::2], strict=True))


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
