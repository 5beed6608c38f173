"""A prepared guest as one file: what ``cloop`` starts from."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from benchmarks.guest import RAM, STOP_PORT
from pykvm.vcpu.registers import CONTROL, GENERAL, SEGMENTS, TABLES

if TYPE_CHECKING:
    from pykvm import Machine
    from pykvm.x86.state import CpuState, SegmentRegister

MAGIC = b"pykvmimg"
PAGE = 4096
SEGMENT_FLAGS = ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")


def kvm_regs(state: CpuState) -> bytes:
    return pack("<18Q", *(getattr(state, name) for name in GENERAL))


def kvm_segment(segment: SegmentRegister) -> bytes:
    flags = (getattr(segment, name) for name in SEGMENT_FLAGS)
    return pack("<QIH9Bx", segment.base, segment.limit, segment.selector, *flags)


def kvm_sregs(state: CpuState) -> bytes:
    segments = b"".join(kvm_segment(getattr(state, name)) for name in SEGMENTS)
    tables = [getattr(state, name) for name in TABLES]
    dtables = b"".join(pack("<QH6x", table.base, table.limit) for table in tables)
    control = pack("<7Q", *(getattr(state, name) for name in CONTROL))
    no_interrupt = bytes(32)
    return segments + dtables + control + no_interrupt


def freeze(machine: Machine) -> bytes:
    """RAM (pages that are not all zero) and registers, as ``struct header`` in cloop.c has them."""
    state = machine.vcpus[0].state
    memory = machine.memory
    pages = [(address, memory.read(address, PAGE)) for address in range(0, RAM, PAGE)]
    used = [pack("<Q", address) + content for address, content in pages if any(content)]
    counts = pack("<QQQ", RAM, STOP_PORT, len(used))
    return b"".join([MAGIC, counts, kvm_regs(state), kvm_sregs(state), *used])
