"""Every feature that a guest is shown works: each MSR that it promises is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machine.storms import Access, Storm, What

from pykvm import ConfigError, Machine
from pykvm.quirks import features
from pykvm.quirks.features import MSRS, NEEDS_KERNEL_APIC, hidden
from pykvm.x86.cpuid import BASELINE, CpuidTable
from pykvm.x86.cpuid_features import FEATURES
from support.irqchips import IRQCHIPS

MODELS = ("baseline", "host")


def shown(machine: Machine) -> frozenset[str]:
    """What the guest's CPUID has."""
    return CpuidTable(machine.vcpus[0].kvm.get_cpuid2()).features


class Rig:
    """A host that refuses some MSRs."""

    def __init__(self, offered: set[str], refused: set[int], *, filtered: bool = True) -> None:
        self.offered = frozenset(offered)
        self.refused = refused
        self.filtered = filtered

    def close(self) -> None:
        pass

    def works(self, msr: features.Msr) -> bool:
        return msr.number not in self.refused

    def exits(self, msr: features.Msr) -> bool:
        return self.filtered


class TestLogic:
    def unusable(
        self, patch: pytest.MonkeyPatch, rig: Rig, irqchip: str, hypercalls: bool = True
    ) -> frozenset[str]:
        here: frozenset[str] = frozenset() if hypercalls else frozenset({"hypercall"})
        patch.setattr(features, "Rig", lambda irqchip: rig)
        patch.setattr(features, "found", lambda quirks: here)
        patch.setattr(features, "_known", {})
        return features.unusable(irqchip)

    def test_a_feature_with_one_refused_msr(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig({"mtrr", "kvm_steal_time"}, {0x2FF})
        assert self.unusable(monkeypatch, rig, "kernel") == {"mtrr"}

    def test_what_the_host_does_not_offer_is_not_tried(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not self.unusable(monkeypatch, Rig({"fpu"}, {0x2FF, 0x4B564D03}), "kernel")

    def test_page_faults_without_their_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig({"kvm_asyncpf", "kvm_asyncpf_int"}, {0x4B564D06})
        assert {"kvm_asyncpf", "kvm_asyncpf_int"} <= self.unusable(monkeypatch, rig, "user")

    def test_what_needs_a_local_apic_in_the_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig(set(NEEDS_KERNEL_APIC), set())
        assert self.unusable(monkeypatch, rig, "user") == NEEDS_KERNEL_APIC
        assert not self.unusable(monkeypatch, rig, "split")

    def test_hypercalls_that_are_not_answered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig({"kvm_pv_ipi", "kvm_pv_eoi"}, set())
        refused = self.unusable(monkeypatch, rig, "kernel", hypercalls=False)
        assert refused & rig.offered == {"kvm_pv_ipi"}

    def test_a_deadline_that_kvm_swallows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig(set(), set(), filtered=False)
        assert "tsc_deadline_timer" in self.unusable(monkeypatch, rig, "user")
        assert not self.unusable(monkeypatch, rig, "kernel")

    def test_models_that_show_nothing_doubtful_cost_no_vm(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(irqchip: str) -> Any:
            raise AssertionError("a VM was made")

        monkeypatch.setattr(features, "Rig", never)
        monkeypatch.setattr(features, "_known", {})
        assert hidden("user", "baseline,+cx16") is None
        assert hidden("user", "x86-64-v2,-x2apic") is None
        with pytest.raises(AssertionError):
            hidden("user", "+kvm_asyncpf")

    def test_names_are_those_of_cpuid(self) -> None:
        assert MSRS.keys() <= FEATURES
        assert FEATURES >= NEEDS_KERNEL_APIC
        assert not NEEDS_KERNEL_APIC & BASELINE


@pytest.mark.kvm
@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("model", MODELS)
def test_each_msr_that_cpuid_promises_is_there(guests: Path, irqchip: str, model: str) -> None:
    storm = Storm(guests, irqchip, cpu=model)
    with storm.machine as machine:
        promised = {name: MSRS[name] for name in sorted(MSRS.keys() & shown(machine))}
        assert promised
        tried = [(name, msr) for name, msrs in promised.items() for msr in msrs]
        answers = storm.ask(
            *(
                Access(What.RDMSR, msr.number)
                if msr.value is None
                else Access(What.WRMSR, msr.number, msr.value)
                for _, msr in tried
            )
        )
    faulted = [pair for pair, answer in zip(tried, answers, strict=True) if answer is None]
    assert faulted == []


@pytest.mark.kvm
@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_deadline_timer_is_offered_where_it_works(guests: Path, irqchip: str) -> None:
    """With a local APIC in software on every host that lets its MSR exit."""
    machine = Machine(guests / "lapic_timer.elf", cpu="host,-avx", irqchip=irqchip)
    with machine:
        offered = "tsc_deadline_timer" in shown(machine)
        assert machine.run(timeout=20).exit_code == 0
        assert ("TSC deadline" in machine.serial.text) == offered
    if offered:
        Machine(cpu="host,+tsc_deadline_timer", irqchip=irqchip).close()
    else:
        with pytest.raises(ConfigError, match="tsc_deadline_timer"):
            Machine(cpu="host,+tsc_deadline_timer", irqchip=irqchip)
