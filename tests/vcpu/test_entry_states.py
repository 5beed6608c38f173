"""What is wrong with a state, beside the verdict of KVM and of the processor."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import KVMError, Machine
from pykvm.exits import FailEntry
from pykvm.x86.cpuid import CpuidTable
from pykvm.x86.state import CpuState
from support.entry_states import OTHERS, REFUSED, SOUND, Broken

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(memory="1M") as machine:
        yield machine


@pytest.mark.parametrize("broken", REFUSED, ids=lambda broken: broken.problem)
def test_kvm_refuses_it_and_the_hint_says_why(machine: Machine, broken: Broken) -> None:
    with pytest.raises(KVMError) as caught:
        machine.vcpus[0].state = broken.state()
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint.startswith(broken.problem)
    machine.vcpus[0].state = broken.start


def test_a_register_alone(machine: Machine) -> None:
    regs = machine.vcpus[0].regs
    machine.vcpus[0].state = SOUND["protected"]
    with pytest.raises(KVMError, match="EINVAL.*\nCR0.NW without CR0.CD"):
        regs.cr0 |= 1 << 29
    with pytest.raises(KVMError, match="EINVAL.*\nCR4 has reserved bit 30 set"):
        regs.cr4 |= 1 << 30
    assert machine.vcpus[0].state == SOUND["protected"]


@pytest.mark.parametrize("broken", OTHERS, ids=lambda broken: broken.problem)
def test_an_entry_that_fails_is_explained(broken: Broken) -> None:
    """Some hosts run it; one that does not names the register.

    KVM may have put a part of it right, or keep "not present" as "unusable".
    """
    with Machine(memory="1M") as machine:
        cpu = machine.vcpus[0]
        try:
            cpu.state = broken.state()
        except KVMError as error:
            assert error.errno == errno.EINVAL
            assert broken.problem in error.hint
            return
        result = machine.run(timeout=0.02)
        if isinstance(result.exit, FailEntry):
            assert result.error is not None
            assert re.split(r"\W", broken.problem)[0] in result.error.hint


@pytest.mark.parametrize("state", SOUND.values(), ids=SOUND)
def test_a_state_without_problems_is_entered(state: CpuState) -> None:
    with Machine(memory="1M") as machine:
        machine.vcpus[0].state = state
        result = machine.run(timeout=0.02)
        assert not isinstance(result.exit, FailEntry)


BITS = st.sets(st.integers(0, 63), max_size=2).map(lambda bits: sum(1 << bit for bit in bits))


@given(
    state=st.sampled_from(list(SOUND.values())),
    cr0=BITS,
    cr3=BITS,
    cr4=BITS,
    efer=BITS,
    apic_base=BITS,
    cs_l=st.integers(0, 1),
)
def test_what_kvm_refuses_has_a_problem(
    machine: Machine,
    state: CpuState,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    apic_base: int,
    cs_l: int,
) -> None:
    cpu = machine.vcpus[0]
    cpuid = CpuidTable(cpu.kvm.get_cpuid2())
    state = state.copy()
    state.cr0 ^= cr0
    state.cr3 ^= cr3
    state.cr4 ^= cr4
    state.efer ^= efer
    state.apic_base ^= apic_base
    state.cs.l ^= cs_l
    try:
        cpu.state = state
    except KVMError as error:
        assert error.errno == errno.EINVAL
        assert state.problems(cpuid)
        assert set(error.hint.split("; ")) <= set(state.problems(cpuid))
