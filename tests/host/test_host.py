"""What a machine asks of the host, without asking it."""

from __future__ import annotations

import struct

import pytest

from pykvm import host
from pykvm.errors import ConfigError, HostError
from pykvm.kvm import Cap, uapi
from pykvm.x86.cpuid import MODELS, CpuidEntry, CpuidTable
from support.irqchips import IRQCHIPS


def test_what_is_required_has_the_kernels_numbers() -> None:
    assert {name: Cap[name].value for name in host.REQUIRED} == host.REQUIRED


class System:
    """A /dev/kvm that offers what it is told to."""

    def __init__(self, offered: dict[int, int], leaf_1_ecx: int = 0, kvm_features: int = 0) -> None:
        self.offered = offered
        self.features = leaf_1_ecx, kvm_features
        self.closed = False

    def supported_cpuid_packed(self) -> bytearray:
        ecx, kvm = self.features
        leaves: list[dict[str, int]] = [
            {"function": 0, "eax": 1},
            {"function": 1, "ecx": ecx},
            {"function": 0x4000_0001, "eax": kvm},
        ]
        return uapi.kvm_cpuid2.pack({"entries": leaves})

    def check_extension(self, number: int) -> int:
        return self.offered.get(number, 0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has not looked at its host yet."""
    monkeypatch.setattr(host.Host, "_checked", False)
    monkeypatch.setattr(host.Host, "_ring", None)
    monkeypatch.setattr(host.Host, "_max_vcpus", 0)
    return monkeypatch


ENOUGH = dict.fromkeys(host.REQUIRED.values(), 1)


def test_an_old_kernel_is_refused_by_what_it_lacks(unchecked: pytest.MonkeyPatch) -> None:
    system = System({**ENOUGH, host.REQUIRED["KVM_CAP_SYNC_REGS"]: 0})
    unchecked.setattr(host, "System", lambda **_: system)
    with pytest.raises(HostError, match="lacks KVM_CAP_SYNC_REGS") as caught:
        host.Host()
    assert "4.17" in caught.value.hint
    assert system.closed


@pytest.mark.parametrize(
    ("offered", "limit"),
    [
        ({uapi.KVM_CAP_MAX_VCPUS: 8}, 8),
        ({uapi.KVM_CAP_NR_VCPUS: 3}, 3),
        # api.rst 4.4: neither is offered by the oldest kernels, which allow four.
        ({}, 4),
    ],
)
def test_the_number_of_vcpus(
    unchecked: pytest.MonkeyPatch, offered: dict[int, int], limit: int
) -> None:
    unchecked.setattr(host, "System", lambda **_: System({**ENOUGH, **offered}))
    here = host.Host()
    here.check_vcpus(limit)
    for count in (0, -1, limit + 1):
        with pytest.raises(ConfigError, match=f"vcpus={count}: .* allows {limit}"):
            here.check_vcpus(count)


@pytest.mark.parametrize(
    ("offered", "ring"),
    [
        ({uapi.KVM_CAP_COALESCED_MMIO: 2, uapi.KVM_CAP_COALESCED_PIO: 1}, (2, 170)),
        ({uapi.KVM_CAP_COALESCED_MMIO: 2}, None),
        ({}, None),
    ],
)
def test_the_coalescing_ring(
    unchecked: pytest.MonkeyPatch, offered: dict[int, int], ring: tuple[int, int] | None
) -> None:
    unchecked.setattr(host, "System", lambda **_: System({**ENOUGH, **offered}))
    assert host.Host().coalescing_ring == ring


class TestCpuid:
    """Which features a guest is shown of those that a host offers."""

    DEADLINE, X2APIC = 1 << 24, 1 << 21

    def show(
        self,
        patch: pytest.MonkeyPatch,
        model: str,
        irqchip: str,
        *,
        capability: int = 0,
        ecx: int = X2APIC,
        kvm: int = 0,
        hidden: frozenset[str] | None = None,
    ) -> frozenset[str]:
        offered = {**ENOUGH, uapi.KVM_CAP_TSC_DEADLINE_TIMER: capability}
        patch.setattr(host, "System", lambda **_: System(offered, ecx, kvm))
        patch.setattr(host.Host, "_tables", {})
        packed = host.Host().cpuid(model, 0, 1, irqchip=irqchip, hidden=hidden)
        fields = struct.iter_unpack("<7I12x", packed[8:])
        return CpuidTable(CpuidEntry(*entry) for entry in fields).features

    @pytest.mark.parametrize("irqchip", [*IRQCHIPS, "none"])
    @pytest.mark.parametrize("model", ["baseline", "host", "x86-64-v1,+hypervisor"])
    def test_a_guest_knows_that_it_is_one(
        self, unchecked: pytest.MonkeyPatch, irqchip: str, model: str
    ) -> None:
        """Linux before 6.14 does not offer this bit, which all KVMs can give."""
        unchecked.setitem(MODELS, "x86-64-v1", frozenset())
        assert "hypervisor" in self.show(unchecked, model, irqchip)
        assert "hypervisor" not in self.show(unchecked, "host,-hypervisor", irqchip)

    @pytest.mark.parametrize("irqchip", ["kernel", "split"])
    @pytest.mark.parametrize("model", ["baseline", "host", "host,+tsc_deadline_timer"])
    def test_kvm_reports_its_deadline_timer_by_a_capability(
        self, unchecked: pytest.MonkeyPatch, irqchip: str, model: str
    ) -> None:
        """KVM_GET_SUPPORTED_CPUID leaves it out, api.rst 4.46."""
        hidden: frozenset[str] | None = None if model == "baseline" else frozenset()
        shown = self.show(unchecked, model, irqchip, capability=1, hidden=hidden)
        assert "tsc_deadline_timer" in shown

    def test_where_kvm_has_none_it_is_not_offered(self, unchecked: pytest.MonkeyPatch) -> None:
        assert "tsc_deadline_timer" not in self.show(unchecked, "host", "kernel")
        with pytest.raises(ConfigError, match="does not offer guests tsc_deadline_timer"):
            self.show(unchecked, "host,+tsc_deadline_timer", "kernel", hidden=frozenset())

    def test_a_local_apic_in_software_has_it_where_that_was_tried(
        self, unchecked: pytest.MonkeyPatch
    ) -> None:
        model = "baseline,+tsc_deadline_timer"
        assert "tsc_deadline_timer" in self.show(unchecked, model, "user", hidden=frozenset())
        assert "tsc_deadline_timer" not in self.show(unchecked, "baseline", "user")
        assert "tsc_deadline_timer" in self.show(unchecked, "baseline", "user", ecx=self.DEADLINE)

    def test_what_is_offered_and_not_given_is_left_out(self, unchecked: pytest.MonkeyPatch) -> None:
        hidden = frozenset({"kvm_asyncpf_int"})
        assert "kvm_asyncpf_int" in self.show(unchecked, "host", "kernel", kvm=1 << 14)
        shown = self.show(unchecked, "host", "user", kvm=1 << 14, hidden=hidden)
        assert "kvm_asyncpf_int" not in shown

    def test_asked_for_by_name_it_is_an_error(self, unchecked: pytest.MonkeyPatch) -> None:
        hidden = frozenset({"kvm_asyncpf_int"})
        with pytest.raises(
            ConfigError, match="kvm_asyncpf_int to a machine with irqchip='user'"
        ) as e:
            self.show(unchecked, "+kvm_asyncpf_int", "user", kvm=1 << 14, hidden=hidden)
        assert "irqchip='kernel'" in e.value.hint
