"""What a machine asks of the host, without asking it."""

from __future__ import annotations

import pytest

from pykvm import host
from pykvm.errors import ConfigError, HostError
from pykvm.kvm import Cap


def test_the_capabilities_have_the_kernels_numbers() -> None:
    named = {name: number for name, number in vars(host).items() if name.startswith("KVM_CAP_")}
    assert len(named) == 4
    for name, number in {**named, **host.REQUIRED}.items():
        assert Cap[name].value == number


class System:
    """A /dev/kvm that offers what it is told to."""

    def __init__(self, offered: dict[int, int]) -> None:
        self.offered = offered
        self.closed = False

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
    unchecked.setattr(host, "System", lambda: system)
    with pytest.raises(HostError, match="lacks KVM_CAP_SYNC_REGS") as caught:
        host.Host()
    assert "4.17" in caught.value.hint
    assert system.closed


@pytest.mark.parametrize(
    ("offered", "limit"),
    [
        ({host.KVM_CAP_MAX_VCPUS: 8}, 8),
        ({host.KVM_CAP_NR_VCPUS: 3}, 3),
        # api.rst 4.4: neither is offered by the oldest kernels, which allow four.
        ({}, 4),
    ],
)
def test_the_number_of_vcpus(
    unchecked: pytest.MonkeyPatch, offered: dict[int, int], limit: int
) -> None:
    unchecked.setattr(host, "System", lambda: System({**ENOUGH, **offered}))
    here = host.Host()
    here.check_vcpus(limit)
    for count in (0, -1, limit + 1):
        with pytest.raises(ConfigError, match=f"vcpus={count}: .* allows {limit}"):
            here.check_vcpus(count)


@pytest.mark.parametrize(
    ("offered", "ring"),
    [
        ({host.KVM_CAP_COALESCED_MMIO: 2, host.KVM_CAP_COALESCED_PIO: 1}, (2, 170)),
        ({host.KVM_CAP_COALESCED_MMIO: 2}, None),
        ({}, None),
    ],
)
def test_the_coalescing_ring(
    unchecked: pytest.MonkeyPatch, offered: dict[int, int], ring: tuple[int, int] | None
) -> None:
    unchecked.setattr(host, "System", lambda: System({**ENOUGH, **offered}))
    assert host.Host().coalescing_ring == ring
