"""The system registers of a state, as KVM takes them."""

from __future__ import annotations

import itertools

from pykvm.kvm.uapi import kvm_sregs
from pykvm.vcpu.registers import CONTROL, SEGMENTS, TABLES, sregs_of, state_of
from pykvm.x86.state import CpuState, SegmentRegister, TableRegister


def test_each_field_has_its_place() -> None:
    numbers = itertools.count(1)
    state = CpuState()
    for name in CONTROL:
        setattr(state, name, next(numbers))
    for name in SEGMENTS:
        fields = {field: next(numbers) for field in SegmentRegister.__slots__}
        setattr(state, name, SegmentRegister(**fields))
    for name in TABLES:
        setattr(state, name, TableRegister(next(numbers), next(numbers)))
    packed = kvm_sregs.unpack(sregs_of(state))
    assert state_of(packed) == state
    assert packed.interrupt_bitmap == [0] * 4
