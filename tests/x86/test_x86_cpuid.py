"""CPUID: feature names at their bits (SDM 2A CPUID, APM 3 appendix E), filters, topology."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.x86.cpuid import (
    BASELINE,
    LAPIC_FEATURES,
    MODELS,
    CpuidEntry,
    CpuidTable,
    Specification,
    missing,
    select,
    with_topology,
)
from pykvm.x86.cpuid_features import ALIASES, FEATURES, WORDS, reported

ONES = 0xFFFF_FFFF


def text(value: str) -> list[int]:
    """Four characters to a register."""
    raw = value.encode().ljust(-(-len(value) // 4) * 4, b"\0")
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]


def host() -> list[CpuidEntry]:
    """What KVM offers on a Xeon of 2022, shortened; not in order, as no order is promised."""
    genu, inei, ntel = text("GenuineIntel")
    kvm = text("KVMKVMKVM")
    brand = text("Intel(R) Xeon(R) Processor".ljust(48, "\0"))
    return [
        CpuidEntry(0x8000_0000, 0, 0, 0x8000_0008, genu, ntel, inei),
        CpuidEntry(0x8000_0001, 0, 0, 0, 0, 0x121, 0x2C10_0800),
        *(CpuidEntry(0x8000_0002 + i, 0, 0, *brand[4 * i : 4 * i + 4]) for i in range(3)),
        CpuidEntry(0x8000_0006, 0, 0, 0, 0, 0x0800_7040, 0),
        CpuidEntry(0x8000_0007, 0, 0, 0, 0, 0, 0x100),
        CpuidEntry(0x8000_0008, 0, 0, 0x3930, 1 << 9, 0, 0),
        CpuidEntry(0x4000_0000, 0, 0, 0x4000_0001, *kvm),
        CpuidEntry(0x4000_0001, 0, 0, 0x0100_7EFB, 0, 0, 0),
        CpuidEntry(0, 0, 0, 0x1F, genu, ntel, inei),
        CpuidEntry(1, 0, 0, 0x806F8, 0x0300_0800, 0xF7FA_3203, 0x1FAB_FBFF),
        CpuidEntry(2, 0, 0, 0x00FE_FF01, 0xF0, 0, 0),
        CpuidEntry(4, 0, 1, 0x0400_0121, 0x02C0_003F, 0x3F, 0),
        CpuidEntry(4, 3, 1, 0x0400_4163, 0x03C0_003F, 0x7FFFF, 0),
        CpuidEntry(4, 4, 1, 0, 0, 0, 0),
        CpuidEntry(6, 0, 0, 4, 0, 0, 0),
        CpuidEntry(7, 0, 1, 2, 0xF1BF_27EB, 0x1A41_5F6E, 0xFF81_4412),
        CpuidEntry(7, 1, 1, 0x1C30, 0, 0, 0),
        CpuidEntry(7, 2, 1, 0, 0, 0, 0x1F),
        CpuidEntry(0xA, 0, 0, 0x0730_0402, 0, 0, 0x603),
        CpuidEntry(0xB, 0, 1, 0, 1, 0x100, 3),
        CpuidEntry(0xD, 0, 1, 0x602E7, 0x340, 0x2B00, 0),
        CpuidEntry(0xD, 1, 1, 0x1F, 0x240, 0x1800, 0),
        CpuidEntry(0xD, 2, 1, 0x100, 0x240, 0, 0),
        CpuidEntry(0xD, 5, 1, 0x40, 0x440, 0, 0),
        CpuidEntry(0xD, 6, 1, 0x200, 0x480, 0, 0),
        CpuidEntry(0xD, 7, 1, 0x400, 0x680, 0, 0),
        CpuidEntry(0xD, 9, 1, 8, 0xA80, 0, 0),
        CpuidEntry(0xD, 11, 1, 0x10, 0, 1, 0),
        CpuidEntry(0xD, 12, 1, 0x18, 0, 1, 0),
        CpuidEntry(0xD, 17, 1, 0x40, 0xAC0, 2, 0),
        CpuidEntry(0xD, 18, 1, 0x2000, 0xB00, 6, 0),
        CpuidEntry(0x1D, 0, 1, 1, 0, 0, 0),
        CpuidEntry(0x1F, 0, 1, 0, 1, 0x100, 3),
    ]


HOST = CpuidTable(host())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fpu", "CPUID.1H.0:EDX[0]"),
        ("apic", "CPUID.1H.0:EDX[9]"),
        ("pat", "CPUID.1H.0:EDX[16]"),
        ("clflush", "CPUID.1H.0:EDX[19]"),
        ("sse2", "CPUID.1H.0:EDX[26]"),
        ("ht", "CPUID.1H.0:EDX[28]"),
        ("pni", "CPUID.1H.0:ECX[0]"),
        ("ssse3", "CPUID.1H.0:ECX[9]"),
        ("cx16", "CPUID.1H.0:ECX[13]"),
        ("sse4_2", "CPUID.1H.0:ECX[20]"),
        ("popcnt", "CPUID.1H.0:ECX[23]"),
        ("tsc_deadline_timer", "CPUID.1H.0:ECX[24]"),
        ("xsave", "CPUID.1H.0:ECX[26]"),
        ("rdrand", "CPUID.1H.0:ECX[30]"),
        ("hypervisor", "CPUID.1H.0:ECX[31]"),
        ("arat", "CPUID.6H.0:EAX[2]"),
        ("fsgsbase", "CPUID.7H.0:EBX[0]"),
        ("smep", "CPUID.7H.0:EBX[7]"),
        ("smap", "CPUID.7H.0:EBX[20]"),
        ("avx512vl", "CPUID.7H.0:EBX[31]"),
        ("umip", "CPUID.7H.0:ECX[2]"),
        ("la57", "CPUID.7H.0:ECX[16]"),
        ("rdpid", "CPUID.7H.0:ECX[22]"),
        ("pks", "CPUID.7H.0:ECX[31]"),
        ("fsrm", "CPUID.7H.0:EDX[4]"),
        ("serialize", "CPUID.7H.0:EDX[14]"),
        ("amx_tile", "CPUID.7H.0:EDX[24]"),
        ("arch_capabilities", "CPUID.7H.0:EDX[29]"),
        ("avx_vnni", "CPUID.7H.1:EAX[4]"),
        ("fred", "CPUID.7H.1:EAX[17]"),
        ("lam", "CPUID.7H.1:EAX[26]"),
        ("xsaves", "CPUID.DH.1:EAX[3]"),
        ("syscall", "CPUID.80000001H.0:EDX[11]"),
        ("nx", "CPUID.80000001H.0:EDX[20]"),
        ("pdpe1gb", "CPUID.80000001H.0:EDX[26]"),
        ("rdtscp", "CPUID.80000001H.0:EDX[27]"),
        ("lm", "CPUID.80000001H.0:EDX[29]"),
        ("lahf_lm", "CPUID.80000001H.0:ECX[0]"),
        ("svm", "CPUID.80000001H.0:ECX[2]"),
        ("topoext", "CPUID.80000001H.0:ECX[22]"),
        ("invtsc", "CPUID.80000007H.0:EDX[8]"),
        ("wbnoinvd", "CPUID.80000008H.0:EBX[9]"),
        ("amd_ssbd", "CPUID.80000008H.0:EBX[24]"),
        ("kvmclock", "CPUID.40000001H.0:EAX[0]"),
        ("kvm_pv_unhalt", "CPUID.40000001H.0:EAX[7]"),
        ("kvm_pv_ipi", "CPUID.40000001H.0:EAX[11]"),
        ("kvmclock_stable", "CPUID.40000001H.0:EAX[24]"),
    ],
)
def test_features_lie_where_the_manuals_put_them(name: str, place: str) -> None:
    assert str(reported(name)[0]) == place


def test_no_word_has_more_than_32_bits_and_names_repeat_only_for_amd() -> None:
    assert max(len(names) for names in WORDS.values()) <= 32
    repeated = {name for name in FEATURES if len(reported(name)) > 1}

    assert "fpu" in repeated
    for name in repeated:
        first, second = reported(name)
        assert (first.leaf, second.leaf, first.bit) == (1, 0x8000_0001, second.bit)
        assert first.register == second.register == "edx"


def test_identification() -> None:
    assert HOST.vendor == "GenuineIntel"
    assert HOST.hypervisor == "KVMKVMKVM"
    assert HOST.brand == "Intel(R) Xeon(R) Processor"
    assert HOST.signature == (6, 0x8F, 8)
    assert HOST.maxphyaddr == 48


@pytest.mark.parametrize(
    ("eax", "signature"),
    [
        (0x000806F8, (6, 0x8F, 8)),  # Sapphire Rapids
        (0x00A20F12, (0x19, 0x21, 2)),  # Zen 3: family 0xF + 0xA
        (0x00000543, (5, 4, 3)),  # the Pentium's extended fields do not count
    ],
)
def test_family_and_model_are_as_displayed(eax: int, signature: tuple[int, int, int]) -> None:
    assert CpuidTable([CpuidEntry(1, 0, 0, eax, 0, 0, 0)]).signature == signature


def test_an_empty_table_knows_nothing() -> None:
    table = CpuidTable([])
    assert (table.vendor, table.brand, table.hypervisor, len(table)) == ("", "", "", 0)
    assert (table.features, table.maxphyaddr, table.get(0)) == (frozenset(), 36, None)
    assert "sse" not in table


def test_features_of_the_host() -> None:
    assert {"sse4_2", "avx2", "avx512f", "xsave", "cx16", "amx_tile"} <= HOST.features
    assert not HOST.features & {"vmx", "svm", "sgx", "-"}
    assert "avx2" in HOST
    assert "3dnow" not in HOST


def test_the_baseline_is_x86_64_v2_without_cx16() -> None:
    # psABI x86-64 1.0, table 3.1.
    v1 = {"cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"}
    v2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
    v3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}

    assert v1 <= BASELINE
    assert v2 - BASELINE == {"cx16"}
    assert not v3 & BASELINE
    assert FEATURES >= BASELINE
    assert all(reported(name)[0].leaf != 7 for name in BASELINE)


@pytest.mark.parametrize(
    ("model", "has", "has_not"),
    [
        ("x86-64-v1", "sse2 syscall hypervisor x2apic", "sse4_2 popcnt cx16 avx"),
        ("x86-64-v2", "sse4_2 popcnt cx16 x2apic", "avx bmi1 xsave avx512f"),
        ("x86-64-v3", "cx16 avx2 bmi2 abm xsave", "avx512f smep pcid"),
        ("x86-64-v4", "avx2 avx512vl avx512dq", "avx512_vnni smep"),
    ],
)
def test_a_level_of_the_psabi_has_its_features_and_no_later_ones(
    model: str, has: str, has_not: str
) -> None:
    features = CpuidTable(select(host(), model)).features

    assert features >= MODELS[model]
    assert features >= set(has.split())
    assert not features & set(has_not.split())


def test_a_level_that_the_host_lacks_is_refused_with_what_is_missing() -> None:
    poor = HOST.with_features(remove=["fma", "movbe"])

    with pytest.raises(ConfigError) as caught:
        poor.filter("x86-64-v3")
    assert caught.value.message == (
        "this host's KVM cannot give guests an x86-64-v3: it does not offer fma, movbe"
    )
    assert caught.value.hint.endswith("do without: x86-64-v3,-fma,-movbe")
    assert "avx2" in poor.filter("x86-64-v3,-fma,-movbe")
    assert missing(poor, Specification.parse("x86-64-v4")) == ["fma", "movbe"]
    assert missing(poor, Specification.parse("x86-64-v2")) == []
    assert missing(poor, Specification.parse("host,+fma")) == ["fma"]


def test_select_takes_the_baseline_of_a_host() -> None:
    table = CpuidTable(select(host()))

    assert table.features == HOST.features & BASELINE
    assert "sse4_2" in table
    assert (table.vendor, table.brand, table.signature) == (HOST.vendor, HOST.brand, HOST.signature)
    assert table.maxphyaddr == 48
    present = sorted({entry.function for entry in table})
    assert present == [
        0, 1, 2, 4, 6, 0xB, 0x4000_0000, 0x4000_0001, 0x8000_0000, 0x8000_0001, 0x8000_0002,
        0x8000_0003, 0x8000_0004, 0x8000_0006, 0x8000_0007, 0x8000_0008,
    ]  # fmt: skip


def test_the_last_leaf_of_each_range_is_told_truly() -> None:
    table = CpuidTable(select(host()))
    leaves = (table.get(0), table.get(0x4000_0000), table.get(0x8000_0000))

    assert [leaf.eax for leaf in leaves if leaf] == [0xB, 0x4000_0001, 0x8000_0008]


def test_bits_without_a_name_go_from_the_baseline_but_values_stay() -> None:
    entries = [
        CpuidEntry(1, 0, 0, ONES, ONES, ONES, ONES),
        CpuidEntry(0x8000_0008, 0, 0, ONES, ONES, ONES, ONES),
    ]
    one, sizes = select(entries)

    assert (one.eax, one.ebx) == (ONES, ONES)
    # FPU to PSE36 without bit 10, CLFLUSH, MMX, FXSR, SSE, SSE2, SS, HT.
    assert one.edx == 0x1F8B_FBFF
    # SSE3, SSSE3, SSE4.1, SSE4.2, X2APIC, POPCNT, TSC deadline, hypervisor.
    assert one.ecx == 0x81B8_0201
    # 48 bits of linear address, since there is no LA57.
    assert (sizes.eax, sizes.ebx, sizes.ecx, sizes.edx) == (0xFFFF_30FF, 0, ONES, ONES)


def test_features_are_added_and_removed() -> None:
    table = CpuidTable(select(host(), "baseline,+cx16,-x2apic -sse4_2"))

    baseline = HOST.features & BASELINE
    assert table.features == (baseline | {"cx16"}) - {"x2apic", "sse4_2"}
    assert table == HOST.filter("+cx16,-x2apic,-sse4_2")


def test_what_the_caller_removes_goes_whatever_the_spec_says() -> None:
    table = CpuidTable(select(host(), "+x2apic", remove=LAPIC_FEATURES))
    assert not table.features & LAPIC_FEATURES
    assert not CpuidTable(select(host(), "host", remove=LAPIC_FEATURES)).features & LAPIC_FEATURES


def test_a_feature_of_leaf_7_brings_the_leaf_with_only_that_feature() -> None:
    leaves = [entry for entry in HOST.filter("+smep") if entry.function == 7]

    assert leaves == [
        CpuidEntry(7, 0, 1, 2, 1 << 7, 0, 0),
        CpuidEntry(7, 1, 1, 0, 0, 0, 0),
        CpuidEntry(7, 2, 1, 0, 0, 0, 0),
    ]


def test_xsave_brings_leaf_0xd_with_the_components_that_are_there() -> None:
    table = HOST.filter("+xsave,+avx")
    leaves = {entry.index: entry for entry in table if entry.function == 0xD}

    # x87, SSE and AVX: 0x240 + 0x100 bytes (SDM 1 13.5).
    assert leaves == {
        0: CpuidEntry(0xD, 0, 1, 0x7, 0x340, 0x340, 0),
        1: CpuidEntry(0xD, 1, 1, 0, 0x240, 0, 0),
        2: CpuidEntry(0xD, 2, 1, 0x100, 0x240, 0, 0),
    }
    assert not any(entry.function == 0xD for entry in HOST.filter("baseline"))


def test_xsave_without_avx_is_the_legacy_area_and_the_header() -> None:
    leaves = [entry for entry in HOST.filter("+xsave") if entry.function == 0xD]
    assert leaves[0] == CpuidEntry(0xD, 0, 1, 0x3, 0x240, 0x240, 0)
    assert [entry.index for entry in leaves] == [0, 1]


def test_host_is_everything_as_it_is() -> None:
    assert select(host(), "host") == host()


def test_host_less_a_feature_loses_its_bit_and_its_leaves_only() -> None:
    table = HOST.filter("host,-amx_tile,-avx512f")

    assert HOST.features - table.features == {"amx_tile", "avx512f"}
    assert table.get(0x1D) is None
    assert [entry.index for entry in table if entry.function == 0xD] == [0, 1, 2, 9, 11, 12]
    xsave = table.get(0xD)
    assert xsave is not None
    # x87, SSE, AVX, PKRU; its area ends after PKRU.
    assert (xsave.eax, xsave.ecx) == (0x207, 0xA88)
    assert table.get(0xA) == HOST.get(0xA)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [("baseline", 48), ("baseline,+la57", 57), ("host,-la57", 48), ("host,-avx", 57)],
)
def test_linear_addresses_are_as_wide_as_the_paging_that_is_offered(spec: str, bits: int) -> None:
    leaf = HOST.filter(spec).get(0x8000_0008)
    assert leaf is not None
    assert leaf.eax == bits << 8 | 0x30


def test_linear_addresses_of_a_processor_with_fewer_bits_stay() -> None:
    (leaf,) = select([CpuidEntry(0x8000_0008, 0, 0, 0x2024, 0, 0, 0)], "baseline")
    assert leaf.eax == 0x2024


def test_an_amd_hosts_copies_of_leaf_1_follow_it() -> None:
    entries = [CpuidEntry(0x8000_0001, 0, 0, 0, 0, 0, ONES)]
    (leaf,) = select(entries, "baseline,-sep,-apic,-fpu")

    # SYSCALL, NX, LM and the copies of baseline features, less FPU and APIC.
    assert leaf.edx == (1 << 11 | 1 << 20 | 1 << 29) | 0x0183_F3FF & ~0x201


def test_with_features_sets_and_clears_what_no_host_offers() -> None:
    table = CpuidTable([]).with_features(add=["smep", "sse"])
    assert list(table) == [
        CpuidEntry(1, 0, 0, 0, 0, 0, 1 << 25),
        CpuidEntry(7, 0, 1, 0, 1 << 7, 0, 0),
    ]
    assert table.with_features(remove=["sse"]).features == {"smep"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qemu64", "no CPU model 'qemu64'\nchoose from baseline, host, x86-64-v1, x86-64-v2"),
        ("x86-64-v4,+svm", "KVM does not offer guests svm"),
        ("baseline,+sse42", "no CPUID feature 'sse42'\ndid you mean sse4_2"),
        ("+svm", "KVM does not offer guests svm"),
        ("host,avx", r"'avx' in the CPU 'host,avx'\nwrite \+avx or -avx"),
        ("+avx,-avx", "both adds and removes avx"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(host(), spec)


# What `qemu-system-x86_64 -cpu help` lists in QEMU 7.2, but for VMX controls, SVM's leaf, bits of
# MSRs and VIA's and SGX's own; then QEMU's aliases.
QEMU = """
    3dnow 3dnowext 3dnowprefetch abm acpi adx aes amd-no-ssb amd-ssbd amd-stibp amx-bf16 amx-int8
    amx-tile apic arat arch-capabilities arch-lbr avx avx-vnni avx2 avx512-4fmaps avx512-4vnniw
    avx512-bf16 avx512-fp16 avx512-vp2intersect avx512-vpopcntdq avx512bitalg avx512bw avx512cd
    avx512dq avx512er avx512f avx512ifma avx512pf avx512vbmi avx512vbmi2 avx512vl avx512vnni bmi1
    bmi2 bus-lock-detect cid cldemote clflush clflushopt clwb clzero cmov cmp-legacy core-capability
    cr8legacy cx16 cx8 dca de ds ds-cpl dtes64 erms est extapic f16c fma fma4 fpu fsgsbase fsrm fxsr
    fxsr-opt gfni hle ht hypervisor ia64 ibpb ibrs ibs intel-pt invpcid invtsc kvm-asyncpf
    kvm-asyncpf-int kvm-hint-dedicated kvm-mmu kvm-msi-ext-dest-id kvm-nopiodelay kvm-poll-control
    kvm-pv-eoi kvm-pv-ipi kvm-pv-sched-yield kvm-pv-tlb-flush kvm-pv-unhalt kvm-steal-time kvmclock
    kvmclock-stable-bit la57 lahf-lm lm lwp mca mce md-clear misalignsse mmx mmxext monitor movbe
    movdir64b movdiri mpx msr mtrr nodeid-msr nx osvw pae pat pbe pcid pclmulqdq pdcm pdpe1gb
    perfctr-core perfctr-nb pge pks pku pn pni popcnt pse pse36 rdpid rdrand rdseed rdtscp rtm sep
    serialize sgx sgxlc sha-ni skinit smap smep smx spec-ctrl ss ssbd sse sse2 sse4.1 sse4.2 sse4a
    ssse3 stibp svm syscall tbm tce tm tm2 topoext tsc tsc-adjust tsc-deadline tsx-ldtrk umip vaes
    virt-ssbd vme vmx vpclmulqdq waitpkg wbnoinvd wdt x2apic xfd xgetbv1 xop xsave xsavec xsaveerptr
    xsaveopt xsaves xtpr sse3 pclmuldq sse4-1 sse4-2 xd ffxsr i64 ds_cpl lahf_lm
"""


@pytest.mark.parametrize("name", QEMU.split())
def test_qemus_names(name: str) -> None:
    for sign, attribute in (("+", "added"), ("-", "removed")):
        (known,) = getattr(Specification.parse(f"host,{sign}{name}"), attribute)
        assert known in FEATURES
    table = CpuidTable([]).with_features([name])
    assert name in table
    assert table.features >= {known}
    assert table.with_features(remove=[name]).features == frozenset()


def test_other_names_name_something_and_hide_nothing() -> None:
    assert set(ALIASES.values()) <= FEATURES
    assert ALIASES.keys().isdisjoint(FEATURES)
    assert len(set(ALIASES.values())) == len(ALIASES)


def test_names_with_a_value() -> None:
    wanted = Specification.parse("host,tsc-deadline=on,x2apic=off")
    assert wanted == Specification.parse("host,+tsc_deadline_timer,-x2apic")
    assert Specification.parse("avx=on") == Specification.parse("baseline,+avx")
    for wrong in ("host,avx=yes", "host,=on", "+tsc-deadline,-tsc_deadline_timer"):
        with pytest.raises(ConfigError):
            Specification.parse(wrong)


def test_an_unknown_feature_is_an_error_not_false() -> None:
    with pytest.raises(ConfigError, match="no CPUID feature 'SSE2'"):
        _ = "SSE2" in HOST
    with pytest.raises(ConfigError, match="no CPUID feature 'nope'"):
        HOST.with_features(remove=["nope"])


def test_selecting_changes_nothing_in_its_input() -> None:
    entries = host()
    select(entries)
    with_topology(entries, apic_id=1, count=2)
    HOST.with_features(remove=["sse"])
    assert entries == host()
    assert CpuidTable(host()) == HOST


@given(names=st.sets(st.sampled_from(sorted(FEATURES)), max_size=12))
def test_removing_leaves_the_other_features_alone(names: set[str]) -> None:
    # Leaf 0xD, with XSAVEOPT and its like, goes with XSAVE.
    with_xsave = {name for name in FEATURES if reported(name)[0].leaf == 0xD}
    gone = names | (with_xsave if "xsave" in names else set())

    assert HOST.with_features(remove=names).features == HOST.features - gone


@given(entries=st.lists(st.tuples(*[st.integers(0, ONES)] * 4), min_size=20, max_size=20))
def test_the_baseline_of_any_host_is_within_the_baseline(
    entries: list[tuple[int, int, int, int]],
) -> None:
    leaves = sorted({(leaf, subleaf) for leaf, subleaf, _ in WORDS})
    offered = [CpuidEntry(*leaf, 0, *entry) for leaf, entry in zip(leaves, entries, strict=False)]
    table = CpuidTable(select(offered))

    assert table.features == CpuidTable(offered).features & BASELINE
    assert CpuidTable(select(table)) == table


def test_topology_of_a_single_vcpu_forgets_the_host_cpu_it_was_asked_on() -> None:
    table = CpuidTable(with_topology(select(host()), apic_id=0, count=1))
    one, cores, l3 = table.get(1), table.get(4, 0), table.get(4, 3)

    assert one is not None
    assert cores is not None
    assert l3 is not None
    assert (one.ebx, one.edx >> 28 & 1) == (0x0001_0800, 0)
    assert (cores.eax, l3.eax) == (0x121, 0x163)
    assert [entry for entry in table if entry.function == 0xB] == [
        CpuidEntry(0xB, 0, 1, 0, 1, 0x100, 0),
        CpuidEntry(0xB, 1, 1, 0, 1, 0x201, 0),
        CpuidEntry(0xB, 2, 1, 0, 0, 2, 0),
    ]


def test_topology_of_six_vcpus() -> None:
    table = CpuidTable(with_topology(host(), apic_id=5, count=6))
    one, l1, l3, sizes = (table.get(*key) for key in ((1, 0), (4, 0), (4, 3), (0x8000_0008, 0)))

    assert one is not None
    assert l1 is not None
    assert l3 is not None
    assert sizes is not None
    # 6 logical processors, APIC id 5, HTT.
    assert (one.ebx, one.edx >> 28 & 1) == (0x0506_0800, 1)
    # SDM 2A: core ids less one in 31:26, sharing less one in 25:14; eight ids for six cores.
    assert l1.eax >> 26 == l3.eax >> 26 == 7
    assert (l1.eax >> 14 & 0xFFF, l3.eax >> 14 & 0xFFF) == (0, 7)
    assert (l1.eax & 0x3FFF, l3.eax & 0x3FFF) == (0x121, 0x163)
    # APM 3 E.4.7: NC in 7:0 is the cores less one, ApicIdSize in 15:12.
    assert sizes.ecx == 3 << 12 | 5
    assert [entry[3:] for entry in table if entry.function == 0xB] == [
        (0, 1, 0x100, 5),
        (3, 6, 0x201, 5),
        (0, 0, 2, 5),
    ]


def test_topology_in_the_leaves_that_only_some_processors_have() -> None:
    """KVM hands out those of the CPU that it was asked on: its ids, and what it shares."""
    offered = [
        CpuidEntry(0x1F, 0, 1, 1, 2, 0x100, 77),
        CpuidEntry(0x1F, 1, 1, 5, 32, 0x201, 77),
        CpuidEntry(0x8000_001D, 0, 1, 0x4121 | 1 << 14, 7, 63, 0),
        CpuidEntry(0x8000_001D, 3, 1, 0x163 | 15 << 14, 7, 63, 0),
        CpuidEntry(0x8000_001D, 4, 1, 0, 0, 0, 0),
        CpuidEntry(0x8000_001E, 0, 0, 77, 0x126, 0x301, 0),
    ]
    table = CpuidTable(with_topology(offered, apic_id=2, count=3))

    assert [entry for entry in table if entry.function == 0x1F] == [
        CpuidEntry(0x1F, 0, 1, 0, 1, 0x100, 2),
        CpuidEntry(0x1F, 1, 1, 2, 3, 0x201, 2),
        CpuidEntry(0x1F, 2, 1, 0, 0, 2, 2),
    ]
    # APM 3 E.4.15: NumSharingCache less one in 25:14; the rest of the leaf is the cache's.
    caches = [entry.eax for entry in table if entry.function == 0x8000_001D]
    assert caches == [0x121, 0x163 | 2 << 14, 0]
    # APM 3 E.4.16: the APIC id; core 2 of one thread each; node 0 of one.
    assert table.get(0x8000_001E) == CpuidEntry(0x8000_001E, 0, 0, 2, 2, 0, 0)


def test_several_vcpus_are_hyper_threading_to_leaf_1_and_one_is_not() -> None:
    ht = 1 << 28
    for edx in (0, ht | 1):
        leaf = CpuidEntry(1, 0, 0, 0, 0, 0, edx)
        assert with_topology([leaf], apic_id=0, count=2)[0].edx == edx | ht
        assert with_topology([leaf], apic_id=0, count=1)[0].edx == edx & ~ht


def test_more_than_255_vcpus_fit_what_the_fields_can_hold() -> None:
    table = CpuidTable(with_topology(host(), apic_id=300, count=512))
    one, l1, core = table.get(1), table.get(4), table.get(0xB, 1)

    assert one is not None
    assert l1 is not None
    assert core is not None
    assert one.ebx == (300 & 0xFF) << 24 | 255 << 16 | 0x0800
    assert l1.eax >> 26 == 0x3F
    assert (core.eax, core.ebx, core.edx) == (9, 512, 300)


def test_a_table_reads_well() -> None:
    table = CpuidTable(
        [
            CpuidEntry(1, 0, 0, 0x806F8, 0x800, 1 << 13, 3),
            CpuidEntry(0, 0, 0, 1, *text("GenuntelineI")),
        ]
    )
    assert (
        str(table)
        == """\
GenuineIntel family 0x6 model 0x8f stepping 8
cx16 fpu vme
00000000.0 eax=00000001 ebx=756e6547 ecx=6c65746e edx=49656e69
00000001.0 eax=000806f8 ebx=00000800 ecx=00002000 edx=00000003"""
    )
    assert "hypervisor KVMKVMKVM" in str(HOST).splitlines()
    assert "Intel(R) Xeon(R) Processor" in str(HOST).splitlines()
