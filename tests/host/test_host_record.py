"""Whether a host can go on with what another one saved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pykvm import Machine
from pykvm.errors import HostError
from pykvm.host import Host
from pykvm.host.record import HostRecord, check_host, differences, without_apic_ids
from pykvm.values.state import decode, encode, fits
from pykvm.x86.cpuid import CpuidEntry, CpuidTable
from support.irqchips import IRQCHIPS

INTEL = (0x756E6547, 0x6C65746E, 0x49656E69)  # GenuineIntel, as EBX, ECX and EDX have it
AMD = (0x68747541, 0x444D4163, 0x69746E65)

AVX, AVX2 = "avx", "avx2"


def table(
    *features: str, vendor: tuple[int, ...] = INTEL, bits: int = 46, avx_at: int = 576
) -> bytes:
    """A struct kvm_cpuid2 with these features."""
    leaves = [
        CpuidEntry(0, 0, 0, 0x16, *vendor),
        CpuidEntry(0xD, 0, 1, 7, 832, 832, 0),
        CpuidEntry(0xD, 2, 1, 256, avx_at, 0, 0),
        CpuidEntry(0x8000_0008, 0, 0, bits, 0, 0, 0),
    ]
    return packed(*CpuidTable(leaves).with_features(features))


def record(**changes: Any) -> HostRecord:
    fields: dict[str, Any] = {
        "backend": "kvm_intel",
        "linux": "6.1.0",
        "processor": "Some   Xeon(R)",
        "shown": table("sse2", AVX, "hypervisor", "ht"),
        "offered": table("sse2", AVX, AVX2),
        "unmasked": False,
        "xcr0": 7,
        "xsave_size": 4096,
        "msrs": (0x10, 0x174),
        "capabilities": (("KVM_CAP_SYNC_REGS", 7), ("KVM_CAP_XCRS", 1), ("KVM_CAP_PIT2", 0)),
        "tsc_khz": 2_000_000,
        "tsc_scalable": False,
        "tsc_movable": True,
        "page_size": 4096,
    }
    return HostRecord(**{**fields, **changes})


def packed(*leaves: CpuidEntry) -> bytes:
    """A struct kvm_cpuid2."""
    rows = [b"".join(n.to_bytes(4, "little") for n in leaf) + bytes(12) for leaf in leaves]
    return len(rows).to_bytes(8, "little") + b"".join(rows)


def test_whichever_processor_is_asked_a_host_is_the_same() -> None:
    def asked(apic_id: int) -> bytes:
        return packed(
            CpuidEntry(1, 0, 0, 0x50654, apic_id << 24 | 0x020800, 5, 6),
            CpuidEntry(0xB, 1, 1, 4, 16, 0x201, apic_id),
            CpuidEntry(0x1F, 1, 1, 4, 16, 0x201, apic_id),
            CpuidEntry(0x8000_001E, 0, 0, apic_id, 0x100 | apic_id, apic_id, 0),
            CpuidEntry(7, 0, 0, 1, 2, 3, 4),
        )

    assert without_apic_ids(asked(1)) == without_apic_ids(asked(255)) == asked(0)
    assert without_apic_ids(asked(0)[:-50]) == asked(0)[:-50]


def test_the_same_host_is_as_it_was() -> None:
    assert differences(record(), record()) == ()
    assert check_host(record(), record(), "a.pykvm", force=False) == ()


@pytest.mark.parametrize(
    ("saved", "here", "sentence"),
    [
        (
            {},
            {"offered": table("sse2")},
            "CPUID has shown the guest avx, which this host does not offer",
        ),
        (
            {"unmasked": True},
            {"offered": table("sse2", AVX)},
            "its programs could see the processor's own avx2, which this host does not offer",
        ),
        (
            {},
            {"offered": table("sse2", AVX, vendor=AMD)},
            "the processor is of AuthenticAMD, and the guest was told GenuineIntel",
        ),
        (
            {},
            {"offered": table("sse2", AVX, bits=39)},
            "physical addresses have 39 bits, and the guest was told 46",
        ),
        ({}, {"xcr0": 3}, "XCR0 has no 0x4, which the guest may have set"),
        (
            {"xsave_size": 11008},
            {},
            "the XSAVE area of a vCPU has 4096 bytes, and had 11008",
        ),
        (
            {},
            {"offered": table("sse2", AVX, avx_at=640)},
            "XSAVE component 2 is 256 bytes at 640, and was 256 at 576",
        ),
        ({"msrs": (0x10, 0x4B564D06)}, {}, "KVM does not list the MSRs 0x4b564d06"),
        (
            {"msrs": tuple(range(12))},
            {"msrs": ()},
            "KVM does not list the MSRs 0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7 and 4 more",
        ),
        ({}, {"capabilities": (("KVM_CAP_SYNC_REGS", 7),)}, "KVM lacks KVM_CAP_XCRS"),
        (
            {},
            {"capabilities": (("KVM_CAP_SYNC_REGS", 3), ("KVM_CAP_XCRS", 1))},
            "KVM_CAP_SYNC_REGS lacks 0x4",
        ),
        (
            {},
            {"tsc_khz": 2_000_501},
            "the TSC runs at 2000501 kHz, the guest's ran at 2000000 kHz, and KVM cannot scale it "
            "here",
        ),
        ({}, {"page_size": 16384}, "pages have 16384 bytes, and had 4096"),
    ],
)
def test_what_a_guest_would_miss(
    saved: dict[str, Any], here: dict[str, Any], sentence: str
) -> None:
    here = {"shown": b"", **here}
    assert differences(record(**saved), record(**here)) == (sentence,)


@pytest.mark.parametrize(
    ("saved", "here"),
    [
        ({}, {"offered": table("sse2", AVX, AVX2, "bmi1", bits=52), "msrs": (0x10, 0x174, 0x175)}),
        ({}, {"tsc_khz": 2_000_499}),
        ({}, {"tsc_khz": 3_000_000, "tsc_scalable": True}),
        ({}, {"backend": "kvm_pvm", "linux": "6.18", "processor": "Another"}),
        ({}, {"capabilities": (("KVM_CAP_SYNC_REGS", 15), ("KVM_CAP_XCRS", 1))}),
        ({}, {"tsc_movable": False, "xsave_size": 8192, "xcr0": 0xE7}),
        ({}, {"unmasked": True}),
        # It shows guests more than it offers.
        ({}, {"offered": table("sse2")}),
    ],
)
def test_what_it_would_not_miss(saved: dict[str, Any], here: dict[str, Any]) -> None:
    assert differences(record(**saved), record(**here)) == ()


def test_one_error_names_all_of_them() -> None:
    here = record(tsc_khz=1_000_000, xcr0=3, msrs=(0x10,), shown=b"")
    with pytest.raises(HostError) as refused:
        check_host(record(), here, "booted.pykvm", force=False)
    error = refused.value
    assert error.message == (
        "booted.pykvm: this host is not as the one that it was saved on "
        "(Some Xeon(R) with kvm_intel)"
    )
    *sentences, advice = error.hint.split("\n")
    assert sentences == [*differences(record(), here)]
    assert len(sentences) == 3
    assert advice == "force=True goes on all the same"
    assert check_host(record(), here, "booted.pykvm", force=True) == tuple(sentences)


@pytest.mark.parametrize("packed", [b"", b"\0" * 7, b"\0" * 30, b"\xff" * 1000])
def test_tables_of_strangers(packed: bytes) -> None:
    """From a file: whatever is in it, there are sentences and no error."""
    differences(record(shown=packed, offered=packed, unmasked=True), record())


@pytest.mark.kvm
@pytest.mark.parametrize("cpu", ["baseline", "host"])
@pytest.mark.parametrize("irqchip", [*IRQCHIPS, "none"])
def test_this_host(cpu: str, irqchip: str) -> None:
    """What a guest is shown here is offered here, and a record goes through a file."""
    with Machine(memory="1M", cpu=cpu, irqchip=irqchip, vcpus=2) as machine:
        host = Host()
        try:
            found = [
                HostRecord.of(
                    host.system,
                    shown=bytes(cpu.kvm.get_cpuid2_packed()),
                    irqchip=irqchip,
                    tsc_khz=cpu.kvm.get_tsc_khz(),
                    tsc_movable=True,
                )
                for cpu in machine.vcpus
            ]
        finally:
            host.close()
    for one in found:
        assert differences(one, found[0]) == ()
        assert fits(one, HostRecord)
        assert decode(json.loads(json.dumps(encode(one))), HostRecord) == one
    assert found[0].page_size == 4096
    assert "sse2" in CpuidTable(machine_table(found[0].shown))


def machine_table(packed: bytes) -> list[CpuidEntry]:
    words = memoryview(packed[8:]).cast("I")
    return [CpuidEntry(*words[at : at + 7]) for at in range(0, len(words), 10)]
