"""The baseline promises nothing that this host's KVM then refuses to execute in ring 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from pykvm.exits import InternalError
from pykvm.host import Host
from pykvm.quirks.probe_vm import SCRATCH, ProbeVM
from pykvm.x86.cpuid import BASELINE, CpuidTable

# An instruction that each feature brings, RSI leading to memory.  FPU, SSE and their like are not
# here: no 64-bit processor is without them, and kernels save their state before they use them.
INSTRUCTIONS = {
    "cmov": "0F 44 C1",  # cmovz eax, ecx
    "cx16": "48 0F C7 0E",  # cmpxchg16b [rsi]
    "cx8": "0F C7 0E",  # cmpxchg8b [rsi]
    "clflush": "0F AE 3E",  # clflush [rsi]
    "fxsr": "0F AE 06",  # fxsave [rsi]
    "lahf_lm": "9F",  # lahf
    "msr": "B9 80 00 00 C0 0F 32",  # mov ecx, EFER; rdmsr
    "pge": "0F 20 E0 0C 80 0F 22 E0",  # mov rax, cr4; or al, PGE; mov cr4, rax
    "pni": "F2 0F F0 06",  # lddqu xmm0, [rsi]
    "popcnt": "F3 0F B8 C1",  # popcnt eax, ecx
    "sse4_1": "66 0F 38 17 C0",  # ptest xmm0, xmm0
    "sse4_2": "F2 0F 38 F0 C1",  # crc32 eax, cl
    "ssse3": "66 0F 38 00 C0",  # pshufb xmm0, xmm0
    "tsc": "0F 31",  # rdtsc
}


@pytest.fixture(scope="module")
def vm(kvm: None) -> Iterator[ProbeVM]:
    with closing(ProbeVM()) as vm:
        yield vm


@pytest.fixture(scope="module")
def offered(kvm: None) -> CpuidTable:
    with closing(Host()) as host:
        return CpuidTable(host.system.supported_cpuid())


@pytest.mark.kvm
@pytest.mark.parametrize("feature", sorted(INSTRUCTIONS.keys() & BASELINE))
def test_what_the_baseline_shows_is_executed(
    vm: ProbeVM, offered: CpuidTable, feature: str
) -> None:
    """One that the host does not offer is not in the guest's table, and nothing is promised."""
    stop = vm.run(bytes.fromhex(INSTRUCTIONS[feature]), 0, {"rsi": SCRATCH})
    refused = isinstance(stop.exit, InternalError)
    assert not (refused and feature in offered)
