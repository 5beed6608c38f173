"""The same instruction on the processor and by pykvm leaves the same registers, flags and memory.

The processor runs it in ring 3 of 64-bit code, which KVM leaves to it on every host.  pykvm runs it
there too, and in ring 0 wherever KVM refuses it.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulate.cases import ALL, NOT_IN_RING_0, Case, Operands, comparable, identity, operands
from emulate.rig import Rig
from support.host import require_host

pytestmark = pytest.mark.kvm


def test_the_table_is_read_whole() -> None:
    assert len(ALL) > 240
    assert all(case.code for case in ALL)


def compare(rig: Rig, case: Case, given: Operands) -> None:
    options = given._asdict()
    native = comparable(rig.run(case.code, 3, **options), case)
    before = rig.completed
    ours = comparable(rig.run(case.code, 3, forced=True, **options), case)
    assert rig.completed == before + 1
    assert ours == native, f"{case.name}: forced, in ring 3"
    if case.group in NOT_IN_RING_0:
        return
    inner = comparable(rig.run(case.code, 0, **options), case)
    assert inner == native, f"{case.name}: in ring 0"


@pytest.mark.parametrize("case", ALL, ids=identity)
def test_same_as_the_processor(rig: Rig, case: Case) -> None:
    require_host(f"processor-has-{case.group}")
    for seed in range(4):
        compare(rig, case, operands(rig, seed, group=case.group))


@given(st.data())
@settings(max_examples=60)
def test_same_with_any_operands(rig: Rig, data: st.DataObject) -> None:
    """Integer instructions, with registers and vectors of any contents."""
    exact = [case for case in ALL if case.group in ("bmi", "adx", "movbe", "avx")]
    case = data.draw(st.sampled_from(exact))
    require_host(f"processor-has-{case.group}")
    given = operands(rig, data.draw(st.integers(0, 1000)), group=case.group)
    number = st.one_of(
        st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1)
    )
    registers = {name: data.draw(number) for name in ("rax", "rbx", "rcx", "rdx")}
    compare(rig, case, given._replace(registers=given.registers | registers))
