"""Features that a host's KVM offers in CPUID, and does not give to a machine with such an irqchip.

A guest takes CPUID at its word: it uses the MSRs that a feature brings, and dies of #GP.  So each
MSR is tried by a guest, in a VM with the interrupt controllers of that machine, once in a process
and only where a machine shows more than the baseline.  What works by hypercall has no MSR; there
one is tried, too.

Source: Documentation/virt/kvm/x86/cpuid.rst, msr.rst and hypercalls.rst; SDM 4, table 2-2.
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from pykvm.errors import PykvmError
from pykvm.exits import IoOut, WrMsr
from pykvm.host import Host
from pykvm.kvm.uapi import KVM_CAP_SPLIT_IRQCHIP
from pykvm.memory import GuestMemory
from pykvm.quirks import found, hypercall
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.vcpu import CPU
from pykvm.vcpu.msr_exits import MsrExits
from pykvm.x86.cpuid import CpuidTable, Specification
from pykvm.x86.entry import real_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MSRS", "NEEDS_KERNEL_APIC", "hidden", "unusable"]


class Msr(NamedTuple):
    """An MSR that a feature promises: reading it is tried, or writing `value`."""

    number: int
    value: int | None = None


_PAGE = 0x2000
_ENABLED = _PAGE | 1
# KVM_ASYNC_PF_DELIVERY_AS_INT
_BY_INTERRUPT = 1 << 3

MSRS: Mapping[str, tuple[Msr, ...]] = {
    "kvmclock": (Msr(0x11, _PAGE), Msr(0x12, _ENABLED)),
    "kvmclock2": (Msr(0x4B564D00, _PAGE), Msr(0x4B564D01, _ENABLED)),
    "kvm_asyncpf": (Msr(0x4B564D02, _ENABLED | _BY_INTERRUPT),),
    "kvm_asyncpf_vmexit": (Msr(0x4B564D02, _ENABLED | _BY_INTERRUPT),),
    "kvm_steal_time": (Msr(0x4B564D03, _ENABLED),),
    "kvm_pv_tlb_flush": (Msr(0x4B564D03, _ENABLED),),
    "kvm_pv_eoi": (Msr(0x4B564D04, _ENABLED),),
    "kvm_poll_control": (Msr(0x4B564D05, 0), Msr(0x4B564D05, 1)),
    "kvm_asyncpf_int": (Msr(0x4B564D06, 0xF3), Msr(0x4B564D07, 1)),
    "kvm_migration_control": (Msr(0x4B564D08, 1),),
    "tsc_adjust": (Msr(0x3B),),
    "mtrr": (Msr(0xFE), Msr(0x200), Msr(0x250), Msr(0x2FF)),
    "pat": (Msr(0x277),),
    "mca": (Msr(0x179), Msr(0x17A)),
    "sep": (Msr(0x174), Msr(0x175), Msr(0x176)),
    "syscall": (Msr(0xC0000081), Msr(0xC0000082), Msr(0xC0000084)),
    "rdtscp": (Msr(0xC0000103),),
    "rdpid": (Msr(0xC0000103),),
    "pdcm": (Msr(0x345),),
    "spec_ctrl": (Msr(0x48),),
    "intel_stibp": (Msr(0x48),),
    "spec_ctrl_ssbd": (Msr(0x48),),
    "amd_ibrs": (Msr(0x48),),
    "amd_stibp": (Msr(0x48),),
    "amd_ssbd": (Msr(0x48),),
    "amd_psfd": (Msr(0x48),),
    "amd_ibpb": (Msr(0x49, 1),),
    "flush_l1d": (Msr(0x10B, 1),),
    "virt_ssbd": (Msr(0xC001011F),),
    "arch_capabilities": (Msr(0x10A),),
    "core_capabilities": (Msr(0xCF),),
    "xsaves": (Msr(0xDA0),),
    "osvw": (Msr(0xC0010140), Msr(0xC0010141)),
    "perfctr_core": (Msr(0xC0010200), Msr(0xC0010201)),
}
"""The MSRs that a feature brings."""

NEEDS_KERNEL_APIC = frozenset({"kvm_pv_eoi", "kvm_pv_unhalt", "kvm_pv_ipi", "kvm_pv_sched_yield"})
"""What KVM does by its own local APICs, and without a word not at all where it has none."""

_BY_HYPERCALL = frozenset({"kvm_pv_unhalt", "kvm_pv_ipi", "kvm_pv_sched_yield"})
_BY_HYPERCALL |= {"kvm_hc_map_gpa_range"}
TSC_DEADLINE = "tsc_deadline_timer"
_IA32_TSC_DEADLINE = 0x6E0

_PINS = 24

# RDMSR and WRMSR, each followed by OUT 0x80, AL; #GP leads to OUT 0x81, AL.
_CODE = bytes.fromhex("0F32 E680 0F30 E680 E681")
_READ, _WRITE, _FAULT, _DONE = 0x1000, 0x1004, 0x1008, 0x80
_GP = 13
_PATIENCE = 2.0

_known: dict[str, frozenset[str]] = {}


def hidden(irqchip: str, model: str) -> frozenset[str] | None:
    """The features that a machine with this irqchip cannot have; None if the CPU model has none.

    The models but "host" are the baseline and features of the processor: nothing is tried for
    them unless something else is added.  Raises ConfigError for a wrong model.
    """
    wanted = Specification.parse(model)
    if wanted.model != "host" and not wanted.added & _DOUBTFUL:
        return None
    return unusable(irqchip)


def unusable(irqchip: str) -> frozenset[str]:
    """The features that this host's KVM offers and does not give with this irqchip.

    Tried at most once in a process.  Raises HostError and KVMError where there is no VM to be had.
    """
    if irqchip not in _known:
        _known[irqchip] = frozenset(_unusable(irqchip))
    return _known[irqchip]


def _unusable(irqchip: str) -> set[str]:
    with closing(Rig(irqchip)) as rig:
        offered = rig.offered
        refused = {
            name for name, msrs in MSRS.items() if name in offered and not all(map(rig.works, msrs))
        }
        if irqchip == "user" and not rig.exits(Msr(_IA32_TSC_DEADLINE, 0)):
            refused.add(TSC_DEADLINE)
    # Without the interrupt at their end, asynchronous page faults are no use.
    if "kvm_asyncpf_int" in refused:
        refused |= {"kvm_asyncpf", "kvm_asyncpf_vmexit"}
    if irqchip in ("user", "none"):
        refused |= NEEDS_KERNEL_APIC
    if offered & _BY_HYPERCALL - refused and found([hypercall.QUIRK]):
        refused |= _BY_HYPERCALL
    return refused


_DOUBTFUL = NEEDS_KERNEL_APIC | _BY_HYPERCALL | MSRS.keys() | {TSC_DEADLINE}


class Rig:
    """A VM with such an irqchip, and all features that the host offers, in which MSRs are tried."""

    def __init__(self, irqchip: str) -> None:
        with ExitStack() as stack:
            host = Host()
            stack.callback(host.close)
            vm = host.create_vm()
            stack.callback(vm.close)
            if irqchip == "kernel":
                vm.create_irqchip()
            elif irqchip == "split":
                vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, _PINS)
            memory = GuestMemory()
            stack.callback(memory.close)
            memory.add_ram(0, 1 << 16)
            memory.attach(vm)
            vcpu = vm.create_vcpu(0)
            entries = host.offered(irqchip)
            self.offered = CpuidTable(entries).features
            vcpu.set_cpuid2([entry._asdict() for entry in entries])
            self._vm = vm
            self._cpu = CPU(vcpu, memory)
            stack.callback(self._cpu.close)
            memory.write(_READ, _CODE)
            memory.write_u32(4 * _GP, _FAULT)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()

    def works(self, msr: Msr) -> bool:
        """Whether a guest may read it, or write the value."""
        exit = self._try(msr)
        return isinstance(exit, IoOut) and exit.port == _DONE

    def exits(self, msr: Msr) -> bool:
        """Whether a write that is filtered comes to the VMM: some KVMs swallow it before."""
        MsrExits(self._vm).ask("probe", writes=[msr.number])
        return isinstance(self._try(msr), WrMsr)

    def _try(self, msr: Msr) -> object:
        state = real_mode(ip=_READ if msr.value is None else _WRITE)
        state.rcx = msr.number
        state.rax = msr.value or 0
        self._cpu.state = state
        exits = self._cpu.raw_exits(timeout=_PATIENCE)
        try:
            return next(exits)
        except (PykvmError, TimeoutError):
            return None
        finally:
            exits.close()
