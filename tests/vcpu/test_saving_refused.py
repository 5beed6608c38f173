"""States that a vCPU cannot be in: what is said, and that it still works afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import CPU, ConfigError
from pykvm.errors import KVMError
from pykvm.kvm import uapi
from support.host import HostCannot
from support.saving import changed, differing

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regs": b""}, "0 bytes of regs"),
        ({"sregs": bytes(1000)}, "1000 bytes of sregs"),
        ({"xsave": bytes(10)}, "10 bytes of xsave"),
        ({"events": bytes(65)}, "65 bytes of events"),
        ({"lapic": bytes(1024)}, "1024 bytes of lapic; this vCPU has 0"),
        ({"nested": bytes(128)}, "nested"),
        ({"msrs": ((0x12345, 0),)}, "MSR 0x12345"),
        ({"cr8": 16}, "CR8 = 0x10"),
    ],
)
def test_a_state_that_is_none(cpu: CPU, fields: dict[str, Any], message: str) -> None:
    state = cpu.save()
    with pytest.raises(ConfigError, match=message):
        cpu.load(changed(state, **fields))
    cpu.load(state)
    assert not differing(cpu.save(), state)


@pytest.mark.parametrize(
    "fields",
    [
        {"sregs": b"\xff" * uapi.kvm_sregs2.size},
        {"xcrs": b"\xff" * uapi.kvm_xcrs.size},
        {"debugregs": b"\xff" * uapi.kvm_debugregs.size},
        {"events": b"\xff" * uapi.kvm_vcpu_events.size},
        {"mp_state": 77},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_state_that_kvm_refuses(cpu: CPU, fields: dict[str, Any]) -> None:
    state = cpu.save()
    with pytest.raises(KVMError, match="EINVAL"):
        cpu.load(changed(state, **fields))
    cpu.load(state)
    assert not differing(cpu.save(), state)


def test_an_msr_that_cannot_be_set(cpu: CPU) -> None:
    """IA32_ARCH_CAPABILITIES or PAT: which of them takes any value depends on the host."""
    state, ones = cpu.save(), (1 << 64) - 1
    msrs = dict(state.msrs)
    strict = [
        index
        for index in (0x10A, 0x277)
        if index in msrs and not cpu.kvm.set_msrs({index: ones}, partial=True)
    ]
    if not strict:
        raise HostCannot("an-msr-refuses-values", "IA32_ARCH_CAPABILITIES and PAT take any")
    cpu.load(state)
    with pytest.raises(KVMError, match=f"MSR {strict[0]:#x} cannot be set to 0xffff"):
        cpu.load(changed(state, msrs=tuple((msrs | {strict[0]: ones}).items())))
    cpu.load(state)
    assert not differing(cpu.save(), state)
