"""The feature bits of CPUID by name.

Names are those of Linux's /proc/cpuinfo; where it has none, QEMU's.  `canonical` takes either.
Sources: SDM 2A CPUID, APM 3 appendix E, and the kernel's Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from functools import cache

from pykvm.values.frozen import NamedTuple

__all__ = ["ALIASES", "FEATURES", "REGISTERS", "WORDS", "Bit", "canonical", "reported"]

REGISTERS = ("eax", "ebx", "ecx", "edx")

# (leaf, subleaf, register): the names of its bits from 0 up, "-" for a bit without one.
_TABLE = {
    (0x1, 0, "edx"): """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts
        acpi mmx fxsr sse sse2 ss ht tm ia64 pbe
    """,
    (0x1, 0, "ecx"): """
        pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm -
        pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c
        rdrand hypervisor
    """,
    (0x6, 0, "eax"): """
        dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - hdc - - -
        - - hfi
    """,
    (0x7, 0, "ebx"): """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm
        zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb
        intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl
    """,
    (0x7, 0, "ecx"): """
        prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq
        avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker
        bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks
    """,
    (0x7, 0, "edx"): """
        - sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl
        md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig
        arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d
        arch_capabilities core_capabilities spec_ctrl_ssbd
    """,
    (0x7, 1, "eax"): """
        - - - - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns -
        amx_fp16 hreset avx_ifma - - lam
    """,
    (0x7, 1, "edx"): """
        - - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti -
        - - cet_sss avx10
    """,
    (0x7, 2, "edx"): "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x4000_0001, 0, "eax"): """
        kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi
        kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control
        kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range
        kvm_migration_control - - - - - - kvmclock_stable
    """,
    (0x4000_0001, 0, "edx"): "kvm_hint_dedicated",
    # On AMD, bits 0 to 24 repeat leaf 1 where they have the same name.
    (0x8000_0001, 0, "edx"): """
        fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - - nx -
        mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow
    """,
    (0x8000_0001, 0, "ecx"): """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop
        skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc
        perfctr_llc mwaitx
    """,
    (0x8000_0007, 0, "edx"): "- - - - - - - - invtsc",
    (0x8000_0008, 0, "ebx"): """
        clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp -
        amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no
    """,
    (0x8000_0021, 0, "eax"): """
        no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs - - - - - - - - - - -
        prefetchi
    """,
}

# Other names, each with ours: QEMU's, where they differ by more than "-" and "." for "_", and those
# of the manuals.
_OTHER_NAMES = """
    ds:dts sse3:pni pclmuldq:pclmulqdq tsc_deadline:tsc_deadline_timer xd:nx ffxsr:fxsr_opt i64:lm
    lzcnt:abm cr8legacy:cr8_legacy avx512vbmi2:avx512_vbmi2 avx512vnni:avx512_vnni
    avx512bitalg:avx512_bitalg sgxlc:sgx_lc tsx_ldtrk:tsxldtrk stibp:intel_stibp
    core_capability:core_capabilities ssbd:spec_ctrl_ssbd ibpb:amd_ibpb ibrs:amd_ibrs
    stibp_always_on:amd_stibp_always_on amd_no_ssb:amd_ssb_no kvmclock_stable_bit:kvmclock_stable
    lfence_always_serializing:lfence_rdtsc auto_ibrs:autoibrs
"""
_PAIRS = (pair.partition(":") for pair in _OTHER_NAMES.split())
ALIASES = {other: name for other, _, name in _PAIRS}


class Bit(NamedTuple):
    """Where a feature is reported: bit `bit` of `register` in a leaf and subleaf."""

    leaf: int
    subleaf: int
    register: str
    bit: int

    def __str__(self) -> str:
        return f"CPUID.{self.leaf:X}H.{self.subleaf}:{self.register.upper()}[{self.bit}]"


# The same with the names as tuples, the position of the register as a number.
WORDS = {
    (leaf, subleaf, REGISTERS.index(register)): tuple(text.split())
    for (leaf, subleaf, register), text in _TABLE.items()
}

FEATURES = frozenset().union(*WORDS.values()) - {"-"}
"""The names of all features."""


@cache
def reported(name: str) -> tuple[Bit, ...]:
    """The places that report a feature, one of FEATURES, the one that counts first."""
    return tuple(
        Bit(leaf, subleaf, REGISTERS[register], names.index(name))
        for (leaf, subleaf, register), names in WORDS.items()
        if name in names
    )


def canonical(name: str) -> str:
    """The name in FEATURES for one of QEMU's, or `name` in that spelling where there is none.

    >>> canonical("tsc-deadline"), canonical("sse4.1"), canonical("sse3"), canonical("no-such")
    ('tsc_deadline_timer', 'sse4_1', 'pni', 'no_such')
    """
    plain = name.replace("-", "_").replace(".", "_")
    return plain if plain in FEATURES else ALIASES.get(plain, plain)
