"""IA32_APIC_BASE by the manual, with each irqchip: what may be written, and what is #GP.

SDM 3A 11.4.4, 11.12.1 and table 11-5, "x2APIC operating mode transitions"; older editions have
them in chapter 10.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from machine.storms import APIC_BASE, Access, Storm, What

from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

ADDRESS = 0xFEE00000
BSP, EXTD, EN = 0x100, 0x400, 0x800
DISABLED, XAPIC, INVALID, X2APIC = 0, EN, EXTD, EN | EXTD
MODES = {"disabled": DISABLED, "xapic": XAPIC, "invalid": INVALID, "x2apic": X2APIC}

# Table 11-5: what may follow a mode.  Nothing leads into the invalid one, nor from x2APIC mode back
# to xAPIC mode, nor from a disabled APIC straight to x2APIC mode.
ALLOWED = {
    (DISABLED, DISABLED),
    (DISABLED, XAPIC),
    (XAPIC, DISABLED),
    (XAPIC, XAPIC),
    (XAPIC, X2APIC),
    (X2APIC, X2APIC),
    (X2APIC, DISABLED),
}


def write(mode: int, *, bits: int = 0) -> Access:
    return Access(What.WRMSR, APIC_BASE, ADDRESS | BSP | mode | bits)


READ = Access(What.RDMSR, APIC_BASE)
# From any mode to any other, by legal steps.
WAYS = {DISABLED: [DISABLED], XAPIC: [DISABLED, XAPIC], X2APIC: [DISABLED, XAPIC, X2APIC]}


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_every_transition_of_the_table(guests: Path, irqchip: str) -> None:
    storm = Storm(guests, irqchip)
    seen = {}
    with storm.machine:
        for before, after in product((DISABLED, XAPIC, X2APIC), MODES.values()):
            way = [write(step) for step in WAYS[before]]
            *_, reached, result, found = storm.ask(*way, READ, write(after), READ)
            assert reached == ADDRESS | BSP | before
            allowed = result is not None
            seen[before, after] = allowed
            assert found == ADDRESS | BSP | (after if allowed else before)
    assert {pair for pair, allowed in seen.items() if allowed} == ALLOWED


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("offered", [True, False], ids=["x2apic", "no x2apic"])
def test_reserved_bits(guests: Path, irqchip: str, offered: bool) -> None:
    storm = Storm(guests, irqchip, cpu="baseline" if offered else "baseline,-x2apic")
    bits = [*range(8), 9, 10, 63]
    with storm.machine:
        answers = storm.ask(*(write(EN, bits=1 << bit) for bit in bits), READ)
    allowed = {bit for bit, answer in zip(bits, answers, strict=False) if answer is not None}
    assert allowed == ({10} if offered else set())
    assert answers[-1] == ADDRESS | BSP | EN | (EXTD if offered else 0)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_timer_that_is_hidden_is_not_there(guests: Path, irqchip: str) -> None:
    """CPUID.1:ECX[24] says whether there is IA32_TSC_DEADLINE, and its mode in the LVT."""
    storm = Storm(guests, irqchip, cpu="baseline,-tsc_deadline_timer")
    lvt, enable = ADDRESS + 0x320, Access(What.STORE, ADDRESS + 0xF0, 0x1FF)
    with storm.machine:
        *_, mode = storm.ask(
            enable, Access(What.STORE, lvt, 1 << 18 | 0x20), Access(What.LOAD, lvt)
        )
        assert mode is not None
        assert not mode & 1 << 18
        if irqchip == "user":  # KVM's own has the MSR all the same
            assert storm.ask(Access(What.WRMSR, 0x6E0, 0)) == [None]
